//! Entries and snapshots as bytes.
//!
//! Both are JSON, which people and other programs can read for as long as there are journals. An entry's events are short.
//! A whole state repeats its field names a thousand times over, so a snapshot is packed: to about a fifth (docs/BENCHES.md);
//! and so is a page of entries.

use iota_protocol::{Event, State};

use crate::Genesis;

/// The first byte of a snapshot or a page. Another way of packing gets another number.
const DEFLATED_JSON: u8 = 1;
/// The fastest level that packs at all: a state is packed many times and read once.
const LEVEL: u8 = 1;

/// What is wrong with bytes that were once written by this module.
pub type Malformed = String;

/// The whole state of a run after an entry, packed. The same state gives the same bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub(crate) sequence: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Snapshot {
    /// Packs a state. Takes a moment (docs/BENCHES.md); needs nothing but the state, so any thread will do.
    pub fn of(sequence: u64, state: &State) -> Self {
        let json = serde_json::to_vec(state).expect("a state can be JSON");
        let bytes = pack(&json);
        Self { sequence, bytes }
    }

    /// The entry that it was taken after; 0 for none.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Its length, packed.
    pub const fn length_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The state that was packed.
    ///
    /// # Errors
    /// What is wrong with the bytes, if they are not those that were packed.
    pub fn state(&self) -> Result<State, Malformed> {
        serde_json::from_slice(&unpack(&self.bytes)?).map_err(|error| error.to_string())
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A state holds the run's secret.
        f.debug_struct("Snapshot")
            .field("sequence", &self.sequence)
            .field("length_bytes", &self.bytes.len())
            .finish()
    }
}

pub(crate) fn pack(text: &[u8]) -> Vec<u8> {
    let mut bytes = vec![DEFLATED_JSON];
    bytes.append(&mut miniz_oxide::deflate::compress_to_vec(text, LEVEL));
    bytes
}

pub(crate) fn unpack(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let packed = match bytes.split_first() {
        Some((&DEFLATED_JSON, packed)) => packed,
        Some((other, _)) => return Err(format!("it is packed in an unknown way, {other}")),
        None => return Err("it is empty".to_owned()),
    };
    miniz_oxide::inflate::decompress_to_vec(packed)
        .map_err(|error| format!("it cannot be unpacked: {error}"))
}

pub(crate) fn encode_genesis(genesis: &Genesis) -> String {
    serde_json::to_string(genesis).expect("settings can be JSON")
}

pub(crate) fn decode_genesis(text: &str) -> Result<Genesis, Malformed> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

pub(crate) fn encode_events(events: &[Event]) -> String {
    serde_json::to_string(events).expect("events can be JSON")
}

pub(crate) fn decode_events(text: &str) -> Result<Vec<Event>, Malformed> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}
