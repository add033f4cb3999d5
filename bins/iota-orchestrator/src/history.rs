//! The commands that look back: `audit-ledger`, `explain`, `replay`.

use std::fmt::Write as _;
use std::path::PathBuf;

use iota_ledger::{Line, Moment, Subject, elapsed, utc};
use iota_node::Exit;
use iota_orchestrator::{History, LedgerAudit};
use iota_protocol::summary::Summary;
use iota_protocol::{Epoch, PeerId, SampleId, State, Timestamp};

use crate::arguments::Explained;
use crate::commands::runtime;

/// Findings that are printed for people; JSON has them all.
const FINDINGS_SHOWN: usize = 20;

/// What was asked about is not in the run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotInThisRun {
    #[error("{text:?} is not a number")]
    Number { text: String },
    #[error("nobody's identity begins with {text:?}; those who took part are\n{known}")]
    Peer { text: String, known: String },
    #[error("{text:?} could be any of\n{known}")]
    Ambiguous { text: String, known: String },
    #[error("the run has not come to {what} yet")]
    NotYet { what: String },
}

pub(crate) fn audit_ledger(out: PathBuf, json: bool) -> anyhow::Result<Exit> {
    let history = History::open(out)?;
    let audit = runtime()?.block_on(history.audit())?;
    if json {
        println!("{}", serde_json::to_string_pretty(&audit)?);
    } else {
        print!("{}", audit_text(&audit, history.began()));
    }
    Ok(if audit.holds() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

pub(crate) fn explain(what: Explained, which: &str, out: PathBuf) -> anyhow::Result<Exit> {
    let history = History::open(out)?;
    let now = history.at(Moment::Entry(u64::MAX))?.state;
    let subject = subject(what, which, &now)?;
    let story = history.explain(subject)?;
    if story.lines.is_empty() {
        let what = match subject {
            Subject::Sample(sample) => sample.to_string(),
            Subject::Epoch(epoch) => epoch.to_string(),
            Subject::Peer(peer) => peer.to_string(),
        };
        return Err(NotInThisRun::NotYet { what }.into());
    }
    if let Subject::Peer(peer) = subject {
        println!("{}", peer_text(&now, peer));
    }
    let mut text = String::new();
    for line in &story.lines {
        writeln!(text, "{}", line_text(line, story.began))?;
    }
    for line in &story.whereabouts {
        writeln!(text, "{line}")?;
    }
    print!("{text}");
    Ok(Exit::Done)
}

pub(crate) fn replay(at: Moment, out: PathBuf, json: bool) -> anyhow::Result<Exit> {
    let history = History::open(out)?;
    let then = history.at(at)?;
    let moment = match at {
        Moment::Entry(_) => then.state.clock(),
        Moment::After(since) => history.began() + since,
        Moment::At(at) => at.max(history.began()),
    };
    let summary = then.state.summary(moment);
    if json {
        let shown = serde_json::json!({
            "entry": then.sequence,
            "last_entry_at_ms": then.state.clock().as_millis(),
            "at_ms": moment.as_millis(),
            "summary": summary,
        });
        println!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        let since = moment.since(history.began());
        println!(
            "{} after the run began, {}: after entry {} of the journal",
            elapsed(since),
            utc(moment),
            then.sequence
        );
        print!("{}", summary_text(&summary, &then.state));
    }
    Ok(Exit::Done)
}

/// What is meant by the words on the command line.
fn subject(what: Explained, which: &str, run: &State) -> Result<Subject, NotInThisRun> {
    let number = |prefix: &str| {
        let digits = which.strip_prefix(prefix).unwrap_or(which);
        digits.parse::<u64>().map_err(|_| NotInThisRun::Number {
            text: which.to_owned(),
        })
    };
    match what {
        Explained::Sample => Ok(Subject::Sample(SampleId::new(number("smp_")?))),
        Explained::Epoch => Ok(Subject::Epoch(Epoch::new(number("epoch_")?))),
        Explained::Miner | Explained::Validator => peer(which, run).map(Subject::Peer),
    }
}

/// The one peer whose identity, in either spelling, begins like this.
fn peer(text: &str, run: &State) -> Result<PeerId, NotInThisRun> {
    let spellings = |peer: &PeerId| [peer.to_string(), iota_identity::address::encode(peer)];
    let everybody: Vec<PeerId> = run.peers().map(|(peer, _)| peer).collect();
    let meant: Vec<PeerId> = everybody
        .iter()
        .filter(|peer| {
            let [id, address] = spellings(peer);
            let bare = id.strip_prefix("peer_").unwrap_or(&id);
            [bare, &id, &address]
                .iter()
                .any(|name| name.starts_with(text))
        })
        .copied()
        .collect();
    let listed = |peers: &[PeerId]| {
        let lines = peers
            .iter()
            .map(|peer| format!("  {}", spellings(peer).join("  ")));
        lines.collect::<Vec<_>>().join("\n")
    };
    let text = text.to_owned();
    match meant[..] {
        [peer] => Ok(peer),
        [] => Err(NotInThisRun::Peer {
            text,
            known: listed(&everybody),
        }),
        _ => Err(NotInThisRun::Ambiguous {
            text,
            known: listed(&meant),
        }),
    }
}

fn line_text(line: &Line, began: Timestamp) -> String {
    format!(
        "{}  {}  #{:<7} {}",
        utc(line.at),
        elapsed(line.at.since(began)),
        line.entry,
        line.text
    )
}

fn peer_text(run: &State, peer: PeerId) -> String {
    let Some(record) = run.peer(peer) else {
        return peer.to_string();
    };
    let ledger = &record.ledger;
    format!(
        "{peer} ({}): {} forward and {} backward passes credited, {} dropped, {} audits passed, {} failed, score {:.1}",
        iota_identity::address::encode(&peer),
        ledger.forwards,
        ledger.backwards,
        ledger.dropped,
        ledger.audits_passed,
        ledger.audits_failed,
        run.score(peer)
    )
}

fn audit_text(audit: &LedgerAudit, began: Timestamp) -> String {
    let (totals, passes) = (&audit.totals, &audit.totals.passes);
    let mut lines = vec![
        format!(
            "{}, {} after it began{}",
            audit.run,
            elapsed(audit.until.since(began)),
            if audit.over { "" } else { " (it goes on)" }
        ),
        format!(
            "  journal       {} events in {} entries, each chained to the one before",
            audit.events, audit.entries
        ),
        format!(
            "  samples       {} set out: {} count once each ({} tokens), {} dropped, {} on their way",
            totals.samples, totals.completed, totals.tokens, totals.dropped, totals.in_flight
        ),
        format!(
            "  learned       {} backward passes of them: {} merged, {} in part, {} to be merged",
            passes.counted, passes.merged, passes.merged_in_part, passes.pending
        ),
    ];
    let lost = passes.lost.iter();
    lines.extend(lost.map(|(loss, times)| format!("                {times} in no merge: {loss}")));
    let work = totals.work;
    lines.push(format!(
        "  wasted        {:.1} % of {} finished passes: {} redone, {} too late to count, {} too late for a log, {} undone",
        100.0 * work.wasted_share(),
        work.finished,
        work.redone,
        work.superseded,
        work.refused,
        work.undone
    ));
    lines.push(format!(
        "  store         {} shards, {} manifests, {} merged cells: {} bytes as committed to",
        audit.shards, audit.manifests, audit.objects, audit.object_bytes
    ));
    for (count, what) in [
        (audit.manifests_to_come, "manifests are still to be written"),
        (
            audit.given_up,
            "times a cell was given up that nobody could read",
        ),
    ] {
        if count > 0 {
            lines.push(format!("                {count} {what}"));
        }
    }
    lines.push(if audit.holds() {
        "Every sample's tokens are counted once.".to_owned()
    } else {
        format!("It does NOT add up, in {} places:", audit.findings.len())
    });
    let shown = audit.findings.iter().take(FINDINGS_SHOWN);
    lines.extend(shown.map(|finding| format!("  {finding}")));
    if audit.findings.len() > FINDINGS_SHOWN {
        let more = audit.findings.len() - FINDINGS_SHOWN;
        lines.push(format!("  and {more} more; --json has them all"));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn summary_text(summary: &Summary, run: &State) -> String {
    let mut lines = vec![format!(
        "  {:?} in {} of {}, for {}",
        summary.phase,
        summary.epoch,
        run.settings().epochs,
        elapsed(summary.phase_age)
    )];
    if let Some(paused) = summary.paused {
        lines.push(format!("  paused      {paused:?}"));
    }
    let (done, quota) = summary.samples_of_epoch;
    let counts = summary.samples;
    lines.push(format!(
        "  samples     {done} of the epoch's {quota} complete, {} on their way; {} complete over the run, {} leased again, {} lost",
        summary.samples_in_flight, counts.completed, counts.re_leased, counts.lost
    ));
    let loss = summary.mean_loss;
    lines.push(format!(
        "  tokens      {} trained on{}",
        summary.tokens_trained,
        loss.map_or_else(String::new, |loss| format!(
            ", mean loss of the epoch {loss:.3}"
        ))
    ));
    lines.extend(summary.stages.iter().map(|stage| {
        let (settled, cells) = stage.cells;
        format!(
            "  {:<11} {} miners, {} with the checkpoint, {} uploads, {settled} of {cells} cells settled",
            stage.stage.to_string(),
            stage.miners,
            stage.installed,
            stage.uploads
        )
    }));
    let (pending, passed, failed) = summary.audits;
    lines.push(format!(
        "  audits      {pending} open, {passed} passed, {failed} failed; {} validators, {} peers banned",
        summary.validators,
        run.cheaters().count()
    ));
    let mut leases = std::collections::BTreeMap::<_, u64>::new();
    for lease in run.leases() {
        *leases.entry(lease.work.kind()).or_default() += 1;
    }
    let leases: Vec<String> = leases
        .iter()
        .map(|(kind, count)| format!("{count} {kind:?}"))
        .collect();
    lines.push(format!(
        "  leases      {}",
        if leases.is_empty() {
            "none".to_owned()
        } else {
            leases.join(", ").to_lowercase()
        }
    ));
    lines.push(String::new());
    lines.join("\n")
}
