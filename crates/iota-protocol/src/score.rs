//! What a peer's work is worth: IOTA's step decay over verified backward passes.
//!
//! A credited backward pass counts in full for a fixed number of epochs and then not at all, so that a miner lives by
//! what it does now. Work that was taken and not done costs, because others waited for it; cheating costs everything.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::event::BanReason;
use crate::id::Epoch;

/// Epochs for which work counts.
pub const EPOCHS_COUNTED: usize = 8;

/// Backward passes that a dropped piece costs: the one that was not done and the one that was delayed.
pub const COST_OF_A_DROP: u64 = 2;

/// Backward passes that an accusation costs which a validator found to be false.
pub const COST_OF_A_FALSE_ACCUSATION: u64 = 8;

/// What a peer did in one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EpochCredit {
    epoch: Epoch,
    backwards: u64,
    costs: u64,
    forfeited: bool,
}

/// What a peer did over the run, and how it fared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    /// Credited forward passes.
    pub forwards: u64,
    /// Credited backward passes.
    pub backwards: u64,
    /// Work that it was leased and did not do in time, or gave back.
    pub dropped: u64,
    /// Operations of it that a validator redid and found right.
    pub verified: u64,
    /// Audits whose verdict was in its favour.
    pub audits_passed: u64,
    /// Audits whose verdict was against it.
    pub audits_failed: u64,
    /// Accusations by it that a validator found to be false.
    pub false_accusations: u64,
    /// Epoch in which its work was last drawn for an audit; none if nothing came of that because it withheld what the audit
    /// needed.
    pub last_audited: Option<Epoch>,
    /// Whether it ever withheld what an audit needed. From then on it begins every epoch with nothing, and no audit needs
    /// anything of it.
    #[serde(default)]
    pub withheld: bool,
    /// Why it is banned, if it is.
    pub banned: Option<BanReason>,
    recent: VecDeque<EpochCredit>,
}

impl Ledger {
    /// What its recent work is worth, in backward passes; zero if it is banned.
    pub fn score(&self, now: Epoch) -> f64 {
        if self.banned.is_some() {
            return 0.0;
        }
        let counted = |credit: &&EpochCredit| {
            now.get().saturating_sub(credit.epoch.get()) < EPOCHS_COUNTED as u64
        };
        let (earned, costs) =
            self.recent
                .iter()
                .filter(counted)
                .fold((0_u64, 0_u64), |(earned, costs), credit| {
                    (
                        earned
                            + if credit.forfeited {
                                0
                            } else {
                                credit.backwards
                            },
                        costs + credit.costs,
                    )
                });
        earned.saturating_sub(costs) as f64
    }

    pub(crate) fn credit_forward(&mut self) {
        self.forwards += 1;
    }

    pub(crate) fn credit_backward(&mut self, epoch: Epoch) {
        self.backwards += 1;
        self.of(epoch).backwards += 1;
    }

    pub(crate) fn drop_work(&mut self, epoch: Epoch) {
        self.dropped += 1;
        self.of(epoch).costs += COST_OF_A_DROP;
    }

    pub(crate) fn accuse_falsely(&mut self, epoch: Epoch) {
        self.false_accusations += 1;
        self.of(epoch).costs += COST_OF_A_FALSE_ACCUSATION;
    }

    /// What it earned in this epoch does not count.
    pub(crate) fn forfeit(&mut self, epoch: Epoch) {
        self.of(epoch).forfeited = true;
    }

    /// What it did in this epoch cannot be replayed, because it did not hand over what it had begun with: nobody pays for what
    /// cannot be checked, it is looked at again as soon as can be, and it cannot do this twice.
    pub(crate) fn withhold(&mut self, epoch: Epoch) {
        self.forfeit(epoch);
        self.last_audited = None;
        self.withheld = true;
    }

    /// Of the present epoch, or of the next, which some work for already.
    fn of(&mut self, epoch: Epoch) -> &mut EpochCredit {
        let place =
            |recent: &VecDeque<EpochCredit>| recent.partition_point(|credit| credit.epoch < epoch);
        let found = self.recent.get(place(&self.recent));
        if found.is_none_or(|credit| credit.epoch != epoch) {
            if self.recent.len() > EPOCHS_COUNTED {
                self.recent.pop_front();
            }
            let credit = EpochCredit {
                epoch,
                backwards: 0,
                costs: 0,
                forfeited: false,
            };
            self.recent.insert(place(&self.recent), credit);
        }
        let place = place(&self.recent);
        &mut self.recent[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AuditId;
    use crate::work::Difference;

    fn epoch(number: u64) -> Epoch {
        Epoch::new(number)
    }

    #[test]
    fn a_backward_pass_counts_for_some_epochs_and_then_not_at_all() {
        let mut ledger = Ledger::default();
        ledger.credit_backward(epoch(2));
        ledger.credit_backward(epoch(2));
        ledger.credit_backward(epoch(5));
        assert_eq!(ledger.score(epoch(2)), 3.0);
        assert_eq!(ledger.score(epoch(9)), 3.0);
        assert_eq!(ledger.score(epoch(10)), 1.0);
        assert_eq!(ledger.score(epoch(13)), 0.0);
        assert_eq!(ledger.backwards, 3);
    }

    #[test]
    fn dropped_work_and_false_accusations_cost_but_never_more_than_there_is() {
        let mut ledger = Ledger::default();
        for _ in 0..20 {
            ledger.credit_backward(epoch(0));
        }
        ledger.drop_work(epoch(0));
        assert_eq!(ledger.score(epoch(0)), 18.0);
        ledger.accuse_falsely(epoch(1));
        assert_eq!(ledger.score(epoch(1)), 10.0);
        ledger.accuse_falsely(epoch(1));
        ledger.accuse_falsely(epoch(1));
        assert_eq!(ledger.score(epoch(1)), 0.0);
    }

    #[test]
    fn a_forfeited_epoch_earns_nothing_and_a_banned_peer_has_no_score() {
        let mut ledger = Ledger::default();
        ledger.credit_backward(epoch(0));
        ledger.credit_backward(epoch(1));
        ledger.forfeit(epoch(1));
        assert_eq!(ledger.score(epoch(1)), 1.0);
        let audit = AuditId::new(0);
        let difference = Difference::Output;
        ledger.banned = Some(BanReason::Audit {
            audit,
            epoch: epoch(1),
            ordinal: None,
            difference,
        });
        assert_eq!(ledger.score(epoch(1)), 0.0);
    }

    #[test]
    fn a_ledger_remembers_a_bounded_number_of_epochs() {
        let mut ledger = Ledger::default();
        for number in 0..100 {
            ledger.credit_backward(epoch(number));
        }
        assert_eq!(ledger.recent.len(), EPOCHS_COUNTED + 1);
        assert_eq!(ledger.score(epoch(99)), 8.0);
    }

    #[test]
    fn work_for_the_next_epoch_is_not_forfeited_with_that_of_this_one() {
        let mut ledger = Ledger::default();
        ledger.credit_backward(epoch(0));
        ledger.credit_backward(epoch(1));
        ledger.drop_work(epoch(0));
        ledger.forfeit(epoch(0));
        assert_eq!(ledger.score(epoch(0)), 0.0);
        ledger.credit_backward(epoch(1));
        ledger.credit_backward(epoch(1));
        assert_eq!(ledger.score(epoch(1)), 1.0, "three passes less a drop");
    }
}
