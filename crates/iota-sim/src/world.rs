//! One seed's world: everything that happens, in the order of virtual time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use iota_protocol::peer::{Effect, Stop};
use iota_protocol::work::{Failure, ObjectName, Seal};
use iota_protocol::{Digest, LeaseId};

use crate::chance::Chance;
use crate::fault::{Counts, Fault};
use crate::node::{Asked, Node};
use crate::orchestrator::{Answer, Answers, Caller, Fate, Orchestrator, Request};
use crate::plan::{Behaviour, NodePlan, Plan, Rates};
use crate::store::Store;
use crate::worker::{Operated, inputs};
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
}

#[derive(Debug)]
enum Step {
    Fetched { readable: bool },
    Operates,
    Stored { outputs: Vec<(ObjectName, Seal)> },
}

/// Kinds of trouble that come by themselves, at times of their own.
const BY_THEMSELVES: [Fault; 5] = [
    Fault::PeerCrashed,
    Fault::PeerLeft,
    Fault::OrchestratorCrashed,
    Fault::ClockLeapt,
    Fault::Partition,
];

/// How long a call is waited for, in milliseconds: longer than a poll is held.
const CALL_TIMEOUT: u64 = 15_000;

/// A run ends within so much virtual time per epoch once trouble stops, in milliseconds. All its phases together take at
/// most four times `phase_max`, two minutes; the rest is for joining, installing and training with what miners are left.
const CALM_EPOCH_MAX: u64 = 1_800_000;

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
            samples: state.sample_counts(),
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
            Happening::Recovers => {
                let from_snapshot = self.orchestrator.has_snapshot() && self.chance.happens(5_000);
                if from_snapshot {
                    self.faults.count(Fault::SnapshotRead);
                }
                self.orchestrator.restart(from_snapshot)?;
                self.arm();
                Ok(())
            }
            Happening::Trouble(fault) => {
                if !self.is_calm {
                    self.trouble(fault);
                    self.schedule(fault);
                }
                Ok(())
            }
            Happening::Calm => {
                self.become_calm();
                let settings = &self.plan.settings;
                let helpers = u64::from(settings.stages()) * u64::from(settings.miners_to_start);
                for number in 0..=helpers {
                    self.add(Plan::helper(number, self.now));
                }
                Ok(())
            }
        }
    }

    // Peers.

    fn add(&mut self, plan: NodePlan) {
        let node = self.nodes.len();
        self.nodes.push(Node::new(plan));
        self.at(plan.starts_at, Happening::Starts { node });
    }

    /// Does what a peer's machine asks for, and arms its timer.
    fn drain(&mut self, node: usize) {
        while let Some(effect) = self.nodes[node]
            .peer
            .as_mut()
            .and_then(|peer| peer.poll_effect())
        {
            self.effect(node, effect);
        }
        let place = &mut self.nodes[node];
        let timeout = place.peer.as_ref().and_then(|peer| peer.poll_timeout());
        let Some(timeout) = timeout else {
            return;
        };
        let at = timeout
            .as_millis()
            .saturating_sub(place.plan.clock_ahead)
            .max(self.now);
        if place.timer_at.is_none_or(|armed| at < armed) {
            place.timer_at = Some(at);
            let life = place.life;
            self.at(at, Happening::Timer { node, life });
        }
    }

    fn effect(&mut self, node: usize, effect: Effect) {
        let place = &mut self.nodes[node];
        match effect {
            Effect::Join => {
                let NodePlan {
                    peer,
                    role,
                    capacity,
                    ..
                } = place.plan;
                let request = Request::Join {
                    peer,
                    role,
                    capacity,
                };
                self.call(node, Asked::Join, request);
            }
            Effect::Poll {
                session,
                room,
                held,
            } => {
                if let Some(earlier) = place.open_poll.take() {
                    place.asked.remove(&earlier);
                }
                let request = Request::Poll {
                    session,
                    room,
                    held,
                };
                let call = self.call(node, Asked::Poll(session), request);
                self.nodes[node].open_poll = Some(call);
            }
            Effect::Start { lease } => {
                let Some(arrived) = place.arrived.remove(&lease) else {
                    return;
                };
                if place.behaviour == Behaviour::Idler {
                    self.faults.count(Fault::Lie);
                    return;
                }
                let reads = !inputs(&arrived.work).is_empty();
                place.worker.start(arrived);
                let readable =
                    !(reads && self.strikes(self.rates.unavailable, Fault::StoreUnavailable));
                let took = self.transfer(node);
                self.task_at(self.now + took, node, lease, Step::Fetched { readable });
            }
            Effect::Abandon { lease } => place.worker.abandon(lease),
            Effect::Report {
                session,
                lease,
                result: Ok(outcome),
            } => {
                let request = Request::Complete {
                    session,
                    lease,
                    outcome,
                };
                self.call(node, Asked::Complete(session, lease), request);
            }
            Effect::Report {
                session,
                lease,
                result: Err(failure),
            } => {
                let request = Request::Fail {
                    session,
                    lease,
                    failure,
                };
                self.call(node, Asked::GiveBack(session, lease), request);
            }
            Effect::Reset => place.reset(),
            Effect::Leave { session } => {
                self.call(node, Asked::Leave, Request::Leave { session });
            }
            Effect::Stop { why } => {
                place.end();
                if why == Stop::Shutdown {
                    let back = self.now + self.chance.between(1_000, 40_000);
                    self.at(back, Happening::Starts { node });
                }
            }
        }
    }

    fn task(&mut self, node: usize, lease: LeaseId, step: Step) {
        let place = &mut self.nodes[node];
        let ended = match step {
            Step::Fetched { readable: false } => Err(Failure::StoreUnavailable.into()),
            Step::Fetched { readable: true } => {
                let accused = place.worker.lease(lease).map(|lease| inputs(&lease.work));
                let accused = accused.and_then(|objects| objects.first().copied());
                let fetched = match accused {
                    Some(object)
                        if place.behaviour == Behaviour::Accuser && self.chance.happens(3_000) =>
                    {
                        self.faults.count(Fault::Lie);
                        let difference = iota_protocol::work::Difference::Missing;
                        let object = object.name;
                        Err(Failure::BadInput { object, difference }.into())
                    }
                    _ => place.worker.fetched(lease, &self.store),
                };
                match fetched {
                    Ok(()) => {
                        let took = self.chance.between(20, 400) * place.plan.slowness;
                        place.busy_until = place.busy_until.max(self.now) + took;
                        let at = place.busy_until;
                        return self.task_at(at, node, lease, Step::Operates);
                    }
                    Err(undone) => Err(undone),
                }
            }
            Step::Operates => {
                match place
                    .worker
                    .operate(lease, &self.plan.settings, place.behaviour)
                {
                    Ok(Operated { outputs, lied }) => {
                        if lied {
                            self.faults.count(Fault::Lie);
                        }
                        let took = if outputs.is_empty() {
                            0
                        } else {
                            self.transfer(node)
                        };
                        return self.task_at(
                            self.now + took,
                            node,
                            lease,
                            Step::Stored { outputs },
                        );
                    }
                    Err(undone) => Err(undone),
                }
            }
            Step::Stored { outputs } => {
                let is_stored = outputs.is_empty()
                    || !self.strikes(self.rates.unavailable, Fault::StoreUnavailable);
                if is_stored {
                    for (name, seal) in outputs {
                        self.store.put(name, seal);
                        if self.strikes(self.rates.vanishes, Fault::ObjectVanished) {
                            self.store.lose(name);
                        }
                        if self.strikes(self.rates.corrupt, Fault::ObjectCorrupted) {
                            self.store.spoil(name, &mut self.chance);
                        }
                    }
                }
                match self.nodes[node].worker.stored(lease, is_stored) {
                    Some(ended) => ended,
                    None => return,
                }
            }
        };
        self.nodes[node].ended(lease, ended);
    }

    // Calls.

    fn call(&mut self, node: usize, asked: Asked, request: Request) -> u64 {
        self.calls += 1;
        let call = self.calls;
        let place = &mut self.nodes[node];
        place.asked.insert(call, asked);
        let is_cut_off = place.cut_off_until > self.now;
        let caller = Caller {
            node,
            life: place.life,
            call,
        };
        let answer = Answer::Unreachable;
        self.at(
            self.now + CALL_TIMEOUT,
            Happening::Answered { caller, answer },
        );
        if is_cut_off || self.strikes(self.rates.request_lost, Fault::RequestLost) {
            return call;
        }
        if self.strikes(self.rates.repeated, Fault::RequestRepeated) {
            let at = self.now + self.latency() + self.chance.between(0, 5_000);
            let request = request.clone();
            self.at(at, Happening::Arrives { caller, request });
        }
        let at = self.now + self.latency();
        self.at(at, Happening::Arrives { caller, request });
        call
    }

    fn arrives(&mut self, caller: Caller, request: &Request) -> Result<(), String> {
        if !self.orchestrator.is_up {
            self.deliver(vec![(caller, Answer::Unreachable)]);
            return Ok(());
        }
        let fate = if self.strikes(self.rates.decision_lost, Fault::DecisionLost) {
            Fate::DecisionLost
        } else if self.strikes(self.rates.answer_died, Fault::AnswerDied) {
            Fate::AnswerDied
        } else {
            Fate::Answered
        };
        let answers = self.orchestrator.take(caller, request, self.now, fate)?;
        if fate == Fate::Answered {
            self.deliver(answers);
            self.arm();
            if self.rates.orchestrator_crash_every > 0 && self.chance.happens(60) {
                self.orchestrator.save_snapshot()?;
            }
        } else {
            self.crash_orchestrator();
        }
        Ok(())
    }

    fn deliver(&mut self, answers: Answers) {
        for (caller, answer) in answers {
            let is_cut_off = self.nodes[caller.node].cut_off_until > self.now;
            if is_cut_off || self.strikes(self.rates.answer_lost, Fault::AnswerLost) {
                continue;
            }
            let at = self.now + self.latency();
            self.at(at, Happening::Answered { caller, answer });
        }
    }

    // Trouble.

    fn schedule(&mut self, fault: Fault) {
        let every = match fault {
            Fault::PeerCrashed => self.rates.crash_every,
            Fault::PeerLeft => self.rates.leave_every,
            Fault::OrchestratorCrashed => self.rates.orchestrator_crash_every,
            Fault::ClockLeapt => self.rates.leap_every,
            Fault::Partition => self.rates.partition_every,
            _ => 0,
        };
        if every > 0 {
            let at = self.now + self.chance.between(1, 2 * every);
            self.at(at, Happening::Trouble(fault));
        }
    }

    fn trouble(&mut self, fault: Fault) {
        if fault == Fault::OrchestratorCrashed {
            if self.orchestrator.is_up {
                self.faults.count(fault);
                self.crash_orchestrator();
            }
            return;
        }
        if fault == Fault::ClockLeapt {
            self.faults.count(fault);
            let far = self.chance.between(1, 120_000);
            let ahead = &mut self.orchestrator.clock_ahead;
            *ahead = if self.chance.happens(5_000) {
                *ahead + far
            } else {
                *ahead - far
            };
            return self.arm();
        }
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].peer.is_some())
            .collect();
        if up.is_empty() {
            return;
        }
        let node = self.chance.pick(&up);
        self.faults.count(fault);
        match fault {
            Fault::PeerCrashed => {
                self.nodes[node].end();
                let back = self.now + self.chance.between(500, 60_000);
                self.at(back, Happening::Starts { node });
            }
            Fault::PeerLeft => {
                if let Some(peer) = &mut self.nodes[node].peer {
                    peer.handle_shutdown();
                }
                self.drain(node);
            }
            _ => self.nodes[node].cut_off_until = self.now + self.chance.between(1_000, 60_000),
        }
    }

    fn crash_orchestrator(&mut self) {
        self.orchestrator.crash();
        let back = self.now + self.chance.between(100, 20_000);
        self.at(back, Happening::Recovers);
    }

    fn become_calm(&mut self) {
        self.is_calm = true;
        self.rates = Rates::default();
        for node in &mut self.nodes {
            node.behaviour = Behaviour::Honest;
            node.cut_off_until = 0;
        }
    }

    /// Whether something that happens so often happens now. Counts it if so.
    fn strikes(&mut self, rate: u64, fault: Fault) -> bool {
        let strikes = self.chance.happens(rate);
        if strikes {
            self.faults.count(fault);
        }
        strikes
    }

    fn latency(&mut self) -> u64 {
        if self.strikes(self.rates.delayed, Fault::MessageDelayed) {
            self.chance.between(500, 12_000)
        } else {
            self.chance.between(1, 80)
        }
    }

    fn transfer(&mut self, node: usize) -> u64 {
        let usual = self.chance.between(10, 200) * self.nodes[node].plan.slowness;
        if self.strikes(self.rates.slow, Fault::TransferSlow) {
            usual * self.chance.between(10, 200)
        } else {
            usual
        }
    }

    // Time.

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
