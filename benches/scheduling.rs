//! The rules: commands that one thread decides per second, while networks of several sizes train and while they merge, and
//! what the state of such a run takes in memory.
//!
//! Miners take turns: each says that it has room, then completes what it holds, which makes the rules give the next pieces
//! of work to somebody. The journal, the calls and the grants around a decision are not in it.

mod counting;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use iota_protocol::settings::{LearningRate, Merging, Registration, Timing};
use iota_protocol::state::MergeRecord;
use iota_protocol::work::{Lease, Outcome, Seal, Work};
use iota_protocol::{
    Command, Digest, PeerId, Phase, Role, RunId, RunSettings, Session, StageIndex, State, Timestamp,
};

/// Stages, miners of each, and samples on their way per miner: a testnet, a small run, twenty stages as full as IOTA lets
/// them be, and ten times that with ten times the samples.
const NETWORKS: [(u16, u32, u32); 4] = [(3, 2, 1), (4, 25, 1), (20, 50, 1), (20, 500, 10)];
/// Leases that a miner holds at a time, as `iota-miner` does.
const CAPACITY: u32 = 4;
/// Stages and miners of each whose merge is measured, from the first cell to the last: up to 20 times 1,225 cells, each of
/// which two miners merge.
const MERGES: [(u16, u32); 3] = [(1, 10), (1, 50), (20, 50)];
/// Samples of an epoch that is to be merged, per miner of a stage.
const SAMPLES_BEFORE_MERGING: u64 = 2;
const ACTIVATION_BYTES: u64 = 131_072;
const CELL_ELEMENT_BYTES: u64 = 12;
const CELL_OVERHEAD_BYTES: u64 = 512;
/// Commands in one measured iteration.
const COMMANDS: u64 = 500;

fn scheduling(c: &mut Criterion) {
    let mut group = c.benchmark_group("commands of a training network");
    group.throughput(Throughput::Elements(COMMANDS));
    for (stages, miners_per_stage, samples_per_miner) in NETWORKS {
        let before = counting::live_bytes();
        let mut network = Network::training(stages, miners_per_stage, samples_per_miner);
        let miners = u32::from(stages) * miners_per_stage;
        println!(
            "{miners} miners, {} samples in flight, {} pieces done in this epoch: the state takes {} KiB",
            network.state.samples_in_flight(),
            network.ordinals.values().sum::<u32>(),
            (counting::live_bytes() - before) / 1024,
        );
        group.bench_function(BenchmarkId::new("miners", miners), |b| {
            // One run that goes on: a copy of the largest state per iteration would take longer than the commands.
            b.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations * COMMANDS {
                    network.command(None);
                }
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn merging(c: &mut Criterion) {
    let mut group = c.benchmark_group("commands of a merging network");
    for (stages, miners_per_stage) in MERGES {
        let network = Network::merging(stages, miners_per_stage);
        let commands = network.clone().merge();
        group.throughput(Throughput::Elements(commands));
        let miners = u32::from(stages) * miners_per_stage;
        group.bench_function(BenchmarkId::new("miners", miners), |b| {
            b.iter_batched_ref(|| network.clone(), Network::merge, BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// A run and everybody in it.
#[derive(Clone)]
struct Network {
    state: State,
    now: Timestamp,
    sessions: VecDeque<Session>,
    /// What the session whose turn it is has still to do.
    turn: VecDeque<Lease>,
    ordinals: BTreeMap<Session, u32>,
    /// What anybody reads and writes; nobody looks inside.
    object: Digest,
}

impl Network {
    /// A network that everybody has joined.
    fn new(settings: RunSettings) -> Self {
        let miners = u32::from(settings.stages()) * settings.miners_per_stage_max;
        let now = Timestamp::from_millis(0);
        let state = State::new(settings, now);
        let mut network = Self {
            state: state.expect("the settings are in range"),
            now,
            sessions: VecDeque::new(),
            turn: VecDeque::new(),
            ordinals: BTreeMap::new(),
            object: Digest::of(b"an object"),
        };
        for miner in 0..miners {
            let peer = PeerId::from_bytes(*Digest::of(&miner.to_le_bytes()).as_bytes());
            let (role, capacity) = (Role::Miner, CAPACITY);
            network.handle(&Command::Join {
                peer,
                role,
                capacity,
            });
            let session = network.state.session_of(peer);
            network
                .sessions
                .push_back(session.expect("it has just joined"));
        }
        network
    }

    /// A network that has been training for a while.
    fn training(stages: u16, miners_per_stage: u32, samples_per_miner: u32) -> Self {
        let miners = u32::from(stages) * miners_per_stage;
        let in_flight = miners * samples_per_miner;
        let mut network = Self::new(settings(stages, miners_per_stage, in_flight));
        let in_flight = in_flight as usize;
        // First the head alone, until all samples that may be are on their way: left to itself a network of equally fast
        // stages has few that wait. Then everybody, until some are through and all kinds of work are about.
        while network.state.samples_in_flight() < in_flight {
            network.command(Some(network.state.settings().head()));
        }
        while network.state.sample_counts().completed < u64::from(miners).min(1_000) {
            network.command(None);
        }
        assert_eq!(network.state.phase(), Phase::Training);
        network
    }

    /// A network whose miners have all uploaded and none has begun to merge.
    fn merging(stages: u16, miners_per_stage: u32) -> Self {
        let mut network = Self::new(RunSettings {
            samples_per_epoch: SAMPLES_BEFORE_MERGING * u64::from(miners_per_stage),
            ..settings(stages, miners_per_stage, miners_per_stage)
        });
        while network.state.phase() != Phase::Merging {
            network.command(None);
        }
        // What miners hold by now is the first of the merge.
        network.turn.clear();
        network
    }

    /// The whole merge. Returns how many commands it took.
    fn merge(&mut self) -> u64 {
        let mut commands = 0;
        while self.state.phase() == Phase::Merging {
            self.command(None);
            commands += 1;
        }
        let cells =
            |merge: &MergeRecord| merge.covered == merge.cells && merge.agreed == merge.cells;
        assert!(self.state.merges().iter().all(cells));
        commands
    }

    /// The next command of whoever's turn it is: room first, then a result for every lease that it holds. `only`: only
    /// miners of this stage get a turn, once all have installed.
    fn command(&mut self, only: Option<StageIndex>) {
        self.now = self.now + Duration::from_millis(1);
        let Some(lease) = self.turn.pop_front() else {
            self.sessions.rotate_left(1);
            let only = only.filter(|_| self.state.phase() == Phase::Training);
            let is_idle = |session: Session| {
                let stage = self.state.session(session).and_then(|state| state.stage);
                only.is_some() && stage != only
            };
            let next = self.sessions.iter().position(|session| !is_idle(*session));
            self.sessions
                .rotate_left(next.expect("every stage has miners"));
            let session = self.sessions[0];
            let held = self.state.leases_of(session).count();
            let room = CAPACITY.saturating_sub(u32::try_from(held).unwrap_or(CAPACITY));
            self.handle(&Command::OfferRoom { session, room });
            self.turn.extend(self.state.leases_of(session).cloned());
            return;
        };
        let outcome = self.outcome(&lease);
        self.handle(&Command::Complete {
            session: lease.session,
            lease: lease.id,
            outcome,
        });
    }

    fn handle(&mut self, command: &Command) {
        if let Err(rejection) = self.state.handle(command, self.now) {
            panic!("{rejection}: {command:?}");
        }
    }

    /// What an honest miner says of its work.
    fn outcome(&mut self, lease: &Lease) -> Outcome {
        let seal = Seal {
            digest: self.object,
            length: ACTIVATION_BYTES,
        };
        let next = self.ordinals.entry(lease.session).or_default();
        let ordinal = *next;
        match &lease.work {
            Work::Forward { .. } => {
                *next += 1;
                Outcome::Forward {
                    ordinal,
                    output: seal,
                }
            }
            Work::Backward {
                output_gradient,
                gradient,
                ..
            } => {
                *next += 1;
                Outcome::Backward {
                    ordinal,
                    recomputed: output_gradient.is_none(),
                    gradient: gradient.map(|_| seal),
                    loss: output_gradient.is_none().then_some(2.5),
                }
            }
            Work::HandOver { .. } => Outcome::HandedOver,
            Work::Fetch { .. } => Outcome::Fetched,
            Work::Install { .. } => Outcome::Install {
                state: self.object,
                operations: 0,
            },
            Work::Upload { cells, .. } => Outcome::Upload {
                cells: cells.iter().map(|cell| self.cell(&cell.range)).collect(),
                optimizer_steps: 1,
                kept: None,
            },
            Work::Merge { range, .. } => Outcome::Merge {
                merged: self.cell(range),
                quarantined: Vec::new(),
                delta: None,
            },
            other => unreachable!("nobody audits, and this is {other:?}"),
        }
    }
}

impl Network {
    /// What anybody says of a cell.
    fn cell(&self, range: &Range<u64>) -> Seal {
        Seal {
            digest: self.object,
            length: CELL_OVERHEAD_BYTES + (range.end - range.start) * CELL_ELEMENT_BYTES,
        }
    }
}

/// A run whose first epoch never ends.
fn settings(stages: u16, miners_per_stage: u32, samples_in_flight: u32) -> RunSettings {
    RunSettings {
        run: RunId::from_bytes([1; 16]),
        secret: [2; 32],
        stage_parameters: vec![1_000_000; stages.into()],
        activation_bytes: ACTIVATION_BYTES,
        gradient_bytes: ACTIVATION_BYTES,
        cell_element_bytes: CELL_ELEMENT_BYTES,
        cell_overhead_bytes: CELL_OVERHEAD_BYTES,
        sample_tokens: 512,
        epochs: 1,
        samples_per_epoch: u64::from(u32::MAX),
        samples_in_flight,
        in_batches: false,
        backwards_per_step: 1,
        miners_to_start: miners_per_stage,
        miners_per_stage_max: miners_per_stage,
        registration: Registration::default(),
        validators: Vec::new(),
        audit_every_epochs: 1,
        learning_rate: LearningRate::cosine(1e-3, 100, 0.1),
        merging: Merging::default(),
        timing: Timing {
            // Simulated time runs slower than a large network's would; nobody is late here.
            lease_initial: Duration::from_secs(3_600),
            lease_min: Duration::from_secs(3_600),
            session_timeout: Duration::from_secs(3_600),
            affinity: Duration::from_secs(3_600),
            phase_max: Duration::from_secs(3_600),
            quorum_relaxes_after: Duration::from_secs(3_600),
            ..Timing::default()
        },
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3));
    targets = scheduling, merging
}
criterion_main!(benches);
