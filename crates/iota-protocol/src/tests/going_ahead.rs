//! Training that goes on while a stage merges.

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{World, peer, settings};
use crate::command::Role;
use crate::event::{Event, LeaseEnd, Phase};
use crate::id::{Epoch, Session};
use crate::rejection::Rejection;
use crate::settings::{Merging, ObjectSize, RunSettings};
use crate::state::Audit;
use crate::testing::{kept, seal};
use crate::work::{Lease, Outcome, Purpose, Work, WorkKind};

const SIZE: ObjectSize = ObjectSize::per_element(4);

fn overlapping(stages: u16) -> RunSettings {
    RunSettings {
        validators: vec![peer(9)],
        epochs: 3,
        samples_per_epoch: 8,
        merging: Merging {
            kept: Some(SIZE),
            overlaps: true,
            ..Merging::default()
        },
        ..settings(stages)
    }
}

/// Two stages with two miners each, in the first `Uploading`.
fn uploading() -> (World, Vec<Session>) {
    let mut world = World::new(overlapping(2));
    let sessions = world.gather(1..5);
    world.work_until(Phase::Uploading, &[]);
    (world, sessions)
}

fn passes(world: &World, session: Session) -> Vec<Lease> {
    let mut leases = world.leases(session);
    leases.retain(|lease| lease.work.sample().is_some());
    leases
}

/// Does what a session holds of this kind; it has to hold some.
fn do_all(world: &mut World, session: Session, kind: WorkKind) {
    world.offer(session, 2);
    let mut leases = world.leases(session);
    leases.retain(|lease| lease.work.kind() == kind);
    assert!(!leases.is_empty(), "{session} holds no {kind:?}");
    leases.iter().for_each(|lease| drop(world.work(lease)));
}

fn completed(world: &World) -> u64 {
    world.state.sample_counts().completed
}

/// One of them in each stage uploads and trains on; the others do nothing.
fn one_of_each_goes_ahead(world: &mut World) -> [Session; 2] {
    let pair = [0, 1].map(|stage| world.miners(stage)[0]);
    for session in pair {
        do_all(world, session, WorkKind::Upload);
        world.offer(session, 2);
    }
    pair
}

/// What two sessions do of the passes that they are leased, until so many samples are complete.
fn train_until(world: &mut World, pair: [Session; 2], samples: u64) {
    for _ in 0..100 {
        for session in pair {
            if completed(world) >= samples {
                return;
            }
            world.offer(session, 2);
            if let Some(lease) = passes(world, session).first().cloned() {
                world.work(&lease);
            }
        }
    }
    panic!("{} of {samples} samples", completed(world));
}

#[test]
fn whoever_has_uploaded_trains_for_the_next_epoch_and_nobody_else_does() {
    let (mut world, sessions) = uploading();
    let pair = one_of_each_goes_ahead(&mut world);
    train_until(&mut world, pair, 8 + 3);
    assert_eq!(world.state.phase(), Phase::Uploading);
    assert_eq!(world.epoch(), Epoch::new(0));
    for session in sessions {
        let own = world.state.session(session).unwrap();
        assert!(own.backwards > 0);
        let names = own.log().iter().filter_map(|entry| match entry.work {
            Work::Forward { output, .. } => Some(output),
            Work::Backward { gradient, .. } => gradient,
            _ => None,
        });
        let epochs: BTreeSet<Epoch> = names.map(|name| name.epoch).collect();
        let trained_for = Epoch::new(u64::from(pair.contains(&session)));
        assert!(
            epochs.iter().all(|epoch| *epoch == trained_for),
            "{epochs:?}"
        );
        if !pair.contains(&session) {
            world.offer(session, 1);
            assert_eq!(world.lease(session).work.kind(), WorkKind::Upload);
        }
    }
    let credit = |name| world.state.score(peer(name));
    assert!((1..5).all(|name| credit(name) > 0.0));
}

#[test]
fn samples_stay_on_their_way_while_their_stages_install_and_count_once() {
    let (mut world, _) = uploading();
    let mut between = 0;
    for epoch in 1..3 {
        let before = world.state.work_counts().finished;
        world.work_until(Phase::Installing, &[]);
        between += world.state.work_counts().finished - before;
        assert_eq!(world.epoch(), Epoch::new(epoch));
        world.work_until(Phase::Training, &[]);
        world.work_until(Phase::Uploading, &[]);
    }
    assert!(between > 0, "nobody trained while stages merged");
    world.work_until(Phase::Settling, &[]);
    let counts = world.state.sample_counts();
    assert_eq!((counts.opened, counts.completed, counts.lost), (24, 24, 0));
    let work = world.state.work_counts();
    assert_eq!((work.undone, work.superseded, work.refused), (0, 0, 0));
    assert_eq!(
        world.saw(|event| matches!(event, Event::SampleRestarted { .. })),
        0
    );
}

#[test]
fn a_merge_comes_before_a_pass() {
    let (mut world, sessions) = uploading();
    for session in &sessions {
        do_all(&mut world, *session, WorkKind::Upload);
    }
    assert_eq!(world.state.phase(), Phase::Merging);
    for session in sessions {
        world.offer(session, 1);
        let held = passes(&world, session);
        assert!(held.is_empty() || world.state.leases().count() > 0);
        let kinds: Vec<_> = world
            .leases(session)
            .iter()
            .map(|it| it.work.kind())
            .collect();
        assert!(kinds.contains(&WorkKind::Merge), "{kinds:?}");
    }
}

#[test]
fn nobody_goes_ahead_of_the_last_merge_or_in_a_run_that_does_not_overlap() {
    let mut last = World::new(RunSettings {
        epochs: 1,
        ..overlapping(1)
    });
    let mut apart = overlapping(1);
    apart.merging.overlaps = false;
    let mut apart = World::new(apart);
    for world in [&mut last, &mut apart] {
        world.gather(1..3);
        world.work_until(Phase::Uploading, &[]);
        let trained = completed(world);
        let ends = if world.settings().epochs == 1 {
            Phase::Settling
        } else {
            Phase::Training
        };
        world.work_until(ends, &[]);
        assert_eq!(completed(world), trained);
    }
}

/// Its epoch began with its upload, and so does the replay of it.
#[test]
fn a_replay_begins_where_its_subject_had_uploaded_and_says_what_came_before_the_installation() {
    let (mut world, sessions) = uploading();
    world.work_until(Phase::Installing, &[]);
    world.work_until(Phase::Training, &[]);
    // What each of them said when it installed.
    let said = |session: &Session| {
        let mut operations = world.events.iter().filter_map(|event| match event {
            Event::Completed {
                session: of,
                outcome: Outcome::Install { operations, .. },
                ..
            } => (of == session).then_some(*operations),
            _ => None,
        });
        operations.next_back().unwrap()
    };
    let ahead: Vec<u32> = sessions.iter().map(said).collect();
    assert!(ahead.iter().any(|count| *count > 0), "{ahead:?}");
    world.work_until(Phase::Merging, &[]);
    let replays: Vec<_> = world.state.audits_pending().collect();
    let of_now: Vec<_> = replays
        .iter()
        .filter(|(_, audit)| audit.epoch == Epoch::new(1))
        .collect();
    assert_eq!(of_now.len(), 4);
    for (_, audit) in of_now {
        let Work::Replay {
            kept: begins,
            entries,
            ahead: said,
            upload,
            ..
        } = &audit.work
        else {
            panic!("{audit:?}")
        };
        let begins = begins.expect("it went on with what it had");
        assert_eq!(begins.seal, seal(kept(Epoch::new(0)), SIZE.bytes(12)));
        assert_eq!(
            (begins.name.purpose, begins.name.epoch),
            (Purpose::Kept, Epoch::new(1))
        );
        let place = sessions.iter().position(|it| *it == audit.subject).unwrap();
        // Of what is redone; and if that is all, the whole of it was before.
        let redone = u32::try_from(entries.len()).unwrap();
        assert!(upload.is_none() || redone >= ahead[place]);
        assert_eq!(*said, ahead[place].min(redone), "{audit:?}");
    }
}

#[test]
fn a_pass_that_reached_the_weights_before_the_installation_is_logged_after_it() {
    let (mut world, _) = uploading();
    let pair = one_of_each_goes_ahead(&mut world);
    let head = pair[0];
    world.offer(head, 2);
    let late = passes(&world, head)[0].clone();
    let outcome = world.honest(&late);
    let others: Vec<_> = world
        .state
        .sessions()
        .map(|(it, _)| it)
        .filter(|it| *it != head)
        .collect();
    // It does everything else meanwhile.
    for _ in 0..200 {
        for session in &others {
            world.offer(*session, 2);
            if let Some(lease) = world.leases(*session).first().cloned() {
                world.work(&lease);
            }
        }
        if world.epoch() == Epoch::new(1) {
            break;
        }
        world.offer(head, 2);
        let held = world.leases(head);
        if let Some(lease) = held.iter().find(|it| it.id != late.id) {
            world.work(lease);
        }
    }
    do_all(&mut world, head, WorkKind::Install);
    let before = world.state.session(head).unwrap().log().len();
    assert_eq!(world.answer(head, late.id, outcome), Ok(()));
    let own = world.state.session(head).unwrap();
    assert_eq!(own.log().len(), before + 1);
    assert_eq!(own.done_ahead(own.log()) as usize, before + 1);
}

/// Otherwise it would learn more and more about weights that nobody else has.
#[test]
fn whoever_has_not_installed_when_training_begins_gives_its_passes_back() {
    let (mut world, _) = uploading();
    let pair = one_of_each_goes_ahead(&mut world);
    let slow = pair[1];
    world.work_until(Phase::Installing, &[]);
    world.offer(slow, 2);
    let others: Vec<_> = world.state.sessions().map(|(it, _)| it).collect();
    world.work_until(Phase::Installing, &[slow]);
    for session in others.iter().filter(|it| **it != slow) {
        do_all(&mut world, *session, WorkKind::Install);
    }
    world.pass(Duration::from_secs(118), &others);
    let mut held = passes(&world, slow);
    for _ in 0..20 {
        if !held.is_empty() {
            break;
        }
        world.offer(slow, 2);
        for session in others.iter().filter(|it| **it != slow) {
            world.offer(*session, 2);
            if let Some(lease) = passes(&world, *session).first().cloned() {
                world.work(&lease);
            }
        }
        held = passes(&world, slow);
    }
    assert!(!held.is_empty(), "it has nothing to give back");
    let outcome = world.honest(&held[0]);
    let done = world.state.session(slow).unwrap().log().len();
    world.pass(Duration::from_secs(2), &others);
    assert_eq!(world.state.phase(), Phase::Training);
    assert!(passes(&world, slow).is_empty());
    let withdrawn = |event: &Event| match event {
        Event::LeaseEnded { session, why, .. } => *session == slow && *why == LeaseEnd::Withdrawn,
        _ => false,
    };
    assert_eq!(world.saw(withdrawn), held.len());
    // It had done the pass already: that is in its weights, and so in its log.
    assert_eq!(
        world.answer(slow, held[0].id, outcome),
        Err(Rejection::Superseded)
    );
    assert_eq!(world.state.session(slow).unwrap().log().len(), done + 1);
}

/// In the second `Uploading`, which everybody began ahead: one of them was drawn, and has just uploaded.
fn drawn_and_ahead() -> (World, Session) {
    let (mut world, _) = uploading();
    world.work_until(Phase::Training, &[]);
    world.work_until(Phase::Uploading, &[]);
    let drawn = world.state.audits_pending().next().unwrap().1.subject;
    do_all(&mut world, drawn, WorkKind::Upload);
    (world, drawn)
}

#[test]
fn whoever_was_drawn_hands_over_what_it_began_with_while_it_trains_on() {
    let (mut world, drawn) = drawn_and_ahead();
    let own = world.state.session(drawn).unwrap();
    assert!(world.state.is_ahead(own) && own.log().is_empty());
    world.offer(drawn, 2);
    let leases = world.leases(drawn);
    let handing_over = leases
        .iter()
        .find(|lease| lease.work.kind() == WorkKind::HandOver);
    let handing_over = handing_over
        .expect("it is asked for what it began with")
        .clone();
    let Work::HandOver { began_with, .. } = &handing_over.work else {
        panic!("{handing_over:?}")
    };
    // What the epoch began with that is audited, not what it trains on from.
    assert_eq!(
        began_with.unwrap().seal,
        seal(kept(Epoch::new(0)), SIZE.bytes(12))
    );
    world.work(&handing_over);
    let mut audits = world.state.audits_pending();
    let of_now = |audit: &Audit| audit.subject == drawn && audit.epoch == world.epoch();
    let (_, audit) = audits.find(|(_, audit)| of_now(audit)).unwrap();
    let Work::Replay { kept, entries, .. } = &audit.work else {
        panic!("{audit:?}")
    };
    assert_eq!(*kept, *began_with);
    assert!(audit.awaits.is_none() && !entries.is_empty());
}

#[test]
fn whoever_does_not_hand_it_over_has_gone_ahead_in_vain() {
    let (mut world, drawn) = drawn_and_ahead();
    world.offer(drawn, 1);
    let others: Vec<_> = world.state.sessions().map(|(it, _)| it).collect();
    let others: Vec<_> = others.into_iter().filter(|it| *it != drawn).collect();
    for session in &others {
        do_all(&mut world, *session, WorkKind::Upload);
        world.offer(*session, 1);
        let handing_over = world.leases(*session);
        let mut asked = handing_over.iter();
        if let Some(lease) = asked.find(|it| it.work.kind() == WorkKind::HandOver) {
            world.work(lease);
        }
    }
    world.pass(Duration::from_secs(130), &[&others[..], &[drawn]].concat());
    let own = world.state.session(drawn).unwrap();
    assert!(!world.state.is_ahead(own) && passes(&world, drawn).is_empty());
    world.work_until(Phase::Installing, &[]);
    world.offer(drawn, 2);
    let install = world.leases(drawn);
    let mut install = install.iter().map(|lease| &lease.work);
    assert!(install.any(|work| matches!(work, Work::Install { goes_on: false, .. })));
}

#[test]
fn what_was_done_ahead_of_a_checkpoint_is_lost_with_those_who_did_it() {
    let (mut world, _) = uploading();
    let pair = one_of_each_goes_ahead(&mut world);
    train_until(&mut world, pair, 8 + 2);
    world.work_until(Phase::Installing, &[]);
    assert!(completed(&world) >= 8 + 2);
    world.restore(world.commands());
    assert_eq!(
        (world.state.phase(), world.epoch().get()),
        (Phase::Training, 1)
    );
    assert_eq!(completed(&world), 8, "the checkpoint has learned these");
    world.gather(1..5);
    world.work_until(Phase::Settling, &[]);
    let counts = world.state.sample_counts();
    assert_eq!((counts.completed, counts.lost), (24, 0));
}

/// Weights that differ from those of the others are no place to go on from.
#[test]
fn whoever_is_odd_begins_anew_wherever_it_is() {
    let (mut world, _) = uploading();
    let [head, _] = one_of_each_goes_ahead(&mut world);
    let stage = world.stage_of(head);
    world.happen(Event::ReplicasDiffer {
        stage,
        epoch: world.epoch(),
        odd: vec![head],
    });
    let own = world.state.session(head).unwrap();
    assert!(!world.state.is_ahead(own) && !world.state.goes_on(head));
}

#[test]
fn operations_done_ahead_are_only_those_of_who_goes_on() {
    let (mut world, _) = uploading();
    world.work_until(Phase::Installing, &[]);
    let late = world.join_as(7, Role::Miner, 2);
    world.offer(late, 1);
    let lease = world.lease(late);
    assert!(matches!(lease.work, Work::Install { goes_on: false, .. }));
    let Outcome::Install { state, .. } = world.honest(&lease) else {
        panic!()
    };
    world
        .answer(
            late,
            lease.id,
            Outcome::Install {
                state,
                operations: 3,
            },
        )
        .unwrap();
    let own = world.state.session(late).unwrap();
    assert!(own.is_installed(world.epoch()) && own.ahead.is_none());
}
