//! What adds up, and that nothing can be taken away, added or changed without a trace.

use iota_ledger::{Discrepancy, Inclusion, Loss};
use iota_protocol::work::{Outcome, Work};
use iota_protocol::{Event, SampleId};

use crate::network::{Trouble, live, peer};

/// Whether the count of samples rests on an event: everything from the opening of a sample to the checkpoint.
fn counts(event: &Event) -> bool {
    match event {
        Event::SampleOpened { .. }
        | Event::SampleCompleted { .. }
        | Event::CheckpointCommitted(_)
        | Event::CellSettled { .. }
        | Event::AuditSettled { .. }
        | Event::Leased(_) => true,
        Event::RosterFixed { roster, .. } => !roster.is_empty(),
        Event::Completed {
            outcome, credited, ..
        } => match outcome {
            Outcome::Forward { .. } | Outcome::Backward { .. } | Outcome::Upload { .. } => {
                *credited
            }
            // Owners agree if there are two equal results.
            Outcome::Merge { .. } => true,
            _ => false,
        },
        _ => false,
    }
}

#[test]
fn an_honest_run_adds_up_and_all_of_its_work_is_merged() {
    let lived = live(Trouble::None);
    let ledger = lived.ledger();
    assert_eq!(ledger.check(&lived.state), []);
    let totals = ledger.totals();
    assert_eq!(
        (totals.samples, totals.completed, totals.tokens),
        (8, 8, 8 * 16)
    );
    assert_eq!(totals.passes.counted, 16);
    assert_eq!(totals.passes.merged, 16, "{totals:?}");
    // A forward at the head and a backward at both stages, for each sample.
    assert_eq!((totals.work.finished, totals.work.undone), (8 * 3, 0));
    let credited: u64 = (1..=4).map(|name| ledger.peer(peer(name)).backwards).sum();
    assert_eq!(credited, 16);
}

#[test]
fn what_a_miner_had_learned_when_it_left_counts_and_is_known_to_be_lost() {
    let lived = live(Trouble::OneLeaves);
    let ledger = lived.ledger();
    assert_eq!(ledger.check(&lived.state), []);
    let totals = ledger.totals();
    assert_eq!(totals.completed, 8);
    assert_eq!(totals.passes.counted, 16);
    let lost = totals.passes.lost[&Loss::Left];
    assert!(lost > 0, "{totals:?}");
    assert_eq!(totals.passes.merged + lost, 16, "{totals:?}");
}

#[test]
fn what_was_not_uploaded_in_time_is_known_to_be_lost() {
    let lived = live(Trouble::OneNeverUploads);
    let ledger = lived.ledger();
    assert_eq!(ledger.check(&lived.state), []);
    let lost = ledger.totals().passes.lost;
    let reasons: Vec<&Loss> = lost.keys().collect();
    assert_eq!(reasons, [&Loss::NotUploaded], "{lost:?}");
    let (_, account) = ledger
        .samples()
        .find(|(_, account)| {
            let mut passes = account.backwards.iter();
            passes.any(|pass| matches!(ledger.inclusion(pass), Some(Inclusion::Lost { .. })))
        })
        .unwrap();
    assert!(account.is_completed());
}

#[test]
fn books_that_were_begun_and_not_finished_add_up_too() {
    let lived = live(Trouble::OneLeaves);
    let mut state =
        iota_protocol::State::new(crate::network::settings(), lived.events[0].0).unwrap();
    let mut ledger = iota_ledger::Ledger::new(&crate::network::settings());
    let mut last = lived.events[0].0;
    for (at, event) in &lived.events {
        // Between two commands: the events of one command come together.
        if *at != last {
            assert_eq!(ledger.check(&state), [], "before {event:?}");
            last = *at;
        }
        ledger.follow(event);
        state.apply(*at, event);
    }
}

#[test]
fn no_event_that_counts_can_be_taken_away() {
    let lived = live(Trouble::OneLeaves);
    let mut tried = 0;
    for (place, (_, gone)) in lived.events.iter().enumerate() {
        if counts(gone) {
            let rest = lived
                .events
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != place);
            let found = lived.check(rest.map(|(_, (_, event))| event));
            assert_ne!(found, [], "nobody misses {gone:?}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn no_event_that_counts_can_be_added_a_second_time() {
    let lived = live(Trouble::OneLeaves);
    for (place, (_, twice)) in lived.events.iter().enumerate() {
        // To settle a cell again with the same, or to commit the same checkpoint or roster, changes nothing.
        let harmless = matches!(
            twice,
            Event::CellSettled { .. } | Event::CheckpointCommitted(_) | Event::RosterFixed { .. }
        );
        if counts(twice) && !harmless {
            let (before, after) = lived.events.split_at(place);
            let events = before.iter().chain([&lived.events[place]]).chain(after);
            let found = lived.check(events.map(|(_, event)| event));
            assert_ne!(found, [], "nobody notices a second {twice:?}");
        }
    }
}

#[test]
fn a_changed_event_is_named_for_what_it_is() {
    let lived = live(Trouble::None);
    let changed = |change: &dyn Fn(&mut Event) -> bool| {
        let mut events: Vec<Event> = lived
            .events
            .iter()
            .map(|(_, event)| event.clone())
            .collect();
        assert!(events.iter_mut().any(change), "there is such an event");
        lived.check(&events)
    };

    let heavier = changed(&|event| match event {
        Event::Leased(lease) => match &mut lease.work {
            Work::Merge { inputs, .. } => {
                inputs[0].weight += 1;
                true
            }
            _ => false,
        },
        _ => false,
    });
    assert!(
        matches!(heavier[..], [Discrepancy::AnotherWeight { said, did, .. }] if said == did + 1),
        "{heavier:?}"
    );

    let somebody_else = changed(&|event| match event {
        Event::SampleCompleted { path, .. } => {
            path.reverse();
            true
        }
        _ => false,
    });
    assert!(
        somebody_else.contains(&Discrepancy::AnotherPath {
            sample: SampleId::new(0)
        }),
        "{somebody_else:?}"
    );

    let cheaper = changed(&|event| match event {
        Event::Completed { credited, .. } => std::mem::replace(credited, false),
        _ => false,
    });
    assert_ne!(cheaper, []);

    let elsewhere = changed(&|event| match event {
        Event::CheckpointCommitted(checkpoint) => checkpoint.segments.pop().is_some(),
        _ => false,
    });
    assert!(
        elsewhere
            .iter()
            .any(|found| matches!(found, Discrepancy::CheckpointHasGaps { .. })),
        "{elsewhere:?}"
    );
}
