//! Answers about the run, and the long poll's question and answer.
//!
//! Requests carry a session's generation only: whose it is follows from who signed.

use std::time::Duration;

use iota_protocol::{Epoch, PeerId, Session, Timestamp};

use super::id::{lease_numbers, leases, peer, run, stage};
use super::{ConversionError, at_most, chosen, repeated, required};
use crate::limits::{CONFIG_BYTES_MAX, HOLD_MAX, LEASES_MAX, STAGES_MAX};
use crate::message::{Joined, RunInfo, RunStatus, WorkReply, WorkRequest, WorkStatus};
use crate::proto;

impl From<RunInfo> for proto::GetRunResponse {
    fn from(info: RunInfo) -> Self {
        Self {
            run: info.run.as_bytes().to_vec(),
            orchestrator: info.orchestrator.as_bytes().to_vec(),
            server_time_ms: info.server_time.as_millis(),
            protocol_version: info.protocol_version,
            config: info.config,
        }
    }
}

impl TryFrom<proto::GetRunResponse> for RunInfo {
    type Error = ConversionError;

    fn try_from(message: proto::GetRunResponse) -> Result<Self, Self::Error> {
        at_most("config", message.config.len(), CONFIG_BYTES_MAX, "bytes")?;
        Ok(Self {
            run: run("run", &message.run)?,
            orchestrator: peer("orchestrator", &message.orchestrator)?,
            server_time: Timestamp::from_millis(message.server_time_ms),
            protocol_version: message.protocol_version,
            config: message.config,
        })
    }
}

impl From<Joined> for proto::JoinResponse {
    fn from(joined: Joined) -> Self {
        Self {
            generation: joined.session.generation,
            stage: joined.stage.map(|stage| stage.get().into()),
            epoch: joined.epoch.get(),
            phase: proto::Phase::from(joined.phase).into(),
        }
    }
}

impl Joined {
    /// The answer to `peer`'s request to join.
    pub(crate) fn from_message(
        message: proto::JoinResponse,
        peer: PeerId,
    ) -> Result<Self, ConversionError> {
        Ok(Self {
            session: Session {
                peer,
                generation: message.generation,
            },
            stage: message
                .stage
                .map(|number| stage("stage", number))
                .transpose()?,
            epoch: Epoch::new(message.epoch),
            phase: chosen::<proto::Phase, _>("phase", message.phase)?,
        })
    }
}

impl From<WorkRequest> for proto::GetWorkRequest {
    fn from(request: WorkRequest) -> Self {
        Self {
            generation: request.session.generation,
            room: request.room,
            held: lease_numbers(request.held),
            hold_ms: u32::try_from(request.hold.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

impl WorkRequest {
    /// `peer`'s request. A longer hold than [`HOLD_MAX`] becomes that.
    pub(crate) fn from_message(
        message: proto::GetWorkRequest,
        peer: PeerId,
    ) -> Result<Self, ConversionError> {
        at_most("held", message.held.len(), LEASES_MAX, "entries")?;
        Ok(Self {
            session: Session {
                peer,
                generation: message.generation,
            },
            room: message.room,
            held: leases(message.held),
            hold: Duration::from_millis(message.hold_ms.into()).min(HOLD_MAX),
        })
    }
}

impl From<WorkReply> for proto::GetWorkResponse {
    fn from(reply: WorkReply) -> Self {
        Self {
            leases: reply.leases.into_iter().map(Into::into).collect(),
            revoked: lease_numbers(reply.revoked),
            status: Some(reply.status.into()),
        }
    }
}

impl TryFrom<proto::GetWorkResponse> for WorkReply {
    type Error = ConversionError;

    fn try_from(message: proto::GetWorkResponse) -> Result<Self, Self::Error> {
        at_most("revoked", message.revoked.len(), LEASES_MAX, "entries")?;
        Ok(Self {
            leases: repeated("leases", message.leases, LEASES_MAX)?,
            revoked: leases(message.revoked),
            status: required("status", message.status)?,
        })
    }
}

impl From<WorkStatus> for proto::WorkStatus {
    fn from(status: WorkStatus) -> Self {
        Self {
            phase: proto::Phase::from(status.phase).into(),
            epoch: status.epoch.get(),
            run_over: status.run_over,
            phase_deadline_remaining_ms: status.phase_deadline_remaining.map(whole_millis),
        }
    }
}

impl TryFrom<proto::WorkStatus> for WorkStatus {
    type Error = ConversionError;

    fn try_from(message: proto::WorkStatus) -> Result<Self, Self::Error> {
        Ok(Self {
            phase: chosen::<proto::Phase, _>("phase", message.phase)?,
            epoch: Epoch::new(message.epoch),
            run_over: message.run_over,
            phase_deadline_remaining: message
                .phase_deadline_remaining_ms
                .map(Duration::from_millis),
        })
    }
}

impl From<RunStatus> for proto::RunStatus {
    fn from(status: RunStatus) -> Self {
        Self {
            phase: proto::Phase::from(status.phase).into(),
            epoch: status.epoch.get(),
            epochs: status.epochs,
            samples_completed: status.samples_completed,
            samples_in_flight: status.samples_in_flight,
            samples_re_leased: status.samples_re_leased,
            work_finished: status.work_finished,
            work_wasted: status.work_wasted,
            tokens_trained: status.tokens_trained,
            tokens_per_second: status.tokens_per_second,
            loss: status.loss,
            miners_per_stage: status.miners_per_stage,
            registration_is_open: status.registration_is_open,
            waiting: status.waiting,
            validators: status.validators,
            audits_passed: status.audits_passed,
            audits_failed: status.audits_failed,
            banned: status.banned,
            elapsed_ms: whole_millis(status.elapsed),
            phase_deadline_remaining_ms: status.phase_deadline_remaining.map(whole_millis),
        }
    }
}

impl TryFrom<proto::RunStatus> for RunStatus {
    type Error = ConversionError;

    fn try_from(message: proto::RunStatus) -> Result<Self, Self::Error> {
        at_most(
            "miners_per_stage",
            message.miners_per_stage.len(),
            STAGES_MAX,
            "entries",
        )?;
        Ok(Self {
            phase: chosen::<proto::Phase, _>("phase", message.phase)?,
            epoch: Epoch::new(message.epoch),
            epochs: message.epochs,
            samples_completed: message.samples_completed,
            samples_in_flight: message.samples_in_flight,
            samples_re_leased: message.samples_re_leased,
            work_finished: message.work_finished,
            work_wasted: message.work_wasted,
            tokens_trained: message.tokens_trained,
            tokens_per_second: message.tokens_per_second,
            loss: message.loss,
            miners_per_stage: message.miners_per_stage,
            registration_is_open: message.registration_is_open,
            waiting: message.waiting,
            validators: message.validators,
            audits_passed: message.audits_passed,
            audits_failed: message.audits_failed,
            banned: message.banned,
            elapsed: Duration::from_millis(message.elapsed_ms),
            phase_deadline_remaining: message
                .phase_deadline_remaining_ms
                .map(Duration::from_millis),
        })
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
