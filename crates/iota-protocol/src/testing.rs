//! A run so small that a test can live through it, and what honest peers say in it. For tests of the crates that follow a
//! run's events; feature `testing`.

use std::time::Duration;

use crate::id::{Digest, Epoch, PeerId, RunId, Session};
use crate::settings::{LearningRate, Merging, Registration, RunSettings, Timing};
use crate::state::State;
use crate::work::{Checkpoint, Lease, Outcome, Seal, Verdict, Work};

/// Settings of a small run: `stages` stages of 12 parameters, 2 epochs of 4 samples, no validator.
pub fn settings(stages: u16) -> RunSettings {
    RunSettings {
        run: RunId::from_bytes([7; 16]),
        secret: [42; 32],
        stage_parameters: vec![12; stages.into()],
        activation_bytes: 100,
        gradient_bytes: 150,
        cell_element_bytes: 4,
        cell_overhead_bytes: 8,
        sample_tokens: 16,
        epochs: 2,
        samples_per_epoch: 4,
        samples_in_flight: 3,
        in_batches: false,
        backwards_per_step: 2,
        miners_to_start: 1,
        miners_per_stage_max: 8,
        registration: Registration::default(),
        validators: Vec::new(),
        audit_every_epochs: 1,
        learning_rate: LearningRate::cosine(0.001, 2, 0.1),
        merging: Merging::default(),
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

/// A peer by its number.
pub const fn peer(name: u8) -> PeerId {
    PeerId::from_bytes([name; PeerId::LENGTH])
}

/// What whoever wrote this content commits to, of an object of so many bytes.
pub fn seal(content: impl AsRef<[u8]>, length: u64) -> Seal {
    Seal {
        digest: Digest::of(content.as_ref()),
        length,
    }
}

/// What an honest session says of its work, which is its stage's `ordinal`-th operation if it is an operation, and comes
/// after so many if it is an installation.
pub fn honest(settings: &RunSettings, lease: &Lease, ordinal: u32) -> Outcome {
    match &lease.work {
        Work::Forward { sample, .. } => Outcome::Forward {
            ordinal,
            output: seal(
                format!("forward {sample} {}", lease.stage),
                settings.activation_bytes,
            ),
        },
        Work::Backward {
            sample,
            gradient,
            output_gradient,
            ..
        } => {
            let content = format!("backward {sample} {}", lease.stage);
            Outcome::Backward {
                ordinal,
                recomputed: output_gradient.is_none(),
                gradient: gradient.map(|_| seal(content, settings.gradient_bytes)),
                loss: output_gradient.is_none().then_some(2.5),
            }
        }
        Work::Upload {
            cells, seals_kept, ..
        } => {
            let elements = settings.stage_parameters[usize::from(lease.stage.get())];
            let cells = cells.iter().map(|cell| {
                let length = settings.upload_bytes(cell.range.end - cell.range.start);
                seal(format!("upload {}", cell.cell), length)
            });
            let size = settings.merging.kept.filter(|_| *seals_kept);
            Outcome::Upload {
                cells: cells.collect(),
                optimizer_steps: 3,
                kept: size.map(|size| seal(kept(lease.epoch), size.bytes(elements))),
            }
        }
        Work::Merge {
            range,
            inputs,
            delta,
            ..
        } => {
            let elements = range.end - range.start;
            let bytes = settings.delta_bytes(elements, inputs.len());
            let bytes = bytes.filter(|_| delta.is_some());
            let digests = inputs.iter().map(|input| input.object.seal.digest);
            let content: String = digests.map(|digest| digest.to_string()).collect();
            Outcome::Merge {
                delta: bytes.map(|bytes| seal(&content, bytes)),
                merged: seal(content, settings.cell_bytes(elements)),
                quarantined: Vec::new(),
            }
        }
        Work::HandOver { .. } => Outcome::HandedOver,
        Work::Fetch { .. } => Outcome::Fetched,
        Work::Install {
            checkpoint,
            goes_on,
        } => Outcome::Install {
            state: installed(checkpoint),
            operations: if *goes_on && settings.merging.overlaps {
                ordinal
            } else {
                0
            },
        },
        Work::Replay { entries, .. } => Outcome::Audit {
            verdict: Verdict::Agrees {
                operations: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            },
        },
        Work::Inspect { .. } => Outcome::Audit {
            verdict: Verdict::Agrees { operations: 1 },
        },
    }
}

/// What an honest session keeps for itself since the end of an epoch.
pub fn kept(epoch: Epoch) -> String {
    format!("kept since {epoch}")
}

/// What an honest miner says it installed.
pub fn installed(checkpoint: &Checkpoint) -> Digest {
    Digest::of(format!("{checkpoint:?}").as_bytes())
}

/// The first ordinal that a session has not used.
pub fn next_ordinal(state: &State, session: Session) -> u32 {
    let log = state.session(session).map_or(&[][..], |own| own.log());
    let next = log.iter().map(|entry| entry.ordinal + 1).max();
    next.unwrap_or_default()
}
