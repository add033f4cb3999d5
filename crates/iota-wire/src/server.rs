//! The orchestrator's side: a trait to implement, and everything between it and a socket.
//!
//! ```text
//!   socket -> size and stream limits -> authentication (auth) -> conversion -> OrchestratorApi
//! ```

mod handler;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use iota_protocol::work::{Failure, Outcome};
use iota_protocol::{LeaseId, PeerId, Role, Session};
use tokio::sync::watch;
use tonic::service::{InterceptorLayer, Routes};
use tonic::transport::Server;
use tonic::{Request, Status};
use tonic_health::server::HealthReporter;

use crate::auth::Authenticator;
use crate::auth::layer::Authenticated;
use crate::clock::Clock;
use crate::error::ApiError;
use crate::limits::{HOLD_MAX, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::message::{Joined, RunInfo, RunStatus, WorkReply, WorkRequest};
use crate::proto;
use crate::proto::orchestrator_service_server::OrchestratorServiceServer;
use crate::server::handler::Handler;
use crate::transport::{Incoming, Way};

/// What an orchestrator can do, in the words of the protocol.
///
/// Whoever calls has been verified: `peer` and the peer in a `session` are the key that signed the request. Every method
/// may be called again with the same arguments, when an answer was lost, and must then change nothing more.
pub trait OrchestratorApi: Send + Sync + 'static {
    /// What a peer needs to know before it can take part. Anybody may ask.
    fn run_info(&self) -> impl Future<Output = Result<RunInfo, ApiError>> + Send;

    /// Begins a stay of `peer`, which can hold `capacity` leases at a time; [`ApiError::Waiting`] if it has to wait for a
    /// place in the run.
    fn join(
        &self,
        peer: PeerId,
        role: Role,
        capacity: u32,
    ) -> impl Future<Output = Result<Joined, ApiError>> + Send;

    /// Ends a stay.
    fn leave(&self, session: Session) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Answers as soon as there is something to say, or after `request.hold`, which is at most [`HOLD_MAX`].
    ///
    /// The future is dropped when the caller goes away.
    fn get_work(
        &self,
        request: WorkRequest,
    ) -> impl Future<Output = Result<WorkReply, ApiError>> + Send;

    /// Records a result; says whether it is credited.
    fn complete(
        &self,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> impl Future<Output = Result<bool, ApiError>> + Send;

    /// Takes a lease back undone.
    fn fail(
        &self,
        session: Session,
        lease: LeaseId,
        failure: Failure,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// How the run is doing. Anybody may watch; a slow watcher misses snapshots but never the latest.
    fn watch(&self) -> watch::Receiver<RunStatus>;
}

/// An orchestrator's gRPC services, ready for [`serve`].
#[derive(Debug)]
pub struct Service {
    /// The orchestrator, health and reflection; for a program that brings its own transport instead of [`serve`].
    pub routes: Routes,
    /// Says to load balancers whether the orchestrator is ready; serving from the start.
    pub health: HealthReporter,
    /// Turns true when the server is to end: long polls and watchers must not hold it up.
    closing: watch::Sender<bool>,
}

/// Makes `api` into gRPC services that let in what `authenticator` accepts by `clock`.
pub async fn service(
    api: Arc<impl OrchestratorApi>,
    authenticator: Arc<Authenticator>,
    clock: Clock,
) -> Service {
    let (closing, closed) = watch::channel(false);
    let orchestrator = OrchestratorServiceServer::new(Handler::new(api, closed))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(REPLY_BYTES_MAX);
    let orchestrator = Authenticated::new(orchestrator, authenticator, clock, OPEN_METHODS);

    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<Authenticated<OrchestratorServiceServer<()>>>()
        .await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
        .build_v1()
        .expect("the descriptor was made by this crate's build script");

    let routes = Routes::new(orchestrator)
        .add_service(health_service)
        .add_service(reflection);
    Service {
        routes,
        health,
        closing,
    }
}

/// Serves what comes in until `shutdown` is done. Then it reports itself as not serving, answers the long polls with
/// [`ApiError::Unavailable`], ends the watchers' streams, and finishes the other calls under way.
///
/// # Errors
/// [`ServeError`] if no more connections can be taken.
pub async fn serve(
    incoming: Incoming,
    service: Service,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Service {
        routes,
        health,
        closing,
    } = service;
    let shutdown = async move {
        shutdown.await;
        health
            .set_not_serving::<Authenticated<OrchestratorServiceServer<()>>>()
            .await;
        closing.send_replace(true);
    };
    let address = incoming.address();
    Server::builder()
        // What no honest caller needs, so that one connection cannot take everything (rapid reset, stream floods).
        .concurrency_limit_per_connection(32)
        .max_concurrent_streams(64)
        .http2_max_header_list_size(16 * 1024)
        .http2_max_pending_accept_reset_streams(Some(20))
        // A call cannot go on for ever: the longest is a full long poll.
        .timeout(HOLD_MAX + Duration::from_secs(10))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // Lets load balancers move callers. A long poll fits into the grace.
        .max_connection_age(Duration::from_secs(30 * 60))
        .max_connection_age_grace(Duration::from_secs(60))
        .layer(InterceptorLayer::new(refuse_unencrypted))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming.into_connections(), shutdown)
        .await
        .map_err(|source| ServeError {
            address,
            source: source.into(),
        })
}

/// Nothing is read from, and nothing told to, whoever comes without TLS to a port for TLS.
fn refuse_unencrypted(request: Request<()>) -> Result<Request<()>, Status> {
    match request.extensions().get() {
        Some(Way::Unencrypted) => Err(ApiError::OnlyTls.into()),
        _ => Ok(request),
    }
}

/// The server cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve on {address}")]
pub struct ServeError {
    address: SocketAddr,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Methods that change nothing, and that a peer needs before it can sign or that people watch.
const OPEN_METHODS: &[&str] = &[
    "iota.v1.OrchestratorService/GetRun",
    "iota.v1.OrchestratorService/WatchRun",
];
