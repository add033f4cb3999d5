//! Journals that somebody rewrote so that the rules' state follows from them all the same: the books find out.

use iota_ledger::{Discrepancy, Objection};
use iota_protocol::event::{BanReason, CellResult, ExclusionReason, Repair};
use iota_protocol::work::{Checkpoint, Difference, ObjectRef, Outcome, SegmentSource, Work};
use iota_protocol::{CellIndex, Digest, Epoch, Event, LeaseId, Session, StageIndex};

use crate::network::{Lived, Trouble, live, peer};

const STAGE: StageIndex = StageIndex::new(0);
const CELL: CellIndex = CellIndex::new(0);

/// What is found if these had been the run's events.
fn forged(lived: &Lived, forge: impl FnOnce(&mut Vec<Event>)) -> Vec<Discrepancy> {
    let events = lived.events.iter();
    let mut events: Vec<Event> = events.map(|(_, event)| event.clone()).collect();
    assert_eq!(lived.check(&events), []);
    forge(&mut events);
    lived.check(&events)
}

fn place(events: &[Event], is_it: impl Fn(&Event) -> bool) -> usize {
    events.iter().position(is_it).unwrap()
}

fn lease_mut(
    events: &mut [Event],
    is_it: impl Fn(&Work) -> bool,
) -> &mut iota_protocol::work::Lease {
    let leases = events.iter_mut().filter_map(|event| match event {
        Event::Leased(lease) => Some(lease),
        _ => None,
    });
    let mut leases = leases.filter(|lease| lease.stage == STAGE && is_it(&lease.work));
    leases.next().unwrap()
}

/// The results of the first cell of the head in the first epoch: where they are, by whom and under which lease.
fn results(events: &[Event]) -> Vec<(usize, Session, LeaseId)> {
    let is_merge = |id: LeaseId| {
        events.iter().any(|event| match event {
            Event::Leased(lease) => {
                let of_cell = matches!(lease.work, Work::Merge { cell, .. } if cell == CELL);
                lease.id == id && of_cell && (lease.stage, lease.epoch) == (STAGE, Epoch::new(0))
            }
            _ => false,
        })
    };
    let completed = events
        .iter()
        .enumerate()
        .filter_map(|(place, event)| match event {
            Event::Completed { lease, session, .. } if is_merge(*lease) => {
                Some((place, *session, *lease))
            }
            _ => None,
        });
    completed.collect()
}

/// How that cell was settled.
fn settled(events: &mut [Event]) -> (&mut CellResult, &mut Option<ObjectRef>) {
    let mut settled = events.iter_mut().filter_map(|event| match event {
        Event::CellSettled {
            stage: STAGE,
            cell: CELL,
            result,
            merged,
        } => Some((result, merged)),
        _ => None,
    });
    settled.next().unwrap()
}

fn said_merged(event: &mut Event) -> &mut Digest {
    match event {
        Event::Completed {
            outcome: Outcome::Merge { merged, .. },
            ..
        } => &mut merged.digest,
        other => panic!("{other:?} is no result of a merge"),
    }
}

/// The object that a lease wrote, as its holder committed to it.
fn made(events: &[Event], id: LeaseId) -> ObjectRef {
    let name = events.iter().find_map(|event| match event {
        Event::Leased(lease) if lease.id == id => match &lease.work {
            Work::Merge { output, .. } => Some(*output),
            _ => None,
        },
        _ => None,
    });
    let seal = events.iter().find_map(|event| match event {
        Event::Completed {
            lease,
            outcome: Outcome::Merge { merged, .. },
            ..
        } if *lease == id => Some(*merged),
        _ => None,
    });
    ObjectRef {
        name: name.unwrap(),
        seal: seal.unwrap(),
    }
}

fn otherwise(what: Objection) -> Discrepancy {
    Discrepancy::SettledOtherwise {
        epoch: Epoch::new(0),
        stage: STAGE,
        cell: CELL,
        what,
    }
}

#[test]
fn an_agreement_takes_two_equal_results() {
    let lived = live(Trouble::None);
    let another = forged(&lived, |events| {
        let named = settled(events).1.unwrap().name;
        let copies = results(events);
        let mut copies = copies.iter();
        let copy = copies.find(|(_, _, lease)| made(events, *lease).name != named);
        *said_merged(&mut events[copy.unwrap().0]) = Digest::of(b"something else");
    });
    assert_eq!(another, [otherwise(Objection::NoAgreement)]);

    let single = forged(&lived, |events| *settled(events).0 = CellResult::Single);
    assert!(
        single.contains(&otherwise(Objection::NotSingle)),
        "{single:?}"
    );

    let liar = lived.events.iter().find_map(|(_, event)| match event {
        Event::RosterFixed {
            stage: STAGE,
            roster,
        } => roster.first().copied(),
        _ => None,
    });
    let slandered = forged(&lived, |events| {
        let liar = liar.unwrap();
        *settled(events).0 = CellResult::Arbitrated { liar };
    });
    assert!(
        slandered.contains(&otherwise(Objection::NotTheLiar)),
        "{slandered:?}"
    );

    let kept = forged(&lived, |events| {
        let (result, merged) = settled(events);
        (*result, *merged) = (CellResult::CarriedForward, None);
    });
    assert!(kept.contains(&otherwise(Objection::Decided)), "{kept:?}");
}

#[test]
fn an_arbitration_sides_with_whoever_decides_and_the_liar_is_banned() {
    let lived = live(Trouble::OneMergesWrong);
    let arbitrated = lived.events.iter().find_map(|(_, event)| match event {
        Event::CellSettled {
            stage,
            cell,
            result: CellResult::Arbitrated { liar },
            ..
        } => Some((*stage, *cell, *liar)),
        _ => None,
    });
    let (stage, cell, liar) = arbitrated.unwrap();
    let settling = |event: &Event| {
        matches!(
            event,
            Event::CellSettled {
                result: CellResult::Arbitrated { .. },
                ..
            }
        )
    };
    let said = |what| Discrepancy::SettledOtherwise {
        epoch: Epoch::new(0),
        stage,
        cell,
        what,
    };

    let with_the_liar = forged(&lived, |events| {
        let lie = events.iter().find_map(|event| match event {
            Event::Completed {
                lease,
                session,
                outcome: Outcome::Merge { merged, .. },
                ..
            } if *session == liar && merged.digest == Digest::of(b"a lie") => Some(*lease),
            _ => None,
        });
        let lie = made(events, lie.unwrap());
        let place = place(events, settling);
        if let Event::CellSettled { merged, .. } = &mut events[place] {
            *merged = Some(lie);
        }
    });
    let expected = said(Objection::AgainstTheMajority);
    assert!(with_the_liar.contains(&expected), "{with_the_liar:?}");

    let somebody_else = forged(&lived, |events| {
        let place = place(events, settling);
        if let Event::CellSettled { result, .. } = &mut events[place] {
            let innocent = Session {
                peer: peer(99),
                generation: 1,
            };
            *result = CellResult::Arbitrated { liar: innocent };
        }
    });
    let expected = said(Objection::NotTheLiar);
    assert!(somebody_else.contains(&expected), "{somebody_else:?}");

    let spared = forged(&lived, |events| {
        events.retain(|event| !matches!(event, Event::PeerBanned { .. }));
    });
    let epoch = Epoch::new(0);
    let expected = Discrepancy::LiarSpared {
        epoch,
        stage,
        cell,
        liar,
    };
    assert!(spared.contains(&expected), "{spared:?}");

    let excluded = forged(&lived, |events| {
        let is_it = |event: &Event| matches!(event, Event::UploadExcluded { .. });
        let place = place(events, is_it);
        if let Event::UploadExcluded { why, .. } = &mut events[place] {
            *why = ExclusionReason::Accused;
        }
    });
    let session = liar;
    let expected = Discrepancy::ExcludedForNothing { stage, session };
    assert!(excluded.contains(&expected), "{excluded:?}");

    let slandered = forged(&lived, |events| {
        let place = place(events, |event| matches!(event, Event::PeerBanned { .. }));
        let (peer, why) = (peer(99), BanReason::Merge { epoch, stage, cell });
        events.insert(place, Event::PeerBanned { peer, why });
    });
    let peer = peer(99);
    let expected = Discrepancy::BannedForNothing { peer, stage, cell };
    assert!(slandered.contains(&expected), "{slandered:?}");
}

/// The last checkpoint of the head that the run committed to, in which everything is carried.
fn last_checkpoint(events: &mut [Event]) -> &mut Checkpoint {
    let checkpoints = events.iter_mut().filter_map(|event| match event {
        Event::CheckpointCommitted(checkpoint) if checkpoint.stage == STAGE => Some(checkpoint),
        _ => None,
    });
    checkpoints.last().unwrap()
}

#[test]
fn a_cell_that_nobody_merged_holds_what_it_held() {
    let lived = live(Trouble::NobodyMerges);
    let not_carried = |cell| Discrepancy::NotCarried {
        epoch: Epoch::new(2),
        stage: STAGE,
        cell: CellIndex::new(cell),
    };
    let swapped = forged(&lived, |events| {
        let segments = &mut last_checkpoint(events).segments;
        assert_eq!(segments.len(), 3);
        let (first, rest) = segments.split_at_mut(1);
        std::mem::swap(&mut first[0].source, &mut rest[0].source);
    });
    assert!(swapped.contains(&not_carried(0)), "{swapped:?}");
    assert!(swapped.contains(&not_carried(1)), "{swapped:?}");
    assert!(!swapped.contains(&not_carried(2)), "{swapped:?}");

    // The first half of the cell twice, and not the second.
    let repeated = forged(&lived, |events| {
        let segments = &mut last_checkpoint(events).segments;
        let mut second = segments[0].clone();
        segments[0].range = 0..2;
        second.range = 2..4;
        segments.insert(1, second);
    });
    assert!(repeated.contains(&not_carried(0)), "{repeated:?}");

    let shifted = forged(&lived, |events| {
        let segments = &mut last_checkpoint(events).segments;
        if let SegmentSource::Merged { cell_elements, .. } = &mut segments[2].source {
            *cell_elements += 1;
        }
    });
    assert!(shifted.contains(&not_carried(2)), "{shifted:?}");

    let forgotten = forged(&lived, |events| {
        last_checkpoint(events).segments[1].source = SegmentSource::Genesis;
    });
    assert!(forgotten.contains(&not_carried(1)), "{forgotten:?}");
}

#[test]
fn a_merged_cell_is_in_the_checkpoint_as_a_whole_and_where_it_belongs() {
    let lived = live(Trouble::None);
    let from_the_copy = forged(&lived, |events| {
        let named = settled(events).1.unwrap().name;
        let copies = results(events);
        let mut copies = copies.iter().map(|(_, _, lease)| made(events, *lease));
        let copy = copies.find(|copy| copy.name != named).unwrap();
        let place = place(
            events,
            |event| matches!(event, Event::CheckpointCommitted(it) if it.stage == STAGE),
        );
        if let Event::CheckpointCommitted(checkpoint) = &mut events[place]
            && let SegmentSource::Merged { object, .. } = &mut checkpoint.segments[0].source
        {
            *object = copy;
        }
    });
    let expected = Discrepancy::CellNotInCheckpoint {
        epoch: Epoch::new(1),
        stage: STAGE,
        cell: CELL,
    };
    assert!(from_the_copy.contains(&expected), "{from_the_copy:?}");
}

#[test]
fn a_pass_is_done_with_the_weights_of_its_stage_and_epoch() {
    let lived = live(Trouble::None);
    let with_others = |found: &[Discrepancy], stage: u16, epoch: u64| {
        let (of, then) = (StageIndex::new(stage), Epoch::new(epoch));
        let is_it = |found: &Discrepancy| matches!(found, Discrepancy::WithOtherWeights { stage, epoch, .. } if (*stage, *epoch) == (of, then));
        assert!(found.iter().any(is_it), "{found:?}");
    };
    let is_forward = |work: &Work| matches!(work, Work::Forward { .. });
    let later = forged(&lived, |events| {
        lease_mut(events, is_forward).epoch = Epoch::new(1);
    });
    with_others(&later, 0, 0);
    let elsewhere = forged(&lived, |events| {
        lease_mut(events, is_forward).stage = StageIndex::new(1);
    });
    with_others(&elsewhere, 0, 0);

    // Nobody installed the second epoch's checkpoint: all go on with what they had.
    let stale = forged(&lived, |events| {
        let is_second = |event: &Event| {
            matches!(event, Event::Leased(lease) if lease.epoch == Epoch::new(1)
                && matches!(lease.work, Work::Install { .. }))
        };
        let second: Vec<LeaseId> = events
            .iter()
            .filter(|event| is_second(event))
            .filter_map(|event| match event {
                Event::Leased(lease) => Some(lease.id),
                _ => None,
            })
            .collect();
        events.retain(|event| match event {
            Event::Completed { lease, .. } => !second.contains(lease),
            _ => true,
        });
    });
    with_others(&stale, 0, 0);
    with_others(&stale, 1, 0);
}

#[test]
fn what_is_installed_is_what_the_stage_starts_from() {
    let lived = live(Trouble::None);
    for epoch in [0, 1] {
        let is_it = |work: &Work| matches!(work, Work::Install { checkpoint, .. } if checkpoint.epoch == Epoch::new(epoch));
        let found = forged(&lived, |events| {
            let lease = lease_mut(events, is_it);
            if let Work::Install { checkpoint, .. } = &mut lease.work {
                let mut second = checkpoint.segments[0].clone();
                checkpoint.segments[0].range.end = 1;
                second.range.start = 1;
                second.source = SegmentSource::Merged {
                    object: ObjectRef {
                        name: iota_protocol::work::ObjectName {
                            purpose: iota_protocol::work::Purpose::Merged,
                            epoch: Epoch::new(0),
                            id: iota_protocol::ObjectId::from_bytes([1; 16]),
                        },
                        seal: iota_protocol::testing::seal("poison", 8),
                    },
                    offset: 0,
                    cell_elements: 12,
                    delta: None,
                };
                checkpoint.segments.insert(1, second);
            }
        });
        assert!(
            matches!(
                found[..],
                [Discrepancy::InstalledSomethingElse { stage: STAGE, .. }]
            ),
            "{found:?}"
        );
    }
}

#[test]
fn whoever_is_on_a_roster_has_learned_something() {
    let lived = live(Trouble::None);
    let nobody = Session {
        peer: peer(99),
        generation: 1,
    };
    let found = forged(&lived, |events| {
        let roster = events.iter_mut().find_map(|event| match event {
            Event::RosterFixed {
                stage: STAGE,
                roster,
            } => Some(roster),
            _ => None,
        });
        roster.unwrap().push(nobody);
    });
    let expected = Discrepancy::NothingToUpload {
        epoch: Epoch::new(0),
        stage: STAGE,
        session: nobody,
    };
    assert!(found.contains(&expected), "{found:?}");
}

#[test]
fn cells_are_uploaded_and_merged_in_the_ranges_that_the_roster_gives_and_by_those_who_take_part() {
    let lived = live(Trouble::None);
    let is_range = |found: &[Discrepancy]| {
        let is_it = |found: &Discrepancy| {
            matches!(
                found,
                Discrepancy::AnotherRange {
                    stage: STAGE,
                    cell: CELL,
                    ..
                }
            )
        };
        assert!(found.iter().any(is_it), "{found:?}");
    };
    is_range(&forged(&lived, |events| {
        let lease = lease_mut(events, |work| matches!(work, Work::Upload { .. }));
        if let Work::Upload { cells, .. } = &mut lease.work {
            cells[0].range.end -= 1;
        }
    }));
    is_range(&forged(&lived, |events| {
        let lease = lease_mut(events, |work| {
            matches!(work, Work::Merge { cell: CELL, .. })
        });
        if let Work::Merge { range, .. } = &mut lease.work {
            range.end -= 1;
        }
    }));

    let outsider = Session {
        peer: peer(77),
        generation: 1,
    };
    let found = forged(&lived, |events| {
        let lease = lease_mut(events, |work| {
            matches!(work, Work::Merge { cell: CELL, .. })
        });
        lease.session = outsider;
        let id = lease.id;
        for event in events {
            if let Event::Completed { lease, session, .. } = event
                && *lease == id
            {
                *session = outsider;
            }
        }
    });
    let expected = Discrepancy::MergedByOutsider {
        session: outsider,
        stage: STAGE,
        cell: CELL,
    };
    assert!(found.contains(&expected), "{found:?}");

    let author = Session {
        peer: peer(1),
        generation: 1,
    };
    let found = forged(&lived, |events| {
        let place = place(events, |event| {
            matches!(event, Event::CellSettled { stage: STAGE, .. })
        });
        let quarantined = Event::UploadQuarantined {
            stage: STAGE,
            cell: CELL,
            session: author,
        };
        events.insert(place, quarantined);
    });
    let expected = Discrepancy::QuarantinedByNobody {
        stage: STAGE,
        cell: CELL,
        session: author,
    };
    assert_eq!(found, [expected]);
}

#[test]
fn a_repair_replaces_one_object_that_somebody_could_not_read_by_a_copy_or_by_older_values() {
    let lived = live(Trouble::None);
    // Between the last checkpoint and its installation.
    let repaired = |accused: bool, mend: &dyn Fn(&mut Checkpoint)| {
        let found = forged(&lived, |events| {
            let mut checkpoint = last_checkpoint(events).clone();
            let SegmentSource::Merged { object, .. } = checkpoint.segments[0].source else {
                panic!("it was merged");
            };
            let object = object.name;
            let is_last = |event: &Event| matches!(event, Event::CheckpointCommitted(it) if *it == checkpoint);
            let place = place(events, is_last) + 1;
            mend(&mut checkpoint);
            let accusation = Event::CheckpointAccused {
                stage: STAGE,
                object,
                accuser: Session {
                    peer: peer(1),
                    generation: 1,
                },
                difference: Difference::Missing,
            };
            let repair = Event::CheckpointRepaired {
                checkpoint,
                object,
                how: Repair::OlderValues,
            };
            let forged = accused.then_some(accusation).into_iter().chain([repair]);
            events.splice(place..place, forged);
        });
        let is_objection = |found: &&Discrepancy| {
            matches!(
                found,
                Discrepancy::FromNowhere { .. } | Discrepancy::RepairedUnasked { .. }
            )
        };
        found.iter().find(is_objection).cloned()
    };
    let (epoch, stage) = (Epoch::new(2), STAGE);
    // What the checkpoint before had there; the second epoch merges the same ranges as the first.
    let before = lived.events.iter().find_map(|(_, event)| match event {
        Event::CheckpointCommitted(checkpoint) if checkpoint.stage == STAGE => Some(checkpoint),
        _ => None,
    });
    let older = |checkpoint: &mut Checkpoint| {
        checkpoint.segments[0].source = before.unwrap().segments[0].source.clone();
    };
    assert_eq!(repaired(true, &older), None);
    let unasked = Discrepancy::RepairedUnasked { epoch, stage };
    assert_eq!(repaired(false, &older), Some(unasked));
    let nowhere = Some(Discrepancy::FromNowhere { epoch, stage });
    let more = |checkpoint: &mut Checkpoint| {
        older(checkpoint);
        checkpoint.segments[1].source = before.unwrap().segments[1].source.clone();
    };
    assert_eq!(repaired(true, &more), nowhere);
    let seed = |checkpoint: &mut Checkpoint| {
        checkpoint.segments[0].source = SegmentSource::Genesis;
    };
    assert_eq!(repaired(true, &seed), nowhere);
    let nothing = |_: &mut Checkpoint| {};
    assert_eq!(repaired(true, &nothing), nowhere);
}
