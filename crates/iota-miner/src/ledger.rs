//! Which operations of the installed weights are in the orchestrator's log, as far as its answers say.
//!
//! A validator replays the log and compares the end with what the miner uploaded. So the two must hold the same backward
//! passes, and a backward pass may use a kept forward only if the log has that forward too.
//!
//! ```text
//!   to the stage ──► open ──► left no mark ──► forgotten
//!                      │
//!                      └────► done ──► reported ──► logged: fine
//!                                          └──────► refused: the weights are tainted, nothing of them may be uploaded
//! ```

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::{LeaseId, SampleId};
use tokio::sync::watch;

/// The books of one installation. Never carried over to the next: the orchestrator's log starts anew as well.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    books: watch::Sender<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// Backward passes that are or will be in the gradients, and that the orchestrator has not answered for.
    open: BTreeSet<LeaseId>,
    /// One of them will never be in the log.
    tainted: bool,
    /// The last forward of each sample, and whether it is in the log.
    forwards: BTreeMap<SampleId, (LeaseId, bool)>,
}

/// The weights hold a backward pass that the log does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tainted;

/// Waits for the books to be closed.
#[derive(Debug)]
pub(crate) struct Settling(watch::Receiver<Books>);

impl Ledger {
    /// A forward goes to the stage and takes the place of any earlier one of the sample.
    pub(crate) fn begin_forward(&self, lease: LeaseId, sample: SampleId) {
        self.books.send_modify(|books| {
            books.forwards.insert(sample, (lease, false));
        });
    }

    /// The forward failed, or nobody will ever see its output.
    pub(crate) fn drop_forward(&self, lease: LeaseId, sample: SampleId) {
        self.answer_forward(lease, sample, false);
    }

    /// The orchestrator has answered for a forward.
    pub(crate) fn answer_forward(&self, lease: LeaseId, sample: SampleId, logged: bool) {
        self.books.send_modify(|books| {
            let Some((last, is_logged)) = books.forwards.get_mut(&sample) else {
                return;
            };
            if *last != lease {
                return;
            }
            if logged {
                *is_logged = true;
            } else {
                books.forwards.remove(&sample);
            }
        });
    }

    /// A backward pass goes to the stage. Says whether it has to redo the forward: a kept one that is not in the log
    /// cannot be replayed.
    pub(crate) fn begin_backward(&self, lease: LeaseId, sample: SampleId) -> bool {
        let mut recompute = true;
        self.books.send_modify(|books| {
            books.open.insert(lease);
            recompute = !matches!(books.forwards.remove(&sample), Some((_, true)));
        });
        recompute
    }

    /// The backward pass did not happen.
    pub(crate) fn drop_backward(&self, lease: LeaseId) {
        self.answer_backward(lease, true);
    }

    /// The backward pass is in the log, or never will be. Of leases that are not open this says nothing.
    pub(crate) fn answer_backward(&self, lease: LeaseId, logged: bool) {
        self.books.send_modify(|books| {
            let was_open = books.open.remove(&lease);
            books.tainted |= was_open && !logged;
        });
    }

    /// To wait for the answers with. It does not keep the ledger: replacing the ledger ends the wait.
    pub(crate) fn settling(&self) -> Settling {
        Settling(self.books.subscribe())
    }
}

impl Settling {
    /// Returns once the orchestrator has answered for every backward pass.
    ///
    /// # Errors
    /// As soon as one of them cannot be in the log, or if the installation is given up meanwhile.
    pub(crate) async fn wait(mut self) -> Result<(), Tainted> {
        let closed = self
            .0
            .wait_for(|books| books.tainted || books.open.is_empty())
            .await;
        match closed {
            Ok(books) if !books.tainted => Ok(()),
            _ => Err(Tainted),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const A: LeaseId = LeaseId::new(1);
    const B: LeaseId = LeaseId::new(2);
    const SAMPLE: SampleId = SampleId::new(7);

    #[test]
    fn the_books_close_when_every_backward_is_answered_for() {
        let ledger = Ledger::default();
        let wait = || ledger.settling().wait().now_or_never();
        assert_eq!(wait(), Some(Ok(())));
        ledger.begin_backward(A, SAMPLE);
        ledger.begin_backward(B, SAMPLE);
        assert_eq!(wait(), None);
        ledger.answer_backward(A, true);
        assert_eq!(wait(), None);
        ledger.drop_backward(B);
        assert_eq!(wait(), Some(Ok(())));
    }

    #[test]
    fn one_refused_backward_taints_the_weights_for_good() {
        let ledger = Ledger::default();
        ledger.begin_backward(A, SAMPLE);
        ledger.begin_backward(B, SAMPLE);
        ledger.answer_backward(A, false);
        ledger.answer_backward(B, true);
        assert_eq!(ledger.settling().wait().now_or_never(), Some(Err(Tainted)));
    }

    #[test]
    fn a_refusal_of_what_left_no_mark_taints_nothing() {
        let ledger = Ledger::default();
        ledger.begin_backward(A, SAMPLE);
        ledger.drop_backward(A);
        ledger.answer_backward(A, false);
        ledger.answer_backward(B, false);
        assert_eq!(ledger.settling().wait().now_or_never(), Some(Ok(())));
    }

    #[test]
    fn nobody_waits_for_an_installation_that_is_given_up() {
        let ledger = Ledger::default();
        ledger.begin_backward(A, SAMPLE);
        let settling = ledger.settling();
        drop(ledger);
        assert_eq!(settling.wait().now_or_never(), Some(Err(Tainted)));
    }

    #[test]
    fn only_a_forward_in_the_log_spares_its_backward_the_work() {
        let ledger = Ledger::default();
        assert!(ledger.begin_backward(A, SAMPLE), "there was no forward");
        ledger.begin_forward(A, SAMPLE);
        assert!(ledger.begin_backward(A, SAMPLE), "nobody has answered yet");
        ledger.begin_forward(A, SAMPLE);
        ledger.answer_forward(A, SAMPLE, true);
        assert!(!ledger.begin_backward(A, SAMPLE));
        assert!(ledger.begin_backward(A, SAMPLE), "a forward serves once");
    }

    #[test]
    fn a_late_answer_to_an_earlier_forward_says_nothing_of_the_last() {
        let ledger = Ledger::default();
        ledger.begin_forward(A, SAMPLE);
        ledger.begin_forward(B, SAMPLE);
        ledger.answer_forward(A, SAMPLE, true);
        assert!(ledger.begin_backward(A, SAMPLE));
    }
}
