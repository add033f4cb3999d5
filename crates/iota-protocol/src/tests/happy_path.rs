//! A run in which everybody does what they should.

use super::world::{World, peer, settings};
use crate::command::Role;
use crate::event::{CellResult, Event, Phase};
use crate::id::StageIndex;
use crate::settings::RunSettings;

#[test]
fn a_run_trains_merges_and_ends() {
    for stages in 1..=4 {
        for miners in 1..=3 {
            let mut world = World::new(RunSettings {
                miners_to_start: miners,
                ..settings(stages)
            });
            let count = u8::try_from(u32::from(stages) * miners).unwrap();
            for name in 1..=count {
                world.join(name);
            }
            world.work_until(Phase::Over, &[]);
            let counts = world.state.sample_counts();
            assert_eq!((counts.opened, counts.completed, counts.lost), (8, 8, 0));
            assert_eq!(world.state.merges().len(), 2 * usize::from(stages));
            assert!(world.state.replicas_equal());
            assert_eq!(
                world.saw(|event| matches!(event, Event::CheckpointCommitted(_))),
                2 * usize::from(stages)
            );
            for merge in world.state.merges() {
                assert_eq!(merge.covered, merge.cells);
            }
        }
    }
}

#[test]
fn phases_come_in_order() {
    let mut world = World::new(settings(2));
    world.join(1);
    world.join(2);
    world.work_until(Phase::Over, &[]);
    let phases: Vec<Phase> = world
        .events
        .iter()
        .filter_map(|event| match event {
            Event::PhaseChanged { phase, .. } => Some(*phase),
            _ => None,
        })
        .collect();
    let epoch = [
        Phase::Training,
        Phase::Uploading,
        Phase::Merging,
        Phase::Installing,
    ];
    assert_eq!(
        phases,
        [&epoch[..], &epoch[..], &[Phase::Settling, Phase::Over][..]].concat()
    );
}

#[test]
fn two_miners_of_a_stage_agree_on_the_cell_that_they_share() {
    let mut world = World::new(RunSettings {
        miners_to_start: 2,
        ..settings(1)
    });
    world.join(1);
    world.join(2);
    world.work_until(Phase::Over, &[]);
    assert_eq!(
        world.saw(|event| matches!(
            event,
            Event::CellSettled {
                result: CellResult::Agreed,
                ..
            }
        )),
        2
    );
    assert!(
        world
            .state
            .merges()
            .iter()
            .all(|merge| (merge.cells, merge.agreed) == (1, 1))
    );
}

#[test]
fn audits_of_honest_miners_pass_and_are_settled_before_the_end() {
    let mut world = World::new(RunSettings {
        validators: vec![peer(9)],
        ..settings(2)
    });
    world.join(1);
    world.join(2);
    world.join_as(9, Role::Validator, 1);
    world.work_until(Phase::Over, &[]);
    assert_eq!(world.state.audits_settled(), (4, 0));
    for name in [1, 2] {
        let record = world.state.peer(peer(name)).unwrap();
        assert_eq!(record.ledger.audits_passed, 2);
        assert!(record.ledger.verified >= 2);
        assert_eq!(record.ledger.backwards, 8);
        assert_eq!(world.state.score(peer(name)), 8.0);
    }
}

#[test]
fn joiners_go_where_they_are_needed_most() {
    let mut world = World::new(settings(3));
    let stages: Vec<StageIndex> = (1..=6)
        .map(|name| {
            let session = world.join(name);
            world.stage_of(session)
        })
        .collect();
    assert_eq!(stages, [0, 1, 2, 0, 1, 2].map(StageIndex::new));
}
