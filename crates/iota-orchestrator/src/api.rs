//! What peers can call, in terms of the rules. Who the caller is has been verified before.

use std::sync::Arc;

use async_trait::async_trait;
use iota_node::clock::Clock;
use iota_protocol::event::Event;
use iota_protocol::work::{Failure, Outcome};
use iota_protocol::{Command, LeaseId, PeerId, Rejection, Role, Session, State};
use iota_wire::{
    ApiError, Joined, OrchestratorApi, RunInfo, RunStatus, WorkReply, WorkRequest, WorkStatus,
};
use tokio::sync::watch;

use crate::owner::{Gone, OwnerHandle};
use crate::status::status;

/// The service behind the wire.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) owner: OwnerHandle,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) info: RunInfo,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Api {
    async fn command(&self, command: Command) -> Result<Vec<Event>, ApiError> {
        Ok(self.owner.command(command).await??)
    }

    fn work_status(&self) -> WorkStatus {
        let state = self.state.borrow();
        let now = self.clock.now();
        WorkStatus {
            phase: state.phase(),
            epoch: state.epoch(),
            run_over: state.is_over(),
            phase_deadline_remaining: state.phase_deadline().map(|deadline| deadline.since(now)),
        }
    }
}

/// Sessions are the caller's own or none.
fn own(peer: PeerId, session: Session) -> Result<(), ApiError> {
    if session.peer == peer { Ok(()) } else { Err(Rejection::NotRegistered.into()) }
}

#[async_trait]
impl OrchestratorApi for Api {
    async fn get_run(&self) -> Result<RunInfo, ApiError> {
        Ok(RunInfo { server_time: self.clock.now(), ..self.info.clone() })
    }

    async fn join(&self, peer: PeerId, role: Role, capacity: u32) -> Result<Joined, ApiError> {
        let events = self.command(Command::Join { peer, role, capacity }).await?;
        let joined = events.iter().find_map(|event| match event {
            Event::SessionJoined { session, stage, .. } if session.peer == peer => Some((*session, *stage)),
            _ => None,
        });
        let (session, stage) = joined.expect("a join that is not refused begins a session");
        let WorkStatus { phase, epoch, .. } = self.work_status();
        Ok(Joined { session, stage, epoch, phase })
    }

    async fn leave(&self, peer: PeerId, session: Session) -> Result<(), ApiError> {
        own(peer, session)?;
        self.command(Command::Leave { session }).await.map(drop)
    }

    async fn get_work(&self, peer: PeerId, request: WorkRequest) -> Result<WorkReply, ApiError> {
        let WorkRequest { session, room, held, hold } = request;
        own(peer, session)?;
        let until = self.clock.now() + hold;
        let answer = self.owner.poll(session, room, held, until).await??;
        Ok(WorkReply { leases: answer.leases, revoked: answer.revoked, status: self.work_status() })
    }

    async fn complete(
        &self,
        peer: PeerId,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> Result<bool, ApiError> {
        own(peer, session)?;
        let events = self.command(Command::Complete { session, lease, outcome }).await?;
        // A repeated report has no events: the first one counted, or its answer said that it did not.
        let credited = events.iter().find_map(|event| match event {
            Event::Completed { lease: done, credited, .. } if *done == lease => Some(*credited),
            _ => None,
        });
        Ok(credited.unwrap_or(true))
    }

    async fn fail(
        &self,
        peer: PeerId,
        session: Session,
        lease: LeaseId,
        failure: Failure,
    ) -> Result<(), ApiError> {
        own(peer, session)?;
        self.command(Command::Fail { session, lease, failure }).await.map(drop)
    }

    async fn status(&self) -> Result<RunStatus, ApiError> {
        let state = Arc::clone(&self.state.borrow());
        Ok(status(&state, self.clock.now()))
    }
}

impl From<Gone> for ApiError {
    fn from(Gone: Gone) -> Self {
        Self::Unavailable { retry_after: std::time::Duration::from_secs(1) }
    }
}
