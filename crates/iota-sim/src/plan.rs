//! What a seed makes a world of: a run's settings, who takes part, and which kinds of trouble there are.
//!
//! Each kind of trouble is there in some worlds only. A world with all of them at once rarely gets to where one of them
//! alone would do harm.

use std::time::Duration;

use iota_protocol::cells::Cells;
use iota_protocol::settings::{LearningRate, Merging, ObjectSize, Opens, Registration, Timing};
use iota_protocol::{PeerId, Role, RunId, RunSettings};

use crate::chance::Chance;

/// A world before it begins.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) settings: RunSettings,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) rates: Rates,
    /// When all trouble stops, in milliseconds.
    pub(crate) calm_at: u64,
}

/// Somebody who takes part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodePlan {
    pub(crate) peer: PeerId,
    pub(crate) role: Role,
    pub(crate) behaviour: Behaviour,
    pub(crate) capacity: u32,
    pub(crate) starts_at: u64,
    /// What its clock shows beyond the time that it is, in milliseconds.
    pub(crate) clock_ahead: u64,
    /// How many times longer its work takes than the fastest's.
    pub(crate) slowness: u64,
}

/// What a peer does with the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Honest,
    /// Commits to tensors that its work did not give.
    WrongOutputs,
    /// Uploads weights that its work did not give.
    WrongUploads,
    /// Merges cells into something else.
    WrongMerges,
    /// Says of good objects that they are bad.
    Accuser,
    /// Takes work and does not do it.
    Idler,
}

/// How often what happens: of [`crate::chance::OFTEN`] times, or once in so many milliseconds on average (0: never).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    pub(crate) request_lost: u64,
    pub(crate) answer_lost: u64,
    pub(crate) repeated: u64,
    pub(crate) delayed: u64,
    pub(crate) unavailable: u64,
    pub(crate) slow: u64,
    pub(crate) vanishes: u64,
    pub(crate) corrupt: u64,
    pub(crate) decision_lost: u64,
    pub(crate) answer_died: u64,
    /// Of times that the orchestrator comes back.
    pub(crate) history_lost: u64,
    pub(crate) crash_every: u64,
    pub(crate) leave_every: u64,
    pub(crate) orchestrator_crash_every: u64,
    pub(crate) leap_every: u64,
    pub(crate) sleep_every: u64,
    pub(crate) partition_every: u64,
}

impl Plan {
    pub(crate) fn of(chance: &mut Chance) -> Self {
        let stages = chance.pick(&[1, 2, 2, 3]);
        let validated = chance.happens(6_000);
        let miners = u64::from(stages) * chance.between(1, 4) + chance.between(0, 3);
        let some = |chance: &mut Chance, likely: u64, rates: &[u64]| {
            if chance.happens(likely) {
                chance.pick(rates)
            } else {
                0
            }
        };
        let rates = Rates {
            request_lost: some(chance, 4_000, &[50, 300, 1_000]),
            answer_lost: some(chance, 4_000, &[50, 300, 1_000]),
            repeated: some(chance, 4_000, &[100, 1_000]),
            delayed: some(chance, 4_000, &[100, 500, 2_000]),
            unavailable: some(chance, 3_000, &[50, 300]),
            slow: some(chance, 3_000, &[100, 500]),
            vanishes: some(chance, 1_500, &[30, 100]),
            corrupt: some(chance, 1_500, &[30, 100]),
            decision_lost: some(chance, 3_000, &[10, 50]),
            answer_died: some(chance, 3_000, &[10, 50]),
            history_lost: 0,
            crash_every: some(chance, 4_000, &[20_000, 60_000]),
            leave_every: some(chance, 3_000, &[20_000, 60_000]),
            orchestrator_crash_every: some(chance, 3_000, &[15_000, 60_000]),
            leap_every: some(chance, 2_000, &[20_000, 60_000]),
            sleep_every: 0,
            partition_every: some(chance, 3_000, &[20_000, 60_000]),
        };
        let calm_at = chance.between(30_000, 300_000);
        let late = chance.happens(4_000);
        let dishonest = chance.happens(3_500);
        let skewed = chance.happens(3_000);
        let mut node = |number: u64, role| NodePlan {
            peer: peer(number),
            role,
            behaviour: if role == Role::Miner && dishonest && chance.happens(4_000) {
                chance.pick(&[
                    Behaviour::WrongOutputs,
                    Behaviour::WrongUploads,
                    Behaviour::WrongMerges,
                    Behaviour::Accuser,
                    Behaviour::Idler,
                ])
            } else {
                Behaviour::Honest
            },
            capacity: chance.pick(&[1, 2, 4]),
            starts_at: if late && chance.happens(3_000) {
                chance.between(5_000, calm_at)
            } else {
                chance.between(0, 2_000)
            },
            clock_ahead: if skewed {
                chance.between(0, 3_600_000)
            } else {
                0
            },
            slowness: chance.pick(&[1, 1, 2, 8]),
        };
        let mut nodes: Vec<NodePlan> = (0..miners)
            .map(|number| node(number, Role::Miner))
            .collect();
        if validated {
            nodes.push(node(VALIDATOR, Role::Validator));
        }
        let settings = settings(chance, stages, validated);
        // Drawn from what is there, so that older seeds draw nothing else than they did.
        let loses_history = settings.secret[5].is_multiple_of(4);
        let sleeps = settings.secret[6].is_multiple_of(4);
        Self {
            settings,
            nodes,
            rates: Rates {
                history_lost: if loses_history { 4_000 } else { 0 },
                sleep_every: if sleeps { 40_000 } else { 0 },
                ..rates
            },
            calm_at,
        }
    }

    /// An honest miner who joins when all trouble is over.
    pub(crate) fn helper(number: u64, now: u64) -> NodePlan {
        NodePlan {
            peer: peer(1_000 + number),
            role: Role::Miner,
            behaviour: Behaviour::Honest,
            capacity: 2,
            starts_at: now,
            clock_ahead: 0,
            slowness: 1,
        }
    }
}

const VALIDATOR: u64 = 500;

fn peer(number: u64) -> PeerId {
    let mut bytes = [0; PeerId::LENGTH];
    // Spread, so that the order of sessions is not the order of joining.
    bytes[..8].copy_from_slice(&Chance::new(number).next().to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    PeerId::from_bytes(bytes)
}

/// In half of the worlds there is a place for everybody. In the others there are few places, and registration is open, open
/// now and then, or closed. Drawn from the secret too.
fn registration(secret: &[u8; 32], stages: u16) -> Registration {
    let opens = match secret[2] % 8 {
        0..4 => return Registration::default(),
        4 | 5 => Opens::Always,
        6 => Opens::Never,
        _ => Opens::Windows {
            closed_mean: Duration::from_secs(60),
            open_for: Duration::from_secs(5),
        },
    };
    Registration {
        opens,
        // As many as may be needed to start, and up to three more.
        miners_max: 2 * u32::from(stages) + u32::from(secret[3] % 4),
        waiting_max: 2 + u32::from(secret[3] / 4 % 8),
        place_kept: Duration::from_secs(60 + 10 * u64::from(secret[4] % 8)),
    }
}

/// How long objects of a kind are that only some runs have; none in half of all worlds.
fn size(drawn: u8) -> Option<ObjectSize> {
    drawn.is_multiple_of(2).then(|| ObjectSize {
        overhead_bytes: 5,
        element_bytes: u64::from(drawn % 3),
        chunk_bytes: 2,
        chunk_elements: 1 + u64::from(drawn % 7),
        copy_chunk_bytes: u64::from(drawn % 2),
        copies_max: 3,
    })
}

fn settings(chance: &mut Chance, stages: u16, validated: bool) -> RunSettings {
    let mut secret = [0; 32];
    secret[..8].copy_from_slice(&chance.next().to_le_bytes());
    RunSettings {
        run: RunId::from_bytes([7; 16]),
        secret,
        stage_parameters: (0..stages).map(|_| chance.between(5, 40)).collect(),
        activation_bytes: 100,
        gradient_bytes: 90,
        cell_element_bytes: 4,
        cell_overhead_bytes: 8,
        sample_tokens: 16,
        epochs: chance.between(1, 4),
        samples_per_epoch: chance.between(2, 9),
        samples_in_flight: chance.pick(&[1, 3, 6]),
        // Drawn from what is there, so that older seeds stay the worlds that they were.
        in_batches: secret[1].is_multiple_of(8),
        backwards_per_step: chance.pick(&[1, 2, 3]),
        miners_to_start: chance.pick(&[1, 1, 2]),
        miners_per_stage_max: 16,
        registration: registration(&secret, stages),
        validators: if validated {
            vec![peer(VALIDATOR)]
        } else {
            Vec::new()
        },
        audit_every_epochs: chance.pick(&[1, 2]),
        learning_rate: LearningRate::cosine(0.001, 2, 0.1),
        merging: Merging {
            copies: 1 + u32::from(secret[1] % 2),
            cells: if secret[2].is_multiple_of(2) {
                Cells::Butterfly
            } else {
                Cells::Grid {
                    cells: 1 + u32::from(secret[3] % 12),
                    owners: 2 + u32::from(secret[4] % 3),
                }
            },
            // As runs have them that send what was learned in few bytes: all three, or some.
            upload: size(secret[5]),
            delta: size(secret[6]),
            kept: size(secret[7]),
            compares_kept: secret[8].is_multiple_of(2),
            overlaps: secret[9].is_multiple_of(2) && (!validated || size(secret[7]).is_some()),
        },
        timing: Timing {
            lease_initial: Duration::from_secs(20),
            lease_min: Duration::from_secs(5),
            lease_factor: 4,
            session_timeout: Duration::from_secs(30),
            affinity: Duration::from_secs(10),
            phase_max: Duration::from_secs(120),
            quorum_relaxes_after: Duration::from_secs(30),
        },
    }
}
