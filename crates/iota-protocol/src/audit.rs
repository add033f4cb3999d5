//! What to audit: drawn after the work is committed, so that nobody knows beforehand what will be looked at.
//!
//! A replay starts from the epoch's checkpoint and costs as much as what it redoes, so long ones are rare: the number
//! of operations is drawn log-uniformly. Any operation can be reached, and a replay of all of them compares the upload.
//!
//! Who is audited: everybody within some epochs, and anybody at any time.
//!
//! The draw comes with the end of training. The operations are taken from the log when nothing can come to it any more:
//! once the subject has uploaded, once the time to upload is over, or when the subject leaves. What a replay needs beside
//! them nobody but the subject may have: `handing_over` asks for it.

use crate::draw::Draw;
use crate::event::Event;
use crate::id::{AuditId, Session};
use crate::state::State;
use crate::work::LogEntry;

/// Operations of one replay, at most: all of them travel in its lease.
pub(crate) const OPERATIONS_MAX: u32 = 4_096;

/// For each so many audits that are due there is one more, of somebody who is not: it costs a quarter more, and leaves a
/// miner that was just audited a chance to be audited again that is worth a thought.
const SURPRISES: usize = 4;

/// The operations of a closed log that a replay can redo, in the order in which the session did them.
///
/// An ordinal that is missing is an operation that was not reported. If the session has uploaded, that cannot have been
/// a backward pass: an honest session uploads once all of them are in its log, and whoever hides one fails the
/// comparison of what comes after. A forward pass leaves no mark on the weights, so gaps are passed over. A session that
/// has not uploaded may have been waiting to report a backward pass: nothing after its first gap is held against it.
pub(crate) fn replayable(log: &[LogEntry], uploaded: bool) -> Vec<&LogEntry> {
    let mut entries: Vec<_> = log.iter().collect();
    entries.sort_unstable_by_key(|entry| entry.ordinal);
    if !uploaded {
        let whole = entries
            .iter()
            .zip(0_u32..)
            .take_while(|(entry, place)| entry.ordinal == *place)
            .count();
        entries.truncate(whole);
    }
    entries
}

impl State {
    /// The audits of this epoch's work: of the miners whose last audit is longest ago, as many as it takes to see
    /// everybody within the number of epochs that the settings give; and of some of the others, whoever they are, so that
    /// nobody is safe for having just been audited.
    pub(crate) fn draw_audits(&self) -> Vec<Event> {
        if self.settings.validators.is_empty() {
            return Vec::new();
        }
        let secret = &self.settings.secret;
        let mut candidates: Vec<_> = self
            .sessions()
            // The log of a session that has not installed this epoch's checkpoint is of an epoch before, and so is what
            // it would be compared with.
            .filter(|(_, state)| state.installation.is_some_and(|it| it.epoch == self.epoch))
            .filter_map(|(session, state)| Some((session, state.stage?, state.log().len())))
            .filter(|(_, _, operations)| *operations > 0)
            .collect();
        candidates.sort_by_cached_key(|(session, _, _)| {
            let last = self
                .peer(session.peer)
                .and_then(|record| record.ledger.last_audited);
            let tie = Draw::about(secret, "audit subject")
                .number(self.epoch.get())
                .session(*session)
                .value();
            (last, tie, *session)
        });
        let count = candidates
            .len()
            .div_ceil(self.settings.audit_every_epochs as usize);
        let mut others = candidates.split_off(count);
        others.sort_by_cached_key(|(session, _, _)| {
            let draw = Draw::about(secret, "audit surprise").number(self.epoch.get());
            (draw.session(*session).value(), *session)
        });
        others.truncate(count.div_ceil(SURPRISES));
        candidates
            .into_iter()
            .chain(others)
            .zip(self.audits.next.get()..)
            .map(|((subject, stage, of), audit)| {
                let of = u32::try_from(of).expect("ordinals are distinct and 32 bits");
                let operations = self.draw_length(subject, of);
                Event::AuditDrawn {
                    audit: AuditId::new(audit),
                    subject,
                    stage,
                    operations,
                    of,
                }
            })
            .collect()
    }

    /// Operations to redo: log-uniform in `1..=of`, or as many as one replay may have. A power of two is drawn, then a
    /// number from it up to the next.
    fn draw_length(&self, subject: Session, of: u32) -> u32 {
        let of = of.min(OPERATIONS_MAX);
        let draw = |what| {
            Draw::about(&self.settings.secret, what)
                .number(self.epoch.get())
                .session(subject)
        };
        let power = draw("audit magnitude").below(u64::from(of.ilog2()) + 1);
        let (low, high) = (
            1_u64 << power,
            (1_u64 << (power + 1)).min(u64::from(of) + 1),
        );
        let length = low + draw("audit length").below(high - low);
        u32::try_from(length).expect("at most `of`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PeerId;
    use crate::settings::RunSettings;
    use crate::testing::settings;
    use crate::time::Timestamp;

    #[test]
    fn a_replay_is_at_most_as_long_as_a_lease_may_name_operations() {
        let subject = Session {
            peer: PeerId::from_bytes([1; 32]),
            generation: 1,
        };
        let lengths = (0..64).map(|secret| {
            let secret = [secret; 32];
            let drawn = RunSettings {
                secret,
                ..settings(1)
            };
            let state = State::new(drawn, Timestamp::default()).unwrap();
            state.draw_length(subject, 1_000_000)
        });
        let longest = lengths.max().unwrap();
        assert!((1_024..=OPERATIONS_MAX).contains(&longest), "{longest}");
    }
}
