//! Every sample's tokens are counted once: shown from the journal alone, by somebody who does not know the rules' state.

use std::collections::BTreeMap;

use iota_protocol::work::{Lease, Work};
use iota_protocol::{Event, LeaseId, Phase, SampleId, Session, StageIndex, State, Timestamp};

/// Where a sample is, as the journal has it.
#[derive(Debug, Clone, Default)]
struct Course {
    /// Who did the present backward pass of each stage.
    backwards: BTreeMap<StageIndex, Session>,
    completed: bool,
    dropped: bool,
}

/// Goes through a run's journal and compares with what its state says.
///
/// # Errors
/// Says what does not add up.
pub(crate) fn audit(journal: &[(Timestamp, Event)], state: &State) -> Result<(), String> {
    let mut samples: BTreeMap<SampleId, Course> = BTreeMap::new();
    let mut leases: BTreeMap<LeaseId, Lease> = BTreeMap::new();
    let mut of_epoch = 0;
    // How things were when the epoch began to train, while no checkpoint has what it learned.
    let mut before: Option<BTreeMap<SampleId, Course>> = None;
    let mut quotas: Vec<u64> = Vec::new();
    let first = |is_new: bool, what: String| {
        is_new
            .then_some(())
            .ok_or_else(|| format!("A3: {what} began twice"))
    };
    for (_, event) in journal {
        match event {
            Event::SampleOpened { sample } => {
                let is_new = samples.insert(*sample, Course::default()).is_none();
                first(is_new, sample.to_string())?;
            }
            Event::Leased(lease) => {
                let is_new = leases.insert(lease.id, lease.clone()).is_none();
                first(is_new, lease.id.to_string())?;
            }
            Event::Completed {
                lease,
                session,
                credited: true,
                ..
            } => {
                let lease = leases.get(lease).ok_or("A3: a result without a lease")?;
                if let Work::Backward { sample, .. } = &lease.work {
                    let course = on_its_way(&mut samples, *sample)?;
                    if course.backwards.insert(lease.stage, *session).is_some() {
                        return Err(format!(
                            "A3: {sample} was learned from twice at {}",
                            lease.stage
                        ));
                    }
                }
            }
            Event::SampleRestarted { sample, .. } => {
                on_its_way(&mut samples, *sample)?.backwards.clear();
            }
            Event::PieceUndone { sample, piece, .. } => {
                // What was made from the piece goes with it: all that came after it on its way.
                let undone = piece.stage;
                let forward = piece.direction == iota_protocol::event::Direction::Forward;
                let course = on_its_way(&mut samples, *sample)?;
                course
                    .backwards
                    .retain(|stage, _| !forward && *stage > undone);
            }
            Event::SampleCompleted { sample, path, .. } => {
                let course = on_its_way(&mut samples, *sample)?;
                let did: Vec<Session> = course.backwards.values().copied().collect();
                if did != *path {
                    return Err(format!(
                        "A3: {sample} came by {path:?}, and {did:?} learned from it"
                    ));
                }
                course.completed = true;
                of_epoch += 1;
            }
            Event::SampleDropped { sample } => on_its_way(&mut samples, *sample)?.dropped = true,
            Event::PhaseChanged { phase, .. } => match phase {
                Phase::Training => {
                    of_epoch = 0;
                    before = Some(samples.clone());
                }
                Phase::Uploading => quotas.push(std::mem::take(&mut of_epoch)),
                Phase::Merging => {}
                _ => before = None,
            },
            Event::Restored { .. } => {
                if let Some(before) = before.take() {
                    samples = before;
                }
            }
            _ => {}
        }
    }
    let completed = samples.values().filter(|course| course.completed).count() as u64;
    let dropped = samples.values().filter(|course| course.dropped).count() as u64;
    let counts = state.sample_counts();
    if (samples.len() as u64, completed, dropped) != (counts.opened, counts.completed, counts.lost)
    {
        return Err(format!(
            "A3: the journal has {} samples, {completed} completed and {dropped} dropped; the state {counts:?}",
            samples.len()
        ));
    }
    let quota = state.settings().samples_per_epoch;
    if let Some(most) = quotas.iter().max().filter(|most| **most > quota) {
        return Err(format!("A3: an epoch of {quota} samples trained on {most}"));
    }
    Ok(())
}

fn on_its_way(
    samples: &mut BTreeMap<SampleId, Course>,
    sample: SampleId,
) -> Result<&mut Course, String> {
    samples
        .get_mut(&sample)
        .filter(|course| !course.completed && !course.dropped)
        .ok_or_else(|| format!("A3: {sample} is not on its way"))
}
