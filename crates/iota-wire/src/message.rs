//! What travels besides the protocol's own values: grants, and the questions and answers of each call.

use std::fmt;
use std::time::Duration;

use iota_protocol::event::Phase;
use iota_protocol::work::{Lease, ObjectName};
use iota_protocol::{Digest, Epoch, LeaseId, PeerId, RunId, Session, StageIndex, Timestamp};

/// A lease together with access to everything that it reads and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct LeasedWork {
    /// The lease.
    pub lease: Lease,
    /// One per object and direction.
    pub grants: Vec<Grant>,
}

/// Permission to make one HTTP request, good for one object.
///
/// Whoever has it can use it, so `Debug` leaves out the query of the URL, which holds the signature, and the headers.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    /// What the request is for.
    pub target: GrantTarget,
    /// What may be done with it.
    pub method: GrantMethod,
    /// Where to.
    pub url: String,
    /// Headers, name and value, that must be sent just so.
    pub headers: Vec<(String, String)>,
    /// Length of the object in bytes.
    pub length_bytes: u64,
    /// BLAKE3 of the object, where it is known.
    pub digest: Option<Digest>,
    /// Until when it works, by the orchestrator's clock.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self
            .url
            .split_once('?')
            .map_or(self.url.as_str(), |(address, _)| address);
        f.debug_struct("Grant")
            .field("target", &self.target)
            .field("method", &self.method)
            .field("address", &address)
            .field("length_bytes", &self.length_bytes)
            .field("digest", &self.digest)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What a grant gives access to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GrantTarget {
    /// An object that the lease names.
    Object(ObjectName),
    /// A shard of the training data.
    Shard {
        /// Its position in the data set's list of shards, from 0.
        index: u32,
    },
}

/// What a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GrantMethod {
    /// To read the object.
    Get,
    /// To write the object, once.
    Put,
}

/// What a peer needs to know before it can take part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// The run.
    pub run: RunId,
    /// The orchestrator's key: the audience of signed requests.
    pub orchestrator: PeerId,
    /// The orchestrator's clock when it answered.
    pub server_time: Timestamp,
    /// Version of the protocol that it speaks; see [`PROTOCOL_VERSION`](crate::PROTOCOL_VERSION).
    pub protocol_version: u32,
    /// The model and the data, as JSON; at most [`CONFIG_BYTES_MAX`](crate::limits::CONFIG_BYTES_MAX).
    pub config: Vec<u8>,
}

/// A session, as it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The session.
    pub session: Session,
    /// The stage to hold; none for validators.
    pub stage: Option<StageIndex>,
    /// The epoch that the run is in.
    pub epoch: Epoch,
    /// Where the run stands.
    pub phase: Phase,
}

/// A session's question for work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkRequest {
    /// Whose.
    pub session: Session,
    /// Leases that it can take beyond those it holds; replaces what it said before.
    pub room: u32,
    /// Leases that it holds; at most [`LEASES_MAX`](crate::limits::LEASES_MAX).
    pub held: Vec<LeaseId>,
    /// How long to wait for something to say; at most [`HOLD_MAX`](crate::limits::HOLD_MAX).
    pub hold: Duration,
}

/// The answer to a [`WorkRequest`].
#[derive(Debug, Clone, PartialEq)]
pub struct WorkReply {
    /// The session's leases that it did not list as held; at most [`LEASES_MAX`](crate::limits::LEASES_MAX).
    pub leases: Vec<LeasedWork>,
    /// Leases among those held that are not the session's any more.
    pub revoked: Vec<LeaseId>,
    /// Where the run stands.
    pub status: WorkStatus,
}

/// Where a run stands, for a peer that waits for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkStatus {
    /// The phase.
    pub phase: Phase,
    /// The epoch.
    pub epoch: Epoch,
    /// Whether the run is over: no more work will come.
    pub run_over: bool,
    /// Time until the phase ends at the latest, in whole milliseconds; none if it has no end yet.
    pub phase_deadline_remaining: Option<Duration>,
}

/// How a run is doing, for whoever watches.
#[derive(Debug, Clone, PartialEq)]
pub struct RunStatus {
    /// The phase.
    pub phase: Phase,
    /// The epoch.
    pub epoch: Epoch,
    /// Epochs in the whole run.
    pub epochs: u64,
    /// Samples whose backward pass has reached the head.
    pub samples_completed: u64,
    /// Samples on their way.
    pub samples_in_flight: u64,
    /// Times that a sample's work had to be given to somebody else.
    pub samples_re_leased: u64,
    /// Passes of one stage over one sample that were reported as done.
    pub work_finished: u64,
    /// Of those, passes that no completed sample needed.
    pub work_wasted: u64,
    /// Tokens trained on, each counted once.
    pub tokens_trained: u64,
    /// Tokens trained on per second, lately.
    pub tokens_per_second: f64,
    /// Mean training loss lately, in nats per token.
    pub loss: Option<f64>,
    /// Live miners per stage, from the head.
    pub miners_per_stage: Vec<u32>,
    /// Whether newcomers are taken now, if there is room.
    pub registration_is_open: bool,
    /// Peers on the waiting list.
    pub waiting: u32,
    /// Live validators.
    pub validators: u32,
    /// Audits that agreed.
    pub audits_passed: u64,
    /// Audits that found a difference.
    pub audits_failed: u64,
    /// Peers found cheating.
    pub banned: u32,
    /// Time since the run began, in whole milliseconds.
    pub elapsed: Duration,
    /// Time until the phase ends at the latest, in whole milliseconds; none if it has no end yet.
    pub phase_deadline_remaining: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_grant_cannot_be_used() {
        let grant = Grant {
            target: GrantTarget::Shard { index: 3 },
            method: GrantMethod::Get,
            url: "http://store/shard?X-Amz-Signature=abc".to_owned(),
            headers: vec![("authorization".to_owned(), "secret".to_owned())],
            length_bytes: 1,
            digest: None,
            expires_at: Timestamp::from_millis(0),
        };
        let printed = format!("{grant:?}");
        assert!(printed.contains("http://store/shard"));
        assert!(
            !printed.contains("abc") && !printed.contains("secret"),
            "{printed}"
        );
    }
}
