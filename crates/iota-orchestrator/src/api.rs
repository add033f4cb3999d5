//! What peers can call, in terms of the rules. Who the caller is has been verified before.

use std::sync::Arc;
use std::time::Duration;

use iota_node::clock::Clock;
use iota_protocol::event::Event;
use iota_protocol::work::{Failure, Outcome, Seal, Work};
use iota_protocol::{Command, LeaseId, PeerId, Rejection, Role, Session, State};
use iota_store::{ErrorKind, ObjectKey, Store};
use iota_wire::{
    ApiError, Joined, OrchestratorApi, RunInfo, RunStatus, WorkReply, WorkRequest, WorkStatus,
};
use tokio::sync::watch;
use tracing::warn;

use crate::owner::{Gone, OwnerHandle, Refused};

/// The service behind the wire.
#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) owner: OwnerHandle,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) status: watch::Receiver<RunStatus>,
    pub(crate) info: RunInfo,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) store: Store,
    /// Polls are held no longer, so that a session that only waits is heard of often enough.
    pub(crate) hold_max: Duration,
}

impl Api {
    async fn command(&self, command: Command) -> Result<Vec<Event>, ApiError> {
        Ok(self.owner.command(command).await??)
    }

    /// Whether a merged cell that its owner was to store is what it commits to. Every miner of the stage will install it,
    /// so it is looked at before it counts: once per cell and epoch, unless owners fail or differ, in the caller's own
    /// task. What others only commit to is compared with it by the rules.
    async fn check_merged(
        &self,
        lease: LeaseId,
        merged: &Seal,
        changed: Option<&Seal>,
    ) -> Result<(), ApiError> {
        let Some(lease) = self.owner.lease(lease).await? else {
            return Ok(());
        };
        let Work::Merge {
            output,
            delta,
            stores: true,
            ..
        } = lease.work
        else {
            return Ok(());
        };
        let written = [Some((output, merged)), delta.zip(changed)];
        for (name, seal) in written.into_iter().flatten() {
            let key = ObjectKey::object(self.info.run, name);
            match self.store.get(&key, seal).await {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Retry => {
                    return Err(ApiError::Unavailable {
                        retry_after: Duration::from_secs(1),
                    });
                }
                Err(error) => {
                    warn!(%key, %error, "a merged cell is not what its owner commits to");
                    return Err(Rejection::NotStored.into());
                }
            }
        }
        Ok(())
    }

    fn work_status(&self) -> WorkStatus {
        let state = self.state.borrow();
        WorkStatus {
            phase: state.phase(),
            epoch: state.epoch(),
            run_over: state.is_over(),
            phase_deadline_remaining: state
                .phase_deadline()
                .map(|deadline| deadline.since(self.clock.now())),
        }
    }
}

impl OrchestratorApi for Api {
    async fn run_info(&self) -> Result<RunInfo, ApiError> {
        Ok(RunInfo {
            server_time: self.clock.now(),
            ..self.info.clone()
        })
    }

    async fn join(&self, peer: PeerId, role: Role, capacity: u32) -> Result<Joined, ApiError> {
        let command = Command::Join {
            peer,
            role,
            capacity,
        };
        let events = self.owner.join(peer, command).await?.map_err(|refused| {
            let Refused { rejection, place } = refused;
            place.map_or(ApiError::Rejected(rejection), ApiError::Waiting)
        })?;
        let joined = events.iter().find_map(|event| match event {
            Event::SessionJoined { session, stage, .. } if session.peer == peer => {
                Some((*session, *stage))
            }
            _ => None,
        });
        let (session, stage) = joined.expect("a join that is not refused begins a session");
        let WorkStatus { phase, epoch, .. } = self.work_status();
        Ok(Joined {
            session,
            stage,
            epoch,
            phase,
        })
    }

    async fn leave(&self, session: Session) -> Result<(), ApiError> {
        self.command(Command::Leave { session }).await.map(drop)
    }

    async fn get_work(&self, request: WorkRequest) -> Result<WorkReply, ApiError> {
        let WorkRequest {
            session,
            room,
            held,
            hold,
        } = request;
        let until = self.clock.now() + hold.min(self.hold_max);
        let answer = self.owner.poll(session, room, held, until).await??;
        Ok(WorkReply {
            leases: answer.leases,
            revoked: answer.revoked,
            status: self.work_status(),
        })
    }

    async fn complete(
        &self,
        session: Session,
        lease: LeaseId,
        outcome: Outcome,
    ) -> Result<bool, ApiError> {
        if let Outcome::Merge { merged, delta, .. } = &outcome {
            self.check_merged(lease, merged, delta.as_ref()).await?;
        }
        let events = self
            .command(Command::Complete {
                session,
                lease,
                outcome,
            })
            .await?;
        // A repeated report has no events: the first one was recorded.
        let credited = events.iter().find_map(|event| match event {
            Event::Completed {
                lease: done,
                credited,
                ..
            } if *done == lease => Some(*credited),
            _ => None,
        });
        Ok(credited.unwrap_or(true))
    }

    async fn fail(
        &self,
        session: Session,
        lease: LeaseId,
        failure: Failure,
    ) -> Result<(), ApiError> {
        self.command(Command::Fail {
            session,
            lease,
            failure,
        })
        .await
        .map(drop)
    }

    fn watch(&self) -> watch::Receiver<RunStatus> {
        self.status.clone()
    }
}

impl From<Gone> for ApiError {
    fn from(Gone: Gone) -> Self {
        Self::Unavailable {
            retry_after: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests;
