//! The one task that owns a run's state: it takes a command, has the rules decide, writes the events to the journal,
//! and only then answers.
//!
//! ```text
//!   calls ──► bounded queue ──► State::handle ──► Journal::append ──► answers, parked polls ──► followers
//!   timer ──► Tick ────────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iota_node::{Clock, Shutdown};
use iota_protocol::event::Event;
use iota_protocol::work::Lease;
use iota_protocol::{Command, LeaseId, Rejection, Session, State, Timestamp};
use iota_wire::LeasedWork;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info};

use crate::Error;
use crate::grants::Granter;
use crate::journal::{Journal, Record};

/// Requests that may wait for the owner. A caller beyond that waits in its own task, which the server bounds.
const QUEUE: usize = 1024;

/// How to reach the owner. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OwnerHandle {
    requests: mpsc::Sender<Request>,
}

/// What followers see of each change: the events of one command, after they are durable.
pub(crate) type Batch = Arc<Vec<Record>>;

/// What a long poll comes to.
#[derive(Debug, Default)]
pub(crate) struct PollAnswer {
    pub(crate) leases: Vec<LeasedWork>,
    pub(crate) revoked: Vec<LeaseId>,
}

enum Request {
    Command(Command, oneshot::Sender<Result<Vec<Event>, Rejection>>),
    Poll(Poll),
    Lease(LeaseId, oneshot::Sender<Option<Lease>>),
}

struct Poll {
    session: Session,
    room: u32,
    held: Vec<LeaseId>,
    until: Timestamp,
    reply: oneshot::Sender<Result<PollAnswer, Rejection>>,
}

/// The owner is gone: the run's process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl OwnerHandle {
    /// Has the rules decide on a command; returns its events once they are durable.
    pub(crate) async fn command(
        &self,
        command: Command,
    ) -> Result<Result<Vec<Event>, Rejection>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Command(command, reply))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// A lease that somebody holds.
    pub(crate) async fn lease(&self, lease: LeaseId) -> Result<Option<Lease>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Lease(lease, reply))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Offers a session's room and waits, at most until `until`, for something that the caller does not hold yet.
    pub(crate) async fn poll(
        &self,
        session: Session,
        room: u32,
        held: Vec<LeaseId>,
        until: Timestamp,
    ) -> Result<Result<PollAnswer, Rejection>, Gone> {
        let (reply, answer) = oneshot::channel();
        let poll = Poll {
            session,
            room,
            held,
            until,
            reply,
        };
        self.requests
            .send(Request::Poll(poll))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// The owner's parts.
pub(crate) struct Owner {
    state: State,
    journal: Box<dyn Journal>,
    granter: Granter,
    clock: Arc<dyn Clock>,
    requests: mpsc::Receiver<Request>,
    parked: BTreeMap<Session, Poll>,
    followers: mpsc::Sender<Batch>,
    published: watch::Sender<Arc<State>>,
    published_at: Timestamp,
}

/// The state is copied for readers at most this often.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

impl Owner {
    pub(crate) fn new(
        state: State,
        journal: Box<dyn Journal>,
        granter: Granter,
        clock: Arc<dyn Clock>,
        followers: mpsc::Sender<Batch>,
    ) -> (Self, OwnerHandle, watch::Receiver<Arc<State>>) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let (published, readers) = watch::channel(Arc::new(state.clone()));
        let owner = Self {
            state,
            journal,
            granter,
            published_at: clock.now(),
            clock,
            requests,
            parked: BTreeMap::new(),
            followers,
            published,
        };
        (owner, OwnerHandle { requests: sender }, readers)
    }

    /// Works until `shutdown` is requested or all handles are gone.
    ///
    /// # Errors
    /// If the journal cannot be written: what is not durable is not acknowledged, so nothing can go on.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Result<(), Error> {
        let ended = shutdown.wait();
        tokio::pin!(ended);
        loop {
            let now = self.clock.now();
            // Here and not on a timer alone: requests that never cease must not starve those that wait.
            self.answer_overdue(now);
            if now.since(self.published_at) >= PUBLISH_EVERY {
                self.publish();
            }
            let next = self.next_wake();
            let wait = next.map_or(Duration::from_secs(3600), |at| at.since(now));
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Command(command, reply)) => {
                        let answer = self.decide(&command).await?;
                        // The caller may have gone meanwhile; the decision stands.
                        drop(reply.send(answer));
                    }
                    Some(Request::Poll(poll)) => self.take_poll(poll).await?,
                    Some(Request::Lease(lease, reply)) => {
                        drop(reply.send(self.state.lease(lease).cloned()));
                    }
                    None => break,
                },
                () = &mut ended => break,
                () = tokio::time::sleep(wait) => {
                    let now = self.clock.now();
                    if self.state.next_deadline().is_some_and(|deadline| deadline <= now) {
                        let ticked = self.decide(&Command::Tick).await?;
                        debug_assert!(ticked.is_ok(), "time cannot be refused");
                    }
                }
            }
        }
        self.publish();
        Ok(())
    }

    fn next_wake(&self) -> Option<Timestamp> {
        let polls = self.parked.values().map(|poll| poll.until).min();
        let publish = self.published_at + PUBLISH_EVERY * 5;
        self.state
            .next_deadline()
            .into_iter()
            .chain(polls)
            .chain([publish])
            .min()
    }

    async fn decide(&mut self, command: &Command) -> Result<Result<Vec<Event>, Rejection>, Error> {
        let now = self.clock.now();
        let events = match self.state.handle(command, now) {
            Ok(events) => events,
            Err(rejection) => {
                debug!(?command, code = rejection.code(), "refused");
                return Ok(Err(rejection));
            }
        };
        if events.is_empty() {
            return Ok(Ok(events));
        }
        let records: Vec<Record> = events
            .iter()
            .map(|event| Record {
                at: now,
                event: event.clone(),
            })
            .collect();
        if let Err(error) = self.journal.append(&records) {
            error!(%error, "the journal cannot be written; stopping");
            return Err(error);
        }
        self.answer_parked(&events);
        // A follower that died has said why itself; the run does not depend on it.
        drop(self.followers.send(Arc::new(records)).await);
        if now.since(self.published_at) >= PUBLISH_EVERY || self.state.is_over() {
            self.publish();
        }
        Ok(Ok(events))
    }

    async fn take_poll(&mut self, poll: Poll) -> Result<(), Error> {
        // A caller that has gone has another poll open by now, which must not be replaced by this one.
        if poll.reply.is_closed() {
            return Ok(());
        }
        if let Some(earlier) = self.parked.remove(&poll.session) {
            drop(earlier.reply.send(Ok(PollAnswer::default())));
        }
        let offer = Command::OfferRoom {
            session: poll.session,
            room: poll.room,
        };
        if let Err(rejection) = self.decide(&offer).await? {
            drop(poll.reply.send(Err(rejection)));
            return Ok(());
        }
        self.park_or_answer(poll);
        Ok(())
    }

    fn park_or_answer(&mut self, poll: Poll) {
        if poll.reply.is_closed() {
            return;
        }
        let answer = self.answer(&poll);
        // Whose session has ended hears why from the next poll.
        let is_live = self.state.session(poll.session).is_some();
        if !answer.leases.is_empty() || !answer.revoked.is_empty() || !is_live {
            drop(poll.reply.send(Ok(answer)));
        } else {
            self.parked.insert(poll.session, poll);
        }
    }

    /// What a session should know and does not.
    fn answer(&self, poll: &Poll) -> PollAnswer {
        let now = self.clock.now();
        let mut revoked: Vec<LeaseId> = poll.held.clone();
        let mut leases = Vec::new();
        for lease in self.state.leases_of(poll.session) {
            revoked.retain(|held| *held != lease.id);
            if !poll.held.contains(&lease.id) {
                leases.push(self.granter.grant(lease, now));
            }
        }
        PollAnswer { leases, revoked }
    }

    /// Polls whose session an event touched may have their answer now.
    fn answer_parked(&mut self, events: &[Event]) {
        let mut touched: Vec<Session> = Vec::new();
        for event in events {
            match event {
                Event::Leased(lease) => touched.push(lease.session),
                Event::LeaseEnded { session, .. } | Event::SessionEnded { session, .. } => {
                    touched.push(*session)
                }
                _ => {}
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for session in touched {
            if let Some(poll) = self.parked.remove(&session) {
                self.park_or_answer(poll);
            }
        }
    }

    fn answer_overdue(&mut self, now: Timestamp) {
        let overdue: Vec<Session> = self
            .parked
            .iter()
            .filter(|(_, poll)| poll.until <= now)
            .map(|(session, _)| *session)
            .collect();
        for session in overdue {
            if let Some(poll) = self.parked.remove(&session) {
                drop(poll.reply.send(Ok(PollAnswer::default())));
            }
        }
        if self.state.is_over() {
            for (_, poll) in std::mem::take(&mut self.parked) {
                drop(poll.reply.send(Ok(PollAnswer::default())));
            }
        }
    }

    fn publish(&mut self) {
        self.published_at = self.clock.now();
        self.published.send_replace(Arc::new(self.state.clone()));
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        info!(phase = ?self.state.phase(), epoch = %self.state.epoch(), "the run's owner ends");
    }
}
