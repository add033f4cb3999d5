//! A miner's or validator's process: the production [`Peer`] machine, the work of its session, and calls under way.

use std::collections::BTreeMap;
use std::time::Duration;

use iota_protocol::peer::{CallFailure, Peer};
use iota_protocol::work::{Lease, WorkKind};
use iota_protocol::{Epoch, LeaseId, Rejection, Session, Timestamp};

use crate::orchestrator::Answer;
use crate::plan::{Behaviour, NodePlan};
use crate::worker::{Ended, Undone, Worker};

/// A place where a process runs, or will, or did.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) plan: NodePlan,
    pub(crate) behaviour: Behaviour,
    /// None while no process runs.
    pub(crate) peer: Option<Peer>,
    /// Counts the processes. What was begun in an earlier one is nothing to a later one.
    pub(crate) life: u32,
    pub(crate) worker: Worker,
    /// Leases that came, until they are begun.
    pub(crate) arrived: BTreeMap<LeaseId, Lease>,
    /// The latest epoch that the orchestrator has spoken of in this session.
    epoch: Epoch,
    /// Calls that are not answered yet.
    pub(crate) asked: BTreeMap<u64, Asked>,
    pub(crate) open_poll: Option<u64>,
    /// When the stage is free for the next operation.
    pub(crate) busy_until: u64,
    pub(crate) timer_at: Option<u64>,
    pub(crate) cut_off_until: u64,
}

/// What a call was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Join,
    Poll(Session),
    Complete(Session, LeaseId),
    GiveBack(Session, LeaseId),
    Leave,
}

impl Node {
    pub(crate) fn new(plan: NodePlan) -> Self {
        Self {
            behaviour: plan.behaviour,
            plan,
            peer: None,
            life: 0,
            worker: Worker::default(),
            arrived: BTreeMap::new(),
            epoch: Epoch::default(),
            asked: BTreeMap::new(),
            open_poll: None,
            busy_until: 0,
            timer_at: None,
            cut_off_until: 0,
        }
    }

    /// A process begins.
    pub(crate) fn start(&mut self, seed: u64) {
        self.life += 1;
        self.reset();
        self.peer = Some(Peer::new(self.plan.capacity, seed));
    }

    /// The process is gone, and all that it knew.
    pub(crate) fn end(&mut self) {
        self.peer = None;
        self.reset();
        self.asked.clear();
        self.open_poll = None;
        self.timer_at = None;
        self.busy_until = 0;
    }

    /// A session begins: whatever belonged to the one before is void.
    pub(crate) fn reset(&mut self) {
        self.worker = Worker::default();
        self.arrived.clear();
        self.epoch = Epoch::default();
    }

    pub(crate) const fn clock(&self, now: u64) -> Timestamp {
        Timestamp::from_millis(now + self.plan.clock_ahead)
    }

    /// A call was answered, or will not be.
    pub(crate) fn answered(&mut self, asked: Asked, answer: Answer, now: u64) {
        let clock = self.clock(now);
        let Some(peer) = &mut self.peer else {
            return;
        };
        match (asked, answer) {
            (Asked::Join, Answer::Joined(session)) => peer.handle_joined(session),
            (Asked::Join, Answer::Waits(place)) => {
                let come_back_after = place.map_or(Duration::ZERO, |place| place.come_back_after);
                peer.handle_waiting(come_back_after, clock);
            }
            (Asked::Join, answer) => peer.handle_join_failed(call_failure(&answer), clock),
            (
                Asked::Poll(session),
                Answer::Work {
                    leases,
                    revoked,
                    epoch,
                    run_over,
                },
            ) => {
                if peer.session() != Some(session) {
                    return;
                }
                self.epoch = self.epoch.max(epoch);
                let ids: Vec<LeaseId> = leases.iter().map(|lease| lease.id).collect();
                self.arrived
                    .extend(leases.into_iter().map(|lease| (lease.id, lease)));
                peer.handle_polled(session, &ids, &revoked, run_over);
            }
            (Asked::Poll(session), answer) => {
                peer.handle_poll_failed(session, call_failure(&answer), clock);
            }
            (Asked::Complete(_, lease), Answer::Done | Answer::Refused(Rejection::Superseded)) => {
                self.reported(lease, true);
                if let Some(peer) = &mut self.peer {
                    peer.handle_reported(lease, clock);
                }
            }
            (Asked::Complete(session, lease), answer) => {
                self.refused(session, lease, call_failure(&answer), clock);
            }
            (Asked::GiveBack(session, lease), answer) => {
                match answer {
                    Answer::Done => peer.handle_reported(lease, clock),
                    answer => {
                        peer.handle_report_failed(session, lease, call_failure(&answer), clock);
                    }
                }
                if !peer.holds(lease) {
                    self.reported(lease, true);
                }
            }
            (Asked::Leave, _) => {}
        }
    }

    /// A result was refused, or not answered.
    fn refused(
        &mut self,
        session: Session,
        lease: LeaseId,
        failure: CallFailure,
        clock: Timestamp,
    ) {
        if matches!(failure, CallFailure::Refused | CallFailure::Gone)
            && let Some(said) = self.worker.lease(lease).cloned()
        {
            self.reported(lease, false);
            // A closed epoch takes its gradients with it.
            let is_closed = said.epoch < self.epoch;
            if said.work.kind() == WorkKind::Backward && !is_closed {
                return self.ended(lease, Err(Undone::Tainted));
            }
        }
        if let Some(peer) = &mut self.peer {
            peer.handle_report_failed(session, lease, failure, clock);
        }
    }

    fn reported(&mut self, lease: LeaseId, logged: bool) {
        let Some(said) = self.worker.lease(lease).cloned() else {
            return;
        };
        if let Some((upload, ended)) = self.worker.reported(&said, logged) {
            self.ended(upload, ended);
        }
    }

    /// Work under a lease ended.
    pub(crate) fn ended(&mut self, lease: LeaseId, ended: Ended) {
        let Some(peer) = &mut self.peer else {
            return;
        };
        match ended {
            Ok(outcome) => peer.handle_finished(lease, Ok(outcome)),
            Err(Undone::Failed(failure)) => {
                peer.handle_finished(lease, Err(failure));
                if !peer.holds(lease) {
                    self.worker.forget(lease);
                }
            }
            Err(Undone::Tainted) => {
                self.worker.forget(lease);
                peer.handle_tainted(lease);
            }
        }
    }
}

/// What an answer is to a call that it is no answer to, as `iota-wire` and `iota-peer` sort them.
fn call_failure(answer: &Answer) -> CallFailure {
    match answer {
        Answer::Refused(rejection) => match rejection {
            Rejection::NotRegistered => CallFailure::Rejoin,
            Rejection::Full => CallFailure::Retry(None),
            Rejection::StaleEpoch | Rejection::UnknownLease | Rejection::Superseded => {
                CallFailure::Gone
            }
            Rejection::RunOver => CallFailure::RunOver,
            _ => CallFailure::Refused,
        },
        _ => CallFailure::Retry(None),
    }
}
