//! Which owner of a cell stores what they all came to, and cells that come to nothing.

use std::time::Duration;

use super::merging::{a_lie_before_a_validator, at, grid, lie, merge, merge_all, settled};
use super::world::{World, peer, settings};
use crate::command::Command;
use crate::event::{CellResult, Event, Phase, Unmergeable};
use crate::id::Session;
use crate::settings::RunSettings;
use crate::work::{Failure, Lease, Outcome, SegmentSource, Work, WorkKind};

fn stores(lease: &Lease) -> bool {
    matches!(lease.work, Work::Merge { stores: true, .. })
}

/// The objects that the first stage starts the next epoch from are ones whose owner was asked to store them.
fn assert_everything_is_stored(world: &World) {
    let stored: Vec<_> = world
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Leased(Lease {
                work:
                    Work::Merge {
                        output,
                        stores: true,
                        ..
                    },
                ..
            }) => Some(*output),
            _ => None,
        })
        .collect();
    let stage = world.state.stages().next().unwrap();
    for segment in &world.state.checkpoint(stage).segments {
        let SegmentSource::Merged { object, .. } = &segment.source else {
            panic!("{segment:?} was not merged")
        };
        assert!(stored.contains(&object.name), "{object:?}");
    }
}

#[test]
fn of_two_owners_one_stores_what_both_commit_to() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    let leases: Vec<Lease> = sessions.iter().map(|it| merge(&mut world, *it)).collect();
    assert_eq!(leases.iter().filter(|lease| stores(lease)).count(), 1);
    // Whoever does not store is as much of a check as whoever does, also if it comes first.
    let (first, second) = if stores(&leases[0]) { (1, 0) } else { (0, 1) };
    world.work(&leases[first]);
    assert_eq!(settled(&world), []);
    world.work(&leases[second]);
    assert_eq!(settled(&world), [CellResult::Agreed]);
    assert_everything_is_stored(&world);
}

#[test]
fn as_many_owners_store_a_cell_as_the_settings_want() {
    let mut settings = grid(1, 3);
    settings.merging.copies = 2;
    let (mut world, sessions) = at(Phase::Merging, 3, settings);
    let leases = sessions.iter().map(|it| merge(&mut world, *it));
    assert_eq!(leases.filter(stores).count(), 2);
}

/// One of two owners is to store and does not: it says it has, and the store knows nothing of it, so the rules never hear.
#[test]
fn a_cell_whose_first_owner_stores_nothing_is_asked_of_the_second() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    let leases: Vec<Lease> = sessions.iter().map(|it| merge(&mut world, *it)).collect();
    let (idle, other): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(stores);
    world.work(&other[0]);
    let overdue = idle[0].deadline.since(world.now) + Duration::from_secs(1);
    world.pass(overdue, &sessions);
    let again = merge(&mut world, other[0].session);
    assert!(stores(&again), "{again:?}");
    world.work(&again);
    // The one that failed is asked as a check from now on, and dropped some work.
    let check = merge(&mut world, idle[0].session);
    assert!(!stores(&check), "{check:?}");
    assert_eq!(
        world
            .state
            .peer(idle[0].session.peer)
            .unwrap()
            .ledger
            .dropped,
        1
    );
    world.work(&check);
    assert_eq!(settled(&world), [CellResult::Agreed]);
    assert_everything_is_stored(&world);
}

#[test]
fn a_cell_whose_first_owner_is_gone_is_not_lost() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    let leases: Vec<Lease> = sessions.iter().map(|it| merge(&mut world, *it)).collect();
    let (gone, other): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(stores);
    world.work(&other[0]);
    let session = gone[0].session;
    world.command(&Command::Leave { session }).unwrap();
    merge_all(&mut world, other[0].session);
    assert_eq!(settled(&world), [CellResult::Single]);
    assert_everything_is_stored(&world);
}

/// What is stored may be what the liar made of it.
#[test]
fn when_owners_differ_the_third_stores_and_the_liar_is_named_whoever_it_was() {
    for liar_stores in [true, false] {
        let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
        let liar = sessions.iter().find_map(|session| {
            let lease = merge(&mut world, *session);
            (stores(&lease) == liar_stores).then_some(lease)
        });
        let liar = liar.expect("some store and some do not");
        let outcome = lie(&liar);
        world.complete(liar.session, liar.id, outcome).unwrap();
        world.work_until(Phase::Installing, &[]);
        let arbitrated = CellResult::Arbitrated { liar: liar.session };
        assert!(settled(&world).contains(&arbitrated));
        let banned: Vec<_> = world.state.cheaters().map(|(peer, _)| peer).collect();
        assert_eq!(banned, [liar.session.peer]);
        assert_eq!(world.state.merges()[0].covered, 3);
        assert_everything_is_stored(&world);
    }
}

#[test]
fn of_three_owners_who_outvote_the_one_that_stored_one_is_asked_for_its_objects() {
    let (mut world, sessions) = at(Phase::Merging, 3, grid(1, 3));
    let leases: Vec<Lease> = sessions.iter().map(|it| merge(&mut world, *it)).collect();
    for lease in &leases {
        let outcome = if stores(lease) {
            lie(lease)
        } else {
            world.honest(lease)
        };
        world.complete(lease.session, lease.id, outcome).unwrap();
    }
    assert_eq!(settled(&world), [], "what is right is stored nowhere");
    world.work_until(Phase::Installing, &[]);
    let liar = leases.iter().find(|lease| stores(lease)).unwrap().session;
    assert!(settled(&world).contains(&CellResult::Arbitrated { liar }));
    assert_everything_is_stored(&world);
}

#[test]
fn whoever_cannot_store_what_it_said_keeps_its_word_and_another_is_asked() {
    let (mut world, sessions) = at(Phase::Merging, 3, grid(1, 2));
    let planned: Vec<Session> = sessions
        .iter()
        .copied()
        .filter(|session| {
            world.offer(*session, 1);
            !world.leases(*session).is_empty()
        })
        .collect();
    let leases: Vec<Lease> = planned.iter().map(|it| world.lease(*it)).collect();
    let (gone, other): (Vec<Lease>, Vec<Lease>) = leases.into_iter().partition(stores);
    world.work(&other[0]);
    let session = gone[0].session;
    world.command(&Command::Leave { session }).unwrap();
    for _ in 0..3 {
        let again = merge(&mut world, other[0].session);
        let failure = Failure::StoreUnavailable;
        world.fail(again.session, again.id, failure).unwrap();
    }
    let third = sessions.iter().find(|session| !planned.contains(session));
    merge_all(&mut world, *third.unwrap());
    assert_eq!(settled(&world), [CellResult::Agreed]);
    assert_everything_is_stored(&world);
}

fn unmergeable(world: &mut World, session: Session, quarantined: &[Session]) -> Lease {
    let lease = merge(world, session);
    let outcome = Outcome::Unmergeable {
        quarantined: quarantined.to_vec(),
    };
    world.complete(session, lease.id, outcome).unwrap();
    lease
}

#[test]
fn a_cell_of_which_no_copy_is_finite_keeps_its_values_at_once_and_names_the_authors() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    let began = world.now;
    for session in &sessions {
        unmergeable(&mut world, *session, &sessions);
    }
    let why = Unmergeable::EveryCopyQuarantined;
    assert_eq!(settled(&world), [CellResult::Unmergeable { why }]);
    assert_eq!(world.state.phase(), Phase::Installing);
    assert_eq!(world.now, began, "nobody waited");
    for session in &sessions {
        let named = |event: &Event| matches!(event, Event::UploadQuarantined { session: author, .. } if author == session);
        assert_eq!(world.saw(named), 1);
    }
    assert_eq!(world.state.merges()[0].covered, 0);
}

#[test]
fn a_cell_whose_finite_copies_have_no_finite_mean_keeps_its_values_at_once() {
    let (mut world, sessions) = at(Phase::Merging, 2, settings(1));
    for session in &sessions {
        unmergeable(&mut world, *session, &sessions[..1]);
    }
    let why = Unmergeable::ResultNotFinite;
    assert_eq!(settled(&world), [CellResult::Unmergeable { why }]);
}

#[test]
fn whoever_says_that_nothing_is_finite_when_something_is_is_outvoted_and_banned() {
    let (mut world, sessions) = at(Phase::Merging, 3, settings(1));
    unmergeable(&mut world, sessions[0], &sessions);
    world.work_until(Phase::Installing, &[]);
    assert!(settled(&world).contains(&CellResult::Arbitrated { liar: sessions[0] }));
    let banned: Vec<_> = world.state.cheaters().map(|(peer, _)| peer).collect();
    assert_eq!(banned, [sessions[0].peer]);
    assert_eq!(world.state.merges()[0].covered, 3);
}

#[test]
fn a_cell_that_nobody_can_merge_is_not_waited_for_where_no_verdict_can_change_that() {
    let fail_all = |settings: RunSettings| {
        let (mut world, sessions) = at(Phase::Merging, 2, settings);
        for session in &sessions {
            for _ in 0..3 {
                let lease = merge(&mut world, *session);
                let failure = Failure::StoreUnavailable;
                world.fail(*session, lease.id, failure).unwrap();
            }
        }
        settled(&world)
    };
    assert_eq!(fail_all(settings(1)), [CellResult::CarriedForward]);
    let validated = RunSettings {
        validators: vec![peer(9)],
        ..settings(1)
    };
    assert_eq!(fail_all(validated), []);
}

#[test]
fn a_validator_stores_what_it_decides() {
    let (mut world, _, validator) = a_lie_before_a_validator();
    let decides = merge(&mut world, validator);
    assert!(stores(&decides), "{decides:?}");
}

#[test]
fn everything_is_merged_and_stored_once_by_one_two_three_and_many() {
    let butterfly = || settings(1);
    let cases = [1, 2, 3, 5, 8].map(|miners| (miners, butterfly()));
    for (miners, settings) in cases
        .into_iter()
        .chain([(50, grid(12, 2)), (7, grid(12, 3))])
    {
        let settings = RunSettings {
            miners_per_stage_max: 50,
            ..settings
        };
        let (mut world, _) = at(Phase::Merging, miners, settings);
        world.work_until(Phase::Installing, &[]);
        let record = world.state.merges()[0].clone();
        assert_eq!(record.covered, record.cells, "{miners} miners");
        let alone = miners == 1;
        assert_eq!(record.agreed, if alone { 0 } else { record.cells });
        let stored = |event: &Event| matches!(event, Event::Leased(lease) if stores(lease));
        assert_eq!(world.saw(stored) as u64, record.cells, "{miners} miners");
        assert_everything_is_stored(&world);
    }
}

#[test]
fn settled_cells_are_fetched_in_a_few_parts_while_others_are_still_merged() {
    let (mut world, sessions) = at(Phase::Merging, 5, grid(12, 2));
    world.work_until(Phase::Installing, &[]);
    let mut fetches = 0;
    for session in sessions {
        let of_session = |event: &Event| match event {
            Event::Leased(lease) if lease.session == session => match &lease.work {
                Work::Fetch { segments } => Some(segments.clone()),
                _ => None,
            },
            _ => None,
        };
        let leased: Vec<_> = world.events.iter().filter_map(of_session).collect();
        assert!(leased.len() <= 4, "{leased:?}");
        assert!(leased.iter().all(|segments| !segments.is_empty()));
        fetches += leased.len();
        let mut ranges: Vec<u64> = leased.iter().flatten().map(|one| one.range.start).collect();
        let asked = ranges.len();
        ranges.sort_unstable();
        ranges.dedup();
        assert_eq!(ranges.len(), asked, "nothing is asked for twice");
    }
    assert!(fetches > 0);
}

#[test]
fn fetching_decides_nothing() {
    let (mut world, sessions) = at(Phase::Merging, 5, grid(8, 2));
    // Nobody who is leased to fetch ever does.
    while world.state.phase() == Phase::Merging {
        for session in &sessions {
            merge_all(&mut world, *session);
        }
    }
    let fetched = |event: &Event| matches!(event, Event::Leased(lease) if lease.work.kind() == WorkKind::Fetch);
    assert!(world.saw(fetched) > 0);
    assert_eq!(world.state.phase(), Phase::Installing);
    assert_everything_is_stored(&world);
    world.work_until(Phase::Over, &[]);
}
