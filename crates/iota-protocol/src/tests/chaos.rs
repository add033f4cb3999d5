//! Anything, in any order: joins, crashes, late, repeated, wrong and dishonest results, validators of every opinion,
//! clocks that leap, histories whose end is lost. After every command the invariants hold and the events replay ([`World::command`]); once the
//! trouble stops, the run comes to its end.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::world::{World, peer, seal, settings};
use crate::cells::Cells;
use crate::command::{Command, Role};
use crate::event::{Event, Phase};
use crate::id::{LeaseId, Session};
use crate::settings::{Merging, ObjectSize, Opens, Registration, RunSettings};
use crate::state::State;
use crate::time::Timestamp;
use crate::work::{Difference, Failure, Lease, ObjectName, Outcome, Verdict, Work};

/// One thing that happens. The numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Join { name: u8, capacity: u32 },
    Validator,
    Leave(usize),
    Offer { who: usize, room: u32 },
    Work { lease: usize },
    Lie { lease: usize, lie: u8 },
    Repeat { old: usize },
    Late { old: usize },
    Fail { lease: usize, failure: u8 },
    Wait { seconds: u64, heard: u8 },
    Away { seconds: u64 },
    Asleep { seconds: u64 },
    Restore { lost: usize, seconds: u64 },
    Stranger,
}

fn step() -> impl Strategy<Value = Step> {
    let index = || 0_usize..1_000;
    prop_oneof![
        3 => (1_u8..9, 1_u32..4).prop_map(|(name, capacity)| Step::Join { name, capacity }),
        1 => Just(Step::Validator),
        1 => index().prop_map(Step::Leave),
        14 => (index(), 0_u32..4).prop_map(|(who, room)| Step::Offer { who, room }),
        24 => index().prop_map(|lease| Step::Work { lease }),
        2 => (index(), 0_u8..8).prop_map(|(lease, lie)| Step::Lie { lease, lie }),
        2 => index().prop_map(|old| Step::Repeat { old }),
        4 => index().prop_map(|old| Step::Late { old }),
        3 => (index(), 0_u8..6).prop_map(|(lease, failure)| Step::Fail { lease, failure }),
        3 => (prop_oneof![4 => 1_u64..12, 1 => 12_u64..300], any::<u8>())
            .prop_map(|(seconds, heard)| Step::Wait { seconds, heard }),
        1 => (1_u64..2_000).prop_map(|seconds| Step::Away { seconds }),
        1 => (1_u64..20_000).prop_map(|seconds| Step::Asleep { seconds }),
        1 => (0_usize..60, 0_u64..600).prop_map(|(lost, seconds)| Step::Restore { lost, seconds }),
        1 => Just(Step::Stranger),
    ]
}

/// A world in trouble, with everything that was ever leased or said.
struct Chaos {
    world: World,
    leases: Vec<Lease>,
    said: Vec<(Session, LeaseId, Outcome)>,
    /// Every object that a lease may have written.
    written: BTreeSet<ObjectName>,
}

impl Chaos {
    fn new(settings: RunSettings) -> Self {
        Self {
            world: World::new(settings),
            leases: Vec::new(),
            said: Vec::new(),
            written: BTreeSet::new(),
        }
    }

    /// A command that may well be refused; what it leased is noted.
    fn attempt(&mut self, command: &Command) {
        if let Ok(events) = self.world.command(command) {
            self.note(&events);
        }
    }

    /// Remembers what was leased, also in a history that is lost later. No two leases ever write the same object.
    fn note(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Leased(lease) = event {
                for name in outputs_of(&lease.work) {
                    assert!(self.written.insert(name), "{name:?} is granted twice");
                }
                self.leases.push(lease.clone());
            }
        }
    }

    fn say(&mut self, lease: &Lease, outcome: Outcome) {
        self.said.push((lease.session, lease.id, outcome.clone()));
        self.attempt(&Command::Complete {
            session: lease.session,
            lease: lease.id,
            outcome,
        });
    }

    fn held(&self, index: usize) -> Option<Lease> {
        let held: Vec<&Lease> = self.world.state.leases().collect();
        held.get(index % held.len().max(1))
            .map(|lease| (*lease).clone())
    }

    fn session(&self, index: usize) -> Option<Session> {
        let live: Vec<Session> = self
            .world
            .state
            .sessions()
            .map(|(session, _)| session)
            .collect();
        live.get(index % live.len().max(1)).copied()
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Join { name, capacity } => {
                self.attempt(&Command::Join {
                    peer: peer(*name),
                    role: Role::Miner,
                    capacity: *capacity,
                });
            }
            Step::Validator => self.attempt(&Command::Join {
                peer: peer(99),
                role: Role::Validator,
                capacity: 2,
            }),
            Step::Leave(who) => {
                if let Some(session) = self.session(*who) {
                    self.attempt(&Command::Leave { session });
                }
            }
            Step::Offer { who, room } => {
                if let Some(session) = self.session(*who) {
                    self.attempt(&Command::OfferRoom {
                        session,
                        room: *room,
                    });
                }
            }
            Step::Work { lease } => {
                if let Some(lease) = self.held(*lease) {
                    let outcome = self.world.honest(&lease);
                    self.say(&lease, outcome);
                }
            }
            Step::Lie { lease, lie } => {
                if let Some(lease) = self.held(*lease) {
                    let honest = self.world.honest(&lease);
                    self.say(&lease, dishonest(honest, *lie));
                }
            }
            Step::Repeat { old } => {
                if let Some((session, lease, outcome)) =
                    self.said.get(old % self.said.len().max(1)).cloned()
                {
                    self.attempt(&Command::Complete {
                        session,
                        lease,
                        outcome,
                    });
                }
            }
            Step::Late { old } => {
                // Most likely one of the last few.
                let back = old % 12 % self.leases.len().max(1);
                if let Some(lease) = self.leases.iter().rev().nth(back).cloned() {
                    let outcome = self.world.honest(&lease);
                    self.say(&lease, outcome);
                }
            }
            Step::Fail { lease, failure } => {
                if let Some(lease) = self.held(*lease) {
                    let failure = match failure {
                        0 => Failure::Leaving,
                        1 => Failure::OutOfMemory,
                        2 => Failure::StoreUnavailable,
                        _ => input_of(&lease.work).map_or(Failure::Internal, |object| {
                            Failure::BadInput {
                                object,
                                difference: Difference::Missing,
                            }
                        }),
                    };
                    self.attempt(&Command::Fail {
                        session: lease.session,
                        lease: lease.id,
                        failure,
                    });
                }
            }
            Step::Wait { seconds, heard } => {
                let live: Vec<Session> = self
                    .world
                    .state
                    .sessions()
                    .map(|(session, _)| session)
                    .collect();
                self.world.now = self.world.now + Duration::from_secs(*seconds);
                for (place, session) in live.into_iter().enumerate() {
                    if heard >> (place % 8) & 1 == 1
                        && let Some(room) =
                            self.world.state.session(session).map(|state| state.room)
                    {
                        self.attempt(&Command::OfferRoom { session, room });
                    }
                }
                self.attempt(&Command::Tick);
            }
            Step::Away { seconds } => {
                self.world.now = self.world.now + Duration::from_secs(*seconds);
                self.attempt(&Command::Resume);
            }
            Step::Asleep { seconds } => {
                self.world.now = self.world.now + Duration::from_secs(*seconds);
                let away = Duration::from_secs(*seconds);
                self.attempt(&Command::Wake { away });
            }
            Step::Restore { lost, seconds } => {
                self.world.now = self.world.now + Duration::from_secs(*seconds);
                let kept = self.world.commands().saturating_sub(*lost);
                let events = self.world.restore(kept);
                self.note(&events);
            }
            Step::Stranger => {
                let session = Session {
                    peer: peer(200),
                    generation: 1,
                };
                self.attempt(&Command::OfferRoom { session, room: 1 });
                self.attempt(&Command::Join {
                    peer: peer(200),
                    role: Role::Validator,
                    capacity: 1,
                });
                self.attempt(&Command::Join {
                    peer: peer(200),
                    role: Role::Miner,
                    capacity: 1_000_000,
                });
            }
        }
    }

    /// The trouble is over: fresh honest miners join, everybody works, time goes on.
    fn recover(&mut self) {
        self.attempt(&Command::Join {
            peer: peer(99),
            role: Role::Validator,
            capacity: 2,
        });
        for round in 0.. {
            assert!(
                round < 2_000,
                "stuck: {:?}",
                self.world.state.summary(self.world.now)
            );
            if self.world.state.is_over() {
                return;
            }
            // Who has to wait asks again.
            for name in (100..106).filter(|_| round % 8 == 0) {
                let peer = peer(name);
                if self.world.state.session_of(peer).is_none() {
                    self.attempt(&Command::Join {
                        peer,
                        role: Role::Miner,
                        capacity: 2,
                    });
                }
            }
            let sessions: Vec<(Session, u32)> = self
                .world
                .state
                .sessions()
                .map(|(session, state)| (session, state.capacity))
                .collect();
            for (session, room) in sessions {
                self.attempt(&Command::OfferRoom { session, room });
                for lease in self.world.leases(session) {
                    let outcome = self.world.fresh(&lease);
                    self.attempt(&Command::Complete {
                        session,
                        lease: lease.id,
                        outcome,
                    });
                }
            }
            self.world.now = self.world.now + Duration::from_secs(1);
            self.attempt(&Command::Tick);
        }
    }
}

/// Something that a cheater or a broken peer might say instead.
fn dishonest(honest: Outcome, lie: u8) -> Outcome {
    match (honest, lie) {
        (_, 0) => Outcome::Install {
            state: seal("nonsense", 0).digest,
            operations: 1,
        },
        (Outcome::Merge { .. } | Outcome::Unmergeable { .. }, 1) => Outcome::Unmergeable {
            quarantined: Vec::new(),
        },
        (Outcome::Unmergeable { quarantined }, _) => Outcome::Unmergeable { quarantined },
        (Outcome::Merge { merged, delta, .. }, _) => Outcome::Merge {
            merged: seal([lie], merged.length),
            quarantined: Vec::new(),
            delta,
        },
        (Outcome::HandedOver, _) => Outcome::HandedOver,
        (Outcome::Fetched, _) => Outcome::Fetched,
        (Outcome::Install { operations, .. }, 1) => Outcome::Install {
            state: seal([lie], 0).digest,
            operations,
        },
        (Outcome::Install { state, operations }, _) => Outcome::Install {
            state,
            operations: operations.wrapping_sub(lie.into()),
        },
        (Outcome::Audit { .. }, _) => Outcome::Audit {
            verdict: Verdict::Differs {
                ordinal: Some(0),
                difference: Difference::Output,
            },
        },
        (
            Outcome::Backward {
                ordinal,
                recomputed,
                gradient,
                ..
            },
            1,
        ) => Outcome::Backward {
            ordinal,
            recomputed,
            gradient,
            loss: Some(f32::NAN),
        },
        (
            Outcome::Backward {
                recomputed,
                gradient,
                loss,
                ..
            },
            _,
        ) => Outcome::Backward {
            ordinal: 0,
            recomputed,
            gradient,
            loss,
        },
        (Outcome::Forward { ordinal, .. }, 1 | 2) => Outcome::Forward {
            ordinal,
            output: seal("short", 1),
        },
        (Outcome::Forward { output, .. }, _) => Outcome::Forward { ordinal: 0, output },
        (Outcome::Upload { cells, .. }, 1 | 2) => Outcome::Upload {
            cells: cells.into_iter().skip(1).collect(),
            optimizer_steps: 1,
            kept: None,
        },
        (Outcome::Upload { cells, kept, .. }, _) => Outcome::Upload {
            cells,
            optimizer_steps: u64::MAX,
            kept: kept.filter(|_| lie == 3),
        },
    }
}

pub(super) fn outputs_of(work: &Work) -> Vec<ObjectName> {
    match work {
        Work::Forward { output, .. } | Work::Merge { output, .. } => vec![*output],
        Work::Backward { gradient, .. } => gradient.iter().copied().collect(),
        Work::Upload { cells, .. } => cells.iter().map(|cell| cell.output).collect(),
        Work::HandOver { began_with, keeps } => {
            let objects = began_with.iter().chain(keeps);
            objects.map(|object| object.name).collect()
        }
        Work::Fetch { .. } | Work::Install { .. } | Work::Replay { .. } | Work::Inspect { .. } => {
            Vec::new()
        }
    }
}

fn input_of(work: &Work) -> Option<ObjectName> {
    match work {
        Work::Forward { input, .. } => input.map(|object| object.name),
        Work::Backward {
            input,
            output_gradient,
            ..
        } => output_gradient.or(*input).map(|object| object.name),
        Work::Merge { inputs, .. } => inputs.last().map(|input| input.object.name),
        Work::Inspect { object, .. } => Some(object.name),
        _ => None,
    }
}

fn small(
    stages: u16,
    validated: bool,
    miners_to_start: u32,
    registration: Registration,
    merging: Merging,
) -> RunSettings {
    RunSettings {
        registration,
        validators: if validated {
            vec![peer(99)]
        } else {
            Vec::new()
        },
        audit_every_epochs: 2,
        miners_to_start,
        epochs: 3,
        samples_per_epoch: 3,
        merging,
        ..settings(stages)
    }
}

/// Always open and large, or with as few places as a run can have, and open never or now and then.
fn registration(kind: u8, stages: u16, miners_to_start: u32) -> Registration {
    let least = u32::from(stages) * miners_to_start;
    let few = |opens| Registration {
        opens,
        miners_max: least + u32::from(kind % 2),
        waiting_max: 4,
        place_kept: Duration::from_secs(60),
    };
    match kind {
        0..2 => Registration::default(),
        2..4 => few(Opens::Always),
        4..6 => few(Opens::Never),
        _ => few(Opens::Windows {
            closed_mean: Duration::from_secs(100),
            open_for: Duration::from_secs(5),
        }),
    }
}

fn merging() -> impl Strategy<Value = Merging> {
    let grid = (1..20_u32, 2..5_u32).prop_map(|(cells, owners)| Cells::Grid { cells, owners });
    let cells = prop_oneof![Just(Cells::Butterfly), grid];
    let size = || {
        let numbers = (0..9_u64, 0..9_u64, 0..9_u64, 1..9_u64, 0..3_u64);
        prop::option::of(numbers.prop_map(|numbers| ObjectSize {
            overhead_bytes: numbers.0,
            element_bytes: numbers.1,
            chunk_bytes: numbers.2,
            chunk_elements: numbers.3,
            copy_chunk_bytes: numbers.4,
            copies_max: 2,
        }))
    };
    let sizes = (size(), size(), size());
    let bools = (any::<bool>(), any::<bool>());
    (cells, 1..3_u32, sizes, bools).prop_map(|(cells, copies, sizes, bools)| {
        let (upload, delta, kept) = sizes;
        let (compares_kept, overlaps) = bools;
        // Whoever is to be audited has to begin with something that it sealed.
        let kept = kept.or_else(|| overlaps.then_some(ObjectSize::per_element(4)));
        Merging {
            cells,
            copies,
            upload,
            delta,
            kept,
            compares_kept,
            overlaps,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// Cites every invariant of [`crate::invariants::ALL`], P4 (replay) and P3 (the run ends).
    #[test]
    fn a_run_survives_anything_and_ends_once_the_trouble_stops(
        stages in 1_u16..4,
        validated in any::<bool>(),
        miners_to_start in 1_u32..3,
        kind in 0_u8..8,
        merging in merging(),
        steps in prop::collection::vec(step(), 0..160),
    ) {
        let registration = registration(kind, stages, miners_to_start);
        let small = || small(stages, validated, miners_to_start, registration, merging);
        let mut chaos = Chaos::new(small());
        for step in &steps {
            chaos.run(step);
        }
        chaos.recover();
        prop_assert_eq!(chaos.world.state.phase(), Phase::Over);

        // Every event survives being written down, and what was written down replays to the same bytes.
        let written: Vec<String> = chaos.world.log.iter().map(|entry| serde_json::to_string(entry).unwrap()).collect();
        let mut replayed = State::new(small(), World::START).unwrap();
        for line in &written {
            let (at, event): (Timestamp, Event) = serde_json::from_str(line).unwrap();
            replayed.apply(at, &event);
        }
        let bytes = serde_json::to_string(&chaos.world.state).unwrap();
        prop_assert_eq!(&serde_json::to_string(&replayed).unwrap(), &bytes);
        let restored: State = serde_json::from_str(&bytes).unwrap();
        prop_assert_eq!(&restored, &chaos.world.state);
    }
}
