//! What a miner or validator does between its calls to the orchestrator, as a machine without I/O.
//!
//! ```text
//!            Join                    Poll
//!  Outside ───────► Joining ──► Inside ◄────► leases come ──► Start ──► finished ──► Report
//!     ▲                            │                                                    │
//!     └────── NOT_REGISTERED ──────┤◄───────────────── accepted, or dropped ────────────┘
//!                                  └── shutdown ──► Draining ──► Leave ──► Stop
//! ```
//!
//! The contract: after every `handle_*` call, drain [`Peer::poll_effect`] to `None`, then arm one timer for
//! [`Peer::poll_timeout`]. The runtime does the calls, the transfers and the compute; it decides nothing.
//! A lost connection costs nothing but time: results are kept and reported again, and the orchestrator answers a
//! repeated report as it answered the first. An answer to another session than the present one changes nothing.
//!
//! Work that fails is likely to fail again at once: its place stays taken for a while, longer with every failure in a
//! row.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::id::{LeaseId, Session};
use crate::time::Timestamp;
use crate::work::{Failure, Outcome};

/// What the runtime has to do, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Call `Join`; answer with [`Peer::handle_joined`] or [`Peer::handle_join_failed`].
    Join,
    /// Call `GetWork` in place of any such call that is still open; answer with [`Peer::handle_polled`] or
    /// [`Peer::handle_poll_failed`]. Without room it is a sign of life.
    Poll {
        /// As whom.
        session: Session,
        /// Further leases that there is room for.
        room: u32,
        /// Leases that need not be sent again.
        held: Vec<LeaseId>,
    },
    /// Begin the work of a lease that just came; answer with [`Peer::handle_finished`].
    Start {
        /// Which.
        lease: LeaseId,
    },
    /// Stop the work of a lease if it has not reached the stage yet. Once it has, it must be finished and answered all
    /// the same: an operation that left its mark on the weights has to be in the orchestrator's log.
    Abandon {
        /// Which.
        lease: LeaseId,
    },
    /// Report a result or a failure; answer with [`Peer::handle_reported`] or [`Peer::handle_report_failed`].
    Report {
        /// As whom.
        session: Session,
        /// Under which lease.
        lease: LeaseId,
        /// What to say.
        result: Result<Outcome, Failure>,
    },
    /// Forget everything that belongs to the session: the weights will be installed anew.
    Reset,
    /// Call `Leave`; its answer does not matter.
    Leave {
        /// As whom.
        session: Session,
    },
    /// There is nothing more to do.
    Stop {
        /// Why.
        why: Stop,
    },
}

/// Why a peer stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stop {
    /// The run is over.
    RunOver,
    /// It was asked to.
    Shutdown,
    /// The orchestrator will never take it: banned, not a validator, or another version.
    Refused,
}

/// How a call failed, as far as the machine cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallFailure {
    /// The other side cannot be reached or is busy: the same call again, later, but not before this has passed.
    Retry(Option<Duration>),
    /// The session is over: join again.
    Rejoin,
    /// What the call was about does not exist any more; nobody waits for it.
    Gone,
    /// The call will be refused as often as it is made.
    Refused,
    /// The run is over.
    RunOver,
}

/// A miner's or validator's side of the protocol.
#[derive(Debug)]
pub struct Peer {
    capacity: u32,
    place: Place,
    leases: BTreeMap<LeaseId, Progress>,
    /// Those of them that the orchestrator has said it knows no more. It would say so again at once, for as long as
    /// their work or their report takes, if it were asked about them.
    revoked: BTreeSet<LeaseId>,
    /// Unanswered calls that failed, to be made again.
    retries: Vec<(Timestamp, Retry)>,
    /// Calls that failed since one was answered.
    failures_in_a_row: u32,
    /// When the first of them failed.
    failing_since: Option<Timestamp>,
    /// Leases that were given back since one was done.
    given_back_in_a_row: u32,
    jitter: u64,
    effects: VecDeque<Effect>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Joining,
    /// `polling`: the room that the open poll offers.
    Inside {
        session: Session,
        polling: Option<u32>,
    },
    Draining {
        session: Session,
    },
    Gone,
}

#[derive(Debug, Clone, PartialEq)]
enum Progress {
    Working,
    /// Revoked meanwhile; a result is still worth reporting, a failure is not.
    Abandoned,
    Reporting(Result<Outcome, Failure>),
    /// Given back. Nothing is left to do, but its place is not offered yet.
    Resting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Join,
    Poll,
    Report(LeaseId),
    /// The end of a rest.
    Rest(LeaseId),
}

/// First wait after a failed call or a lease given back.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait between tries: a restarted orchestrator or store is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Longest wait while an orchestrator may be expected back any moment. A try that finds nobody costs both sides a packet,
/// and with jitter ten thousand peers come back spread over most of this time.
const BACKOFF_MAX_LATELY: Duration = Duration::from_secs(1);
/// An orchestrator that has not answered for so long is not about to come back.
const LATELY: Duration = Duration::from_secs(5 * 60);

impl Peer {
    /// A peer that is about to join and holds up to `capacity` leases at a time. `seed` spreads the retries of many
    /// peers, so that they do not all come back in the same instant.
    pub fn new(capacity: u32, seed: u64) -> Self {
        Self {
            capacity: capacity.max(1),
            place: Place::Joining,
            leases: BTreeMap::new(),
            revoked: BTreeSet::new(),
            retries: Vec::new(),
            failures_in_a_row: 0,
            failing_since: None,
            given_back_in_a_row: 0,
            jitter: seed | 1,
            effects: VecDeque::from([Effect::Join]),
        }
    }

    /// The session, while there is one.
    pub fn session(&self) -> Option<Session> {
        match self.place {
            Place::Inside { session, .. } | Place::Draining { session } => Some(session),
            Place::Joining | Place::Gone => None,
        }
    }

    /// `Join` was answered.
    pub fn handle_joined(&mut self, session: Session) {
        if self.place != Place::Joining {
            return;
        }
        self.answered();
        self.place = Place::Inside {
            session,
            polling: None,
        };
        self.effects.push_back(Effect::Reset);
        self.poll();
    }

    /// `GetWork` was answered: `leases` are new, `revoked` are held ones that exist no more.
    pub fn handle_polled(
        &mut self,
        session: Session,
        leases: &[LeaseId],
        revoked: &[LeaseId],
        run_over: bool,
    ) {
        let Place::Inside {
            session: current,
            polling,
        } = &mut self.place
        else {
            return;
        };
        if *current != session {
            return;
        }
        *polling = None;
        self.answered();
        if run_over {
            return self.stop(Stop::RunOver);
        }
        self.revoked.extend(revoked);
        for lease in revoked {
            if let Some(progress @ Progress::Working) = self.leases.get_mut(lease) {
                *progress = Progress::Abandoned;
                self.effects.push_back(Effect::Abandon { lease: *lease });
            }
        }
        for &lease in leases {
            // One that is sent again keeps its progress: its result may be on its way.
            if let Entry::Vacant(place) = self.leases.entry(lease) {
                place.insert(Progress::Working);
                self.effects.push_back(Effect::Start { lease });
            }
        }
        self.poll();
    }

    /// The work of a lease ended, well or badly.
    pub fn handle_finished(&mut self, lease: LeaseId, result: Result<Outcome, Failure>) {
        let Some(session) = self.session() else {
            return;
        };
        let Some(progress) = self.leases.get_mut(&lease) else {
            return;
        };
        match (&progress, &result) {
            (Progress::Abandoned, Err(_)) => {
                self.leases.remove(&lease);
                self.go_on();
            }
            // Late work counts while it is open.
            (Progress::Working, _) | (Progress::Abandoned, Ok(_)) => {
                *progress = Progress::Reporting(result.clone());
                self.effects.push_back(Effect::Report {
                    session,
                    lease,
                    result,
                });
            }
            (Progress::Reporting(_) | Progress::Resting, _) => {}
        }
    }

    /// Whether anything is still to be done or reported under a lease.
    pub fn holds(&self, lease: LeaseId) -> bool {
        let progress = self.leases.get(&lease);
        progress.is_some_and(|progress| *progress != Progress::Resting)
    }

    /// A report was accepted.
    pub fn handle_reported(&mut self, lease: LeaseId, now: Timestamp) {
        let Some(Progress::Reporting(result)) = self.leases.get(&lease) else {
            return;
        };
        let given_back = result.is_err();
        self.answered();
        self.close(lease, given_back, now);
    }

    /// A report could not be delivered, or was refused.
    pub fn handle_report_failed(
        &mut self,
        session: Session,
        lease: LeaseId,
        failure: CallFailure,
        now: Timestamp,
    ) {
        if self.session() != Some(session) {
            return;
        }
        let Some(Progress::Reporting(result)) = self.leases.get_mut(&lease) else {
            return;
        };
        let draining = matches!(self.place, Place::Draining { .. });
        match failure {
            CallFailure::RunOver => self.stop(Stop::RunOver),
            CallFailure::Rejoin => self.rejoin(),
            // Leaving hands it back, and does not have to wait for an orchestrator that cannot be reached.
            CallFailure::Retry(_) | CallFailure::Refused if draining => {
                self.close(lease, false, now);
            }
            CallFailure::Retry(after) => self.retry_later(Retry::Report(lease), after, now),
            CallFailure::Gone => {
                let given_back = result.is_err();
                self.close(lease, given_back, now);
            }
            // The other side still counts on this lease: give it back. If it cannot even be told so, forget it.
            CallFailure::Refused if *result == Err(Failure::Internal) => {
                self.close(lease, true, now)
            }
            CallFailure::Refused => {
                let undone = Err(Failure::Internal);
                *result = undone.clone();
                self.effects.push_back(Effect::Report {
                    session,
                    lease,
                    result: undone,
                });
            }
        }
    }

    /// `Join` failed.
    pub fn handle_join_failed(&mut self, failure: CallFailure, now: Timestamp) {
        if self.place != Place::Joining {
            return;
        }
        match failure {
            CallFailure::Retry(after) => self.retry_later(Retry::Join, after, now),
            CallFailure::Rejoin => self.retry_later(Retry::Join, None, now),
            CallFailure::Gone | CallFailure::Refused => self.stop(Stop::Refused),
            CallFailure::RunOver => self.stop(Stop::RunOver),
        }
    }

    /// `Join` was answered with a place on the waiting list. Nothing has failed: asking again is how the place is kept, so it
    /// is never later than the orchestrator said.
    pub fn handle_waiting(&mut self, come_back_after: Duration, now: Timestamp) {
        if self.place != Place::Joining {
            return;
        }
        self.answered();
        let wait = self.spread(come_back_after).max(BACKOFF_MIN);
        self.retries.push((now + wait, Retry::Join));
    }

    /// `GetWork` failed.
    pub fn handle_poll_failed(&mut self, session: Session, failure: CallFailure, now: Timestamp) {
        if !matches!(self.place, Place::Inside { session: current, .. } if current == session) {
            return;
        }
        match failure {
            CallFailure::Retry(after) => self.retry_later(Retry::Poll, after, now),
            CallFailure::Rejoin => self.rejoin(),
            CallFailure::Gone | CallFailure::Refused => self.stop(Stop::Refused),
            CallFailure::RunOver => self.stop(Stop::RunOver),
        }
    }

    /// The stage's state is no longer what the orchestrator believes (an operation under this lease could not be
    /// reported): begin again from the checkpoint. Nothing if the lease is of a session before.
    pub fn handle_tainted(&mut self, lease: LeaseId) {
        if !self.holds(lease) {
            return;
        }
        match self.place {
            // Without leaving, which would free its place for the first in line: joining ends the session before.
            Place::Inside { .. } => self.rejoin(),
            Place::Draining { .. } => {
                self.leases.remove(&lease);
                self.go_on();
            }
            Place::Joining | Place::Gone => {}
        }
    }

    /// The process is asked to end: report what is finished, give back the rest, leave.
    pub fn handle_shutdown(&mut self) {
        match self.place {
            Place::Joining => self.stop(Stop::Shutdown),
            Place::Inside { session, .. } => {
                self.place = Place::Draining { session };
                self.leases
                    .retain(|_, progress| *progress != Progress::Resting);
                let working: Vec<LeaseId> = self
                    .leases
                    .iter()
                    .filter(|(_, progress)| !matches!(progress, Progress::Reporting(_)))
                    .map(|(lease, _)| *lease)
                    .collect();
                for lease in working {
                    // Leaving hands them back; the runtime only has to stop.
                    self.leases.remove(&lease);
                    self.effects.push_back(Effect::Abandon { lease });
                }
                self.go_on();
            }
            Place::Draining { .. } | Place::Gone => {}
        }
    }

    /// Time has passed. Early calls do nothing.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let (due, later): (Vec<_>, Vec<_>) = self.retries.drain(..).partition(|(at, _)| *at <= now);
        self.retries = later;
        for (_, retry) in due {
            match retry {
                Retry::Join if self.place == Place::Joining => self.effects.push_back(Effect::Join),
                Retry::Poll => {
                    if let Place::Inside { polling, .. } = &mut self.place {
                        *polling = None;
                        self.poll();
                    }
                }
                Retry::Report(lease) => {
                    if let (Some(session), Some(Progress::Reporting(result))) =
                        (self.session(), self.leases.get(&lease))
                    {
                        let result = result.clone();
                        self.effects.push_back(Effect::Report {
                            session,
                            lease,
                            result,
                        });
                    }
                }
                Retry::Rest(lease) => {
                    if self.leases.get(&lease) == Some(&Progress::Resting) {
                        self.leases.remove(&lease);
                        self.go_on();
                    }
                }
                Retry::Join => {}
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.retries.iter().map(|(at, _)| *at).min()
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Nothing more is to be said of a lease. One that was given back keeps its place for a while.
    fn close(&mut self, lease: LeaseId, given_back: bool, now: Timestamp) {
        if given_back && matches!(self.place, Place::Inside { .. }) {
            let wait = self.backoff(self.given_back_in_a_row, BACKOFF_MAX);
            self.given_back_in_a_row = self.given_back_in_a_row.saturating_add(1);
            self.leases.insert(lease, Progress::Resting);
            self.retries.push((now + wait, Retry::Rest(lease)));
        } else {
            self.given_back_in_a_row = 0;
            self.leases.remove(&lease);
        }
        self.go_on();
    }

    fn go_on(&mut self) {
        match self.place {
            Place::Inside { .. } => self.poll(),
            Place::Draining { session } if self.leases.is_empty() => {
                self.effects.push_back(Effect::Leave { session });
                self.stop(Stop::Shutdown);
            }
            Place::Draining { .. } | Place::Joining | Place::Gone => {}
        }
    }

    /// One poll at a time, even without room: it is the sign of life. It is replaced as soon as there is room again.
    fn poll(&mut self) {
        self.revoked.retain(|lease| self.leases.contains_key(lease));
        let held: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, progress)| **progress != Progress::Resting)
            .map(|(lease, _)| *lease)
            .filter(|lease| !self.revoked.contains(lease))
            .collect();
        let room = self
            .capacity
            .saturating_sub(u32::try_from(self.leases.len()).unwrap_or(u32::MAX));
        let Place::Inside { session, polling } = &mut self.place else {
            return;
        };
        if polling.is_none_or(|offered| offered == 0 && room > 0) {
            *polling = Some(room);
            let session = *session;
            self.effects.push_back(Effect::Poll {
                session,
                room,
                held,
            });
        }
    }

    fn rejoin(&mut self) {
        if matches!(self.place, Place::Draining { .. }) {
            return self.stop(Stop::Shutdown);
        }
        self.abandon_all();
        self.place = Place::Joining;
        self.effects.push_back(Effect::Join);
    }

    fn stop(&mut self, why: Stop) {
        if self.place != Place::Gone {
            self.abandon_all();
            self.place = Place::Gone;
            self.effects.push_back(Effect::Stop { why });
        }
    }

    fn abandon_all(&mut self) {
        self.retries.clear();
        for (lease, progress) in std::mem::take(&mut self.leases) {
            if matches!(progress, Progress::Working | Progress::Abandoned) {
                self.effects.push_back(Effect::Abandon { lease });
            }
        }
    }

    fn answered(&mut self) {
        self.failures_in_a_row = 0;
        self.failing_since = None;
    }

    fn retry_later(&mut self, retry: Retry, after: Option<Duration>, now: Timestamp) {
        let since = *self.failing_since.get_or_insert(now);
        let longest = if now.since(since) < LATELY {
            BACKOFF_MAX_LATELY
        } else {
            BACKOFF_MAX
        };
        let wait = self.backoff(self.failures_in_a_row, longest);
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.retries
            .push((now + wait.max(after.unwrap_or_default()), retry));
    }

    /// How long to wait after so many failures before this one. Exponential with jitter: the waits of many peers spread
    /// evenly over three quarters of the interval.
    fn backoff(&mut self, failures: u32, longest: Duration) -> Duration {
        self.spread((BACKOFF_MIN * 2_u32.pow(failures.min(10))).min(longest))
    }

    /// A wait between a quarter and all of `ceiling`.
    fn spread(&mut self, ceiling: Duration) -> Duration {
        // xorshift64*: enough to spread retries, and the same every time for one seed.
        self.jitter ^= self.jitter >> 12;
        self.jitter ^= self.jitter << 25;
        self.jitter ^= self.jitter >> 27;
        let spread = self.jitter.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 48;
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(millis / 4 + millis * 3 / 4 * spread / 0xffff)
    }
}

#[cfg(test)]
mod tests;
