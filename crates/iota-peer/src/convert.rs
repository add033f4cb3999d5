//! Grants as they travel into grants that can be used.

use iota_protocol::work::Failure;
use iota_store::{Grant, Method};
use iota_wire::GrantMethod;

/// # Errors
/// [`Failure::Internal`] if the grant's address is none: the orchestrator's fault, which cannot be helped from here.
pub(crate) fn grant(travelling: &iota_wire::Grant) -> Result<Grant, Failure> {
    Ok(Grant {
        method: match travelling.method {
            GrantMethod::Get => Method::Get,
            GrantMethod::Put => Method::Put,
        },
        url: travelling.url.parse().map_err(|_| Failure::Internal)?,
        headers: travelling.headers.clone(),
        length_bytes: travelling.length_bytes,
        digest: travelling.digest,
        expires_at_ms: travelling.expires_at.as_millis(),
    })
}
