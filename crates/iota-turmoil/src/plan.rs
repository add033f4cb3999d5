//! What a seed makes a world of.

use std::collections::BTreeMap;
use std::time::Duration;

use iota_orchestrator::{DeltaChoice, MergingOptions, OptimizerState, OuterName};

use crate::chance::Chance;
use crate::fault::Fault;
use crate::{Death, Which};

/// Stages of a world's model.
pub(crate) const STAGES: u16 = 2;
/// Miners of each stage.
pub(crate) const MINERS_PER_STAGE: u32 = 2;
/// Samples of each epoch.
pub(crate) const SAMPLES_PER_EPOCH: u64 = 16;

/// Who takes part, by the name of its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Orchestrator,
    Miner(u8),
    Validator,
}

impl Host {
    /// Everybody but the orchestrator.
    pub(crate) const PEERS: [Self; 5] = [
        Self::Miner(0),
        Self::Miner(1),
        Self::Miner(2),
        Self::Miner(3),
        Self::Validator,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Orchestrator => "orchestrator",
            Self::Miner(0) => "miner-0",
            Self::Miner(1) => "miner-1",
            Self::Miner(2) => "miner-2",
            Self::Miner(_) => "miner-3",
            Self::Validator => "validator",
        }
    }
}

/// What trouble is about. Two at a time are never about the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum About {
    /// A machine.
    Machine(Host),
    /// The link between a peer and the orchestrator.
    Link(Host),
    /// A peer's way to the store.
    WayToStore(Host),
    /// The store.
    Store,
}

/// Something that goes wrong, and is put right again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) fault: Fault,
    pub(crate) about: About,
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    /// Of two ways in which it can go wrong: which direction is cut, whether a last write is kept.
    pub(crate) this_way: bool,
}

/// Everything that is drawn before a world begins.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Epochs of its run.
    pub(crate) epochs: u64,
    /// The longest that a message takes.
    pub(crate) latency_max: Duration,
    /// The longest that a piece of work of a stage, or a write of the journal, usually takes.
    pub(crate) work_max: Duration,
    /// How far a peer's clock is ahead, or behind, in milliseconds.
    pub(crate) clock_ahead_ms: BTreeMap<Host, i64>,
    pub(crate) merging: MergingOptions,
    /// Miners that a stage needs before training starts: whoever is missing comes late.
    pub(crate) miners_to_start: u32,
    /// Who uploads made-up tensors.
    pub(crate) cheater: Option<Host>,
    /// In the order in which it begins.
    pub(crate) troubles: Vec<Trouble>,
    /// The write that the orchestrator dies of, if nothing else goes wrong.
    pub(crate) death: Option<Death>,
}

impl Plan {
    pub(crate) fn new(which: Which) -> Self {
        match which {
            Which::Troubled { seed } => Self::troubled(seed),
            Which::Calm { death } => Self::calm(death),
        }
    }

    fn calm(death: Option<Death>) -> Self {
        Self {
            seed: 0,
            epochs: 3,
            latency_max: Duration::from_millis(5),
            work_max: Duration::from_millis(20),
            clock_ahead_ms: BTreeMap::new(),
            // So that as much as can be goes on at a time.
            merging: MergingOptions {
                overlap: true,
                ..MergingOptions::DEFAULT
            },
            miners_to_start: MINERS_PER_STAGE,
            cheater: None,
            troubles: Vec::new(),
            death,
        }
    }

    fn troubled(seed: u64) -> Self {
        let mut chance = Chance::new(seed, "plan");
        let latency_max = chance.pick(&[5, 30, 100]);
        let work_max = chance.pick(&[20, 100, 400]);
        let clock_ahead_ms = Host::PEERS
            .into_iter()
            .filter_map(|peer| {
                let ahead_ms = chance.between(0, 40_000).cast_signed() - 20_000;
                chance.happens(20).then_some((peer, ahead_ms))
            })
            .collect();
        Self {
            seed,
            epochs: 2,
            latency_max: Duration::from_millis(latency_max),
            work_max: Duration::from_millis(work_max),
            clock_ahead_ms,
            merging: merging(seed, &mut chance),
            miners_to_start: chance.pick(&[1, MINERS_PER_STAGE]),
            cheater: chance.happens(20).then_some(Host::Miner(3)),
            troubles: troubles(&mut chance),
            death: None,
        }
    }
}

/// Whole values or the default; sometimes what was learned, with an outer step, and moments that miners keep to themselves,
/// who then may train on meanwhile.
fn merging(seed: u64, chance: &mut Chance) -> MergingOptions {
    let kept = chance.pick(&[
        OptimizerState::Merged,
        OptimizerState::Local,
        OptimizerState::Dropped,
    ]);
    let (outer, delta) = chance.pick(&[
        (OuterName::None, DeltaChoice::None),
        (OuterName::None, DeltaChoice::None),
        (OuterName::Nesterov, DeltaChoice::Int8),
    ]);
    let ways = [MergingOptions::WHOLE, MergingOptions::DEFAULT];
    MergingOptions {
        outer,
        delta,
        optimizer_state: kept,
        // Drawn apart, so that older seeds otherwise stay the worlds that they were.
        overlap: kept == OptimizerState::Local && Chance::new(seed, "overlap").happens(50),
        ..chance.pick(&ways)
    }
}

/// How long there is trouble.
const TROUBLED: Duration = Duration::from_secs(60);

fn troubles(chance: &mut Chance) -> Vec<Trouble> {
    let mean_ms = chance.pick(&[400, 1_000, 3_000, 8_000]);
    let mut busy: BTreeMap<About, Duration> = BTreeMap::new();
    let mut troubles = Vec::new();
    let mut from = chance.millis(0, 5_000);
    while from < TROUBLED {
        let drawn = draw(chance, from);
        // For a moment it is left alone after that, so that it may get somewhere.
        let free_at = busy.entry(drawn.about).or_default();
        if *free_at <= from {
            *free_at = drawn.until + chance.millis(0, 10_000);
            troubles.push(drawn);
        }
        from += chance.millis(0, 2 * mean_ms);
    }
    troubles
}

fn draw(chance: &mut Chance, from: Duration) -> Trouble {
    let peer = chance.pick(&Host::PEERS);
    let miner = chance.pick(&Host::PEERS[..4]);
    let fault = chance.pick(&Fault::ALL[..Fault::ALL.len() - 2]);
    let about = match fault {
        Fault::OrchestratorCrashed | Fault::JournalDied | Fault::OrchestratorSuspended => {
            About::Machine(Host::Orchestrator)
        }
        Fault::MinerCrashed => About::Machine(miner),
        Fault::ValidatorCrashed => About::Machine(Host::Validator),
        Fault::PeerLeft => About::Machine(peer),
        Fault::Partition | Fault::HalfPartition | Fault::MessagesHeld => About::Link(peer),
        Fault::StoreUnreachable => About::WayToStore(peer),
        Fault::StoreRefusing | Fault::StoreSlow | Fault::StoreLossy => About::Store,
        Fault::ClockWrong | Fault::Cheater => unreachable!("drawn for the whole world"),
    };
    // Most is over soon. Some lasts longer than sessions and leases do.
    let longest_ms = chance.pick(&[500, 3_000, 3_000, 10_000, 25_000]);
    Trouble {
        fault,
        about,
        from,
        until: from + chance.millis(50, longest_ms),
        this_way: chance.happens(50),
    }
}
