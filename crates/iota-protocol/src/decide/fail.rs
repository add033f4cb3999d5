//! Leases given back undone. What a failure says about others is checked before it is believed.

use super::Found;
use crate::event::{Direction, Event, LeaseEnd, Piece};
use crate::id::{AuditId, LeaseId, Session, StageIndex};
use crate::rejection::Rejection;
use crate::repair::ACCUSERS;
use crate::state::State;
use crate::work::{
    Checkpoint, Difference, Failure, Lease, ObjectName, ObjectRef, Segment, SegmentSource, Work,
};

/// Disputes that wait for a validator, at most; further accusations still have their other effects.
const DISPUTES_MAX: usize = 256;

impl State {
    pub(super) fn decide_fail(
        &self,
        session: Session,
        id: LeaseId,
        failure: Failure,
    ) -> Result<Vec<Event>, Rejection> {
        let state = self.live(session)?;
        let lease = match self.find_lease(session, state, id)? {
            Found::Held(lease) => lease,
            Found::Lapsed(_) | Found::Answered(_) => return Ok(Vec::new()),
        };
        let bad_input = match failure {
            Failure::BadInput { object, difference } => Some((
                read_by(&lease.work, object).ok_or(Rejection::OutOfBounds)?,
                difference,
            )),
            _ => None,
        };
        let mut events = self.end_lease(id, LeaseEnd::Failed { failure });
        if let Some((object, difference)) = bad_input {
            events.extend(self.accuse(lease, object, difference));
        }
        Ok(events)
    }

    /// What an accusation sets in motion: the bad piece is done again, or the bad upload noted, and a validator asked.
    fn accuse(&self, lease: &Lease, object: ObjectRef, difference: Difference) -> Vec<Event> {
        let accuser = lease.session;
        let mut events = Vec::new();
        let producer = match &lease.work {
            Work::Forward { sample, .. } | Work::Backward { sample, .. } => {
                let state = &self.samples.flying[sample];
                let stage = lease.stage.get();
                let came_forward = state.input_of(lease.stage) == Some(object);
                let (hop, piece) = if came_forward {
                    let before = StageIndex::new(stage - 1);
                    (
                        state.forwards.get(usize::from(before.get())),
                        Piece {
                            stage: before,
                            direction: Direction::Forward,
                        },
                    )
                } else {
                    (
                        state.backwards.last(),
                        Piece {
                            stage: StageIndex::new(stage + 1),
                            direction: Direction::Backward,
                        },
                    )
                };
                let Some(producer) = hop.map(|hop| hop.session) else {
                    return events;
                };
                events.push(Event::PieceUndone {
                    sample: *sample,
                    piece,
                    producer,
                    accuser,
                    difference,
                });
                producer
            }
            Work::Merge { .. } => {
                let Some((producer, _)) = self.merge_of(lease.stage).author(object.name) else {
                    return events;
                };
                events.push(Event::UploadAccused {
                    stage: lease.stage,
                    producer,
                    accuser,
                    difference,
                });
                producer
            }
            // Nobody has to do without it yet: if nobody can read it, those who install will say so.
            Work::Fetch { .. } => {
                let Some(producer) = self.merge_of(lease.stage).merger(object.name) else {
                    return events;
                };
                producer
            }
            Work::Install { checkpoint, .. } => {
                let is_present = self.checkpoint(lease.stage) == checkpoint;
                if !is_present || self.accusers(lease.stage, object.name) >= ACCUSERS {
                    return events;
                }
                events.push(Event::CheckpointAccused {
                    stage: lease.stage,
                    object: object.name,
                    accuser,
                    difference,
                });
                let Some(producer) = self.merge_of(lease.stage).merger(object.name) else {
                    return events;
                };
                producer
            }
            _ => return events,
        };
        let stage = match events.first() {
            Some(Event::PieceUndone { piece, .. }) => piece.stage,
            _ => lease.stage,
        };
        events.extend(self.dispute(object, stage, producer, accuser));
        events
    }

    /// A validator is asked, if there may be one, unless it was asked about the two already.
    fn dispute(
        &self,
        object: ObjectRef,
        stage: StageIndex,
        producer: Session,
        accuser: Session,
    ) -> Option<Event> {
        let is_dispute_of_the_two = |id: &AuditId| {
            let audit = self.audits.pending.get(id);
            audit.is_some_and(
                |audit| matches!(&audit.work, Work::Inspect { accuser: other, .. } if *other == accuser),
            )
        };
        let asked_already = || {
            self.index
                .audits_of(producer)
                .any(|id| is_dispute_of_the_two(&id))
        };
        let pointless = self.settings.validators.is_empty()
            || producer.peer == accuser.peer
            || self.index.disputes >= DISPUTES_MAX
            || asked_already();
        let audit: AuditId = self.audits.next;
        (!pointless).then_some(Event::DisputeOpened {
            audit,
            object,
            stage,
            producer,
            accuser,
        })
    }
}

/// The object of that name among those that the work reads.
fn read_by(work: &Work, name: ObjectName) -> Option<ObjectRef> {
    let within = |segments: &[Segment]| -> Vec<ObjectRef> {
        let objects = segments.iter().filter_map(|segment| match &segment.source {
            SegmentSource::Merged { object, .. } => Some(*object),
            SegmentSource::Genesis => None,
        });
        objects.collect()
    };
    let merged = |checkpoint: &Checkpoint| within(&checkpoint.segments);
    let read: Vec<ObjectRef> = match work {
        Work::Forward { input, .. } => input.iter().copied().collect(),
        Work::Backward {
            input,
            output_gradient,
            ..
        } => input.iter().chain(output_gradient).copied().collect(),
        Work::Merge { inputs, .. } => inputs.iter().map(|input| input.object).collect(),
        Work::Fetch { segments } => within(segments),
        Work::Install { checkpoint, .. } => merged(checkpoint),
        Work::Replay {
            checkpoint,
            kept,
            entries,
            ..
        } => {
            let again = entries.iter().find_map(|entry| read_by(&entry.work, name));
            let begun = merged(checkpoint).into_iter().chain(*kept);
            begun.chain(again).collect()
        }
        Work::Inspect { object, .. } => vec![*object],
        Work::Upload { .. } | Work::HandOver { .. } => Vec::new(),
    };
    read.into_iter().find(|object| object.name == name)
}
