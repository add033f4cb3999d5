//! What an audit needs of its subject: what that began the epoch with, which nobody else has.
//!
//! ```text
//! end of epoch n      every miner   uploads, and says what it keeps is: digest and length
//!                                              │
//! epoch n + 1         trains on from it ◄──────┘ it stays where it is
//!
//! end of epoch n + 1  the draw      tells nobody
//!                     every miner   uploads, and says what it keeps now is
//!                     the drawn     are asked for what they had said a whole epoch ago, and store it
//! ```
//!
//! What a miner keeps for itself is several times its parameters, and few are audited: so all seal it and the drawn store
//! it. Who was drawn learns it only when its upload is committed to, and everybody else only when that is too late to
//! change anything: nobody uploads in the knowledge that nobody will look. The lease names the seal, so that a subject
//! cannot choose its past: other bytes are found by whoever reads them, and end as any other lie.
//!
//! Whoever was drawn may refuse: it leaves, does not upload, or lets the time to upload go by. Nobody can tell that from a
//! machine that failed, so nobody is banned for it. But the epoch is not paid, as no work is that nobody can redo, and from
//! then on its peer begins every epoch with nothing, so that no audit of it needs anything of it again; the next draw has
//! it first. What a cheater gains by it is once in a run not to be found, for an epoch's pay.

use crate::event::{AbandonReason, Event, Phase, SessionEnd};
use crate::id::{Session, StageIndex};
use crate::state::{Audit, Coverage, State};
use crate::work::{ObjectRef, Purpose, Seal, Work};

/// What a session has yet to hand over, at least one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) began_with: Option<Seal>,
    pub(crate) keeps: Option<Seal>,
}

impl State {
    /// What the subject of an audit that waits for it has yet to hand over; none if that is nothing.
    pub(crate) fn owed_for(&self, audit: &Audit) -> Option<Owed> {
        let (Some(coverage), Work::Replay { kept, .. }) = (audit.awaits, &audit.work) else {
            return None;
        };
        let subject = self.session(audit.subject)?;
        let began_with = if self.is_ahead(subject) {
            subject.began_before
        } else {
            subject.began_with
        };
        let began_with = began_with.filter(|_| kept.is_none());
        // What nobody goes on with is of no interest.
        let compared = coverage == Coverage::Everything
            && self.settings.merging.compares_kept
            && !self.has_withheld(audit.subject);
        let upload = self.merge_of(audit.stage).uploads.get(&audit.subject);
        let record = upload.filter(|_| compared).map(|upload| &upload.record);
        let keeps = record
            .filter(|record| record.keeps_at.is_none())
            .and_then(|record| record.keeps);
        (began_with.is_some() || keeps.is_some()).then_some(Owed { began_with, keeps })
    }

    fn owed(&self, session: Session) -> Option<Owed> {
        let audit = self.session(session)?.drawn?;
        self.owed_for(self.audits.pending.get(&audit)?)
    }

    /// Whether a session is asked for its upload.
    pub(crate) fn has_yet_to_upload(&self, stage: StageIndex, session: Session) -> bool {
        let installed = || {
            let state = self.session(session);
            state.is_some_and(|state| state.is_installed(self.epoch))
        };
        self.phase == Phase::Uploading
            && self.merge_of(stage).waits_for_upload_of(session)
            && installed()
    }

    /// What a session is asked to hand over now; none before it has uploaded, if it is to.
    pub(crate) fn may_hand_over(&self, session: Session) -> Option<Owed> {
        let stage = self.session(session)?.stage?;
        let is_asked = self.phase == Phase::Uploading && !self.has_yet_to_upload(stage, session);
        self.owed(session).filter(|_| is_asked)
    }

    /// The work of handing that over, under new names.
    pub(crate) fn what_to_hand_over(&self, session: Session) -> Option<Work> {
        let owed = self.may_hand_over(session)?;
        let named = |seal: Option<Seal>, index| {
            seal.map(|seal| ObjectRef {
                name: self.object_name(Purpose::Kept, index),
                seal,
            })
        };
        Some(Work::HandOver {
            began_with: named(owed.began_with, 0),
            keeps: named(owed.keeps, 1),
        })
    }

    /// Whether a session goes on with what it kept for itself when it uploaded last.
    pub(crate) fn goes_on(&self, session: Session) -> bool {
        let may_install = self.trains_for() == self.epoch;
        let state = self.session(session);
        let goes_on =
            state.is_some_and(|it| it.keeps.is_some() || (may_install && self.is_ahead(it)));
        goes_on && !self.has_withheld(session)
    }

    fn has_withheld(&self, session: Session) -> bool {
        let peer = self.peer(session.peer);
        peer.is_some_and(|record| record.ledger.withheld)
    }

    /// The time to upload is over: what has not been handed over will not be asked for again, and nobody goes on with what it
    /// has come to since.
    pub(crate) fn nothing_handed_over(&self) -> impl Iterator<Item = Event> {
        let waiting = self.audits_pending();
        let owing = waiting.filter(|(_, audit)| self.owed_for(audit).is_some());
        owing.flat_map(|(audit, state)| {
            let subject = state.subject;
            let why = AbandonReason::NotHandedOver;
            let abandoned = Event::AuditAbandoned {
                audit,
                subject,
                why,
            };
            self.recall_passes_of(subject).chain([abandoned])
        })
    }

    /// A session ends: what it has not handed over is gone with it, and the audit that needs it.
    pub(crate) fn takes_along(&self, session: Session, end: SessionEnd) -> Option<Event> {
        self.owed(session)?;
        Some(Event::AuditAbandoned {
            audit: self.session(session)?.drawn?,
            subject: session,
            why: match end {
                SessionEnd::Banned => AbandonReason::SubjectBanned,
                SessionEnd::RunOver => AbandonReason::RunOver,
                SessionEnd::Restored => AbandonReason::Restored,
                SessionEnd::Left
                | SessionEnd::Silent
                | SessionEnd::Replaced
                | SessionEnd::CannotInstall
                | SessionEnd::Idle => AbandonReason::NotHandedOver,
            },
        })
    }

    pub(crate) fn apply_handed_over(
        &mut self,
        session: Session,
        stage: StageIndex,
        began_with: Option<ObjectRef>,
        keeps: Option<ObjectRef>,
    ) {
        let drawn = self.session(session).and_then(|state| state.drawn);
        let audit = drawn.and_then(|id| self.audits.pending.get_mut(&id));
        if let Some(Work::Replay { kept, .. }) = audit.map(|audit| &mut audit.work) {
            *kept = began_with.or(*kept);
        }
        let merge = &mut self.merging[usize::from(stage.get())];
        let objects = [began_with, keeps].into_iter().flatten();
        merge.handed_over_bytes += objects.map(|object| object.seal.length).sum::<u64>();
        if let Some(upload) = merge.uploads.get_mut(&session) {
            upload.record.keeps_at = keeps.map(|object| object.name).or(upload.record.keeps_at);
        }
        self.close_log_once_complete(session);
    }

    /// Gives an audit what it redoes, if its subject has uploaded; it may begin if that has handed over all that is asked of
    /// it.
    pub(crate) fn close_log_once_complete(&mut self, session: Session) {
        let stage = self.session(session).and_then(|state| state.stage);
        let has_uploaded =
            stage.is_some_and(|stage| self.merge_of(stage).uploads.contains_key(&session));
        if has_uploaded {
            if self.owed(session).is_none() {
                self.close_log(session);
            } else {
                self.take_from_log(session);
            }
            self.go_ahead(session);
        }
    }
}
