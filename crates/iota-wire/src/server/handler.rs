//! From generated messages to the trait and back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use iota_protocol::work::{Failure, Outcome};
use iota_protocol::{LeaseId, PeerId, Role, Session};
use tokio::sync::{Semaphore, watch};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::auth::layer::VerifiedPeer;
use crate::convert::{chosen, required};
use crate::error::ApiError;
use crate::message::WorkRequest;
use crate::proto;
use crate::proto::orchestrator_service_server::OrchestratorService;
use crate::server::OrchestratorApi;

pub(super) struct Handler<A> {
    api: Arc<A>,
    watchers: Arc<Semaphore>,
    closed: watch::Receiver<bool>,
}

impl<A> Handler<A> {
    pub(super) fn new(api: Arc<A>, closed: watch::Receiver<bool>) -> Self {
        Self {
            api,
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            closed,
        }
    }
}

#[tonic::async_trait]
impl<A: OrchestratorApi> OrchestratorService for Handler<A> {
    async fn get_run(
        &self,
        _request: Request<proto::GetRunRequest>,
    ) -> Result<Response<proto::GetRunResponse>, Status> {
        let info = self.api.run_info().await?;
        Ok(Response::new(info.into()))
    }

    async fn join(
        &self,
        request: Request<proto::JoinRequest>,
    ) -> Result<Response<proto::JoinResponse>, Status> {
        let (peer, message) = open(request);
        let role = chosen::<proto::Role, Role>("role", message.role).map_err(ApiError::from)?;
        let joined = self.api.join(peer, role, message.capacity).await?;
        Ok(Response::new(joined.into()))
    }

    async fn leave(
        &self,
        request: Request<proto::LeaveRequest>,
    ) -> Result<Response<proto::LeaveResponse>, Status> {
        let (peer, message) = open(request);
        self.api
            .leave(Session {
                peer,
                generation: message.generation,
            })
            .await?;
        Ok(Response::new(proto::LeaveResponse {}))
    }

    async fn get_work(
        &self,
        request: Request<proto::GetWorkRequest>,
    ) -> Result<Response<proto::GetWorkResponse>, Status> {
        let (peer, message) = open(request);
        let request = WorkRequest::from_message(message, peer).map_err(ApiError::from)?;
        // The reply comes first if both are there: a lease that was just given should not wait for a restart.
        let reply = tokio::select! {
            biased;
            reply = self.api.get_work(request) => reply?,
            () = closing(self.closed.clone()) => {
                return Err(ApiError::Unavailable { retry_after: RESTART_RETRY_AFTER }.into());
            }
        };
        Ok(Response::new(reply.into()))
    }

    async fn complete_work(
        &self,
        request: Request<proto::CompleteWorkRequest>,
    ) -> Result<Response<proto::CompleteWorkResponse>, Status> {
        let (peer, message) = open(request);
        let session = Session {
            peer,
            generation: message.generation,
        };
        let outcome: Outcome = required("outcome", message.outcome).map_err(ApiError::from)?;
        let credited = self
            .api
            .complete(session, LeaseId::new(message.lease), outcome)
            .await?;
        Ok(Response::new(proto::CompleteWorkResponse { credited }))
    }

    async fn fail_work(
        &self,
        request: Request<proto::FailWorkRequest>,
    ) -> Result<Response<proto::FailWorkResponse>, Status> {
        let (peer, message) = open(request);
        let session = Session {
            peer,
            generation: message.generation,
        };
        let failure: Failure = required("failure", message.failure).map_err(ApiError::from)?;
        self.api
            .fail(session, LeaseId::new(message.lease), failure)
            .await?;
        Ok(Response::new(proto::FailWorkResponse {}))
    }

    type WatchRunStream =
        Pin<Box<dyn Stream<Item = Result<proto::WatchRunResponse, Status>> + Send>>;

    async fn watch_run(
        &self,
        _request: Request<proto::WatchRunRequest>,
    ) -> Result<Response<Self::WatchRunStream>, Status> {
        let watcher = Arc::clone(&self.watchers)
            .try_acquire_owned()
            .map_err(|_| ApiError::RateLimited {
                retry_after: WATCHERS_RETRY_AFTER,
            })?;
        let snapshots = WatchStream::new(self.api.watch()).map(move |status| {
            // Held for as long as the stream is.
            let _watcher = &watcher;
            Ok(proto::WatchRunResponse {
                status: Some(status.into()),
            })
        });
        Ok(Response::new(Box::pin(
            snapshots.take_until(Box::pin(closing(self.closed.clone()))),
        )))
    }
}

/// Done when the server is to end.
async fn closing(mut closed: watch::Receiver<bool>) {
    if closed.wait_for(|closed| *closed).await.is_err() {
        // Nobody is left to say so: the routes are used without `serve`.
        std::future::pending().await
    }
}

/// The sender and the message of a request whose method is closed to strangers.
fn open<Message>(request: Request<Message>) -> (PeerId, Message) {
    let VerifiedPeer(peer) = *request
        .extensions()
        .get()
        .expect("the authentication layer lets nothing else through to closed methods");
    (peer, request.into_inner())
}

/// Watchers at a time. They are strangers, so there is a bound.
const WATCHERS_MAX: usize = 64;

const WATCHERS_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How soon to look for an orchestrator that is restarting.
const RESTART_RETRY_AFTER: Duration = Duration::from_secs(1);
