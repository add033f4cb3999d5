//! Puts an [`Authenticator`] in front of a gRPC service, where the request is still bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use iota_protocol::{Digest, PeerId};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tower::Service;
use tracing::debug;

use crate::auth::Authenticator;
use crate::auth::header::METADATA_KEY;
use crate::clock::Clock;
use crate::error::{ApiError, AuthFailure};
use crate::limits::REQUEST_BYTES_MAX;

/// Who sent the request. In the extensions of every request that has passed the layer, unless its method is open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VerifiedPeer(pub(crate) PeerId);

/// A service that only authentic requests reach.
#[derive(Debug, Clone)]
pub(crate) struct Authenticated<S> {
    inner: S,
    gate: Arc<Gate>,
}

impl<S> Authenticated<S> {
    /// `open_methods` may be called by anybody, unsigned. Every other method of the service, known or not, is closed.
    pub(crate) fn new(
        inner: S,
        authenticator: Arc<Authenticator>,
        clock: Clock,
        open_methods: &'static [&'static str],
    ) -> Self {
        Self {
            inner,
            gate: Arc::new(Gate {
                authenticator,
                clock,
                open_methods,
            }),
        }
    }
}

impl<S: NamedService> NamedService for Authenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Authenticated<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that was polled ready goes into the future; its clone takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let gate = Arc::clone(&self.gate);
        Box::pin(async move {
            match gate.admit(request).await {
                Ok(request) => inner.call(request).await,
                Err(error) => Ok(Status::from(error).into_http()),
            }
        })
    }
}

#[derive(Debug)]
struct Gate {
    authenticator: Arc<Authenticator>,
    clock: Clock,
    open_methods: &'static [&'static str],
}

impl Gate {
    /// The request, whole and with its sender's name, if it is authentic.
    async fn admit(&self, request: Request<Body>) -> Result<Request<Body>, ApiError> {
        let (mut parts, body) = request.into_parts();
        let method = parts.uri.path().trim_start_matches('/');
        if self.open_methods.contains(&method) {
            return Ok(Request::from_parts(parts, body));
        }
        let header = auth_entry(MetadataMap::from_headers(parts.headers.clone()))?;
        let authentic = self
            .authenticator
            .authenticate(self.clock.now(), method, &header)
            .inspect_err(|error| debug!(method, %error, "request refused"))?;
        let frame = read(body).await?;
        if Digest::of(message_of(&frame)?) != authentic.body_digest {
            debug!(method, peer = %authentic.peer, "request refused: not the message that was signed");
            return Err(AuthFailure::WrongBody.into());
        }
        parts.extensions.insert(VerifiedPeer(authentic.peer));
        Ok(Request::from_parts(parts, Body::new(Full::new(frame))))
    }
}

/// The one entry. Of two, a proxy and we might read different ones.
fn auth_entry(metadata: MetadataMap) -> Result<Bytes, AuthFailure> {
    let mut entries = metadata.get_all_bin(METADATA_KEY).iter();
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        return Err(AuthFailure::Missing);
    };
    entry.to_bytes().map_err(|_| AuthFailure::Malformed)
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    match Limited::new(body, FRAME_HEAD_BYTES + REQUEST_BYTES_MAX)
        .collect()
        .await
    {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge {
            bytes_max: REQUEST_BYTES_MAX as u64,
        }),
        // The connection broke; nobody is there to read the answer.
        Err(_) => Err(AuthFailure::WrongBody.into()),
    }
}

/// The message in a unary call's only frame: a byte that says whether it is compressed (never, here), its length as a
/// big-endian 32-bit number, and the message.
fn message_of(frame: &Bytes) -> Result<&[u8], AuthFailure> {
    let mut rest: &[u8] = frame;
    if rest.len() < FRAME_HEAD_BYTES {
        return Err(AuthFailure::WrongBody);
    }
    let compressed = rest.get_u8() != 0;
    let length = rest.get_u32();
    if compressed || usize::try_from(length) != Ok(rest.len()) {
        return Err(AuthFailure::WrongBody);
    }
    Ok(rest)
}

const FRAME_HEAD_BYTES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_must_be_one_whole_plain_frame() {
        let message =
            |bytes: &'static [u8]| message_of(&Bytes::from_static(bytes)).map(<[u8]>::to_vec);
        assert_eq!(message(&[0, 0, 0, 0, 2, 7, 8]), Ok(vec![7, 8]));
        assert_eq!(message(&[0, 0, 0, 0, 0]), Ok(vec![]));
        for refused in [
            &[][..],
            &[0, 0, 0, 0],
            &[1, 0, 0, 0, 1, 7],
            &[0, 0, 0, 0, 2, 7],
            &[0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0],
            &[0, 255, 255, 255, 255, 7],
        ] {
            assert_eq!(message(refused), Err(AuthFailure::WrongBody), "{refused:?}");
        }
    }
}
