//! One seed's world: everything that happens, in the order of virtual time.

mod calls;
mod peers;
mod trouble;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iota_protocol::work::{ObjectName, Seal};
use iota_protocol::{Digest, LeaseId};

use crate::chance::Chance;
use crate::fault::{Counts, Fault};
use crate::node::Node;
use crate::orchestrator::{Answer, Caller, Orchestrator, Request};
use crate::plan::{Behaviour, Plan, Rates};
use crate::store::Store;
use crate::waits::{Places, Told};
use crate::{Failed, Run, accounts};

/// Something that happens at its time.
#[derive(Debug)]
enum Happening {
    /// A process begins at this node.
    Starts { node: usize },
    /// A request reaches the orchestrator.
    Arrives { caller: Caller, request: Request },
    /// An answer reaches whoever asked, or is given up.
    Answered { caller: Caller, answer: Answer },
    /// A peer's timer.
    Timer { node: usize, life: u32 },
    /// The next step of work under a lease.
    Task {
        node: usize,
        life: u32,
        lease: LeaseId,
        step: Step,
    },
    /// The orchestrator's timer.
    Ticks,
    /// The orchestrator comes back.
    Recovers,
    /// Trouble of a kind that comes by itself.
    Trouble(Fault),
    /// All trouble is over.
    Calm,
    /// Somebody looks whether a stage has nobody, and joins if so.
    Helps,
}

#[derive(Debug)]
enum Step {
    Fetched { readable: bool },
    Operates,
    Stored { outputs: Vec<(ObjectName, Seal)> },
}

/// Kinds of trouble that come by themselves, at times of their own.
const BY_THEMSELVES: [Fault; 6] = [
    Fault::PeerCrashed,
    Fault::PeerLeft,
    Fault::OrchestratorCrashed,
    Fault::ClockLeapt,
    Fault::MachineSlept,
    Fault::Partition,
];

/// A run ends within so much virtual time per epoch once trouble stops, in milliseconds. All its phases together take at
/// most four times `phase_max`, two minutes; the rest is for joining, installing and training with what miners are left.
const CALM_EPOCH_MAX: u64 = 1_800_000;

/// How often somebody looks whether a run lacks miners once trouble stops, in milliseconds.
const HELP_EVERY: u64 = 120_000;

/// Once a run is over everybody who is there hears of it within so many milliseconds.
const FAREWELL_MAX: u64 = 120_000;

/// Happenings of one world, at most: beyond that it runs in circles.
const HAPPENINGS_MAX: u64 = 2_000_000;

pub(crate) struct World {
    seed: u64,
    chance: Chance,
    now: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    happened: u64,
    queued: u64,
    calls: u64,
    ticks_at: Option<u64>,
    helpers: u64,
    told: Told,
    orchestrator: Orchestrator,
    nodes: Vec<Node>,
    store: Store,
    plan: Plan,
    rates: Rates,
    faults: Counts,
    is_calm: bool,
    trace: Trace,
}

/// What happened, as a digest of all of it, and as text if somebody reads it.
struct Trace {
    digest: Digest,
    line: String,
    print: bool,
}

impl World {
    pub(crate) fn new(seed: u64, print: bool) -> Result<Self, Failed> {
        let mut chance = Chance::new(seed);
        let plan = Plan::of(&mut chance);
        // A clock that may leap back by hours, and still be after the beginning of time.
        let orchestrator = Orchestrator::new(plan.settings.clone(), 1_000_000_000);
        let orchestrator = orchestrator.map_err(|what| Failed { seed, at: 0, what })?;
        let mut world = Self {
            seed,
            chance,
            now: 0,
            queue: BTreeMap::new(),
            happened: 0,
            queued: 0,
            calls: 0,
            ticks_at: None,
            helpers: 0,
            told: Told::default(),
            orchestrator,
            nodes: Vec::new(),
            store: Store::default(),
            rates: plan.rates,
            faults: Counts::default(),
            is_calm: false,
            trace: Trace {
                digest: Digest::of(b""),
                line: String::new(),
                print,
            },
            plan,
        };
        world.trace.note(0, &world.plan);
        for plan in world.plan.nodes.clone() {
            if plan.clock_ahead > 0 {
                world.faults.count(Fault::PeerClockWrong);
            }
            if plan.starts_at > 2_000 {
                world.faults.count(Fault::PeerCameLate);
            }
            world.add(plan);
        }
        for fault in BY_THEMSELVES {
            world.schedule(fault);
        }
        world.at(world.plan.calm_at, Happening::Calm);
        Ok(world)
    }

    /// Lives until the run is over and everybody knows.
    pub(crate) fn run(mut self) -> Result<Run, Failed> {
        let outcome = self.live();
        outcome.map_err(|what| Failed {
            seed: self.seed,
            at: self.now,
            what,
        })?;
        let state = self.orchestrator.state();
        let (passed, failed) = state.audits_settled();
        Ok(Run {
            seed: self.seed,
            faults: self.faults,
            virtual_ms: self.now,
            commands: self.orchestrator.commands,
            events: self.orchestrator.journal().len() as u64,
            banned: state.cheaters().count() as u64,
            audits: passed + failed,
            ahead: self.orchestrator.replays_of_work_ahead(),
            samples: state.sample_counts(),
            places: Places::of(self.orchestrator.journal()),
            trace: self.trace.digest,
        })
    }

    fn live(&mut self) -> Result<(), String> {
        let epochs = self.plan.settings.epochs;
        let end = self.plan.calm_at + epochs * CALM_EPOCH_MAX;
        let mut farewell = None;
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            self.now = at;
            self.happened += 1;
            let is_over = self.orchestrator.state().is_over() && self.orchestrator.is_up;
            if is_over && farewell.is_none() {
                farewell = Some(at + FAREWELL_MAX);
                self.become_calm();
            }
            if is_over && self.nodes.iter().all(|node| node.peer.is_none()) {
                break;
            }
            if farewell.is_some_and(|farewell| at > farewell) {
                return Err("somebody never hears that the run is over".into());
            }
            if farewell.is_none() && (at > end || self.happened > HAPPENINGS_MAX) {
                let summary = self
                    .orchestrator
                    .state()
                    .summary(self.orchestrator.state().clock());
                return Err(format!("the run does not come to its end: {summary:?}"));
            }
            self.trace.note(at, &happening);
            self.happen(happening)?;
        }
        if !self.orchestrator.state().is_over() {
            return Err("nothing happens any more, and the run is not over".into());
        }
        self.honest_peers_are_not_banned()?;
        accounts::audit(self.orchestrator.journal(), self.orchestrator.state())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::Starts { node } => {
                // Whoever comes back when everything is over finds nobody.
                if self.nodes[node].peer.is_none() && !self.orchestrator.state().is_over() {
                    let seed = self.chance.next();
                    self.nodes[node].start(seed);
                    self.drain(node);
                }
                Ok(())
            }
            Happening::Arrives { caller, request } => self.arrives(caller, &request),
            Happening::Answered { caller, answer } => {
                let node = &mut self.nodes[caller.node];
                if node.life == caller.life
                    && let Some(asked) = node.asked.remove(&caller.call)
                {
                    if node.open_poll == Some(caller.call) {
                        node.open_poll = None;
                    }
                    if let Answer::Waits(Some(place)) = &answer {
                        self.told.note(node.plan.peer, *place)?;
                    }
                    node.answered(asked, answer, self.now);
                    self.drain(caller.node);
                }
                Ok(())
            }
            Happening::Timer { node, life } => {
                let place = &mut self.nodes[node];
                if place.life == life && place.timer_at.is_some_and(|at| at <= self.now) {
                    place.timer_at = None;
                    let clock = place.clock(self.now);
                    if let Some(peer) = &mut place.peer {
                        peer.handle_timeout(clock);
                    }
                    self.drain(node);
                }
                Ok(())
            }
            Happening::Task {
                node,
                life,
                lease,
                step,
            } => {
                if self.nodes[node].life == life && self.nodes[node].peer.is_some() {
                    self.task(node, lease, step);
                    self.drain(node);
                }
                Ok(())
            }
            Happening::Ticks => {
                self.ticks_at = None;
                if self.orchestrator.is_up {
                    let answers = self.orchestrator.tick(self.now)?;
                    self.deliver(answers);
                    self.arm();
                }
                Ok(())
            }
            Happening::Recovers if self.strikes(self.rates.history_lost, Fault::HistoryLost) => {
                let older = self.chance.between(0, 2);
                let chance = self.chance.between(0, u64::from(u32::MAX));
                self.orchestrator
                    .restore(older as usize, chance as u32, self.now)?;
                // Places on the waiting list that were given since are lost like everything else.
                self.told = Told::default();
                self.arm();
                Ok(())
            }
            Happening::Recovers => {
                let from_snapshot = self.orchestrator.has_snapshot() && self.chance.happens(5_000);
                if from_snapshot {
                    self.faults.count(Fault::SnapshotRead);
                }
                let answers = self.orchestrator.restart(from_snapshot, self.now)?;
                self.deliver(answers);
                self.arm();
                Ok(())
            }
            Happening::Trouble(fault) => {
                if !self.is_calm {
                    self.trouble(fault)?;
                    self.schedule(fault);
                }
                Ok(())
            }
            Happening::Calm => {
                self.become_calm();
                let settings = &self.plan.settings;
                let helpers = u64::from(settings.stages()) * u64::from(settings.miners_to_start);
                for _ in 0..=helpers {
                    self.help();
                }
                self.at(self.now + HELP_EVERY, Happening::Helps);
                Ok(())
            }
            Happening::Helps => {
                // Those who were there may be banned by now, for objects that the store has lost.
                if self.orchestrator.state().pause_reason().is_some() {
                    self.help();
                }
                self.at(self.now + HELP_EVERY, Happening::Helps);
                Ok(())
            }
        }
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.queued += 1;
        self.queue.insert((at, self.queued), happening);
    }

    fn task_at(&mut self, at: u64, node: usize, lease: LeaseId, step: Step) {
        let life = self.nodes[node].life;
        let task = Happening::Task {
            node,
            life,
            lease,
            step,
        };
        self.at(at, task);
    }

    /// Arms the orchestrator's timer.
    fn arm(&mut self) {
        let Some(at) = self.orchestrator.wakes_at().map(|at| at.max(self.now)) else {
            return;
        };
        if self.ticks_at.is_none_or(|armed| at < armed) {
            self.ticks_at = Some(at);
            self.at(at, Happening::Ticks);
        }
    }

    /// As long as the store keeps what it is given, nobody is banned who did what they were asked to.
    fn honest_peers_are_not_banned(&self) -> Result<(), String> {
        let lost = [Fault::ObjectVanished, Fault::ObjectCorrupted];
        if lost.iter().any(|fault| self.faults.of(*fault) > 0) {
            return Ok(());
        }
        for (peer, why) in self.orchestrator.state().cheaters() {
            let node = self.nodes.iter().find(|node| node.plan.peer == peer);
            if node.is_none_or(|node| node.plan.behaviour == Behaviour::Honest) {
                return Err(format!("V4: {peer} is honest and banned: {why:?}"));
            }
        }
        Ok(())
    }
}

impl Trace {
    fn note(&mut self, at: u64, what: &impl std::fmt::Debug) {
        self.line.clear();
        write!(self.line, "{at:>9} {what:?}").expect("writing to a String cannot fail");
        if self.print {
            println!("{}", self.line);
        }
        self.line.push_str(&self.digest.to_string());
        self.digest = Digest::of(self.line.as_bytes());
    }
}
