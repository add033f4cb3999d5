//! The hash that ties each entry to all before it.

/// Where a chain stands: BLAKE3 over everything up to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    /// The last entry; 0 for the genesis.
    pub(crate) sequence: u64,
    pub(crate) hash: [u8; 32],
}

impl Link {
    /// The beginning of a chain: BLAKE3 of the genesis as it is written.
    pub(crate) fn first(genesis: &[u8]) -> Self {
        Self {
            sequence: 0,
            hash: *blake3::hash(genesis).as_bytes(),
        }
    }

    /// BLAKE3 over this hash, the sequence and the time (8 bytes each, little-endian), and the events as they are written.
    /// All but the last have a fixed length, so no two histories are the same bytes.
    #[must_use]
    pub(crate) fn next(&self, at_ms: u64, events: &[u8]) -> Self {
        let sequence = self.sequence + 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.hash);
        hasher.update(&sequence.to_le_bytes());
        hasher.update(&at_ms.to_le_bytes());
        hasher.update(events);
        Self {
            sequence,
            hash: *hasher.finalize().as_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_entry_and_everything_before_it_counts() {
        let start = Link::first(b"genesis");
        let next = start.next(7, b"events");
        assert_eq!((next.sequence, start.next(7, b"events")), (1, next));
        let others = [
            Link::first(b"another").next(7, b"events"),
            start.next(8, b"events"),
            start.next(7, b"event"),
            Link {
                sequence: 1,
                ..start
            }
            .next(7, b"events"),
        ];
        assert!(others.iter().all(|other| other.hash != next.hash));
    }
}
