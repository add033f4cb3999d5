//! Who is next, kept at hand: what the rules would otherwise look for among all sessions and audits.
//!
//! ```text
//!   State (facts: serialized, replayed)          Index (derived: rebuilt when a state is read)
//!     sessions ──── filed under ────────────────► by last contact, by stage and given time, what they lack
//!     audits   ──── filed under ────────────────► ready for a validator, moot, by subject
//!     cells    ──── filed under ────────────────► by whom they wait for, and whether they have come to an end
//! ```
//!
//! Each session, audit and unsettled cell is *filed*: one small record says where the index has it. After an event the records of
//! whom it touches are made anew from the facts and the difference is taken over, so a command costs time by what it
//! changes and not by how large the network is. Nothing is decided here, and the index holds nothing that the facts do
//! not say: X1 in docs/INVARIANTS.md compares it with a recount.

mod merging;

use std::collections::{BTreeMap, BTreeSet};

use crate::consequences::is_hopeless;
use crate::event::{Event, Phase};
use crate::id::{AuditId, PeerId, SampleId, Session, StageIndex};
use crate::routing::rate_of;
use crate::state::{Audit, State};
use crate::time::Timestamp;
use crate::work::{Checkpoint, Work, WorkKind};

pub(crate) use merging::MergeIndex;

/// Everything that follows from the facts and would take long to look for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Index {
    filed: BTreeMap<Session, Filed>,
    /// Every session by when it was last heard of.
    pub(crate) contacts: BTreeSet<(Timestamp, Session)>,
    /// Sessions whose last try to install has ended in vain.
    pub(crate) hopeless: BTreeSet<Session>,
    /// Miners with room that lack the epoch's checkpoint and are not at it.
    pub(crate) to_install: BTreeSet<(StageIndex, Session)>,
    /// Members of a roster with room that have not uploaded and are not at it, and whoever has yet to hand something over.
    pub(crate) to_upload: BTreeSet<(StageIndex, Session)>,
    /// By stage, of each session with room that pieces wait for: the first of them.
    pub(crate) bound: BTreeMap<StageIndex, BTreeSet<(SampleId, Session)>>,
    /// Owners with room of cells that wait for them.
    pub(crate) to_merge: BTreeSet<(StageIndex, Session)>,
    /// Miners with room that settled cells are on offer to and that are at none.
    pub(crate) to_fetch: BTreeSet<(StageIndex, Session)>,
    stages: Vec<StageIndexes>,
    merges: Vec<MergeIndex>,
    filed_audits: BTreeMap<AuditId, FiledAudit>,
    /// Audits that a validator may begin.
    pub(crate) ready_audits: BTreeSet<AuditId>,
    /// Audits that are to be abandoned.
    pub(crate) moot_audits: BTreeSet<AuditId>,
    audits_of: BTreeMap<Session, BTreeSet<AuditId>>,
    /// Audits that are inspections.
    pub(crate) disputes: usize,
}

/// What the index knows of a stage.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StageIndexes {
    /// Its miners, those with the least given time first.
    pub(crate) miners: BTreeSet<(u64, Session)>,
    /// Those of them that hold the epoch's checkpoint.
    pub(crate) installed: BTreeSet<(u64, Session)>,
    /// Those of them that may do its passes and have room.
    pub(crate) able: BTreeSet<(u64, Session)>,
    /// Those who are waited for while it uploads, and how many of them have done what is asked of them.
    pub(crate) uploaders: usize,
    pub(crate) uploaded: usize,
    forward: Sum,
    backward: Sum,
    /// Samples per second, times a million, of its miners with a measured pace.
    pub(crate) rates: Sum,
}

/// A sum and the number of its terms. It does not saturate: the terms are 64 bits wide and fewer than 2^64.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    sum: u128,
    count: u64,
}

impl Sum {
    pub(crate) const fn of(term: u64) -> Self {
        Self {
            sum: term as u128,
            count: 1,
        }
    }

    pub(crate) const fn count(self) -> u64 {
        self.count
    }

    pub(crate) const fn sum(self) -> u128 {
        self.sum
    }

    pub(crate) fn mean(self) -> Option<u64> {
        let mean = self.sum.checked_div(self.count.into())?;
        Some(u64::try_from(mean).expect("the mean of 64-bit terms has 64 bits"))
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
        }
    }

    pub(crate) const fn minus(self, part: Self) -> Self {
        Self {
            sum: self.sum - part.sum,
            count: self.count - part.count,
        }
    }
}

impl StageIndexes {
    /// The mean pace of its miners, in microseconds. Only a sample's work is measured against it.
    pub(crate) fn mean_pace_us(&self, kind: WorkKind) -> Option<u64> {
        match kind {
            WorkKind::Forward => self.forward.mean(),
            WorkKind::Backward => self.backward.mean(),
            _ => None,
        }
    }
}

/// Where the index has a session: everything in it about one session follows from this record.
#[derive(Debug, Clone, PartialEq)]
struct Filed {
    last_contact: Timestamp,
    hopeless: bool,
    /// None for a validator.
    miner: Option<FiledMiner>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct FiledMiner {
    stage: StageIndex,
    given_us: u64,
    installed: bool,
    /// Whether it may do the stage's passes now.
    trains: bool,
    has_room: bool,
    to_install: bool,
    to_fetch: bool,
    upload: Option<FiledUpload>,
    bound: Option<SampleId>,
    forward_us: Option<u64>,
    backward_us: Option<u64>,
    rate: Option<u64>,
}

/// Where a miner stands that is waited for while its stage uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FiledUpload {
    Owed,
    Leased,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct FiledAudit {
    subject: Session,
    inspection: bool,
    ready: bool,
    moot: bool,
}

impl Filed {
    fn has_room(&self) -> bool {
        self.miner.is_some_and(|miner| miner.has_room)
    }

    fn of(state: &State, session: Session) -> Option<Self> {
        let own = state.session(session)?;
        let holds = |kind| {
            state
                .leases_of(session)
                .any(|lease| lease.work.kind() == kind)
        };
        let installed = own.is_installed(state.epoch);
        let trains = state.may_train(own);
        let lacks = !installed && own.stage.is_some() && !holds(WorkKind::Install);
        let miner = own.stage.map(|stage| {
            let merge = state.merge_of(stage);
            let at = |kind| {
                if holds(kind) {
                    FiledUpload::Leased
                } else {
                    FiledUpload::Owed
                }
            };
            let upload = if state.phase != Phase::Uploading {
                None
            } else if state.has_yet_to_upload(stage, session) {
                Some(at(WorkKind::Upload))
            } else if state.may_hand_over(session).is_some() {
                Some(at(WorkKind::HandOver))
            } else {
                let waited_for = installed && merge.roster.contains(&session);
                waited_for.then_some(FiledUpload::Done)
            };
            let has_room = own.room > 0;
            let bound = state
                .samples
                .bound
                .get(&session)
                .filter(|_| trains && has_room);
            FiledMiner {
                stage,
                given_us: own.given_us,
                installed,
                trains,
                has_room,
                to_install: lacks && has_room,
                to_fetch: state.phase == Phase::Merging
                    && installed
                    && has_room
                    && !merge.to_fetch(session).is_empty()
                    && !holds(WorkKind::Fetch),
                upload,
                bound: bound.and_then(|samples| samples.first().copied()),
                forward_us: own.pace_us(WorkKind::Forward),
                backward_us: own.pace_us(WorkKind::Backward),
                rate: rate_of(own),
            }
        });
        Some(Self {
            last_contact: own.last_contact,
            hopeless: lacks && is_hopeless(own),
            miner,
        })
    }
}

impl Index {
    /// The index of a state, from nothing but its facts.
    pub(crate) fn of(state: &State) -> Self {
        let mut index = Self {
            stages: vec![StageIndexes::default(); state.settings.stages().into()],
            merges: state
                .stages()
                .map(|stage| MergeIndex::of(state, stage))
                .collect(),
            ..Self::default()
        };
        for (session, _) in state.sessions() {
            index.file(session, Filed::of(state, session));
        }
        for (id, audit) in state.audits_pending() {
            index.file_audit(id, Some(FiledAudit::of(state, audit)));
        }
        state.stages().for_each(|stage| index.note_owners(stage));
        index
    }

    pub(crate) fn stage(&self, stage: StageIndex) -> &StageIndexes {
        &self.stages[usize::from(stage.get())]
    }

    /// The first session that another index has elsewhere.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<Session> {
        let sessions = self.filed.keys().chain(other.filed.keys());
        sessions
            .copied()
            .find(|session| self.filed.get(session) != other.filed.get(session))
    }

    /// What a session adds to the rates of this stage.
    pub(crate) fn rate_in(&self, session: Session, stage: StageIndex) -> Sum {
        let miner = self.filed.get(&session).and_then(|filed| filed.miner);
        let rate = miner
            .filter(|miner| miner.stage == stage)
            .and_then(|miner| miner.rate);
        rate.map_or_else(Sum::default, Sum::of)
    }

    /// The audits of a session's work.
    pub(crate) fn audits_of(&self, subject: Session) -> impl Iterator<Item = AuditId> + '_ {
        self.audits_of.get(&subject).into_iter().flatten().copied()
    }

    fn file(&mut self, session: Session, now: Option<Filed>) {
        let before = self.filed.get(&session);
        if before == now.as_ref() {
            return;
        }
        let before = before.cloned();
        if let Some(before) = &before {
            self.take_out(session, before);
        }
        let miner = now.as_ref().or(before.as_ref()).and_then(|it| it.miner);
        match now {
            Some(now) => {
                self.put_in(session, &now);
                self.filed.insert(session, now);
            }
            None => {
                self.filed.remove(&session);
            }
        }
        if let Some(miner) = miner {
            self.note_owner(miner.stage, session);
        }
    }

    fn take_out(&mut self, session: Session, filed: &Filed) {
        self.contacts.remove(&(filed.last_contact, session));
        if filed.hopeless {
            self.hopeless.remove(&session);
        }
        let Some(miner) = &filed.miner else {
            return;
        };
        if miner.to_install {
            self.to_install.remove(&(miner.stage, session));
        }
        if miner.to_fetch {
            self.to_fetch.remove(&(miner.stage, session));
        }
        if miner.owes_upload() {
            self.to_upload.remove(&(miner.stage, session));
        }
        if let Some(sample) = miner.bound {
            take(&mut self.bound, &miner.stage, &(sample, session));
        }
        let stage = &mut self.stages[usize::from(miner.stage.get())];
        let place = (miner.given_us, session);
        stage.miners.remove(&place);
        if miner.installed {
            stage.installed.remove(&place);
        }
        if miner.is_able() {
            stage.able.remove(&place);
        }
        stage.uploaders -= usize::from(miner.upload.is_some());
        stage.uploaded -= usize::from(miner.upload == Some(FiledUpload::Done));
        for (sum, term) in stage.sums(miner) {
            *sum = sum.minus(term.map_or_else(Sum::default, Sum::of));
        }
    }

    fn put_in(&mut self, session: Session, filed: &Filed) {
        self.contacts.insert((filed.last_contact, session));
        if filed.hopeless {
            self.hopeless.insert(session);
        }
        let Some(miner) = &filed.miner else {
            return;
        };
        if miner.to_install {
            self.to_install.insert((miner.stage, session));
        }
        if miner.to_fetch {
            self.to_fetch.insert((miner.stage, session));
        }
        if miner.owes_upload() {
            self.to_upload.insert((miner.stage, session));
        }
        if let Some(sample) = miner.bound {
            let bound = self.bound.entry(miner.stage).or_default();
            bound.insert((sample, session));
        }
        let stage = &mut self.stages[usize::from(miner.stage.get())];
        let place = (miner.given_us, session);
        stage.miners.insert(place);
        if miner.installed {
            stage.installed.insert(place);
        }
        if miner.is_able() {
            stage.able.insert(place);
        }
        stage.uploaders += usize::from(miner.upload.is_some());
        stage.uploaded += usize::from(miner.upload == Some(FiledUpload::Done));
        for (sum, term) in stage.sums(miner) {
            *sum = sum.plus(term.map_or_else(Sum::default, Sum::of));
        }
    }

    fn file_audit(&mut self, id: AuditId, now: Option<FiledAudit>) {
        let before = self.filed_audits.get(&id).copied();
        if before == now {
            return;
        }
        if let Some(before) = before {
            self.filed_audits.remove(&id);
            self.ready_audits.remove(&id);
            self.moot_audits.remove(&id);
            self.disputes -= usize::from(before.inspection);
            take(&mut self.audits_of, &before.subject, &id);
        }
        if let Some(now) = now {
            self.filed_audits.insert(id, now);
            if now.ready {
                self.ready_audits.insert(id);
            }
            if now.moot {
                self.moot_audits.insert(id);
            }
            self.disputes += usize::from(now.inspection);
            self.audits_of.entry(now.subject).or_default().insert(id);
        }
    }
}

/// Takes one out of a set of sets, and the set with its last one.
fn take<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

impl FiledMiner {
    const fn is_able(&self) -> bool {
        self.trains && self.has_room
    }

    fn owes_upload(&self) -> bool {
        self.has_room && self.upload == Some(FiledUpload::Owed)
    }
}

impl StageIndexes {
    /// Each sum, and what a miner adds to it.
    const fn sums(&mut self, miner: &FiledMiner) -> [(&mut Sum, Option<u64>); 3] {
        [
            (&mut self.forward, miner.forward_us),
            (&mut self.backward, miner.backward_us),
            (&mut self.rates, miner.rate),
        ]
    }
}

impl FiledAudit {
    fn of(state: &State, audit: &Audit) -> Self {
        Self {
            subject: audit.subject,
            inspection: matches!(audit.work, Work::Inspect { .. }),
            ready: audit.awaits.is_none() && audit.lease.is_none(),
            moot: state.why_moot(audit).is_some(),
        }
    }
}

impl State {
    /// Files a session anew.
    pub(crate) fn refile(&mut self, session: Session) {
        let filed = Filed::of(self, session);
        self.index.file(session, filed);
    }

    fn refile_miners(&mut self, stage: StageIndex) {
        let miners = &self.sessions.miners[usize::from(stage.get())];
        for session in miners.iter().copied().collect::<Vec<_>>() {
            self.refile(session);
        }
    }

    fn refile_audit(&mut self, id: AuditId) {
        let filed = self
            .audits
            .pending
            .get(&id)
            .map(|audit| FiledAudit::of(self, audit));
        self.index.file_audit(id, filed);
    }

    /// Files the audits of a session's work anew.
    pub(crate) fn refile_audits_of(&mut self, subject: Session) {
        for id in self.index.audits_of(subject).collect::<Vec<_>>() {
            self.refile_audit(id);
        }
    }

    fn refile_audits_of_peer(&mut self, peer: PeerId) {
        let stays = Session {
            peer,
            generation: 0,
        }..=Session {
            peer,
            generation: u32::MAX,
        };
        let subjects: Vec<Session> = self
            .index
            .audits_of
            .range(stays)
            .map(|(subject, _)| *subject)
            .collect();
        for subject in subjects {
            self.refile_audits_of(subject);
        }
    }

    /// Files the sessions that an event names, after it was applied. Whom samples wait for, what audits wait for and who is
    /// at a cell is filed where that changes.
    pub(crate) fn refile_after(&mut self, event: &Event) {
        match event {
            Event::SessionEnded { session, .. } => {
                let filed = self.index.filed.get(session);
                let stage = filed.and_then(|filed| filed.miner).map(|miner| miner.stage);
                self.refile(*session);
                // One that may merge is gone.
                if let Some(stage) = stage {
                    self.refile_merge(stage);
                }
            }
            Event::SessionJoined { session, .. }
            | Event::RoomOffered { session, .. }
            | Event::LeaseEnded { session, .. }
            | Event::Completed { session, .. }
            | Event::Installed { session, .. } => self.refile(*session),
            Event::Leased(lease) => self.refile(lease.session),
            Event::ReplicasDiffer { odd, .. } => odd.iter().for_each(|one| self.refile(*one)),
            // Not only whom it names: also whoever was on the roster of the epoch before.
            Event::RosterFixed { stage, .. }
            | Event::CheckpointRepaired {
                checkpoint: Checkpoint { stage, .. },
                ..
            } => {
                self.refile_miners(*stage);
                self.refile_merge(*stage);
            }
            Event::CellSettled { stage, cell, .. } => {
                self.refile_cell(*stage, *cell);
                // A few times in a merge there is more to fetch.
                let offered = self.index.merge(*stage).on_offer;
                let on_offer = self.merge_of(*stage).on_offer();
                if on_offer != offered {
                    self.index.note_offer(*stage, on_offer);
                    self.refile_miners(*stage);
                }
            }
            Event::UploadExcluded { stage, .. } => {
                self.refile_merge(*stage);
                self.refile_miners(*stage);
            }
            Event::OwnersRelaxed => self.refile_merges(),
            Event::AuditDrawn { audit, .. }
            | Event::DisputeOpened { audit, .. }
            | Event::AuditSettled { audit, .. } => self.refile_audit(*audit),
            Event::AuditAbandoned { audit, subject, .. } => {
                self.refile_audit(*audit);
                self.refile(*subject);
            }
            Event::PeerBanned { peer, .. } => {
                self.refile_audits_of_peer(*peer);
                self.refile_merges();
            }
            // What may be done and what is moot depends on phase and epoch; a run that was resumed has moved everything that
            // is waited for.
            Event::PhaseChanged { .. } | Event::Resumed { .. } | Event::Restored { .. } => {
                self.index = Index::of(self);
            }
            Event::SampleOpened { .. }
            | Event::FinishedInVain { .. }
            | Event::WaitBegan { .. }
            | Event::WaiterHeard { .. }
            | Event::WaitEnded { .. }
            | Event::PlaceLapsed { .. }
            | Event::RegistrationChanged { .. }
            | Event::PreferenceLapsed { .. }
            | Event::PieceUndone { .. }
            | Event::SampleCompleted { .. }
            | Event::SampleRestarted { .. }
            | Event::SampleDropped { .. }
            | Event::UploadAccused { .. }
            | Event::UploadQuarantined { .. }
            | Event::CheckpointCommitted(_)
            | Event::CheckpointAccused { .. } => {}
        }
    }
}
