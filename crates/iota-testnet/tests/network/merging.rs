//! Whole networks that merge in other ways than the default.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use iota_journal::SqliteJournal;
use iota_miner::Behaviour;
use iota_node::Shutdown;
use iota_orchestrator::{
    CodecName, DeltaChoice, JOURNAL, MergingOptions, OptimizerState, OuterName, RuleName,
};
use iota_protocol::event::BanReason;
use iota_protocol::work::{Difference, Outcome, Seal, Work};
use iota_protocol::{Epoch, Event, LeaseId, Session};
use iota_testnet::{Report, TestnetSettings, summary};

use crate::{by_hand, run, small};

/// What learned in few bytes, the rest at home.
const SMALL: MergingOptions = MergingOptions {
    cells: 3,
    upload: CodecName::TopK,
    delta: DeltaChoice::Sparse,
    outer: OuterName::Nesterov,
    outer_warmup_merges: 2,
    optimizer_state: OptimizerState::Local,
    ..MergingOptions::WHOLE
};

/// Three epochs: the third is begun with what was kept through the second.
fn three_epochs(merging: MergingOptions, folder: &Path) -> TestnetSettings {
    let mut settings = TestnetSettings {
        merging,
        ..small(folder)
    };
    settings.training.epochs = 3;
    settings
}

async fn merging(merging: MergingOptions) -> (Report, u64) {
    let folder = tempfile::tempdir().unwrap();
    merging_in(folder.path(), merging).await
}

async fn merging_in(folder: &Path, merging: MergingOptions) -> (Report, u64) {
    let report = run(three_epochs(merging, folder)).await;
    assert!(report.trained, "{}", summary(&report));
    assert!(report.loss.held_out_end < report.loss.held_out_start - 0.3);
    assert!(report.replicas_equal);
    assert!(report.audits.passed > 0);
    assert_eq!(report.audits.failed, 0);
    for merge in &report.merges {
        let (covered, agreed) = (merge.covered, merge.agreed);
        assert_eq!((covered, agreed), (merge.cells, merge.cells), "{merge:?}");
    }
    let bytes = report.merges.iter().map(|it| it.bytes_up + it.bytes_down);
    let bytes = bytes.sum();
    (report, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_whose_miners_send_what_they_learned_in_few_bytes_trains_and_passes_its_audits() {
    let (report, _) = merging(SMALL).await;
    assert!(report.merges.iter().all(|merge| merge.cells == 3));
}

/// Uploads of 3/4 of a bit for each parameter, and deltas of 1.7.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_whose_miners_send_signs_and_install_ternary_deltas_trains_and_passes_its_audits()
{
    let (report, _) = merging(MergingOptions {
        upload: CodecName::Signs,
        delta: DeltaChoice::Ternary,
        feedback: 1.0,
        ..SMALL
    })
    .await;
    assert!(report.merges.iter().all(|merge| merge.cells == 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn deltas_of_a_byte_without_moments_take_a_fraction_of_the_bytes() {
    let (_, whole) = merging(MergingOptions::WHOLE).await;
    let (_, small) = merging(MergingOptions {
        upload: CodecName::Int8,
        delta: DeltaChoice::Int8,
        feedback: 0.0,
        optimizer_state: OptimizerState::Dropped,
        ..MergingOptions::WHOLE
    })
    .await;
    assert!(small * 3 < whole, "{small} of {whole} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_robust_rule_on_deltas_with_merged_moments_trains() {
    merging(MergingOptions {
        rule: RuleName::Clipped,
        clip_to_median: true,
        outer: OuterName::Sgd,
        outer_learning_rate: 1.0,
        upload: CodecName::Bf16,
        delta: DeltaChoice::Bf16,
        ..MergingOptions::WHOLE
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cheater_is_found_whatever_miners_keep_for_themselves() {
    for merging in [SMALL, OVERLAPPING] {
        let folder = tempfile::tempdir().unwrap();
        let report = run(TestnetSettings {
            cheaters: 1,
            ..three_epochs(merging, folder.path())
        })
        .await;
        assert_eq!(report.cheaters.len(), 1, "{}", summary(&report));
        assert_eq!(report.audits.failed, 1);
        assert!(report.replicas_equal);
    }
}

const OVERLAPPING: MergingOptions = MergingOptions {
    overlap: true,
    ..MergingOptions::DEFAULT
};

/// Passes that were done for an epoch before what it starts from was merged, and replays of such passes, by the journal.
fn done_ahead(out: &Path) -> (u64, u64) {
    let journal = SqliteJournal::open_for_reading(out.join(JOURNAL)).unwrap();
    let (mut epoch, mut passes, mut replays) = (Epoch::new(0), 0, 0);
    let mut ahead: BTreeSet<LeaseId> = BTreeSet::new();
    let mut note = |event: &Event| match event {
        Event::PhaseChanged { epoch: now, .. } => epoch = *now,
        Event::Leased(lease) => {
            if lease.work.sample().is_some() && lease.epoch > epoch {
                ahead.insert(lease.id);
            }
            replays += u64::from(matches!(lease.work, Work::Replay { ahead, .. } if ahead > 0));
        }
        Event::Completed { lease, .. } => passes += u64::from(ahead.contains(lease)),
        _ => {}
    };
    iota_journal::replay(&journal, 0, |entry| {
        entry.events.iter().for_each(&mut note);
        Ok(())
    })
    .unwrap();
    (passes, replays)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_trains_while_it_merges_passes_its_audits_and_restarts_nothing_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (report, _) = merging_in(folder.path(), OVERLAPPING).await;
    let settings = three_epochs(OVERLAPPING, folder.path());
    let samples = settings.training.epochs * settings.training.samples_per_epoch;
    assert_eq!(report.samples.completed, samples);
    assert_eq!(report.work.undone, 0);
    let (passes, replays) = done_ahead(&settings.out);
    assert!(
        passes > 0 && replays > 0,
        "{passes} passes, {replays} replays"
    );
}

/// What became of what miners keep for themselves, by the journal.
#[derive(Debug, Default)]
struct KeptInAll {
    /// Of each session, epoch by epoch.
    sealed: BTreeMap<Session, Vec<Seal>>,
    /// Subjects of audits of the epochs after the first, which all began with what they had.
    drawn: Vec<Session>,
    /// Who stored what.
    handed_over: Vec<(Session, Seal)>,
}

fn kept_in_all(out: &Path) -> KeptInAll {
    let journal = SqliteJournal::open_for_reading(out.join(JOURNAL)).unwrap();
    let mut all = KeptInAll::default();
    let mut asked: BTreeMap<LeaseId, Seal> = BTreeMap::new();
    let mut note = |event: &Event| match event {
        Event::AuditDrawn { subject, .. } if all.sealed.contains_key(subject) => {
            all.drawn.push(*subject);
        }
        Event::Leased(lease) => {
            if let Work::HandOver { began_with, keeps } = &lease.work {
                assert_eq!(*keeps, None, "audits here compare bits");
                asked.insert(lease.id, began_with.unwrap().seal);
            }
        }
        Event::Completed {
            session,
            outcome: Outcome::Upload { kept, .. },
            ..
        } => all.sealed.entry(*session).or_default().extend(kept),
        Event::Completed {
            lease,
            session,
            outcome: Outcome::HandedOver,
            ..
        } => all.handed_over.push((*session, asked[lease])),
        _ => {}
    };
    iota_journal::replay(&journal, 0, |entry| {
        entry.events.iter().for_each(&mut note);
        Ok(())
    })
    .unwrap();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn what_miners_keep_is_stored_for_the_audits_that_were_drawn_and_for_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = TestnetSettings {
        merging: SMALL,
        ..small(folder.path())
    };
    settings.training.epochs = 4;
    let out = settings.out.clone();
    let report = run(settings).await;
    assert!(report.trained, "{}", summary(&report));
    assert_eq!(report.audits.failed, 0);
    let all = kept_in_all(&out);
    let mut handed_over: Vec<Session> = all.handed_over.iter().map(|(it, _)| *it).collect();
    let mut drawn = all.drawn.clone();
    handed_over.sort_unstable();
    drawn.sort_unstable();
    assert_eq!(handed_over, drawn);
    // Every seal was said an epoch before, and nobody hands over the same twice.
    for (session, seal) in &all.handed_over {
        assert!(all.sealed[session].contains(seal));
    }
    let distinct: BTreeSet<_> = all
        .handed_over
        .iter()
        .map(|(_, seal)| seal.digest)
        .collect();
    assert_eq!(distinct.len(), all.handed_over.len());
    let sealed: Vec<Seal> = all.sealed.values().flatten().copied().collect();
    let bytes = |seals: &mut dyn Iterator<Item = Seal>| seals.map(|seal| seal.length).sum::<u64>();
    let stored = bytes(&mut all.handed_over.iter().map(|(_, seal)| *seal));
    let once_stored = bytes(&mut sealed.into_iter());
    assert!(
        0 < stored && stored < once_stored,
        "{stored} of {once_stored}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_hands_over_another_past_than_it_had_sealed_is_found_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = TestnetSettings {
        stages: 1,
        merging: SMALL,
        ..small(folder.path())
    };
    settings.training.epochs = 3;
    settings.training.audit_every_epochs = 1;
    let orchestrator = by_hand::validated(&settings, 3).await;
    for number in 0..3 {
        let behaviour = if number == 1 {
            Behaviour::OtherPast
        } else {
            Behaviour::Honest
        };
        let miner = by_hand::miner(orchestrator.url(), number).with_behaviour(behaviour);
        tokio::spawn(miner.run(Shutdown::new()));
    }
    let (last, _) = orchestrator.finish().await.unwrap();
    let liar = by_hand::peer(1);
    let found: Vec<_> = last.cheaters().collect();
    assert_eq!(found.len(), 1, "{found:?}");
    let (peer, why) = found[0];
    assert_eq!(peer, liar);
    // The first audit that began with anything.
    let begun = Epoch::new(1);
    let is_it = matches!(
        why,
        BanReason::Audit { epoch, ordinal: None, difference: Difference::Digest, .. } if *epoch == begun
    );
    assert!(is_it, "{why:?}");
}

/// Held-out loss of one stage of eight miners without a validator, the last of which may behave otherwise.
async fn with_one_of_eight(behaviour: Behaviour, rule: RuleName) -> f32 {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = TestnetSettings {
        stages: 1,
        merging: MergingOptions {
            rule,
            ..MergingOptions::WHOLE
        },
        ..small(folder.path())
    };
    settings.training.samples_per_epoch = 64;
    let orchestrator = by_hand::orchestrator(&settings, 8).await;
    for number in 0..8 {
        let behaviour = if number == 7 {
            behaviour
        } else {
            Behaviour::Honest
        };
        let miner = by_hand::miner(orchestrator.url(), number).with_behaviour(behaviour);
        tokio::spawn(miner.run(Shutdown::new()));
    }
    let (last, _) = orchestrator.finish().await.unwrap();
    let merges = last.merges();
    // After a ruined merge training may break down, so that the second has nothing finite to merge. Nobody waits for it:
    // phases here may last two minutes.
    let first = merges.iter().filter(|merge| merge.epoch == Epoch::new(1));
    assert!(
        first
            .map(|merge| (merge.covered, merge.cells))
            .eq([(28, 28)])
    );
    // The second epoch begins from the first merge: its losses show what that was worth.
    let losses: Vec<f32> = last.completed_samples().map(|(_, it)| it.loss).collect();
    losses.iter().sum::<f32>() / losses.len() as f32
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_eight_that_uploads_garbage_ruins_a_mean_and_not_a_trimmed_one() {
    let honest = with_one_of_eight(Behaviour::Honest, RuleName::Trimmed).await;
    let robust = with_one_of_eight(Behaviour::Garbage, RuleName::Trimmed).await;
    let ruined = with_one_of_eight(Behaviour::Garbage, RuleName::Mean).await;
    assert!(robust < honest + 0.3, "{robust} instead of {honest}");
    assert!(ruined > honest + 1.0, "{ruined} instead of {honest}");
}
