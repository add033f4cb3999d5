//! The loop that keeps a peer in a run: it makes the calls that [`iota_protocol::peer::Peer`] asks for.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use iota_identity::Keypair;
use iota_node::clock::Clock;
use iota_node::shutdown::Shutdown;
use iota_protocol::peer::{CallFailure, Effect, Peer, Stop};
use iota_protocol::work::{Failure, Lease, Outcome, WorkKind};
use iota_protocol::{LeaseId, Rejection, Role, Session, Timestamp};
use iota_run::Description;
use iota_wire::{
    CallError, CallErrorKind, Client, ConnectOptions, Joined, LeasedWork, WorkReply, WorkRequest,
};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, info, warn};

use crate::Error;

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

    /// The orchestrator has answered a report: it is in the log or it is not.
    fn reported(&self, lease: &Lease, logged: bool);
}

/// Why work ended without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undone {
    /// Nothing has changed; the lease goes back.
    Failed(Failure),
    /// The weights hold an operation that cannot be reported: the session has to begin again.
    Tainted,
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
    /// How long the orchestrator may hold a poll that it has no work for.
    pub hold: Duration,
}

enum Input {
    Joined(Result<Joined, CallError>),
    Polled(Session, Result<WorkReply, CallError>),
    Finished(LeaseId, Result<Outcome, Undone>),
    Reported(LeaseId, Result<bool, CallError>),
}

/// Connects to the orchestrator at `url` and learns what its run is about; tries for as long as it takes. None if
/// `shutdown` came first.
///
/// # Errors
/// If the address is none, or the run is one that this program cannot take part in.
pub async fn connect(
    url: &str,
    keypair: Arc<Keypair>,
    clock: Arc<dyn Clock>,
    shutdown: &Shutdown,
) -> Result<Option<(Client, Description)>, Error> {
    let mut wait = CONNECT_WAIT_MIN;
    loop {
        let now = Arc::clone(&clock);
        let options = ConnectOptions {
            clock: iota_wire::Clock::new(move || now.now()),
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
/// Only for trouble of its own, such as a model that this machine cannot hold. A lost connection is no error: it is
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
        worker,
        participation,
        peer: Peer::new(participation.capacity, seed),
        tasks: JoinSet::new(),
        poll: None,
        leases: BTreeMap::new(),
    };
    driver.run(clock, shutdown).await
}

struct Driver<W> {
    client: Client,
    worker: Arc<W>,
    participation: Participation,
    peer: Peer,
    tasks: JoinSet<Input>,
    poll: Option<AbortHandle>,
    leases: BTreeMap<LeaseId, (Arc<LeasedWork>, watch::Sender<bool>)>,
}

impl<W: Worker> Driver<W> {
    async fn run(&mut self, clock: Arc<dyn Clock>, shutdown: Shutdown) -> Result<Stop, Error> {
        let mut draining = false;
        let mut joined = None;
        loop {
            while let Some(effect) = self.peer.poll_effect() {
                match effect {
                    Effect::Reset => {
                        self.leases.clear();
                        if let Some(joined) = joined.take() {
                            self.worker.reset(&joined).await?;
                        }
                    }
                    Effect::Leave { session } => {
                        // A leave that is lost costs the others one lease timeout, so it is tried once.
                        if let Err(error) = self.client.leave(session).await {
                            debug!(%error, "could not say that we leave");
                        }
                    }
                    Effect::Stop { why } => {
                        self.tasks.abort_all();
                        return Ok(why);
                    }
                    effect => self.start(effect),
                }
            }
            let timeout = self.peer.poll_timeout().map(|at| at.since(clock.now()));
            tokio::select! {
                Some(input) = self.tasks.join_next() => match input {
                    Ok(Input::Joined(Ok(answer))) => {
                        info!(session = ?answer.session, stage = ?answer.stage, "joined");
                        let session = answer.session;
                        joined = Some(answer);
                        self.peer.handle_joined(session);
                    }
                    Ok(input) => self.handle(input, clock.now()),
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(Error::Panicked(error.to_string())),
                },
                () = sleep(timeout), if timeout.is_some() => self.peer.handle_timeout(clock.now()),
                () = shutdown.wait(), if !draining => {
                    draining = true;
                    self.peer.handle_shutdown();
                }
            }
        }
    }

    fn start(&mut self, effect: Effect) {
        let client = self.client.clone();
        match effect {
            Effect::Join => {
                let Participation { role, capacity, .. } = self.participation;
                self.tasks
                    .spawn(async move { Input::Joined(client.join(role, capacity).await) });
            }
            Effect::Poll {
                session,
                room,
                held,
            } => {
                let hold = self.participation.hold;
                let request = WorkRequest {
                    session,
                    room,
                    held,
                    hold,
                };
                let poll = async move { Input::Polled(session, client.get_work(request).await) };
                if let Some(earlier) = self.poll.replace(self.tasks.spawn(poll)) {
                    earlier.abort();
                }
            }
            Effect::Start { lease } => {
                let Some((leased, abandoned)) = self.leases.get(&lease) else {
                    return;
                };
                let (leased, abandoned) = (Arc::clone(leased), abandoned.subscribe());
                let worker = Arc::clone(&self.worker);
                self.tasks.spawn(async move {
                    Input::Finished(lease, worker.work(leased, abandoned).await)
                });
            }
            Effect::Abandon { lease } => {
                if let Some((_, abandoned)) = self.leases.get(&lease) {
                    abandoned.send_replace(true);
                }
            }
            Effect::Report {
                session,
                lease,
                result,
            } => {
                self.tasks.spawn(async move {
                    let answer = match result {
                        Ok(outcome) => client.complete(session, lease, outcome).await,
                        Err(failure) => client.fail(session, lease, failure).await.map(|()| true),
                    };
                    Input::Reported(lease, answer)
                });
            }
            Effect::Reset | Effect::Leave { .. } | Effect::Stop { .. } => {
                unreachable!("done in the loop, in order")
            }
        }
    }

    fn handle(&mut self, input: Input, now: Timestamp) {
        match input {
            Input::Joined(Err(error)) | Input::Polled(_, Err(error)) => {
                debug!(%error, "call failed");
                self.peer.handle_call_failed(call_failure(&error), now);
            }
            Input::Joined(Ok(_)) => unreachable!("handled in the loop"),
            Input::Polled(session, Ok(polled)) => {
                let ids: Vec<LeaseId> =
                    polled.leases.iter().map(|leased| leased.lease.id).collect();
                for leased in polled.leases {
                    self.leases
                        .entry(leased.lease.id)
                        .or_insert_with(|| (Arc::new(leased), watch::Sender::new(false)));
                }
                self.peer
                    .handle_polled(session, &ids, &polled.revoked, polled.status.run_over);
            }
            Input::Finished(lease, Ok(outcome)) => self.peer.handle_finished(lease, Ok(outcome)),
            Input::Finished(lease, Err(Undone::Failed(failure))) => {
                debug!(%lease, ?failure, "work failed");
                self.peer.handle_finished(lease, Err(failure));
            }
            Input::Finished(lease, Err(Undone::Tainted)) => {
                warn!(%lease, "an operation could not be reported; joining again");
                self.peer.handle_tainted();
            }
            Input::Reported(lease, Ok(_)) => {
                self.forget(lease, true);
                self.peer.handle_reported(lease);
            }
            Input::Reported(lease, Err(error)) => {
                let failure = call_failure(&error);
                debug!(%lease, %error, "report failed");
                if failure == CallFailure::Refused {
                    // A closed epoch takes its gradients with it; any other refusal leaves one that nobody knows of.
                    let stale = matches!(error, CallError::Rejected(Rejection::StaleEpoch));
                    if self.forget(lease, false) == Some(WorkKind::Backward) && !stale {
                        return self.peer.handle_tainted();
                    }
                }
                self.peer.handle_report_failed(lease, failure, now);
            }
        }
    }

    fn forget(&mut self, lease: LeaseId, logged: bool) -> Option<WorkKind> {
        let (leased, _) = self.leases.remove(&lease)?;
        self.worker.reported(&leased.lease, logged);
        Some(leased.lease.work.kind())
    }
}

fn call_failure(error: &CallError) -> CallFailure {
    match error.kind() {
        CallErrorKind::Retry => CallFailure::Retry(error.retry_after()),
        CallErrorKind::Rejoin => CallFailure::Rejoin,
        CallErrorKind::GiveUp if error.rejection() == Some(Rejection::RunOver) => {
            CallFailure::RunOver
        }
        CallErrorKind::GiveUp | CallErrorKind::Drop | CallErrorKind::Fix => CallFailure::Refused,
    }
}

async fn sleep(timeout: Option<Duration>) {
    tokio::time::sleep(timeout.unwrap_or_default()).await;
}
