//! A world from its beginning to its end: turmoil's machines, step by step, and the trouble that comes over them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use turmoil::Sim;

use crate::chance::Chance;
use crate::fault::Fault;
use crate::hosts::Site;
use crate::plan::{About, Host, Plan, Trouble};
use crate::seeded;
use crate::trace::Trace;
use crate::{Lived, Which};

/// In a step every machine does what it has to do in this time, one after the other.
const STEP: Duration = Duration::from_millis(2);
/// How long a run may take after the last trouble.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long peers have to hear of the end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Makes a world and lives through it.
///
/// # Errors
/// When, and what was found.
pub(crate) fn live(which: Which, print: bool) -> Result<Lived, (Duration, String)> {
    let plan = Plan::new(which);
    seeded::begin(plan.seed);
    let folder = tempfile::tempdir().map_err(|error| (Duration::ZERO, error.to_string()))?;
    work_takes_its_time(&plan);
    let site = Site::new(plan, folder.path(), Trace::new(print))
        .map_err(|error| (Duration::ZERO, error.to_string()))?;
    let mut world = World::new(site);
    let ended = world.run();
    let elapsed = world.sim.elapsed();
    let lived = ended.and_then(|()| crate::account::settle(&world.site, elapsed));
    lived.map_err(|what| (elapsed, what))
}

/// Every piece of blocking work takes a while; one in twenty takes long.
fn work_takes_its_time(plan: &Plan) {
    let usual_ms = u64::try_from(plan.work_max.as_millis()).unwrap_or(u64::MAX);
    let chance = Mutex::new(Chance::new(plan.seed, "work"));
    iota_node::blocking::simulate(move || {
        let mut chance = chance.lock().expect("nobody panics with it");
        let longest_ms = if chance.happens(5) {
            10 * usual_ms
        } else {
            usual_ms
        };
        chance.millis(0, longest_ms)
    });
}

struct World {
    sim: Sim<'static>,
    site: Site,
    /// What is to be done to the world, by when.
    agenda: BTreeMap<Duration, Vec<Change>>,
    /// When the orchestrator's process, which has ended by itself, is followed by the next.
    supervised: Option<Duration>,
    /// The orchestrator's machine is down.
    is_crashed: bool,
    chance: Chance,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Begins(Trouble),
    Ends(Trouble),
}

impl World {
    fn new(site: Site) -> Self {
        let plan = Arc::clone(&site.plan);
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH + seeded::BEGAN)
            .tick_duration(STEP)
            .simulation_duration(Duration::from_secs(24 * 60 * 60))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(plan.latency_max)
            .tcp_capacity(1 << 16)
            .enable_random_order()
            .build();
        let on = site.clone();
        sim.host(Host::Orchestrator.name(), move || on.clone().orchestrator());
        for peer in Host::PEERS {
            let on = site.clone();
            sim.host(peer.name(), move || on.clone().peer(peer));
        }
        for host in plan.clock_ahead_ms.keys() {
            site.trace.fault(Fault::ClockWrong, host.name(), None);
        }
        if let Some(cheater) = plan.cheater {
            site.trace.fault(Fault::Cheater, cheater.name(), None);
        }
        let mut agenda: BTreeMap<_, Vec<Change>> = BTreeMap::new();
        for trouble in &plan.troubles {
            let begins = agenda.entry(trouble.from).or_default();
            begins.push(Change::Begins(*trouble));
            let ends = agenda.entry(trouble.until).or_default();
            ends.push(Change::Ends(*trouble));
        }
        Self {
            sim,
            agenda,
            supervised: None,
            is_crashed: false,
            chance: Chance::new(plan.seed, "supervisor"),
            site,
        }
    }

    fn run(&mut self) -> Result<(), String> {
        let last = self.agenda.last_key_value();
        let deadline = last.map_or(Duration::ZERO, |(at, _)| *at) + PATIENCE;
        let mut ends = None;
        loop {
            let now = self.sim.elapsed();
            seeded::move_to(now);
            self.site.trace.move_to(now);
            while let Some(due) = self
                .agenda
                .first_entry()
                .filter(|entry| *entry.key() <= now)
            {
                for change in due.remove() {
                    self.change(change);
                }
            }
            self.supervise(now);
            self.sim.step().map_err(|error| error.to_string())?;
            if let Some(panic) = crate::panics::first() {
                return Err(format!("panic: {panic}"));
            }
            if let Some(violated) = self.site.disk.violated() {
                return Err(violated);
            }
            if self.site.ended().is_some() {
                let until = *ends.get_or_insert(now + FAREWELL);
                if now >= until {
                    return Ok(());
                }
            } else if now > deadline {
                return Err(format!(
                    "the run stands still: {}",
                    crate::account::standing(&self.site)
                ));
            }
        }
    }

    /// Whoever runs an orchestrator starts it again when its process has ended before the run.
    fn supervise(&mut self, now: Duration) {
        let name = Host::Orchestrator.name();
        let is_up = self.sim.is_host_running(name);
        // What was crashed comes back when that trouble is over.
        if is_up || self.is_crashed || self.site.ended().is_some() {
            self.supervised = None;
            return;
        }
        let chance = &mut self.chance;
        let starts_at = self
            .supervised
            .get_or_insert_with(|| now + chance.millis(100, 5_000));
        if *starts_at <= now {
            self.sim.bounce(name);
        }
    }

    fn change(&mut self, change: Change) {
        let (Change::Begins(trouble) | Change::Ends(trouble)) = change;
        let begins = matches!(change, Change::Begins(_));
        let who = match trouble.about {
            About::Machine(host) | About::Link(host) | About::WayToStore(host) => host.name(),
            About::Store => "store",
        };
        if begins {
            // What has ended cannot be troubled.
            if self.site.ended().is_some() {
                return;
            }
            self.site
                .trace
                .fault(trouble.fault, who, Some(trouble.until));
        } else {
            self.site
                .trace
                .note(who, format_args!("over: {}", trouble.fault.text()));
        }
        let (sim, objects) = (&mut self.sim, &self.site.objects);
        let orchestrator = Host::Orchestrator.name();
        match trouble.fault {
            Fault::OrchestratorCrashed | Fault::MinerCrashed | Fault::ValidatorCrashed => {
                self.is_crashed = match trouble.fault {
                    Fault::OrchestratorCrashed => begins,
                    _ => self.is_crashed,
                };
                if begins {
                    sim.crash(who);
                } else if self.site.ended().is_none() {
                    sim.bounce(who);
                }
            }
            Fault::OrchestratorSuspended if begins => self.site.tell_to_end(Host::Orchestrator),
            Fault::OrchestratorSuspended => {}
            Fault::PeerLeft => {
                let About::Machine(host) = trouble.about else {
                    unreachable!("it is drawn for a machine")
                };
                if begins {
                    self.site.tell_to_end(host);
                } else if self.site.ended().is_none() {
                    sim.bounce(who);
                }
            }
            Fault::JournalDied if begins => self.site.disk.kill_at_next_write(trouble.this_way),
            Fault::JournalDied => {}
            Fault::Partition if begins => sim.partition(who, orchestrator),
            Fault::HalfPartition if begins && trouble.this_way => {
                sim.partition_oneway(who, orchestrator);
            }
            Fault::HalfPartition if begins => sim.partition_oneway(orchestrator, who),
            Fault::Partition | Fault::HalfPartition => sim.repair(who, orchestrator),
            Fault::MessagesHeld if begins => sim.hold(who, orchestrator),
            Fault::MessagesHeld => sim.release(who, orchestrator),
            Fault::StoreUnreachable => {
                let About::WayToStore(host) = trouble.about else {
                    unreachable!("it is drawn for a way to the store")
                };
                objects.cut_off(host, begins);
            }
            Fault::StoreRefusing => objects.refuse(begins),
            Fault::StoreSlow => objects.slow_down(begins),
            Fault::StoreLossy => objects.lose(begins),
            Fault::ClockWrong | Fault::Cheater => unreachable!("they are from the start"),
        }
    }
}
