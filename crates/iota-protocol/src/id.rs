//! Who and what: the names of things in a run.
//!
//! An id is a newtype with a private field. It orders, prints with a prefix and parses back, so that a log line,
//! a report and a command-line argument all spell it the same way.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: {text:?}")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $length:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Length in bytes.
            pub const LENGTH: usize = $length;

            /// Takes the bytes as they are.
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// The bytes, as they travel.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            /// The first four bytes with the prefix: enough to tell a few dozen apart on a screen.
            pub fn short(&self) -> String {
                format!(concat!($prefix, "{}"), hex(&self.0[..4]))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .and_then(unhex)
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: stringify!($name), text: text.to_owned() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $number:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($number);

        impl $name {
            /// The id with this number.
            pub const fn new(number: $number) -> Self {
                Self(number)
            }

            /// The number, as it travels.
            pub const fn get(self) -> $number {
                self.0
            }

            /// The id that follows.
            ///
            /// # Panics
            /// When the numbers have run out.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a run never uses up its ids"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .and_then(|number| number.parse().ok())
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: stringify!($name), text: text.to_owned() })
            }
        }
    };
}

bytes_id!(
    /// A miner or validator for as long as it keeps its key: its sr25519 public key.
    PeerId, 32, "peer_"
);
bytes_id!(
    /// One model being trained, with its configuration and history.
    RunId, 16, "run_"
);
bytes_id!(
    /// BLAKE3 of an object's bytes.
    Digest, 32, "b3_"
);
bytes_id!(
    /// The unguessable part of an object's key; the orchestrator chooses it, never a peer.
    ObjectId, 16, "obj_"
);
number_id!(
    /// One micro-batch of token sequences on its way through all stages.
    SampleId, u64, "smp_"
);
number_id!(
    /// Permission for one session to do one piece of work by a deadline.
    LeaseId, u64, "lse_"
);
number_id!(
    /// A place on the waiting list. Earlier tickets are before later ones, and none is given twice.
    Ticket, u64, "tkt_"
);
number_id!(
    /// A validator's look at some of a miner's work.
    AuditId, u64, "adt_"
);
number_id!(
    /// Training phase and merge; the number that every artefact is stamped with. Epoch 0 starts from the seed.
    Epoch, u64, "epoch_"
);
number_id!(
    /// Position of a part of the model, counted from the head.
    StageIndex, u16, "stage_"
);
number_id!(
    /// Position of a contiguous range of a stage's flat parameters among the ranges that are merged.
    CellIndex, u32, "cell_"
);

impl Digest {
    /// BLAKE3 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// One stay of a peer. A restart is a new session, so that a message from before it is recognisable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session {
    /// Whose stay.
    pub peer: PeerId,
    /// Counts the stays of this peer in this run, from 1.
    pub generation: u32,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.peer, self.generation)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}", self.peer, self.generation)
    }
}

impl FromStr for Session {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let invalid = || ParseIdError {
            kind: "Session",
            text: text.to_owned(),
        };
        let (peer, generation) = text.split_once('#').ok_or_else(invalid)?;
        Ok(Self {
            peer: peer.parse()?,
            generation: generation.parse().map_err(|_| invalid())?,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
            text
        })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_with_their_prefix_and_parse_back() {
        let peer = PeerId::from_bytes([0xab; 32]);
        assert_eq!(peer.to_string().parse(), Ok(peer));
        assert_eq!(peer.short(), "peer_abababab");
        let session = Session {
            peer,
            generation: 3,
        };
        assert_eq!(session.to_string().parse(), Ok(session));
        assert_eq!("smp_17".parse(), Ok(SampleId::new(17)));
    }

    #[test]
    fn what_is_not_an_id_does_not_parse() {
        assert!("smp_-1".parse::<SampleId>().is_err());
        assert!("lse_17".parse::<SampleId>().is_err());
        assert!(
            format!("peer_{}", "é".repeat(32))
                .parse::<PeerId>()
                .is_err()
        );
        assert!("peer_AB".parse::<PeerId>().is_err());
        assert!("peer_00".parse::<Session>().is_err());
    }
}
