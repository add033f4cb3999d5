//! What has to be true at a world's end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iota_journal::{check, recover, replay};
use iota_ledger::Ledger;
use iota_protocol::work::SegmentSource;
use iota_protocol::{RunId, State};
use iota_store::ObjectKey;

use crate::Lived;
use crate::hosts::{Site, keypair};
use crate::journal::is_join;
use crate::plan::STAGES;

/// Compares the run's end with its journal, its books, its store and its metrics.
///
/// # Errors
/// The first thing that is not as it has to be.
pub(crate) fn settle(site: &Site, elapsed: Duration) -> Result<Lived, String> {
    let state = site.ended().ok_or("the run has not ended")?;
    let journal = site.disk.read();
    let checked = check(&journal).map_err(|error| format!("the journal: {error}"))?;
    let recovered = recover(&journal)
        .map_err(|error| format!("the journal: {error}"))?
        .ok_or("the journal is empty")?;
    if recovered.state != *state {
        return Err("the journal does not lead to the state that the run ended with".to_owned());
    }
    iota_protocol::invariants::check_all(&state).map_err(|violation| violation.to_string())?;
    let (mut ledger, mut joins) = (Ledger::new(state.settings()), 0);
    replay(&journal, 0, |entry| {
        for event in &entry.events {
            joins += u64::from(is_join(event));
            ledger.follow(event);
        }
        Ok(())
    })
    .map_err(|error| format!("the journal: {error}"))?;
    if let Some(discrepancy) = ledger.check(&state).first() {
        return Err(format!("the books do not add up: {discrepancy}"));
    }
    let cheater = site.plan.cheater;
    let cheater = cheater.map(|host| keypair(&site.plan, host).peer_id());
    let mut banned = state.cheaters().filter(|(peer, _)| Some(*peer) != cheater);
    if let Some((peer, why)) = banned.next() {
        let peer = peer.short();
        return Err(format!("{peer} was banned and is honest: {why:?}"));
    }
    if !state.replicas_equal() {
        return Err("replicas of a stage differ".to_owned());
    }
    let merges = state.merges().len() as u64;
    if !state.is_over() || merges != site.plan.epochs * u64::from(STAGES) {
        return Err(format!("the run ended with {merges} merges"));
    }
    checkpoints_are_there(site, &ledger, state.settings().run)?;
    metrics_name_each_sample_once(site, &state)?;
    let counts = state.sample_counts();
    site.trace.note("world", format_args!("{counts:?}"));
    let (passed, failed) = state.audits_settled();
    Ok(Lived {
        faults: site.trace.faults(),
        virtual_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        writes: site.disk.tried(),
        entries: checked.entries,
        events: checked.events,
        completed: counts.completed,
        lost: counts.lost,
        re_leased: counts.re_leased,
        joins: joins - site.disk.joins_untold(),
        audits: passed + failed,
        banned: state.cheaters().count() as u64,
        trace: site.trace.digest(),
    })
}

/// Everything that the run's result consists of is in the store, with the bytes that were committed to.
fn checkpoints_are_there(site: &Site, ledger: &Ledger, run: RunId) -> Result<(), String> {
    let mut cells = BTreeMap::new();
    for checkpoint in ledger.checkpoints() {
        for segment in &checkpoint.segments {
            if let SegmentSource::Merged { object, .. } = &segment.source
                && !ledger.is_given_up(object.name)
            {
                cells.insert(ObjectKey::object(run, object.name), object.seal);
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    for (key, seal) in cells {
        let read = runtime.block_on(site.objects.store.get(&key, &seal));
        read.map_err(|error| format!("a merged cell: {error}"))?;
    }
    Ok(())
}

fn metrics_name_each_sample_once(site: &Site, state: &State) -> Result<(), String> {
    let text = std::fs::read_to_string(site.folder.join("metrics.jsonl"));
    let text = text.map_err(|error| format!("metrics.jsonl: {error}"))?;
    let mut named = BTreeSet::new();
    for line in text.lines() {
        let metric: serde_json::Value =
            serde_json::from_str(line).map_err(|error| format!("metrics.jsonl: {error}"))?;
        if metric["kind"] == "sample" && !named.insert(metric["sample"].as_u64()) {
            return Err(format!("metrics.jsonl has a sample twice: {line}"));
        }
    }
    let completed = state.sample_counts().completed;
    if named.len() as u64 == completed {
        Ok(())
    } else {
        let named = named.len();
        Err(format!("metrics.jsonl has {named} samples of {completed}"))
    }
}

/// How far a run has come, for whoever looks into why it came no further.
pub(crate) fn standing(site: &Site) -> String {
    match recover(&site.disk.read()) {
        Ok(Some(recovered)) => {
            let state = recovered.state;
            format!(
                "epoch {}, {:?}, {} entries, {:?}, {} sessions, {} leases",
                state.epoch(),
                state.phase(),
                recovered.sequence,
                state.sample_counts(),
                state.sessions().count(),
                state.leases().count(),
            )
        }
        Ok(None) => "it has not begun".to_owned(),
        Err(error) => error.to_string(),
    }
}
