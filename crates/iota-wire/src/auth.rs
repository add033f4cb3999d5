//! Who sent a request, and whether it was sent just now, once, and for us.
//!
//! ```text
//!  iota-auth-bin --> well-formed? --> our method, run, key? --> made just now? --> signed? --> nonce new? --> rate?
//!                                                                                                              |
//!  message bytes ----------------------------------------> BLAKE3 as signed? <---------------------------------'
//! ```
//!
//! The signature covers the digest of the message *as it travels*. The server compares raw bytes and never encodes a
//! message again: protobuf has no canonical form, so an encoding of a decoded message may differ from what was signed
//! (unknown fields of a newer client, another order of fields). And because the digest is in the signed part, everything
//! but the digest is checked before a byte of the message is read: who has no valid key cannot make us buffer anything.
//!
//! A request is good for one use. Nonces are remembered as long as their request counts as fresh; when the
//! memory is full, the oldest are forgotten and with them everything made before them is refused, so forgetting never
//! lets a replay in.

pub(crate) mod header;
pub(crate) mod layer;
mod nonces;
mod rate;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use iota_protocol::{Digest, PeerId, RunId, Timestamp};

use crate::auth::header::SignedHeader;
use crate::auth::nonces::Nonces;
use crate::auth::rate::Buckets;
use crate::error::{ApiError, AuthFailure};

/// What an [`Authenticator`] accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthSettings {
    /// The run that requests must be about.
    pub run: RunId,
    /// The key that requests must be for: the orchestrator's own.
    pub audience: PeerId,
    /// How old a request may be by the server's clock: as long as it may have been on its way.
    pub skew: Duration,
    /// How far a request's time may lie ahead of the server's clock. Little: whoever is refused is told the time and can
    /// sign again, and an authenticator that [takes the place of another](Authenticator::floor_after) has to wait for so long.
    pub ahead: Duration,
    /// Nonces to remember. Each takes some 60 bytes; a busy run needs requests per second times the skew.
    pub nonces_max: usize,
    /// How often each peer may call.
    pub rate: RateSettings,
}

/// How often a peer may call: so many requests at once, and so many per second on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateSettings {
    /// Requests per second, on average. At least 1.
    pub requests_per_second: u32,
    /// Requests at once. At least 1.
    pub burst: u32,
    /// Peers to keep count of. When as many are calling faster than they are forgotten, strangers have to wait.
    pub peers_max: usize,
}

impl AuthSettings {
    /// Settings for a run of some thousand miners: 30 s of skew, half a second ahead, 100 requests per second and peer,
    /// bursts of 500.
    pub fn new(run: RunId, audience: PeerId) -> Self {
        Self {
            run,
            audience,
            skew: Duration::from_secs(30),
            ahead: Duration::from_millis(500),
            nonces_max: 1 << 20,
            rate: RateSettings::default(),
        }
    }
}

impl Default for RateSettings {
    fn default() -> Self {
        Self {
            requests_per_second: 100,
            burst: 500,
            peers_max: 100_000,
        }
    }
}

/// Decides which requests are authentic. Knows no clock and no transport: time and bytes come in.
#[derive(Debug)]
pub struct Authenticator {
    settings: AuthSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nonces: Nonces,
    buckets: Buckets,
}

/// A request whose sender is known. Its message is still to be compared with the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authentic {
    /// Who sent it.
    pub peer: PeerId,
    /// BLAKE3 that its message must have.
    pub body_digest: Digest,
}

impl Authenticator {
    /// What an authenticator has to refuse that takes the place of another, whose process has ended before `now`: requests
    /// made up to this time. Nothing that the other accepted can then come again. Until it has passed, nobody's requests
    /// are accepted; so wait for it before serving.
    pub fn floor_after(settings: &AuthSettings, now: Timestamp) -> Timestamp {
        now + settings.ahead
    }

    /// Accepts only requests made after `floor`.
    ///
    /// Nonces live in memory. After a restart, pass [`Self::floor_after`] it. A new run starts from zero.
    pub fn new(settings: AuthSettings, floor: Timestamp) -> Self {
        let state = State {
            nonces: Nonces::new(settings.nonces_max, floor),
            buckets: Buckets::new(settings.rate),
        };
        Self {
            settings,
            state: Mutex::new(state),
        }
    }

    /// Checks a request for `method` (such as `iota.v1.OrchestratorService/Join`) that carries `header`, at `now` by the
    /// server's clock. What it accepts is used up: the same header is refused from then on.
    ///
    /// # Errors
    /// [`ApiError::Unauthenticated`] with what is wrong, or [`ApiError::RateLimited`].
    pub fn authenticate(
        &self,
        now: Timestamp,
        method: &str,
        header: &[u8],
    ) -> Result<Authentic, ApiError> {
        let header = SignedHeader::decode(header)?;
        if header.method != method {
            return Err(AuthFailure::WrongMethod.into());
        }
        if header.run != self.settings.run {
            return Err(AuthFailure::WrongRun.into());
        }
        if header.audience != self.settings.audience {
            return Err(AuthFailure::WrongAudience.into());
        }
        let stale = AuthFailure::Stale { server_time: now };
        let (age, lead) = (now.since(header.issued_at), header.issued_at.since(now));
        if age > self.settings.skew || lead > self.settings.ahead {
            return Err(stale.into());
        }
        header.verify()?;

        // Expensive checks are over: the lock is held for a few look-ups.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { nonces, buckets } = &mut *state;
        nonces.forget_before(Timestamp::from_millis(
            now.as_millis()
                .saturating_sub(whole_millis(self.settings.skew)),
        ));
        if header.issued_at <= nonces.floor() {
            return Err(stale.into());
        }
        if nonces.contains(header.issued_at, header.peer, header.nonce) {
            return Err(AuthFailure::Replayed.into());
        }
        // A refused request leaves no nonce behind, so that one peer cannot fill the memory; it has had no effect and
        // may well come again. A replay is found before it is counted against the peer.
        buckets.take(now, header.peer)?;
        nonces.remember(header.issued_at, header.peer, header.nonce);
        Ok(Authentic {
            peer: header.peer,
            body_digest: header.body_digest,
        })
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
