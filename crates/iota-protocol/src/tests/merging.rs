//! From the last sample of an epoch to the first of the next.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{World, peer, seal, settings};
use crate::cells::{self, Cells, PlannedCell};
use crate::command::{Command, Role};
use crate::event::{BanReason, CellResult, Event, ExclusionReason, Phase};
use crate::id::Session;
use crate::rejection::Rejection;
use crate::settings::{Merging, ObjectSize, RunSettings};
use crate::work::{Difference, Failure, Lease, Outcome, SegmentSource, Verdict, Work, WorkKind};

/// One stage with so many miners, each of which has trained on something, at the beginning of this phase.
pub(super) fn at(phase: Phase, miners: u8, settings: RunSettings) -> (World, Vec<Session>) {
    let samples_per_epoch = 3 * u64::from(miners);
    let mut world = World::new(RunSettings {
        miners_to_start: miners.into(),
        samples_per_epoch,
        ..settings
    });
    let sessions = world.gather(1..miners + 1);
    world.work_until(phase, &[]);
    (world, sessions)
}

/// Two miners that came to different results, the second by a lie, and a validator that has not looked at it yet.
pub(super) fn a_lie_before_a_validator() -> (World, Vec<Session>, Session) {
    let validated = RunSettings {
        validators: vec![peer(9)],
        ..settings(1)
    };
    let (mut world, sessions) = at(Phase::Merging, 2, validated);
    let validator = world.join_as(9, Role::Validator, 4);
    let wrong = merge(&mut world, sessions[1]);
    let outcome = lie(&wrong);
    world.complete(sessions[1], wrong.id, outcome).unwrap();
    merge_all(&mut world, sessions[0]);
    (world, sessions, validator)
}

/// The merge that a session is leased, once it has room.
pub(super) fn merge(world: &mut World, session: Session) -> Lease {
    world.offer(session, 2);
    let leases = world.leases(session);
    leases
        .into_iter()
        .find(|lease| lease.work.kind() == WorkKind::Merge)
        .expect("a cell to merge")
}

/// Does all merges that a session is leased, honestly.
pub(super) fn merge_all(world: &mut World, session: Session) {
    loop {
        world.offer(session, 2);
        let leases = world.leases(session);
        let Some(lease) = leases
            .into_iter()
            .find(|lease| lease.work.kind() == WorkKind::Merge)
        else {
            return;
        };
        world.work(&lease);
    }
}

pub(super) fn lie(lease: &Lease) -> Outcome {
    let Work::Merge { range, .. } = &lease.work else {
        panic!("{lease:?}")
    };
    Outcome::Merge {
        merged: seal("a lie", 8 + 4 * (range.end - range.start)),
        quarantined: Vec::new(),
        delta: None,
    }
}

pub(super) fn settled(world: &World) -> Vec<CellResult> {
    let results = world.events.iter().filter_map(|event| match event {
        Event::CellSettled { result, .. } => Some(*result),
        _ => None,
    });
    results.collect()
}

/// What users of the published network complain about most: minutes of uploading, refused because the phase had moved on.
#[test]
fn an_upload_that_was_begun_in_time_may_finish_and_one_begun_late_is_not_waited_for() {
    let seconds = Duration::from_secs;
    // Four take 20 s, so that the fifth may take 80. They are enough after 30 s + 2 * 90 s / 5.
    let four_upload = |begins_in_time: bool| {
        let (mut world, sessions) = at(Phase::Uploading, 5, settings(1));
        for session in &sessions {
            world.offer(*session, 1);
        }
        if !begins_in_time {
            let given_back = world.lease(sessions[4]);
            world.offer(sessions[4], 0);
            let failure = Failure::StoreUnavailable;
            world.fail(sessions[4], given_back.id, failure).unwrap();
        }
        world.pass(seconds(20), &sessions);
        for session in &sessions[..4] {
            let lease = world.lease(*session);
            world.work(&lease);
        }
        world.pass(seconds(20), &sessions);
        world.offer(sessions[4], 1);
        let last = world.lease(sessions[4]);
        assert_eq!(last.work.kind(), WorkKind::Upload);
        world.pass(seconds(30), &sessions);
        (world, sessions, last)
    };
    let (mut world, _, last) = four_upload(true);
    assert_eq!(world.state.phase(), Phase::Uploading);
    let events = world.work(&last);
    let counts = |event: &Event| matches!(event, Event::Completed { credited: true, .. });
    assert!(events.iter().any(counts));
    assert_eq!(world.state.phase(), Phase::Merging);

    // It does not finish: the wait has an end, before the phase's own.
    let (mut world, sessions, _) = four_upload(true);
    world.pass(seconds(11), &sessions);
    assert_eq!(world.state.phase(), Phase::Merging);

    // It was begun when less than all were enough.
    let (world, ..) = four_upload(false);
    assert_eq!(world.state.phase(), Phase::Merging);
}

#[test]
fn a_straggler_does_not_hold_up_the_merge() {
    let (mut world, sessions) = at(Phase::Uploading, 3, settings(1));
    for session in &sessions[..2] {
        world.offer(*session, 1);
        let lease = world.lease(*session);
        world.work(&lease);
    }
    world.offer(sessions[2], 1);
    let late = world.lease(sessions[2]);
    // Two of three: enough after 30 s + 2 * 90 s / 3.
    world.pass(Duration::from_secs(89), &sessions);
    assert_eq!(world.state.phase(), Phase::Uploading);
    world.pass(Duration::from_secs(2), &sessions);
    assert_eq!(world.state.phase(), Phase::Merging);
    let outcome = world.honest(&late);
    assert_eq!(
        world.complete(sessions[2], late.id, outcome),
        Err(Rejection::StaleEpoch)
    );
    assert_eq!(
        world.state.peer(sessions[2].peer).unwrap().ledger.dropped,
        0
    );
}

#[test]
fn a_merge_weighs_each_copy_by_its_backward_passes() {
    let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
    let lease = merge(&mut world, sessions[0]);
    let Work::Merge { inputs, .. } = lease.work else {
        panic!()
    };
    let done: Vec<u64> = sessions
        .iter()
        .map(|session| world.state.peer(session.peer).unwrap().ledger.backwards)
        .collect();
    assert_eq!(
        inputs.iter().map(|input| input.weight).collect::<Vec<_>>(),
        done
    );
    assert!(inputs.is_sorted_by_key(|input| input.session));
}

#[test]
fn a_stage_that_nobody_uploads_keeps_its_weights() {
    let (mut world, sessions) = at(Phase::Uploading, 2, settings(1));
    let before = world.state.checkpoint(world.stage_of(sessions[0])).clone();
    world.pass(Duration::from_secs(120), &sessions);
    assert_eq!(world.state.phase(), Phase::Installing);
    let after = world.state.checkpoint(world.stage_of(sessions[0]));
    assert_eq!(
        (&after.segments, after.optimizer_steps),
        (&before.segments, 0)
    );
    assert_eq!(world.state.merges()[0].covered, 0);
    world.work_until(Phase::Over, &[]);
}

#[test]
fn an_owner_that_dies_is_replaced() {
    let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
    world
        .command(&Command::Leave {
            session: sessions[0],
        })
        .unwrap();
    merge_all(&mut world, sessions[1]);
    merge_all(&mut world, sessions[2]);
    assert_eq!(settled(&world), [CellResult::Agreed; 3]);
    assert_eq!(world.state.phase(), Phase::Installing);
}

#[test]
fn an_idle_owner_is_replaced_when_owners_are_no_longer_waited_for() {
    let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
    world.offer(sessions[0], 0);
    merge_all(&mut world, sessions[1]);
    merge_all(&mut world, sessions[2]);
    assert_eq!(settled(&world).len(), 1);
    world.pass(Duration::from_secs(30), &sessions);
    merge_all(&mut world, sessions[1]);
    merge_all(&mut world, sessions[2]);
    assert_eq!(settled(&world), [CellResult::Agreed; 3]);
}

#[test]
fn a_third_owner_decides_between_two_and_the_liar_is_banned() {
    let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
    let wrong = merge(&mut world, sessions[0]);
    let outcome = lie(&wrong);
    world.complete(sessions[0], wrong.id, outcome).unwrap();
    merge_all(&mut world, sessions[1]);
    merge_all(&mut world, sessions[2]);
    assert!(settled(&world).contains(&CellResult::Arbitrated { liar: sessions[0] }));
    let (banned, why) = world.state.cheaters().next().unwrap();
    assert_eq!(banned, sessions[0].peer);
    assert!(matches!(why, BanReason::Merge { .. }));
    let excluded = Event::UploadExcluded {
        stage: wrong.stage,
        session: sessions[0],
        why: ExclusionReason::Banned,
    };
    assert_eq!(world.saw(|event| *event == excluded), 1);
    // What the liar had a part in is merged again, without it.
    world.work_until(Phase::Installing, &[]);
    assert_eq!(world.state.merges()[0].covered, 3);
}

#[test]
fn a_validator_decides_where_no_third_owner_is() {
    let (mut world, sessions, validator) = a_lie_before_a_validator();
    assert_eq!(settled(&world), []);
    merge_all(&mut world, validator);
    assert_eq!(
        settled(&world)[0],
        CellResult::Arbitrated { liar: sessions[1] }
    );
    assert_eq!(
        world
            .state
            .cheaters()
            .map(|(peer, _)| peer)
            .collect::<Vec<_>>(),
        [sessions[1].peer]
    );
}

#[test]
fn a_merge_never_guesses_who_lied() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    let wrong = merge(&mut world, sessions[1]);
    let outcome = lie(&wrong);
    world.complete(sessions[1], wrong.id, outcome).unwrap();
    merge_all(&mut world, sessions[0]);
    assert_eq!(settled(&world), [CellResult::CarriedForward]);
    assert_eq!(world.state.cheaters().count(), 0);
    let checkpoint = world.state.checkpoint(wrong.stage);
    assert!(
        checkpoint
            .segments
            .iter()
            .all(|segment| segment.source == SegmentSource::Genesis)
    );
}

/// Settings of a stage that is cut into so many cells with so many owners each.
pub(super) fn grid(cells: u32, owners: u32) -> RunSettings {
    let cells = Cells::Grid { cells, owners };
    RunSettings {
        merging: Merging {
            cells,
            ..Merging::default()
        },
        ..settings(1)
    }
}

#[test]
fn of_three_owners_two_that_agree_settle_a_cell_and_the_third_is_the_liar() {
    let (mut world, sessions) = at(Phase::Merging, 5, grid(4, 3));
    let wrong = merge(&mut world, sessions[0]);
    let outcome = lie(&wrong);
    world.complete(sessions[0], wrong.id, outcome).unwrap();
    assert_eq!(settled(&world), []);
    world.work_until(Phase::Installing, &[]);
    assert!(settled(&world).contains(&CellResult::Arbitrated { liar: sessions[0] }));
    let banned: Vec<_> = world.state.cheaters().map(|(peer, _)| peer).collect();
    assert_eq!(banned, [sessions[0].peer]);
    let record = &world.state.merges()[0];
    assert_eq!((record.cells, record.covered), (4, 4));
}

#[test]
fn two_of_four_that_agree_settle_nothing_while_others_may_still_say_otherwise() {
    let (mut world, sessions) = at(Phase::Merging, 4, grid(1, 4));
    for session in &sessions[..2] {
        let lease = merge(&mut world, *session);
        let outcome = lie(&lease);
        world.complete(*session, lease.id, outcome).unwrap();
    }
    assert_eq!(settled(&world), []);
    for session in &sessions[2..] {
        merge_all(&mut world, *session);
    }
    // Two against two, and nobody is left who could decide.
    assert_eq!(settled(&world), [CellResult::CarriedForward]);
    assert_eq!(world.state.cheaters().count(), 0);
}

#[test]
fn owners_of_a_grid_that_are_lost_are_replaced_and_everything_is_merged() {
    let (mut world, sessions) = at(Phase::Merging, 6, grid(9, 2));
    for session in &sessions[..3] {
        let _ = merge(&mut world, *session);
        world
            .command(&Command::Leave { session: *session })
            .unwrap();
    }
    for session in &sessions[3..] {
        merge_all(&mut world, *session);
    }
    assert_eq!(settled(&world), [CellResult::Agreed; 9]);
    assert_eq!(world.state.merges()[0].covered, 9);
}

#[test]
fn what_was_planned_can_be_planned_again_from_the_record_of_the_merge() {
    let (mut world, sessions) = at(Phase::Merging, 5, grid(7, 2));
    let planned: Vec<PlannedCell> = cells_of(&world, sessions[0]);
    world.work_until(Phase::Installing, &[]);
    let seed = world.state.merges()[0].seed;
    let cells = world.state.settings().merging.cells;
    assert_eq!(cells::plan(cells, &seed, &sessions, 12), planned);
}

const SIZE: ObjectSize = ObjectSize {
    overhead_bytes: 3,
    element_bytes: 1,
    chunk_bytes: 2,
    chunk_elements: 5,
    ..ObjectSize::per_element(1)
};

#[test]
fn whoever_holds_the_checkpoint_before_is_told_what_the_merge_changed_and_the_record_counts_it() {
    let small = RunSettings {
        merging: Merging {
            upload: Some(SIZE),
            delta: Some(SIZE),
            ..Merging::default()
        },
        ..settings(1)
    };
    let (mut world, sessions) = at(Phase::Installing, 3, small);
    world.offer(sessions[0], 1);
    let install = world.lease(sessions[0]);
    let Work::Install { checkpoint, .. } = &install.work else {
        panic!("{install:?}")
    };
    let SegmentSource::Merged { object, delta, .. } = &checkpoint.segments[0].source else {
        panic!("{checkpoint:?}")
    };
    let delta = delta.expect("it was merged just now");
    assert_eq!((object.seal.length, delta.seal.length), (24, 9));
    // Three uploads of three cells, and the merged cells with what they changed, each stored once.
    let record = world.state.merges()[0].clone();
    assert_eq!(record.bytes_up, 3 * 3 * 9 + 3 * (24 + 9));
    assert_eq!(record.bytes_down, 6 * 3 * 9);
    // It has merged two of the three cells itself.
    world.work(&install);
    assert_eq!(world.state.merges()[0].bytes_down, record.bytes_down + 9);
    // A joiner takes the whole.
    world.work_until(Phase::Training, &[]);
    let before = world.state.merges()[0].bytes_down;
    let late = world.join(7);
    world.offer(late, 1);
    let install = world.lease(late);
    world.work(&install);
    assert_eq!(world.state.merges()[0].bytes_down, before + 3 * 24);
}

/// The plan of the merge that a session takes part in.
fn cells_of(world: &World, session: Session) -> Vec<PlannedCell> {
    let cells = &world.state.merge_of(world.stage_of(session)).cells;
    let planned = cells.iter().map(|cell| PlannedCell {
        range: cell.range.clone(),
        owners: cell.planned.clone(),
    });
    planned.collect()
}

#[test]
fn a_copy_that_owners_agree_is_not_finite_earns_nothing() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    for session in &sessions {
        let lease = merge(&mut world, *session);
        let Outcome::Merge { merged, .. } = world.honest(&lease) else {
            panic!()
        };
        let outcome = Outcome::Merge {
            merged,
            quarantined: vec![sessions[1]],
            delta: None,
        };
        world.complete(*session, lease.id, outcome).unwrap();
    }
    assert_eq!(settled(&world), [CellResult::Agreed]);
    assert_eq!(
        world.saw(|event| matches!(event, Event::UploadQuarantined { .. })),
        1
    );
    assert_eq!(world.state.score(sessions[1].peer), 0.0);
    assert!(world.state.score(sessions[0].peer) > 0.0);
}

#[test]
fn an_upload_that_two_owners_cannot_read_is_left_out() {
    let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
    for session in &sessions[..2] {
        let lease = merge(&mut world, *session);
        let Work::Merge { inputs, .. } = &lease.work else {
            panic!()
        };
        let object = inputs
            .iter()
            .find(|input| input.session == sessions[2])
            .unwrap()
            .object
            .name;
        world
            .fail(
                *session,
                lease.id,
                Failure::BadInput {
                    object,
                    difference: Difference::Missing,
                },
            )
            .unwrap();
    }
    assert_eq!(
        world.saw(|event| matches!(
            event,
            Event::UploadExcluded {
                why: ExclusionReason::Accused,
                ..
            }
        )),
        1
    );
    let lease = merge(&mut world, sessions[0]);
    let Work::Merge { inputs, .. } = &lease.work else {
        panic!()
    };
    let authors: BTreeSet<Session> = inputs.iter().map(|input| input.session).collect();
    assert_eq!(authors, sessions[..2].iter().copied().collect());
    world.work_until(Phase::Over, &[]);
}

#[test]
fn a_miner_that_is_caught_by_an_audit_is_out_of_the_merge() {
    let validated = RunSettings {
        validators: vec![peer(9)],
        ..settings(1)
    };
    let (mut world, sessions) = at(Phase::Merging, 3, validated);
    let validator = world.join_as(9, Role::Validator, 4);
    world.offer(validator, 4);
    let audits = world.leases(validator);
    assert_eq!(audits.len(), 3);
    let audit = audits
        .iter()
        .find(|lease| matches!(lease.work, Work::Replay { subject, .. } if subject == sessions[0]));
    let verdict = Verdict::Differs {
        ordinal: Some(0),
        difference: Difference::Output,
    };
    world
        .complete(validator, audit.unwrap().id, Outcome::Audit { verdict })
        .unwrap();
    assert!(world.state.session(sessions[0]).is_none());
    let lease = merge(&mut world, sessions[1]);
    let Work::Merge { inputs, .. } = &lease.work else {
        panic!()
    };
    assert_eq!(inputs.len(), 2);
}

#[test]
fn an_odd_replica_installs_again_before_it_works() {
    let (mut world, sessions) = at(Phase::Installing, 3, settings(1));
    for (place, session) in sessions.iter().enumerate() {
        world.offer(*session, 1);
        let lease = world.lease(*session);
        let outcome = if place == 0 {
            Outcome::Install {
                state: seal("odd", 0).digest,
                operations: 0,
            }
        } else {
            world.honest(&lease)
        };
        world.complete(*session, lease.id, outcome).unwrap();
    }
    assert!(!world.state.replicas_equal());
    assert_eq!(world.state.phase(), Phase::Installing);
    assert!(
        !world
            .state
            .session(sessions[0])
            .unwrap()
            .is_installed(world.epoch())
    );
    world.offer(sessions[0], 1);
    let again = world.lease(sessions[0]);
    assert_eq!(again.work.kind(), WorkKind::Install);
    world.work(&again);
    assert_eq!(world.state.phase(), Phase::Training);
}

#[test]
fn who_joins_late_installs_the_latest_checkpoint_and_works_at_once() {
    let (mut world, sessions) = at(Phase::Installing, 1, settings(1));
    world.work_until(Phase::Training, &[]);
    let late = world.join(7);
    world.offer(late, 1);
    let install = world.lease(late);
    let Work::Install { checkpoint, .. } = &install.work else {
        panic!("{install:?}")
    };
    assert_eq!(
        (checkpoint.epoch.get(), checkpoint),
        (1, world.state.checkpoint(install.stage))
    );
    world.work(&install);
    world.offer(late, 1);
    assert_eq!(world.lease(late).work.kind(), WorkKind::Backward);
    assert!(world.leases(sessions[0]).len() <= 2);
}

#[test]
fn a_straggler_that_did_not_install_gets_no_work_until_it_has() {
    let (mut world, sessions) = at(Phase::Installing, 3, settings(1));
    for session in &sessions[..2] {
        world.offer(*session, 1);
        let lease = world.lease(*session);
        world.work(&lease);
    }
    world.offer(sessions[2], 1);
    world.pass(Duration::from_secs(95), &sessions);
    assert_eq!(world.state.phase(), Phase::Training);
    world.offer(sessions[2], 2);
    let lease = world.lease(sessions[2]);
    assert_eq!(lease.work.kind(), WorkKind::Install);
    world.work(&lease);
    let leases = world.leases(sessions[2]);
    assert!(
        !leases.is_empty()
            && leases
                .iter()
                .all(|lease| lease.work.kind() == WorkKind::Backward)
    );
}

#[test]
fn everybody_is_audited_within_the_epochs_that_the_settings_give() {
    let every = 3;
    let validators = vec![peer(9)];
    let audited = RunSettings {
        validators,
        audit_every_epochs: every,
        epochs: every.into(),
        ..settings(1)
    };
    let (mut world, sessions) = at(Phase::Training, 5, audited);
    world.join_as(9, Role::Validator, 2);
    world.work_until(Phase::Over, &[]);
    for session in sessions {
        let passed = world.state.peer(session.peer).unwrap().ledger.audits_passed;
        assert!(passed >= 1, "{session} was not audited");
    }
}

#[test]
fn whoever_was_just_audited_may_be_audited_again() {
    for secret in 0..4 {
        let audited = RunSettings {
            secret: [secret; 32],
            validators: vec![peer(9)],
            audit_every_epochs: 3,
            epochs: 2,
            ..settings(1)
        };
        let (mut world, _) = at(Phase::Training, 5, audited);
        world.join_as(9, Role::Validator, 2);
        world.work_until(Phase::Over, &[]);
        let drawn: Vec<Session> = world
            .events
            .iter()
            .filter_map(|event| match event {
                Event::AuditDrawn { subject, .. } => Some(*subject),
                _ => None,
            })
            .collect();
        let twice = drawn.len() - drawn.iter().collect::<BTreeSet<_>>().len();
        // Five miners in three epochs: two are due in each, and one more comes as a surprise.
        assert_eq!(drawn.len(), 6);
        assert_eq!(twice, 1, "all five were seen, and one of them again");
    }
}

#[test]
fn audits_that_nobody_settles_do_not_keep_a_run_from_ending() {
    let validated = RunSettings {
        validators: vec![peer(9)],
        ..settings(1)
    };
    let (mut world, sessions) = at(Phase::Settling, 2, validated);
    assert!(world.state.audits_pending().count() > 0);
    world.pass(Duration::from_secs(121), &sessions);
    assert!(world.state.is_over());
}
