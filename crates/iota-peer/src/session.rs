//! The loop that keeps a peer in a run: it makes the calls that [`iota_protocol::peer::Peer`] asks for.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use iota_identity::Keypair;
use iota_node::clock::Clock;
use iota_node::shutdown::Shutdown;
use iota_protocol::peer::{CallFailure, Effect, Peer, Stop};
use iota_protocol::registration::{Place, WaitReason};
use iota_protocol::work::{Failure, Lease, Outcome, WorkKind};
use iota_protocol::{Epoch, LeaseId, Rejection, Role, Session, Ticket, Timestamp};
use iota_run::Description;
use iota_wire::{
    CallError, CallErrorKind, Client, ConnectOptions, Joined, LeasedWork, WorkReply, WorkRequest,
};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use crate::{Error, Network};

/// What a miner or a validator does with a lease. Everything else about being in a run is the same for both.
pub trait Worker: Send + Sync + 'static {
    /// A session begins: whatever belonged to the one before is void. `joined` says which stage, if any.
    fn reset(&self, joined: &Joined) -> impl Future<Output = Result<(), Error>> + Send;

    /// Does a piece of work. Once `abandoned` turns true the result is no longer wanted: work that has not left a mark
    /// on the weights yet ends then, with any failure.
    fn work(
        &self,
        leased: Arc<LeasedWork>,
        abandoned: watch::Receiver<bool>,
    ) -> impl Future<Output = Result<Outcome, Undone>> + Send;

    /// The orchestrator has answered for good what was said of a lease. `logged` is false if it refused an outcome, so that
    /// its log lacks something that was done; work that was given back undone leaves nothing to log.
    fn reported(&self, lease: &Lease, logged: bool);
}

/// Why work ended without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// Nothing has changed; the lease goes back.
    Failed(Failure),
    /// The weights hold an operation that cannot be reported: the session has to begin again.
    Tainted,
    /// The worker cannot do anything any more: [`participate`] leaves and ends with an error.
    Broken,
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How a peer takes part.
#[derive(Debug, Clone, Copy)]
pub struct Participation {
    /// As what.
    pub role: Role,
    /// Leases held at a time.
    pub capacity: u32,
}

/// How long the orchestrator may hold a poll that it has no work for: well below the session timeout, since a poll is the
/// sign of life.
const HOLD: Duration = Duration::from_secs(10);

enum Input {
    Joined(Result<Joined, CallError>),
    Polled(Session, Result<WorkReply, CallError>),
    Finished(LeaseId, Result<Outcome, Undone>),
    /// What was answered to an outcome.
    Reported(Session, LeaseId, Result<bool, CallError>),
    /// What was answered to a failure.
    GivenBack(Session, LeaseId, Result<(), CallError>),
}

/// Connects to the orchestrator at `url` and learns what its run is about; tries for as long as it takes. None if
/// `shutdown` came first.
///
/// # Errors
/// If the address is none, or the run is one that this program cannot take part in; [`CallError::Tls`] if whoever answers
/// cannot show that it is the server of that name. Nobody has been in the run yet, so somebody is there to correct it.
pub async fn connect(
    url: &str,
    keypair: Arc<Keypair>,
    network: &Network,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> Result<Option<(Client, Description)>, Error> {
    let mut wait = CONNECT_WAIT_MIN;
    loop {
        let now = Arc::clone(&clock);
        let options = ConnectOptions {
            clock: iota_wire::Clock::new(move || now.now()),
            connector: network.calls.clone(),
            ..ConnectOptions::default()
        };
        let error = match Client::connect_with(url, Arc::clone(&keypair), options).await {
            Ok((client, info)) => return Ok(Some((client, Description::from_json(&info.config)?))),
            Err(error) if error.kind() == CallErrorKind::Retry => error,
            Err(error) => return Err(error.into()),
        };
        info!(%url, %error, wait_ms = wait.as_millis(), "the orchestrator does not answer yet");
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(CONNECT_WAIT_MAX),
            () = shutdown.wait() => return Ok(None),
        }
    }
}

const CONNECT_WAIT_MIN: Duration = Duration::from_millis(100);
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);

/// Takes part in a run until it is over, the peer is refused, or `shutdown` is requested; then it has left.
///
/// # Errors
/// Only for trouble of its own, such as a model that this machine cannot hold or a worker that is
/// [broken](Undone::Broken). A lost connection is no error: it is
/// tried again for as long as it takes.
pub async fn participate<W: Worker>(
    client: Client,
    worker: Arc<W>,
    participation: Participation,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
) -> Result<Stop, Error> {
    let seed = u64::from_le_bytes(
        client.peer_id().as_bytes()[..8]
            .try_into()
            .expect("a peer id has 32 bytes"),
    );
    let mut driver = Driver {
        client,
        participation,
        inbox: Inbox {
            worker,
            peer: Peer::new(participation.capacity, seed),
            leases: BTreeMap::new(),
            epoch: Epoch::default(),
            waits: None,
        },
        tasks: JoinSet::new(),
        poll: None,
    };
    driver.run(clock, shutdown).await
}

/// Makes calls and starts work, as the machine asks for it.
struct Driver<W> {
    client: Client,
    participation: Participation,
    inbox: Inbox<W>,
    tasks: JoinSet<Input>,
    poll: Option<AbortHandle>,
}

/// Tells the machine and the worker what has come in. Knows nothing of calls.
struct Inbox<W> {
    worker: Arc<W>,
    peer: Peer,
    leases: BTreeMap<LeaseId, (Arc<LeasedWork>, watch::Sender<bool>)>,
    /// The latest epoch that the orchestrator has spoken of in this session.
    epoch: Epoch,
    /// The place on the waiting list that people were told of.
    waits: Option<(Ticket, u32, WaitReason)>,
}

impl<W: Worker> Driver<W> {
    async fn run(&mut self, clock: Arc<dyn Clock>, shutdown: Shutdown) -> Result<Stop, Error> {
        let mut draining = false;
        let mut joined = None;
        loop {
            while let Some(effect) = self.inbox.peer.poll_effect() {
                match effect {
                    Effect::Reset => {
                        self.inbox.leases.clear();
                        self.inbox.epoch = Epoch::default();
                        if let Some(joined) = joined.take() {
                            self.inbox.worker.reset(&joined).await?;
                        }
                    }
                    Effect::Leave { session } => self.leave(session).await,
                    Effect::Stop { why } => {
                        self.tasks.abort_all();
                        return Ok(why);
                    }
                    effect => self.start(effect),
                }
            }
            let timeout = self
                .inbox
                .peer
                .poll_timeout()
                .map(|at| at.since(clock.now()));
            tokio::select! {
                Some(input) = self.tasks.join_next() => match input {
                    Ok(Input::Joined(Ok(answer))) => {
                        if self.inbox.peer.session().is_none() {
                            info!(session = ?answer.session, stage = ?answer.stage, "joined");
                            let session = answer.session;
                            joined = Some(answer);
                            self.inbox.peer.handle_joined(session);
                        }
                    }
                    Ok(input) => {
                        if let Err(error) = self.inbox.handle(input, clock.now()) {
                            if let Some(session) = self.inbox.peer.session() {
                                self.leave(session).await;
                            }
                            self.tasks.abort_all();
                            return Err(error);
                        }
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(Error::Panicked(error.to_string())),
                },
                () = sleep(timeout), if timeout.is_some() => {
                    self.inbox.peer.handle_timeout(clock.now());
                }
                () = shutdown.wait(), if !draining => {
                    draining = true;
                    self.inbox.peer.handle_shutdown();
                }
            }
        }
    }

    /// A leave that is lost costs the others one lease timeout, so it is tried once.
    async fn leave(&self, session: Session) {
        if let Err(error) = self.client.leave(session).await {
            debug!(%error, "could not say that we leave");
        }
    }

    fn start(&mut self, effect: Effect) {
        let client = self.client.clone();
        match effect {
            Effect::Join => {
                let Participation { role, capacity } = self.participation;
                self.tasks
                    .spawn(async move { Input::Joined(client.join(role, capacity).await) });
            }
            Effect::Poll {
                session,
                room,
                held,
            } => {
                let request = WorkRequest {
                    session,
                    room,
                    held,
                    hold: HOLD,
                };
                let poll = async move { Input::Polled(session, client.get_work(request).await) };
                if let Some(earlier) = self.poll.replace(self.tasks.spawn(poll)) {
                    earlier.abort();
                }
            }
            Effect::Start { lease } => {
                let Some((leased, abandoned)) = self.inbox.leases.get(&lease) else {
                    return;
                };
                let (leased, abandoned) = (Arc::clone(leased), abandoned.subscribe());
                let worker = Arc::clone(&self.inbox.worker);
                self.tasks.spawn(async move {
                    Input::Finished(lease, worker.work(leased, abandoned).await)
                });
            }
            Effect::Abandon { lease } => {
                if let Some((_, abandoned)) = self.inbox.leases.get(&lease) {
                    abandoned.send_replace(true);
                }
            }
            Effect::Report {
                session,
                lease,
                result: Ok(outcome),
            } => {
                self.tasks.spawn(async move {
                    Input::Reported(
                        session,
                        lease,
                        client.complete(session, lease, outcome).await,
                    )
                });
            }
            Effect::Report {
                session,
                lease,
                result: Err(failure),
            } => {
                self.tasks.spawn(async move {
                    Input::GivenBack(session, lease, client.fail(session, lease, failure).await)
                });
            }
            Effect::Reset | Effect::Leave { .. } | Effect::Stop { .. } => {
                unreachable!("done in the loop, in order")
            }
        }
    }
}

impl<W: Worker> Inbox<W> {
    /// # Errors
    /// If the worker is broken.
    fn handle(&mut self, input: Input, now: Timestamp) -> Result<(), Error> {
        match input {
            Input::Joined(Err(CallError::Waiting(place))) => self.waits(place, now),
            Input::Joined(Err(error)) => {
                debug!(%error, "could not join");
                self.peer.handle_join_failed(call_failure(&error), now);
            }
            Input::Joined(Ok(_)) => unreachable!("handled in the loop"),
            Input::Polled(session, Err(error)) => {
                debug!(%error, "could not ask for work");
                self.peer
                    .handle_poll_failed(session, call_failure(&error), now);
            }
            Input::Polled(session, Ok(polled)) => self.polled(session, polled),
            Input::Finished(lease, Ok(outcome)) => self.peer.handle_finished(lease, Ok(outcome)),
            Input::Finished(lease, Err(Undone::Failed(failure))) => {
                debug!(%lease, ?failure, "work failed");
                self.peer.handle_finished(lease, Err(failure));
                if !self.peer.holds(lease) {
                    // It was abandoned: nobody wants to hear of it.
                    self.leases.remove(&lease);
                }
            }
            Input::Finished(lease, Err(Undone::Tainted)) => self.tainted(lease),
            Input::Finished(_, Err(Undone::Broken)) => return Err(Error::StageGone),
            Input::Reported(session, lease, answer) => self.reported(session, lease, answer, now),
            Input::GivenBack(session, lease, Ok(())) => {
                self.given_back(session, lease, None, now);
            }
            Input::GivenBack(session, lease, Err(error)) => {
                debug!(%lease, %error, "could not give work back");
                self.given_back(session, lease, Some(call_failure(&error)), now);
            }
        }
        Ok(())
    }

    /// There is no place in the run for us yet. People are told when ours on the waiting list changes, and why.
    fn waits(&mut self, place: Place, now: Timestamp) {
        if self.waits != Some((place.ticket, place.place, place.why)) {
            self.waits = Some((place.ticket, place.place, place.why));
            info!(
                ticket = %place.ticket,
                place = place.place,
                of = place.line,
                why = place.why.code(),
                moved_because_of = ?place.moved.map(|moved| moved.because_of),
                moved_why = ?place.moved.map(|moved| moved.why.code()),
                "waiting for a place in the run"
            );
        }
        self.peer.handle_waiting(place.come_back_after, now);
    }

    fn polled(&mut self, session: Session, polled: WorkReply) {
        if self.peer.session() != Some(session) {
            return;
        }
        self.epoch = self.epoch.max(polled.status.epoch);
        let ids: Vec<LeaseId> = polled.leases.iter().map(|leased| leased.lease.id).collect();
        for leased in polled.leases {
            self.leases
                .entry(leased.lease.id)
                .or_insert_with(|| (Arc::new(leased), watch::Sender::new(false)));
        }
        self.peer
            .handle_polled(session, &ids, &polled.revoked, polled.status.run_over);
        self.leases.retain(|lease, _| self.peer.holds(*lease));
    }

    fn reported(
        &mut self,
        session: Session,
        lease: LeaseId,
        answer: Result<bool, CallError>,
        now: Timestamp,
    ) {
        let error = match answer {
            // A superseded result is logged without credit; only if it is sent again is the answer an error.
            Ok(_) | Err(CallError::Rejected(Rejection::Superseded)) => {
                if let Some((leased, _)) = self.leases.remove(&lease) {
                    self.worker.reported(&leased.lease, true);
                }
                return self.peer.handle_reported(lease, now);
            }
            Err(error) => error,
        };
        debug!(%lease, %error, "report failed");
        let failure = call_failure(&error);
        if matches!(failure, CallFailure::Refused | CallFailure::Gone)
            && let Some((leased, _)) = self.leases.remove(&lease)
        {
            self.worker.reported(&leased.lease, false);
            // A closed epoch takes its gradients with it. It is closed when the next one has begun, not when the report
            // is refused as stale: until then the gradient may go into the upload.
            let closed = leased.lease.epoch < self.epoch;
            if leased.lease.work.kind() == WorkKind::Backward && !closed {
                return self.tainted(lease);
            }
        }
        self.peer.handle_report_failed(session, lease, failure, now);
    }

    fn given_back(
        &mut self,
        session: Session,
        lease: LeaseId,
        failure: Option<CallFailure>,
        now: Timestamp,
    ) {
        match failure {
            None => self.peer.handle_reported(lease, now),
            Some(failure) => self.peer.handle_report_failed(session, lease, failure, now),
        }
        if !self.peer.holds(lease)
            && let Some((leased, _)) = self.leases.remove(&lease)
        {
            self.worker.reported(&leased.lease, true);
        }
    }

    fn tainted(&mut self, lease: LeaseId) {
        if self.peer.holds(lease) {
            warn!(%lease, "an operation could not be reported; joining again");
        }
        self.peer.handle_tainted(lease);
    }
}

fn call_failure(error: &CallError) -> CallFailure {
    if let CallError::Tls(_) = error {
        // We have called this orchestrator before. A certificate that has expired will be renewed, and whoever stands
        // between will go: neither is worth a session, and neither is told anything.
        warn!(%error, "trying again");
        return CallFailure::Retry(None);
    }
    match error.kind() {
        CallErrorKind::Retry => CallFailure::Retry(error.retry_after()),
        CallErrorKind::Rejoin => CallFailure::Rejoin,
        CallErrorKind::GiveUp if error.rejection() == Some(Rejection::RunOver) => {
            CallFailure::RunOver
        }
        CallErrorKind::Drop => CallFailure::Gone,
        CallErrorKind::GiveUp | CallErrorKind::Fix => CallFailure::Refused,
    }
}

async fn sleep(timeout: Option<Duration>) {
    tokio::time::sleep(timeout.unwrap_or_default()).await;
}

#[cfg(test)]
mod tests;
