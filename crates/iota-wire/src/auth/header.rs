//! The signed statement that travels beside a request.

use iota_identity::{Keypair, Signature, verify};
use iota_protocol::{Digest, PeerId, RunId, Timestamp};
use prost::Message as _;

use crate::error::AuthFailure;
use crate::proto;

/// Name of the metadata entry. gRPC sends entries that end in `-bin` as base64.
pub(crate) const METADATA_KEY: &str = "iota-auth-bin";

/// Longer entries are refused unread. A full one takes some 270 bytes.
const LENGTH_MAX_BYTES: usize = 1024;

/// Comes first in everything that is signed, so that a signature made for another purpose is never one of these.
const DOMAIN: &[u8] = b"iota/v1/request\0";

/// What a request's sender states about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) peer: PeerId,
    pub(crate) run: RunId,
    pub(crate) audience: PeerId,
    pub(crate) method: String,
    pub(crate) body_digest: Digest,
    pub(crate) issued_at: Timestamp,
    pub(crate) nonce: [u8; 16],
}

impl Header {
    /// The bytes that are signed. Every field has a fixed length or its length before it, so that no two headers share
    /// their bytes.
    fn signed_bytes(&self) -> Vec<u8> {
        let method_bytes = u32::try_from(self.method.len()).expect("names of methods are short");
        [
            DOMAIN,
            self.peer.as_bytes(),
            self.run.as_bytes(),
            self.audience.as_bytes(),
            &method_bytes.to_le_bytes(),
            self.method.as_bytes(),
            self.body_digest.as_bytes(),
            &self.issued_at.as_millis().to_le_bytes(),
            &self.nonce,
        ]
        .concat()
    }

    /// The metadata entry, signed by `keypair`, whose peer this header must name.
    pub(crate) fn sign(self, keypair: &Keypair) -> Vec<u8> {
        let signature = keypair.sign(&self.signed_bytes());
        let message = proto::RequestAuth {
            public_key: self.peer.as_bytes().to_vec(),
            run: self.run.as_bytes().to_vec(),
            audience: self.audience.as_bytes().to_vec(),
            method: self.method,
            body_digest: self.body_digest.as_bytes().to_vec(),
            issued_at_ms: self.issued_at.as_millis(),
            nonce: self.nonce.to_vec(),
            signature: signature.as_bytes().to_vec(),
        };
        message.encode_to_vec()
    }
}

/// A header as it came in; whether the signature is right is [`Self::verify`]'s to say.
#[derive(Debug)]
pub(crate) struct SignedHeader {
    header: Header,
    signature: Signature,
}

impl SignedHeader {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, AuthFailure> {
        if bytes.len() > LENGTH_MAX_BYTES {
            return Err(AuthFailure::Malformed);
        }
        let message = proto::RequestAuth::decode(bytes).map_err(|_| AuthFailure::Malformed)?;
        Ok(Self {
            header: Header {
                peer: PeerId::from_bytes(exact(&message.public_key)?),
                run: RunId::from_bytes(exact(&message.run)?),
                audience: PeerId::from_bytes(exact(&message.audience)?),
                method: message.method,
                body_digest: Digest::from_bytes(exact(&message.body_digest)?),
                issued_at: Timestamp::from_millis(message.issued_at_ms),
                nonce: exact(&message.nonce)?,
            },
            signature: Signature::from_bytes(exact(&message.signature)?),
        })
    }

    pub(crate) fn verify(&self) -> Result<(), AuthFailure> {
        verify(
            &self.header.peer,
            &self.header.signed_bytes(),
            &self.signature,
        )
        .map_err(|_| AuthFailure::BadSignature)
    }
}

impl std::ops::Deref for SignedHeader {
    type Target = Header;

    fn deref(&self) -> &Header {
        &self.header
    }
}

fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], AuthFailure> {
    bytes.try_into().map_err(|_| AuthFailure::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_header_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            // Protobuf takes many byte strings for messages; none of them has ids of the right lengths by chance.
            prop_assert_eq!(SignedHeader::decode(&bytes).unwrap_err(), AuthFailure::Malformed);
        }
    }

    #[test]
    fn the_signed_bytes_are_as_documented() {
        let header = Header {
            peer: PeerId::from_bytes([1; 32]),
            run: RunId::from_bytes([2; 16]),
            audience: PeerId::from_bytes([3; 32]),
            method: "ab".to_owned(),
            body_digest: Digest::from_bytes([4; 32]),
            issued_at: Timestamp::from_millis(0x0506),
            nonce: [7; 16],
        };
        let mut expected = b"iota/v1/request\0".to_vec();
        expected.extend([1; 32]);
        expected.extend([2; 16]);
        expected.extend([3; 32]);
        expected.extend([2, 0, 0, 0, b'a', b'b']);
        expected.extend([4; 32]);
        expected.extend([6, 5, 0, 0, 0, 0, 0, 0]);
        expected.extend([7; 16]);
        assert_eq!(header.signed_bytes(), expected);
    }
}
