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
//! repeated report as it answered the first.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::id::{LeaseId, Session};
use crate::time::Timestamp;
use crate::work::{Failure, Outcome};

/// What the runtime has to do, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Call `Join`; answer with [`Peer::handle_joined`] or [`Peer::handle_call_failed`].
    Join,
    /// Call `GetWork` in place of any such call that is still open; answer with [`Peer::handle_polled`] or
    /// [`Peer::handle_call_failed`]. Without room it is a sign of life.
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
    /// Unanswered calls that failed, to be made again.
    retries: Vec<(Timestamp, Retry)>,
    failures_in_a_row: u32,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Join,
    Poll,
    Report(LeaseId),
}

/// First wait after a failed call.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait between tries: a restarted orchestrator is noticed within it.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

impl Peer {
    /// A peer that is about to join and holds up to `capacity` leases at a time. `seed` spreads the retries of many
    /// peers, so that they do not all come back in the same instant.
    pub fn new(capacity: u32, seed: u64) -> Self {
        Self {
            capacity: capacity.max(1),
            place: Place::Joining,
            leases: BTreeMap::new(),
            retries: Vec::new(),
            failures_in_a_row: 0,
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
        self.failures_in_a_row = 0;
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
        self.failures_in_a_row = 0;
        if run_over {
            return self.stop(Stop::RunOver);
        }
        for lease in revoked {
            if let Some(progress @ Progress::Working) = self.leases.get_mut(lease) {
                *progress = Progress::Abandoned;
                self.effects.push_back(Effect::Abandon { lease: *lease });
            }
        }
        for &lease in leases {
            if self.leases.insert(lease, Progress::Working).is_none() {
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
            (Progress::Reporting(_), _) => {}
        }
    }

    /// A report was answered, whether it counted or was refused for good.
    pub fn handle_reported(&mut self, lease: LeaseId) {
        self.failures_in_a_row = 0;
        self.leases.remove(&lease);
        self.go_on();
    }

    /// A report could not be delivered.
    pub fn handle_report_failed(&mut self, lease: LeaseId, failure: CallFailure, now: Timestamp) {
        match failure {
            CallFailure::Retry(after) => self.retry_later(Retry::Report(lease), after, now),
            CallFailure::Rejoin => self.rejoin(),
            CallFailure::Refused => self.handle_reported(lease),
            CallFailure::RunOver => self.stop(Stop::RunOver),
        }
    }

    /// `Join` or `GetWork` failed.
    pub fn handle_call_failed(&mut self, failure: CallFailure, now: Timestamp) {
        match (self.place, failure) {
            (Place::Gone | Place::Draining { .. }, _) => {}
            (Place::Joining, CallFailure::Retry(after)) => {
                self.retry_later(Retry::Join, after, now)
            }
            (Place::Inside { .. }, CallFailure::Retry(after)) => {
                self.retry_later(Retry::Poll, after, now)
            }
            (_, CallFailure::Rejoin) => self.rejoin(),
            (_, CallFailure::Refused) => self.stop(Stop::Refused),
            (_, CallFailure::RunOver) => self.stop(Stop::RunOver),
        }
    }

    /// The stage's state is no longer what the orchestrator believes (an operation could not be reported): begin
    /// again from the checkpoint.
    pub fn handle_tainted(&mut self) {
        if let Place::Inside { session, .. } = self.place {
            self.effects.push_back(Effect::Leave { session });
            self.rejoin();
        }
    }

    /// The process is asked to end: report what is finished, give back the rest, leave.
    pub fn handle_shutdown(&mut self) {
        match self.place {
            Place::Joining => self.stop(Stop::Shutdown),
            Place::Inside { session, .. } => {
                self.place = Place::Draining { session };
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
        let held: Vec<LeaseId> = self.leases.keys().copied().collect();
        let room = self
            .capacity
            .saturating_sub(u32::try_from(held.len()).unwrap_or(u32::MAX));
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
            if !matches!(progress, Progress::Reporting(_)) {
                self.effects.push_back(Effect::Abandon { lease });
            }
        }
    }

    /// Exponential with full jitter: the waits of many peers spread evenly over the whole interval.
    fn retry_later(&mut self, retry: Retry, after: Option<Duration>, now: Timestamp) {
        let doublings = self.failures_in_a_row.min(10);
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let ceiling = (BACKOFF_MIN * 2_u32.pow(doublings)).min(BACKOFF_MAX);
        // xorshift64*: enough to spread retries, and the same every time for one seed.
        self.jitter ^= self.jitter >> 12;
        self.jitter ^= self.jitter << 25;
        self.jitter ^= self.jitter >> 27;
        let spread = self.jitter.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 48;
        let millis = u64::try_from(ceiling.as_millis()).unwrap_or(u64::MAX);
        let wait = Duration::from_millis(millis / 4 + millis * 3 / 4 * spread / 0xffff);
        self.retries
            .push((now + wait.max(after.unwrap_or_default()), retry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Digest, PeerId};

    fn session(generation: u32) -> Session {
        Session {
            peer: PeerId::from_bytes([7; 32]),
            generation,
        }
    }

    fn drain(peer: &mut Peer) -> Vec<Effect> {
        std::iter::from_fn(|| peer.poll_effect()).collect()
    }

    fn inside() -> Peer {
        let mut peer = Peer::new(2, 1);
        assert_eq!(drain(&mut peer), [Effect::Join]);
        peer.handle_joined(session(1));
        assert_eq!(
            drain(&mut peer),
            [
                Effect::Reset,
                Effect::Poll {
                    session: session(1),
                    room: 2,
                    held: vec![]
                }
            ]
        );
        peer
    }

    const A: LeaseId = LeaseId::new(1);
    const B: LeaseId = LeaseId::new(2);

    fn done() -> Result<Outcome, Failure> {
        Ok(Outcome::Install {
            state: Digest::of(b"state"),
        })
    }

    #[test]
    fn a_poll_is_always_open_and_offers_room_as_soon_as_there_is_some() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A], &[], false);
        assert_eq!(
            drain(&mut peer),
            [
                Effect::Start { lease: A },
                Effect::Poll {
                    session: session(1),
                    room: 1,
                    held: vec![A]
                }
            ]
        );
        peer.handle_polled(session(1), &[B], &[], false);
        assert_eq!(
            drain(&mut peer),
            [
                Effect::Start { lease: B },
                Effect::Poll {
                    session: session(1),
                    room: 0,
                    held: vec![A, B]
                }
            ]
        );
        peer.handle_finished(A, done());
        assert_eq!(
            drain(&mut peer),
            [Effect::Report {
                session: session(1),
                lease: A,
                result: done()
            }]
        );
        peer.handle_reported(A);
        assert_eq!(
            drain(&mut peer),
            [Effect::Poll {
                session: session(1),
                room: 1,
                held: vec![B]
            }]
        );
    }

    #[test]
    fn a_lease_sent_twice_is_started_once() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A], &[], false);
        peer.handle_polled(session(1), &[A], &[], false);
        let starts = drain(&mut peer)
            .iter()
            .filter(|effect| **effect == Effect::Start { lease: A })
            .count();
        assert_eq!(starts, 1);
    }

    #[test]
    fn a_result_survives_a_lost_connection_and_is_reported_again() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A], &[], false);
        peer.handle_finished(A, done());
        drain(&mut peer);
        let now = Timestamp::from_millis(1_000);
        peer.handle_report_failed(A, CallFailure::Retry(Some(Duration::from_secs(3))), now);
        assert_eq!(drain(&mut peer), []);
        let at = peer.poll_timeout().expect("a retry is due");
        assert!(at >= now + Duration::from_secs(3));
        peer.handle_timeout(now);
        assert_eq!(drain(&mut peer), [], "early calls do nothing");
        peer.handle_timeout(at);
        assert_eq!(
            drain(&mut peer),
            [Effect::Report {
                session: session(1),
                lease: A,
                result: done()
            }]
        );
    }

    #[test]
    fn a_revoked_lease_is_abandoned_unless_its_result_is_on_its_way() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A, B], &[], false);
        peer.handle_finished(A, done());
        drain(&mut peer);
        peer.handle_polled(session(1), &[], &[A, B], false);
        assert_eq!(drain(&mut peer)[0], Effect::Abandon { lease: B });
        assert!(peer.leases.contains_key(&A));
    }

    #[test]
    fn an_abandoned_lease_is_reported_if_it_was_done_all_the_same_and_forgotten_otherwise() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A, B], &[], false);
        peer.handle_polled(session(1), &[], &[A, B], false);
        drain(&mut peer);
        peer.handle_finished(A, Err(Failure::Internal));
        peer.handle_finished(B, done());
        let effects = drain(&mut peer);
        assert!(
            effects.contains(&Effect::Report {
                session: session(1),
                lease: B,
                result: done()
            }),
            "{effects:?}"
        );
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::Report { lease: A, .. })),
            "{effects:?}"
        );
        assert!(!peer.leases.contains_key(&A));
    }

    #[test]
    fn when_its_session_is_over_it_joins_again_with_nothing_left_over() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A], &[], false);
        drain(&mut peer);
        peer.handle_call_failed(CallFailure::Rejoin, Timestamp::default());
        assert_eq!(
            drain(&mut peer),
            [Effect::Abandon { lease: A }, Effect::Join]
        );
        peer.handle_finished(A, done());
        assert_eq!(
            drain(&mut peer),
            [],
            "work of the old session is not reported in the new one"
        );
        peer.handle_joined(session(2));
        assert_eq!(
            drain(&mut peer),
            [
                Effect::Reset,
                Effect::Poll {
                    session: session(2),
                    room: 2,
                    held: vec![]
                }
            ]
        );
        peer.handle_polled(session(1), &[B], &[], false);
        assert_eq!(
            drain(&mut peer),
            [],
            "an answer to the old session changes nothing"
        );
    }

    #[test]
    fn shutting_down_reports_what_is_done_gives_back_the_rest_and_leaves() {
        let mut peer = inside();
        peer.handle_polled(session(1), &[A, B], &[], false);
        peer.handle_finished(A, done());
        drain(&mut peer);
        peer.handle_shutdown();
        assert_eq!(drain(&mut peer), [Effect::Abandon { lease: B }]);
        peer.handle_reported(A);
        assert_eq!(
            drain(&mut peer),
            [
                Effect::Leave {
                    session: session(1)
                },
                Effect::Stop {
                    why: Stop::Shutdown
                }
            ]
        );
    }

    #[test]
    fn waits_between_failures_grow_and_stay_bounded() {
        let mut peer = Peer::new(1, 99);
        drain(&mut peer);
        let mut now = Timestamp::default();
        for _ in 0..50 {
            peer.handle_call_failed(CallFailure::Retry(None), now);
            let at = peer.poll_timeout().expect("a retry is due");
            assert!(at.since(now) <= BACKOFF_MAX && !at.since(now).is_zero());
            now = at;
            peer.handle_timeout(now);
            assert_eq!(drain(&mut peer), [Effect::Join]);
        }
    }

    #[test]
    fn a_banned_peer_stops() {
        let mut peer = inside();
        peer.handle_call_failed(CallFailure::Refused, Timestamp::default());
        assert_eq!(drain(&mut peer), [Effect::Stop { why: Stop::Refused }]);
        assert_eq!(peer.poll_timeout(), None);
    }
}
