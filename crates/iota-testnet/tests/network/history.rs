//! A run's past, read from its folder while it goes on and when it is over, and what nobody can change in it unseen.

use std::path::{Path, PathBuf};
use std::time::Duration;

use iota_ledger::{Moment, Subject};
use iota_node::Shutdown;
use iota_orchestrator::{Error, Finding, History, JOURNAL, LedgerAudit};
use iota_protocol::work::{Checkpoint, SegmentSource};
use iota_protocol::{Epoch, Phase, SampleId, StageIndex, State};
use iota_store::ObjectKey;

use crate::{by_hand, small};

async fn audit(folder: &Path) -> LedgerAudit {
    History::open(folder).unwrap().audit().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_audited_while_it_goes_on_and_nothing_of_it_can_be_changed_unseen() {
    let folder = tempfile::tempdir().unwrap();
    let settings = small(folder.path());
    let out = settings.out.clone();
    let orchestrator = by_hand::orchestrator(&settings, 2).await;
    for number in 0..4 {
        let miner = by_hand::miner(orchestrator.url(), number);
        tokio::spawn(miner.run(Shutdown::new()));
    }

    // The first merge is done, the second epoch trains.
    // Once it holds it goes on to hold: whoever looks seldom does not miss it.
    let second_epoch = |state: &State| state.epoch() >= Epoch::new(1);
    let mut state = orchestrator.state();
    drop(state.wait_for(|state| second_epoch(state)).await.unwrap());
    let meanwhile = audit(&out).await;
    assert_eq!(meanwhile.findings, []);
    assert!(meanwhile.totals.completed >= 24, "{meanwhile:?}");
    assert!(meanwhile.totals.passes.merged >= 2 * 24, "{meanwhile:?}");

    let (last, _) = orchestrator.finish().await.unwrap();
    let whole = audit(&out).await;
    assert_eq!(whole.findings, []);
    assert!(whole.over && whole.entries > meanwhile.entries);
    let totals = &whole.totals;
    assert_eq!(
        (totals.completed, totals.tokens),
        (48, 48 * last.settings().sample_tokens)
    );
    assert_eq!(totals.passes.counted, 2 * 48);
    assert_eq!(totals.passes.merged, 2 * 48, "{totals:?}");
    // Two stages, two merges; one cell for each pair of miners.
    assert_eq!((whole.manifests, whole.manifests_to_come), (4, 0));
    assert_eq!(whole.objects, 4);

    tells_of_its_past(&out);
    finds_what_was_changed_in_the_store(&out, &last, &whole).await;
    finds_what_was_changed_in_the_journal(&out);
}

fn tells_of_its_past(out: &Path) {
    let history = History::open(out).unwrap();
    let story = history.explain(Subject::Sample(SampleId::new(3))).unwrap();
    let told: Vec<&str> = story.lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(told.first(), Some(&"smp_3 set out"));
    assert!(
        told.last().unwrap().starts_with("smp_3 is complete"),
        "{told:?}"
    );
    assert!(
        story.whereabouts[0].starts_with("smp_3 reads tokens "),
        "{:?}",
        story.whereabouts
    );
    assert!(story.whereabouts[1].starts_with("smp_3 counts once, in epoch_0"));
    let never = history.explain(Subject::Sample(SampleId::new(48))).unwrap();
    assert_eq!((never.lines, never.whereabouts), (vec![], vec![]));

    let start = history.at(Moment::After(Duration::ZERO)).unwrap();
    assert_eq!(
        (start.state.phase(), start.state.epoch()),
        (Phase::Gathering, Epoch::new(0))
    );
    let end = history.at(Moment::Entry(u64::MAX)).unwrap();
    assert!(end.state.is_over());
    let merged = history.explain(Subject::Epoch(Epoch::new(1))).unwrap();
    let installing = merged
        .lines
        .iter()
        .find(|line| line.text.starts_with("installing in epoch_1"));
    let then = history.at(Moment::At(installing.unwrap().at)).unwrap();
    assert_eq!(
        (then.state.phase(), then.state.epoch()),
        (Phase::Installing, Epoch::new(1))
    );
}

async fn finds_what_was_changed_in_the_store(out: &Path, last: &State, whole: &LedgerAudit) {
    let checkpoint = last.checkpoint(StageIndex::new(1));
    let cell = ObjectKey::object(whole.run, named(checkpoint));
    let manifest = ObjectKey::checkpoint(whole.run, Epoch::new(1), StageIndex::new(0));
    let shard = std::fs::read_dir(out.join(format!("store/{}/data", whole.run))).unwrap();
    let shards: Vec<PathBuf> = shard.map(|entry| entry.unwrap().path()).collect();
    let at = |key: &ObjectKey| out.join("store").join(key.to_string());

    // Whichever it is that is gone or changed, the audit names it; and names nothing when it is back.
    for path in [at(&cell), at(&manifest)] {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let key = only_store_finding(&audit(out).await);
        assert!(path.ends_with(&key), "{key}");
        let mut changed = bytes.clone();
        let middle = changed.len() / 2;
        changed[middle] ^= 1;
        std::fs::write(&path, changed).unwrap();
        let key = only_store_finding(&audit(out).await);
        assert!(path.ends_with(&key), "{key}");
        std::fs::write(&path, bytes).unwrap();
    }
    let read = shards
        .iter()
        .map(|path| (path, std::fs::read(path).unwrap()));
    let read: Vec<_> = read.collect();
    for (path, bytes) in &read {
        std::fs::write(path, &bytes[1..]).unwrap();
    }
    let found = audit(out).await.findings;
    assert!(!found.is_empty());
    assert!(
        found
            .iter()
            .all(|finding| matches!(finding, Finding::Store { .. }))
    );
    for (path, bytes) in read {
        std::fs::write(path, bytes).unwrap();
    }
    assert_eq!(audit(out).await, *whole);
}

fn only_store_finding(audit: &LedgerAudit) -> String {
    match &audit.findings[..] {
        [Finding::Store { key, .. }] => key.clone(),
        other => panic!("{other:?}"),
    }
}

fn named(checkpoint: &Checkpoint) -> iota_protocol::work::ObjectName {
    let mut named = checkpoint
        .segments
        .iter()
        .filter_map(|segment| match &segment.source {
            SegmentSource::Merged { object, .. } => Some(object.name),
            SegmentSource::Genesis => None,
        });
    named.next().unwrap()
}

/// Somebody lets another sample than the one that was trained on count.
fn finds_what_was_changed_in_the_journal(out: &Path) {
    let (written, rewritten) = (
        br#""event":"sample_completed","sample":7,"#,
        br#""event":"sample_completed","sample":8,"#,
    );
    let path = out.join(JOURNAL);
    let mut bytes = std::fs::read(&path).unwrap();
    let mut places = bytes.windows(written.len());
    let place = places.position(|window| window == written).unwrap();
    bytes[place..place + written.len()].copy_from_slice(rewritten);
    std::fs::write(&path, bytes).unwrap();
    let history = History::open(out).unwrap();
    let told = history.explain(Subject::Sample(SampleId::new(7)));
    assert!(
        matches!(
            told,
            Err(Error::Journal(iota_journal::Error::Damaged { .. }))
        ),
        "{told:?}"
    );
}
