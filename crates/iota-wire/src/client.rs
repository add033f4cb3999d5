//! The peers' side: one method per call, in the words of the protocol.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use iota_identity::Keypair;
use iota_protocol::work::{Failure, Outcome};
use iota_protocol::{Digest, LeaseId, PeerId, Role, RunId, Session, Timestamp};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::PROTOCOL_VERSION;
use crate::auth::header::{Header, METADATA_KEY};
use crate::clock::Clock;
use crate::convert::required;
use crate::error::{AuthFailure, CallError};
use crate::limits::{HOLD_MAX, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::message::{Joined, RunInfo, RunStatus, WorkReply, WorkRequest};
use crate::proto;
use crate::proto::orchestrator_service_client::OrchestratorServiceClient;
use crate::transport::Connector;

type Service = OrchestratorServiceClient<Channel>;

/// A peer's connection to an orchestrator. Cheap to clone; clones share the connection, which mends itself.
///
/// A call is tried once, or twice if our clock had to be set: whether and when to repeat it, [`CallError::kind`] says.
#[derive(Debug, Clone)]
pub struct Client {
    service: Service,
    keypair: Arc<Keypair>,
    clock: Clock,
    /// What to add to our clock to get the orchestrator's, in milliseconds.
    offset_ms: Arc<AtomicI64>,
    run: RunId,
    orchestrator: PeerId,
}

/// How to [connect](Client::connect_with).
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Who must answer. Without it, whoever answers is believed to be the orchestrator, as far as the network can be
    /// trusted.
    pub orchestrator: Option<PeerId>,
    /// Our clock. It need not be right: the difference to the orchestrator's is measured.
    pub clock: Clock,
    /// What the connection is made over.
    pub connector: Connector,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            orchestrator: None,
            clock: Clock::system(),
            connector: Connector::default(),
        }
    }
}

impl Client {
    /// Asks the orchestrator at `url`, such as `https://orchestrator.example:9000`, what its run is, and gets ready to sign
    /// for it.
    ///
    /// # Errors
    /// [`CallError::BadUrl`]; [`CallError::Tls`] if it is not the server that the address names, as far as a
    /// certificate can show that; [`CallError::OtherVersion`] if the two would not understand each other; the errors of a
    /// call.
    pub async fn connect(url: &str, keypair: Arc<Keypair>) -> Result<(Self, RunInfo), CallError> {
        Self::connect_with(url, keypair, ConnectOptions::default()).await
    }

    /// As [`Self::connect`], with options.
    ///
    /// # Errors
    /// As [`Self::connect`], and [`CallError::OtherOrchestrator`].
    pub async fn connect_with(
        url: &str,
        keypair: Arc<Keypair>,
        options: ConnectOptions,
    ) -> Result<(Self, RunInfo), CallError> {
        let channel = options.connector.channel(&endpoint(url)?);
        let service = OrchestratorServiceClient::new(channel)
            .max_decoding_message_size(REPLY_BYTES_MAX)
            .max_encoding_message_size(REQUEST_BYTES_MAX);
        let offset_ms = Arc::new(AtomicI64::new(0));
        let info = get_run(&mut service.clone(), &options.clock, &offset_ms).await?;
        if info.protocol_version != PROTOCOL_VERSION {
            return Err(CallError::OtherVersion {
                theirs: info.protocol_version,
                ours: PROTOCOL_VERSION,
            });
        }
        if let Some(expected) = options
            .orchestrator
            .filter(|expected| *expected != info.orchestrator)
        {
            return Err(CallError::OtherOrchestrator {
                expected,
                found: info.orchestrator,
            });
        }
        let client = Self {
            service,
            keypair,
            clock: options.clock,
            offset_ms,
            run: info.run,
            orchestrator: info.orchestrator,
        };
        Ok((client, info))
    }

    /// Who we are.
    pub fn peer_id(&self) -> PeerId {
        self.keypair.peer_id()
    }

    /// The run that requests are signed for: the one that [`Self::connect`] found.
    pub const fn run(&self) -> RunId {
        self.run
    }

    /// The orchestrator that requests are signed for.
    pub const fn orchestrator(&self) -> PeerId {
        self.orchestrator
    }

    /// The orchestrator's clock, as far as we know; for the deadlines of leases and grants.
    pub fn server_time(&self) -> Timestamp {
        shift(self.clock.now(), self.offset_ms.load(Ordering::Relaxed))
    }

    /// What the run is now. Measures the orchestrator's clock again.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn get_run(&self) -> Result<RunInfo, CallError> {
        get_run(&mut self.service.clone(), &self.clock, &self.offset_ms).await
    }

    /// Begins a stay. One that we still had ends.
    ///
    /// # Errors
    /// [`CallError::Waiting`] if there is no place in the run for us yet; those of a call.
    pub async fn join(&self, role: Role, capacity: u32) -> Result<Joined, CallError> {
        let role = proto::Role::from(role).into();
        let message = proto::JoinRequest { role, capacity };
        let send = |mut service: Service, request| async move { service.join(request).await };
        let message = self.call("Join", message, CALL_TIMEOUT, send).await?;
        Joined::from_message(message, self.peer_id()).map_err(CallError::Unintelligible)
    }

    /// Ends a stay.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn leave(&self, session: Session) -> Result<(), CallError> {
        let message = proto::LeaveRequest {
            generation: session.generation,
        };
        let send = |mut service: Service, request| async move { service.leave(request).await };
        self.call("Leave", message, CALL_TIMEOUT, send).await?;
        Ok(())
    }

    /// Asks for work, and waits for as long as the request says until there is something to say.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn get_work(&self, request: WorkRequest) -> Result<WorkReply, CallError> {
        let deadline = request.hold.min(HOLD_MAX) + LONG_POLL_MARGIN;
        let message = proto::GetWorkRequest::from(request);
        let send = |mut service: Service, request| async move { service.get_work(request).await };
        let message = self.call("GetWork", message, deadline, send).await?;
        WorkReply::try_from(message).map_err(CallError::Unintelligible)
    }

    /// Reports finished work; says whether it is credited.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn complete(
        &self,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> Result<bool, CallError> {
        let message = proto::CompleteWorkRequest {
            generation: session.generation,
            lease: lease.get(),
            outcome: Some(outcome.into()),
        };
        let send =
            |mut service: Service, request| async move { service.complete_work(request).await };
        let answer = self
            .call("CompleteWork", message, CALL_TIMEOUT, send)
            .await?;
        Ok(answer.credited)
    }

    /// Gives a lease back undone.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn fail(
        &self,
        session: Session,
        lease: LeaseId,
        failure: Failure,
    ) -> Result<(), CallError> {
        let message = proto::FailWorkRequest {
            generation: session.generation,
            lease: lease.get(),
            failure: Some(failure.into()),
        };
        let send = |mut service: Service, request| async move { service.fail_work(request).await };
        self.call("FailWork", message, CALL_TIMEOUT, send).await?;
        Ok(())
    }

    /// Watches the run: how it is doing at once, then whenever that changes. The stream ends with the run, or with an
    /// error when the connection is lost; then watch again.
    ///
    /// # Errors
    /// Those of a call.
    pub async fn watch(
        &self,
    ) -> Result<impl Stream<Item = Result<RunStatus, CallError>> + Send + use<>, CallError> {
        let answer = self
            .service
            .clone()
            .watch_run(proto::WatchRunRequest {})
            .await;
        let snapshots = self.answer(answer)?;
        Ok(snapshots.map(|snapshot| {
            required("status", snapshot?.status).map_err(CallError::Unintelligible)
        }))
    }

    /// Makes a signed call. If it is refused because of our clock, it has had no effect, and the answer says what the time
    /// is: then it is signed anew and made again, once.
    async fn call<Message, Answer, Answering>(
        &self,
        method: &str,
        message: Message,
        timeout: Duration,
        send: impl Fn(Service, Request<Message>) -> Answering,
    ) -> Result<Answer, CallError>
    where
        Message: prost::Message + Clone,
        Answering: Future<Output = Result<Response<Answer>, Status>>,
    {
        let request = self.signed(method, message.clone(), timeout);
        match self.answer(send(self.service.clone(), request).await) {
            Err(CallError::Unauthenticated(AuthFailure::Stale { .. })) => {
                let request = self.signed(method, message, timeout);
                self.answer(send(self.service.clone(), request).await)
            }
            answer => answer,
        }
    }

    /// The request, with its statement of who sends it. The statement is about the bytes that the codec will make of the
    /// message, which within one program are always the same.
    fn signed<Message: prost::Message>(
        &self,
        method: &str,
        message: Message,
        timeout: Duration,
    ) -> Request<Message> {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).expect("the operating system gives randomness");
        let header = Header {
            peer: self.keypair.peer_id(),
            run: self.run,
            audience: self.orchestrator,
            method: format!(
                "{}/{method}",
                proto::orchestrator_service_server::SERVICE_NAME
            ),
            body_digest: Digest::of(&message.encode_to_vec()),
            issued_at: self.server_time(),
            nonce,
        };
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        let entry = MetadataValue::from_bytes(&header.sign(&self.keypair));
        request.metadata_mut().insert_bin(METADATA_KEY, entry);
        request
    }

    /// What came back; from a refusal for staleness, the orchestrator's clock.
    fn answer<Message>(
        &self,
        answer: Result<Response<Message>, Status>,
    ) -> Result<Message, CallError> {
        let error = match answer {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => CallError::from(status),
        };
        if let CallError::Unauthenticated(AuthFailure::Stale { server_time }) = error {
            self.offset_ms.store(
                difference_ms(server_time, self.clock.now()),
                Ordering::Relaxed,
            );
        }
        Err(error)
    }
}

async fn get_run(
    service: &mut Service,
    clock: &Clock,
    offset_ms: &AtomicI64,
) -> Result<RunInfo, CallError> {
    let mut request = Request::new(proto::GetRunRequest {});
    request.set_timeout(CALL_TIMEOUT);
    let asked_at = clock.now();
    let message = service.get_run(request).await?.into_inner();
    let answered_at = clock.now();
    let info = RunInfo::try_from(message).map_err(CallError::Unintelligible)?;
    // The server looked at its clock somewhere between; halfway is the best guess.
    let halfway = asked_at + answered_at.since(asked_at) / 2;
    offset_ms.store(difference_ms(info.server_time, halfway), Ordering::Relaxed);
    Ok(info)
}

fn endpoint(url: &str) -> Result<Endpoint, CallError> {
    let bad = |problem: String| CallError::BadUrl {
        url: url.to_owned(),
        problem,
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(error.to_string()))?;
    if !matches!(endpoint.uri().scheme_str(), Some("http" | "https")) {
        return Err(bad("it begins with neither http:// nor https://".to_owned()));
    }
    Ok(endpoint
        .connect_timeout(CALL_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true))
}

/// `later - earlier`, in milliseconds.
fn difference_ms(later: Timestamp, earlier: Timestamp) -> i64 {
    let positive = i64::try_from(later.since(earlier).as_millis()).unwrap_or(i64::MAX);
    let negative = i64::try_from(earlier.since(later).as_millis()).unwrap_or(i64::MAX);
    positive - negative
}

fn shift(time: Timestamp, by_ms: i64) -> Timestamp {
    Timestamp::from_millis(time.as_millis().saturating_add_signed(by_ms))
}

/// For calls that the orchestrator answers at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a long poll may take beyond its hold.
const LONG_POLL_MARGIN: Duration = Duration::from_secs(5);
