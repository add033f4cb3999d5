//! What a miner kept for itself at the end of an epoch, as it said that it is: held until nobody can ask for it any more.

use bytes::Bytes;
use iota_protocol::Digest;
use iota_protocol::work::Seal;

/// What was kept, encoded, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) seal: Seal,
    bytes: Bytes,
}

impl Kept {
    pub(crate) fn new(bytes: Bytes) -> Self {
        let seal = Seal {
            digest: Digest::of(&bytes),
            length: bytes.len() as u64,
        };
        Self { seal, bytes }
    }
}

/// What an audit may ask a session for. While an epoch trains that is what it began with; between its upload and the next
/// installation also what it keeps since: `iota_peer::PeerMemory` counts on both.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sealed {
    began_with: Option<Kept>,
    keeps: Option<Kept>,
}

impl Sealed {
    /// An epoch begins, with what was kept if the session goes on with that. Saying so twice changes nothing.
    pub(crate) fn begin_epoch(&mut self, goes_on: bool) {
        let kept = self.keeps.take().or_else(|| self.began_with.take());
        self.began_with = kept.filter(|_| goes_on);
    }

    /// The epoch is uploaded. Saying so twice changes nothing.
    pub(crate) fn end_epoch(&mut self, keeps: Kept) {
        self.keeps = Some(keeps);
    }

    /// What was said to be this, if it may still be asked for.
    pub(crate) fn get(&self, seal: &Seal) -> Option<Bytes> {
        let held = [&self.began_with, &self.keeps].into_iter().flatten();
        let mut same = held.filter(|kept| kept.seal == *seal);
        same.next().map(|kept| kept.bytes.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(content: &'static str) -> Kept {
        Kept::new(Bytes::from_static(content.as_bytes()))
    }

    #[test]
    fn what_an_epoch_began_with_is_held_until_the_next_begins() {
        let mut sealed = Sealed::default();
        let (first, second) = (kept("first"), kept("second"));
        sealed.begin_epoch(false);
        sealed.end_epoch(first.clone());
        for _ in 0..2 {
            sealed.begin_epoch(true);
            assert_eq!(sealed.get(&first.seal), Some(first.bytes.clone()));
        }
        for _ in 0..2 {
            sealed.end_epoch(second.clone());
            assert!(sealed.get(&first.seal).is_some() && sealed.get(&second.seal).is_some());
        }
        sealed.begin_epoch(true);
        assert_eq!(sealed.get(&first.seal), None);
        assert_eq!(sealed.get(&second.seal), Some(second.bytes));
    }

    #[test]
    fn who_begins_anew_holds_nothing() {
        let mut sealed = Sealed::default();
        sealed.end_epoch(kept("first"));
        sealed.begin_epoch(false);
        assert_eq!(sealed.get(&kept("first").seal), None);
    }
}
