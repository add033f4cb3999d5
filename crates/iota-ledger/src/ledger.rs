//! The ledger: what a run's events add up to, by somebody who does not know the rules' state.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::event::{Direction, LeaseEnd, Phase, RestartReason, SessionEnd};
use iota_protocol::state::WorkCounts;
use iota_protocol::work::{Checkpoint, Lease, ObjectName, Outcome, Verdict, Work};
use iota_protocol::{Epoch, Event, LeaseId, PeerId, RunSettings, SampleId, Session, StageIndex};
use serde::{Deserialize, Serialize};

use crate::Discrepancy;
use crate::account::{Contribution, Fate, Inclusion, Loss, SampleAccount, SampleEnd, Stint};
use crate::merging::{StageMerge, Upload};

/// What a peer's results add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAccount {
    /// Credited forward passes.
    pub forwards: u64,
    /// Credited backward passes.
    pub backwards: u64,
    /// Passes that came when somebody else's counted already.
    pub superseded: u64,
    /// Audits in its favour.
    pub audits_passed: u64,
    /// Audits against it.
    pub audits_failed: u64,
    /// Whether it was banned.
    pub banned: bool,
}

/// A run's events, added up. Show it all of them from the first, in order.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(crate) settings: RunSettings,
    pub(crate) phase: Phase,
    pub(crate) epoch: Epoch,
    pub(crate) samples: BTreeMap<SampleId, SampleAccount>,
    /// Samples on their way.
    pub(crate) flying: BTreeSet<SampleId>,
    /// Samples that each epoch completed.
    pub(crate) completed: BTreeMap<Epoch, u64>,
    pub(crate) peers: BTreeMap<PeerId, PeerAccount>,
    pub(crate) stints: Vec<Stint>,
    pub(crate) merges: BTreeMap<(Epoch, StageIndex), StageMerge>,
    pub(crate) checkpoints: BTreeMap<(Epoch, StageIndex), Checkpoint>,
    /// Objects of present checkpoints that somebody could not read.
    pub(crate) accused: BTreeSet<(StageIndex, ObjectName)>,
    /// Objects that were replaced in a checkpoint because nobody could read them.
    unreadable: BTreeSet<ObjectName>,
    /// The present stint of each live miner that has installed anything.
    pub(crate) present: BTreeMap<Session, usize>,
    leases: BTreeMap<LeaseId, Lease>,
    /// Of passes, those whose results cannot count any more: whose they are, and how many passes they can be.
    in_vain: BTreeMap<LeaseId, (Session, u32)>,
    next_lease: LeaseId,
    /// The next lease's number may be any later one.
    leaps: bool,
    /// The sample that was next when the epoch began to train, and those that it took over.
    epoch_found: (SampleId, BTreeSet<SampleId>),
    /// The same of the next epoch, if some train for it already.
    found_ahead: Option<(SampleId, BTreeSet<SampleId>)>,
    pub(crate) restarted: u64,
    /// What was undone only of samples that are forgotten; the others' accounts have the rest.
    pub(crate) work: WorkCounts,
    pub(crate) discrepancies: Vec<Discrepancy>,
}

impl Ledger {
    /// Of a run that nobody has joined yet.
    pub fn new(settings: &RunSettings) -> Self {
        Self {
            settings: settings.clone(),
            phase: Phase::Gathering,
            epoch: Epoch::new(0),
            samples: BTreeMap::new(),
            flying: BTreeSet::new(),
            completed: BTreeMap::new(),
            peers: BTreeMap::new(),
            stints: Vec::new(),
            merges: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            accused: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            present: BTreeMap::new(),
            leases: BTreeMap::new(),
            in_vain: BTreeMap::new(),
            next_lease: LeaseId::default(),
            leaps: false,
            epoch_found: (SampleId::default(), BTreeSet::new()),
            found_ahead: None,
            restarted: 0,
            work: WorkCounts::default(),
            discrepancies: Vec::new(),
        }
    }

    /// Every sample that set out, in order.
    pub fn samples(&self) -> impl Iterator<Item = (SampleId, &SampleAccount)> {
        self.samples
            .iter()
            .map(|(sample, account)| (*sample, account))
    }

    /// One sample, if it set out.
    pub fn sample(&self, sample: SampleId) -> Option<&SampleAccount> {
        self.samples.get(&sample)
    }

    /// What a peer's results add up to.
    pub fn peer(&self, peer: PeerId) -> PeerAccount {
        self.peers.get(&peer).copied().unwrap_or_default()
    }

    /// What each stage starts each epoch from, as repaired last. Those of epoch 0 follow from the seed and are not here.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Checkpoint> {
        self.checkpoints.values()
    }

    /// Whether a checkpoint did without this object in the end, because nobody could read it.
    pub fn is_given_up(&self, object: ObjectName) -> bool {
        self.unreadable.contains(&object)
    }

    /// What became of a pass; none if it is in no merge and nothing that happened says why.
    pub fn inclusion(&self, contribution: &Contribution) -> Option<Inclusion> {
        self.inclusion_of_stint(contribution.stint)
    }

    pub(crate) fn inclusion_of_stint(&self, stint: usize) -> Option<Inclusion> {
        let stint = &self.stints[stint];
        let lost = |loss| Some(Inclusion::Lost { loss });
        match stint.fate {
            Fate::Lost(loss) => lost(loss),
            Fate::Uploaded => {
                let merge = &self.merges[&(stint.epoch, stint.stage)];
                let upload = merge.uploads.get(&stint.session)?;
                if let Some(why) = upload.excluded {
                    return lost(why.into());
                }
                match &merge.elements {
                    None if self.phase == Phase::Over => lost(Loss::RunOver),
                    None => Some(Inclusion::Pending),
                    Some(elements) => match elements.get(&stint.session) {
                        None => lost(Loss::NothingMerged),
                        Some(&elements) => Some(Inclusion::Merged {
                            elements,
                            of: self.stage_elements(stint.stage),
                        }),
                    },
                }
            }
            Fate::Open => {
                let may_upload = match self.phase {
                    Phase::Training | Phase::Uploading => stint.epoch >= self.epoch,
                    // Only what is done for the epoch after the one that is being merged.
                    Phase::Merging => stint.epoch > self.epoch,
                    Phase::Installing => stint.epoch == self.epoch,
                    Phase::Gathering | Phase::Settling | Phase::Over => false,
                };
                may_upload.then_some(Inclusion::Pending)
            }
        }
    }

    /// Adds an event.
    pub fn follow(&mut self, event: &Event) {
        match event {
            Event::SessionEnded { session, why } => self.session_ended(*session, *why),
            Event::SampleOpened { sample } => self.sample_opened(*sample),
            Event::Leased(lease) => self.leased(lease),
            // Of other ends a result may still come.
            Event::LeaseEnded {
                lease,
                why: LeaseEnd::Failed { .. },
                ..
            } => drop(self.leases.remove(lease)),
            Event::LeaseEnded {
                lease,
                why: LeaseEnd::SessionOver,
                ..
            } => {
                let over = self.leases.remove(lease);
                over.into_iter().for_each(|lease| self.give_up(&lease));
            }
            Event::FinishedInVain {
                lease,
                session,
                passes,
                ..
            } => self.finished_in_vain(*lease, *session, *passes),
            Event::Completed {
                lease,
                session,
                outcome,
                credited,
            } => self.completed(*lease, *session, outcome, *credited),
            Event::PieceUndone { sample, piece, .. } => {
                let stage = usize::from(piece.stage.get());
                let behind = self.tail() - stage.min(self.tail());
                if let Some(account) = self.on_its_way(*sample, "a piece of it is done again") {
                    match piece.direction {
                        Direction::Forward => account.undo_to(stage, 0),
                        Direction::Backward => account.undo_to(usize::MAX, behind),
                    }
                }
            }
            Event::SampleRestarted { sample, why } => {
                let epoch = self.epoch;
                self.restarted += u64::from(*why == RestartReason::TooManyAttempts);
                if let Some(account) = self.on_its_way(*sample, "it goes back to its tokens") {
                    account.undo_to(0, 0);
                    account.restarts.push((epoch, *why));
                }
            }
            Event::SampleCompleted { sample, loss, path } => {
                self.sample_completed(*sample, *loss, path);
            }
            Event::SampleDropped { sample } => {
                let epoch = self.epoch;
                if let Some(account) = self.on_its_way(*sample, "it is given up") {
                    account.undo_to(0, 0);
                    account.end = Some(SampleEnd::Dropped { epoch });
                    self.flying.remove(sample);
                }
            }
            Event::PhaseChanged { phase, epoch, .. } => self.phase_changed(*phase, *epoch),
            Event::RosterFixed { stage, roster } => {
                if let Some(earlier) = self.before(*stage) {
                    earlier.close();
                }
                self.fix_roster(*stage, roster);
            }
            Event::UploadAccused {
                stage, producer, ..
            } => {
                if let Some(merge) = self.merges.get_mut(&(self.epoch, *stage)) {
                    merge.accused.insert(*producer);
                }
            }
            Event::UploadExcluded {
                stage,
                session,
                why,
            } => self.excluded(*stage, *session, *why),
            Event::CellSettled {
                stage,
                cell,
                result,
                merged,
            } => {
                if let Some(merge) = self.merges.get_mut(&(self.epoch, *stage)) {
                    let validators = &self.settings.validators;
                    let found = merge.settle(validators, *cell, *result, *merged);
                    self.discrepancies.extend(found);
                }
            }
            Event::Restored { .. } => self.restored(),
            Event::CheckpointCommitted(checkpoint) => self.commit(checkpoint),
            Event::CheckpointAccused { stage, object, .. } => {
                self.accused.insert((*stage, *object));
            }
            Event::CheckpointRepaired {
                checkpoint, object, ..
            } => {
                self.unreadable.insert(*object);
                self.repair(checkpoint, *object);
                let stage = checkpoint.stage;
                self.lose_where(Loss::CheckpointRepaired, |stint| stint.stage == stage);
            }
            Event::ReplicasDiffer { odd, .. } => {
                self.lose_where(Loss::Odd, |stint| odd.contains(&stint.session));
            }
            Event::AuditSettled {
                subject, verdict, ..
            } => {
                let account = self.peers.entry(subject.peer).or_default();
                match verdict {
                    Verdict::Agrees { .. } => account.audits_passed += 1,
                    Verdict::Differs { .. } => account.audits_failed += 1,
                }
            }
            Event::UploadQuarantined {
                stage,
                cell,
                session,
            } => {
                let merge = self.merges.get(&(self.epoch, *stage));
                if !merge.is_some_and(|merge| merge.is_quarantined(*cell, *session)) {
                    self.discrepancies.push(Discrepancy::QuarantinedByNobody {
                        stage: *stage,
                        cell: *cell,
                        session: *session,
                    });
                }
            }
            Event::PeerBanned { peer, why } => self.banned(*peer, why),
            Event::LeaseEnded { .. }
            | Event::WaitBegan { .. }
            | Event::WaiterHeard { .. }
            | Event::WaitEnded { .. }
            | Event::PlaceLapsed { .. }
            | Event::RegistrationChanged { .. }
            | Event::Resumed { .. }
            | Event::SessionJoined { .. }
            | Event::RoomOffered { .. }
            | Event::PreferenceLapsed { .. }
            | Event::OwnersRelaxed
            | Event::Installed { .. }
            | Event::AuditDrawn { .. }
            | Event::DisputeOpened { .. }
            | Event::AuditAbandoned { .. } => {}
        }
    }

    fn session_ended(&mut self, session: Session, why: SessionEnd) {
        if let Some(stint) = self.present.remove(&session) {
            self.lose(stint, why.into());
        }
    }

    fn leased(&mut self, lease: &Lease) {
        let expected = self.next_lease;
        let leaps = std::mem::take(&mut self.leaps);
        if lease.id != expected && !(leaps && lease.id > expected) {
            let lease = lease.id;
            self.discrepancies
                .push(Discrepancy::LeaseOutOfOrder { lease, expected });
        }
        self.next_lease = expected.max(lease.id).next();
        let mut lease = lease.clone();
        if let Work::Replay { entries, .. } = &mut lease.work {
            *entries = Vec::new();
        }
        self.leases.insert(lease.id, lease);
    }

    fn completed(&mut self, id: LeaseId, session: Session, outcome: &Outcome, credited: bool) {
        let lease = self.leases.remove(&id);
        let Some(lease) = lease.filter(|lease| lease.session == session) else {
            self.discrepancies
                .push(Discrepancy::ResultWithoutLease { lease: id, session });
            return;
        };
        self.count_work(lease.stage, outcome, credited);
        match (&lease.work, outcome) {
            (Work::Forward { sample, .. } | Work::Backward { sample, .. }, _) if !credited => {
                self.peers.entry(session.peer).or_default().superseded += 1;
                // It may have ended long ago.
                if let Some(account) = self.samples.get_mut(sample) {
                    account.superseded += 1;
                }
            }
            (Work::Forward { sample, .. } | Work::Backward { sample, .. }, _) => {
                self.pass(*sample, &lease, outcome);
            }
            (Work::Upload { cells, .. }, Outcome::Upload { cells: seals, .. }) => {
                let (stage, key) = (lease.stage, (self.epoch, lease.stage));
                let merge = self.merges.get_mut(&key);
                let merge = merge.filter(|merge| merge.roster.contains(&session));
                let present = self.present.get(&session).copied();
                let present = present.filter(|stint| self.stints[*stint].is_of(stage, self.epoch));
                let (Some(merge), Some(stint)) = (merge, present) else {
                    self.discrepancies
                        .push(Discrepancy::UploadOutsideRoster { stage, session });
                    return;
                };
                let upload = Upload::new(stint, self.stints[stint].backwards, cells, seals);
                let found = merge.upload(&lease, self.settings.merging.cells, upload, cells);
                self.discrepancies.extend(found);
                self.stints[stint].fate = Fate::Uploaded;
            }
            (Work::Merge { .. }, Outcome::Merge { .. } | Outcome::Unmergeable { .. }) => {
                if let Some(merge) = self.merges.get_mut(&(self.epoch, lease.stage)) {
                    let found = merge.merge(&self.settings, &lease, outcome);
                    self.discrepancies.extend(found);
                }
            }
            (
                Work::Install {
                    checkpoint,
                    goes_on,
                },
                Outcome::Install { .. },
            ) if credited => {
                self.installed(&lease, checkpoint, *goes_on);
            }
            _ => {}
        }
    }

    /// Part of the history is lost. While nothing that the epoch learned is in a checkpoint, its samples have not begun.
    fn restored(&mut self) {
        self.leaps = true;
        let lost = std::mem::take(&mut self.leases);
        lost.values().for_each(|lease| self.give_up(lease));
        let is_learning = matches!(
            self.phase,
            Phase::Training | Phase::Uploading | Phase::Merging
        );
        let (next, carried) = if is_learning {
            self.found_ahead = None;
            self.epoch_found.clone()
        } else if let Some(ahead) = &self.found_ahead {
            // What was done ahead of the checkpoints that are being installed is in none of them.
            ahead.clone()
        } else {
            return;
        };
        for account in self.samples.split_off(&next).into_values() {
            let passes = account.forwards.len() + account.backwards.len();
            self.work.undone += account.undone + passes as u64;
        }
        for sample in &carried {
            if let Some(account) = self.samples.get_mut(sample) {
                account.undo_to(0, 0);
                account.end = None;
            }
        }
        self.flying = carried;
        let epoch = self.epoch;
        self.completed.retain(|of, _| *of < epoch);
        self.merges.retain(|(merged, _), _| *merged != epoch);
    }

    /// A backward pass that had to begin with the forward is two; at the tail the forward is part of it.
    fn count_work(&mut self, stage: StageIndex, outcome: &Outcome, credited: bool) {
        let again = match outcome {
            Outcome::Forward { .. } => 0,
            Outcome::Backward { recomputed, .. } => {
                u64::from(*recomputed && stage != self.settings.tail())
            }
            _ => return,
        };
        self.work.finished += 1 + again;
        if credited {
            self.work.redone += again;
        } else {
            self.work.superseded += 1 + again;
        }
    }

    /// Whatever comes of a pass under this lease cannot count any more.
    fn give_up(&mut self, lease: &Lease) {
        let passes = match lease.work {
            Work::Forward { .. } => 1,
            Work::Backward { .. } if lease.stage == self.settings.tail() => 1,
            Work::Backward { .. } => 2,
            _ => return,
        };
        self.in_vain.insert(lease.id, (lease.session, passes));
    }

    /// A pass that was refused is work all the same, once.
    fn finished_in_vain(&mut self, id: LeaseId, session: Session, passes: u32) {
        // Whoever has uploaded has closed its log, though the epoch is open.
        if let Some(lease) = self.leases.remove(&id) {
            self.give_up(&lease);
        }
        let leased = self.in_vain.remove(&id);
        if leased.is_none_or(|(holder, most)| holder != session || passes > most) {
            self.discrepancies
                .push(Discrepancy::ResultWithoutLease { lease: id, session });
        }
        self.work.finished += u64::from(passes);
        self.work.refused += u64::from(passes);
    }

    fn phase_changed(&mut self, phase: Phase, epoch: Epoch) {
        if phase == Phase::Merging {
            let merges = &self.merges;
            let late: Vec<usize> = self
                .present
                .iter()
                .filter(|(session, stint)| {
                    let stint = &self.stints[**stint];
                    let merge = merges.get(&(epoch, stint.stage));
                    stint.epoch == epoch
                        && merge.is_some_and(|merge| merge.roster.contains(session))
                })
                .map(|(_, stint)| *stint)
                .collect();
            for stint in late {
                self.lose(stint, Loss::NotUploaded);
            }
        }
        (self.phase, self.epoch) = (phase, epoch);
        let last = self.samples.keys().next_back();
        let next = last.map_or_else(SampleId::default, |last| last.next());
        if phase == Phase::Training {
            let ahead = self.found_ahead.take();
            self.epoch_found = ahead.unwrap_or_else(|| (next, self.flying.clone()));
        }
        if phase == Phase::Uploading {
            // Whoever trained for this epoch, and has nothing of what the others trained on, is asked for nothing.
            let is_late = |stint: &Stint| stint.epoch == epoch && !stint.is_installed;
            self.lose_where(Loss::NotInstalled, is_late);
            if self.trains_for() != epoch {
                self.found_ahead = Some((next, self.flying.clone()));
            }
        }
        if phase == Phase::Installing {
            // What could still have been handed in is worth nothing now; a late verdict always is worth something.
            let closed = self.leases.extract_if(.., |_, lease| {
                lease.epoch < epoch && lease.work.subject().is_none()
            });
            let closed: Vec<Lease> = closed.map(|(_, lease)| lease).collect();
            closed.iter().for_each(|lease| self.give_up(lease));
        }
    }

    /// The epoch that passes are for: while stages merge, the next one, if the run trains meanwhile and has one.
    pub(crate) fn trains_for(&self) -> Epoch {
        let is_merging = matches!(self.phase, Phase::Uploading | Phase::Merging);
        let next = self.epoch.next();
        if is_merging && self.settings.merging.overlaps && next.get() < self.settings.epochs {
            next
        } else {
            self.epoch
        }
    }

    pub(crate) fn lose(&mut self, stint: usize, loss: Loss) {
        let stint = &mut self.stints[stint];
        if stint.fate == Fate::Open {
            stint.fate = Fate::Lost(loss);
        }
    }

    /// Whoever is there and holds weights that will not be uploaded.
    fn lose_where(&mut self, loss: Loss, is_lost: impl Fn(&Stint) -> bool) {
        let present: Vec<usize> = self.present.values().copied().collect();
        for stint in present {
            if is_lost(&self.stints[stint]) {
                self.lose(stint, loss);
            }
        }
    }

    /// The merge of a stage whose checkpoint nobody starts from any more, even if this epoch has to train anew.
    fn before(&mut self, stage: StageIndex) -> Option<&mut StageMerge> {
        let earlier = Epoch::new(self.epoch.get().checked_sub(2)?);
        self.merges.get_mut(&(earlier, stage))
    }

    pub(crate) fn on_its_way(
        &mut self,
        sample: SampleId,
        what: &str,
    ) -> Option<&mut SampleAccount> {
        if !self.flying.contains(&sample) {
            let what = what.to_owned();
            self.discrepancies
                .push(Discrepancy::NotOnItsWay { sample, what });
            return None;
        }
        self.samples.get_mut(&sample)
    }

    pub(crate) fn tail(&self) -> usize {
        usize::from(self.settings.tail().get())
    }

    pub(crate) fn stage_elements(&self, stage: StageIndex) -> u64 {
        let stage = usize::from(stage.get());
        self.settings
            .stage_parameters
            .get(stage)
            .copied()
            .unwrap_or(0)
    }
}
