//! The balance: what the events add up to, and whether the rules' own state says the same.

use std::collections::BTreeMap;

use iota_protocol::event::Phase;
use iota_protocol::state::WorkCounts;
use iota_protocol::{StageIndex, State};
use serde::{Deserialize, Serialize};

use crate::account::{Inclusion, Loss, SampleEnd};
use crate::{Discrepancy, Ledger};

/// What a run's samples and their passes come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Samples that set out.
    pub samples: u64,
    /// Samples that every stage has learned from once.
    pub completed: u64,
    /// Samples that were given up as the run ended.
    pub dropped: u64,
    /// Samples on their way.
    pub in_flight: u64,
    /// Tokens of completed samples, each sample's once.
    pub tokens: u64,
    /// Backward passes of completed samples: one per stage and sample.
    pub passes: Passes,
    /// Passes of either direction, and how many of them no completed sample needed.
    pub work: WorkCounts,
}

/// What became of the backward passes of completed samples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passes {
    /// All of them.
    pub counted: u64,
    /// In every element of what their stage started the next epoch from.
    pub merged: u64,
    /// In some of its elements.
    pub merged_in_part: u64,
    /// Their merge is not done.
    pub pending: u64,
    /// In no merge, by reason.
    pub lost: BTreeMap<Loss, u64>,
}

impl Ledger {
    /// What it comes to.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            samples: self.samples.len() as u64,
            in_flight: self.flying.len() as u64,
            work: self.work,
            ..Totals::default()
        };
        for account in self.samples.values() {
            totals.work.undone += account.undone;
            match account.end {
                Some(SampleEnd::Completed { .. }) => totals.completed += 1,
                Some(SampleEnd::Dropped { .. }) => totals.dropped += 1,
                None => {}
            }
            if !account.is_completed() {
                continue;
            }
            for pass in &account.backwards {
                let passes = &mut totals.passes;
                passes.counted += 1;
                match self.inclusion(pass) {
                    Some(Inclusion::Merged { elements, of }) if elements == of => {
                        passes.merged += 1;
                    }
                    Some(Inclusion::Merged { .. }) => passes.merged_in_part += 1,
                    Some(Inclusion::Pending) => passes.pending += 1,
                    Some(Inclusion::Lost { loss }) => {
                        *passes.lost.entry(loss).or_default() += 1;
                    }
                    // A discrepancy.
                    None => {}
                }
            }
        }
        totals.tokens = totals.completed.saturating_mul(self.settings.sample_tokens);
        totals
    }

    /// Everything that does not add up: in the events themselves, and between them and the state that they lead to.
    ///
    /// `state` is the rules' own, after the last event that this ledger was shown.
    pub fn check(&self, state: &State) -> Vec<Discrepancy> {
        let mut found = self.discrepancies.clone();
        if self.phase == Phase::Over {
            let left = self.flying.iter();
            found.extend(left.map(|sample| Discrepancy::NeverCounted { sample: *sample }));
        }
        for (sample, account) in self.samples().filter(|(_, account)| account.is_completed()) {
            let unexplained = account.backwards.iter();
            let unexplained = unexplained.filter(|pass| self.inclusion(pass).is_none());
            found.extend(unexplained.map(|pass| Discrepancy::NotMerged {
                sample,
                stage: self.stints[pass.stint].stage,
                session: pass.session,
            }));
        }
        self.compare_counts(state, &mut found);
        self.compare_peers(state, &mut found);
        self.compare_merges(state, &mut found);
        found
    }

    fn compare_counts(&self, state: &State, found: &mut Vec<Discrepancy>) {
        let (totals, counts) = (self.totals(), state.sample_counts());
        let passed: u64 = self.peers.values().map(|peer| peer.audits_passed).sum();
        let failed: u64 = self.peers.values().map(|peer| peer.audits_failed).sum();
        let in_flight = state.samples_in_flight() as u64;
        let (work, said) = (totals.work, state.work_counts());
        for (what, ledger, state) in [
            ("samples", totals.samples, counts.opened),
            ("completed samples", totals.completed, counts.completed),
            ("dropped samples", totals.dropped, counts.lost),
            ("samples on their way", totals.in_flight, in_flight),
            ("restarted samples", self.restarted, counts.restarted),
            ("finished passes", work.finished, said.finished),
            ("passes done a second time", work.redone, said.redone),
            ("superseded passes", work.superseded, said.superseded),
            ("undone passes", work.undone, said.undone),
            ("the epoch", self.epoch.get(), state.epoch().get()),
            ("audits passed", passed, state.audits_settled().0),
            ("audits failed", failed, state.audits_settled().1),
        ] {
            differ(found, what.to_owned(), ledger, state);
        }
        for (sample, said) in state.completed_samples() {
            let account = self.samples.get(&sample).filter(|it| it.is_completed());
            let same = account.is_some_and(|account| {
                let did = account.backwards.iter().rev().map(|pass| pass.session);
                did.eq(said.path.iter().copied())
            });
            if !same {
                let what = sample.to_string();
                found.push(Discrepancy::State { what });
            }
        }
    }

    fn compare_peers(&self, state: &State, found: &mut Vec<Discrepancy>) {
        for (peer, record) in state.peers() {
            let (account, said) = (self.peer(peer), &record.ledger);
            for (what, ledger, state) in [
                ("forward passes", account.forwards, said.forwards),
                ("backward passes", account.backwards, said.backwards),
            ] {
                differ(found, format!("{what} of {peer}"), ledger, state);
            }
            if account.banned != said.banned.is_some() {
                found.push(Discrepancy::Ban { peer });
            }
        }
        let unknown = self
            .peers
            .keys()
            .filter(|peer| state.peer(**peer).is_none());
        found.extend(unknown.map(|peer| Discrepancy::State {
            what: peer.to_string(),
        }));
    }

    fn compare_merges(&self, state: &State, found: &mut Vec<Discrepancy>) {
        let committed = self.merges.values();
        let committed = committed.filter(|merge| merge.elements.is_some());
        let said = state.merges();
        let (count, of) = (committed.clone().count() as u64, said.len() as u64);
        differ(found, "merges".to_owned(), count, of);
        for merge in committed {
            let (covered, agreed) = merge.covered_and_agreed();
            let cells = merge.cells(self.settings.merging.cells);
            let same = said.iter().any(|record| {
                (record.epoch, record.stage) == (merge.epoch.next(), merge.stage)
                    && (record.cells, record.covered, record.agreed) == (cells, covered, agreed)
            });
            if !same {
                let what = format!("the merge of {} in {}", merge.stage, merge.epoch);
                found.push(Discrepancy::State { what });
            }
        }
        let stages = (0..self.settings.stages()).map(StageIndex::new);
        for stage in stages.filter(|_| state.epoch().get() > 0) {
            let latest = state.checkpoint(stage);
            if self.checkpoints.get(&(latest.epoch, stage)) != Some(latest) {
                let what = format!("the checkpoint of {stage}");
                found.push(Discrepancy::State { what });
            }
        }
    }
}

fn differ(found: &mut Vec<Discrepancy>, what: String, ledger: u64, state: u64) {
    if ledger != state {
        found.push(Discrepancy::Counter {
            what,
            ledger,
            state,
        });
    }
}
