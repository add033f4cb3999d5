//! What is told of a sample, a peer, an epoch.

use iota_ledger::{Explanation, Subject};
use iota_protocol::{Epoch, SampleId};

use crate::network::{Lived, Trouble, live, peer};

fn story(lived: &Lived, subject: Subject) -> String {
    let mut explanation = Explanation::new(subject);
    for (entry, (at, event)) in (1..).zip(&lived.events) {
        explanation.follow(entry, *at, event);
    }
    let lines = explanation.into_lines();
    assert!(lines.is_sorted_by_key(|line| (line.at, line.entry)));
    let texts: Vec<String> = lines.into_iter().map(|line| line.text).collect();
    texts.join("\n")
}

#[track_caller]
fn says(story: &str, words: &[&str]) {
    for word in words {
        assert!(story.contains(word), "{word:?} is missing in:\n{story}");
    }
}

#[test]
fn a_sample_is_told_from_its_opening_to_the_checkpoints_that_hold_it() {
    let lived = live(Trouble::None);
    let sample = SampleId::new(1);
    let told = story(&lived, Subject::Sample(sample));
    says(
        &told,
        &[
            "smp_1 set out",
            "the forward pass of smp_1 at stage_0",
            "the backward pass of smp_1 at stage_1",
            "smp_1 is complete with a loss of 2.500",
        ],
    );
    assert!(!told.contains("smp_2"), "{told}");
    let whereabouts = lived.ledger().whereabouts(sample).join("\n");
    says(
        &whereabouts,
        &[
            "smp_1 counts once, in epoch_0",
            "in all of what stage_0 starts epoch_1 from",
            "in all of what stage_1 starts epoch_1 from",
        ],
    );
    assert_eq!(lived.ledger().whereabouts(SampleId::new(1_000)), [""; 0]);
}

#[test]
fn a_miner_that_leaves_is_told_with_what_it_left_undone() {
    let lived = live(Trouble::OneLeaves);
    let left = (1..=4)
        .find(|name| {
            lived.state.session_of(peer(*name)).is_none() && {
                let told = story(&lived, Subject::Peer(peer(*name)));
                told.contains("is gone: it left")
            }
        })
        .unwrap();
    let told = story(&lived, Subject::Peer(peer(left)));
    says(
        &told,
        &[
            "joined as a miner of",
            "installing the checkpoint of epoch_0",
            "backward passes credited",
            "is gone: it left",
        ],
    );
}

#[test]
fn an_epoch_is_told_in_phases_and_sums() {
    let lived = live(Trouble::OneNeverUploads);
    let told = story(&lived, Subject::Epoch(Epoch::new(0)));
    says(
        &told,
        &[
            "training in epoch_0: every stage has enough miners",
            "4 samples complete, mean loss 2.500",
            "uploading in epoch_0: the epoch's samples are all trained on",
            "are to upload",
            "merging in epoch_0",
            "stage_1 starts epoch_1",
            "installing in epoch_1: everybody who was waited for is done",
        ],
    );
    assert!(!told.contains("epoch_2"), "{told}");
}
