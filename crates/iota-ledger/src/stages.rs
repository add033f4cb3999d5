//! What happens to a stage: installations, rosters, exclusions, checkpoints and their repairs.

use iota_protocol::checkpoint::covers;
use iota_protocol::event::{BanReason, ExclusionReason, Phase};
use iota_protocol::work::{Checkpoint, Lease, ObjectName};
use iota_protocol::{Epoch, PeerId, Session, StageIndex};

use crate::account::{Fate, Loss, Stint};
use crate::holdings::{Origin, holdings};
use crate::merging::StageMerge;
use crate::{Discrepancy, Ledger};

impl Ledger {
    /// A session's weights are what it says it installed, with what it has learned for this epoch already on top, if it goes on;
    /// that has to be what its stage starts the epoch from.
    pub(crate) fn installed(&mut self, lease: &Lease, checkpoint: &Checkpoint, goes_on: bool) {
        let (session, stage) = (lease.session, lease.stage);
        let is_seed = |checkpoint: &Checkpoint| {
            let mut all = holdings(Some(checkpoint), self.stage_elements(stage)).into_iter();
            checkpoint.epoch.get() == 0 && all.all(|holding| holding.origin == Origin::Seed)
        };
        let fits = match self.checkpoints.get(&(self.epoch, stage)) {
            Some(starts_from) => starts_from == checkpoint,
            None => self.epoch.get() == 0 && checkpoint.stage == stage && is_seed(checkpoint),
        };
        if !fits {
            let lease = lease.id;
            self.discrepancies
                .push(Discrepancy::InstalledSomethingElse {
                    lease,
                    session,
                    stage,
                });
        }
        let present = self
            .present
            .get(&session)
            .map(|stint| &mut self.stints[*stint]);
        let ahead = present.filter(|it| it.is_of(stage, checkpoint.epoch) && !it.is_installed);
        if let Some(ahead) = ahead.filter(|it| goes_on && it.fate == Fate::Open) {
            ahead.is_installed = true;
            return;
        }
        if let Some(earlier) = self.present.insert(session, self.stints.len()) {
            self.lose(earlier, Loss::BeganAnew);
        }
        self.stints.push(Stint {
            session,
            stage,
            epoch: checkpoint.epoch,
            is_installed: true,
            backwards: 0,
            fate: Fate::Open,
        });
    }

    /// Whoever has uploaded may train on for the next epoch: that is a stint of its own from its first pass on.
    pub(crate) fn go_ahead(&mut self, lease: &Lease) {
        let (session, stage, epoch) = (lease.session, lease.stage, lease.epoch);
        let is_between = matches!(
            self.phase,
            Phase::Uploading | Phase::Merging | Phase::Installing
        );
        if !self.settings.merging.overlaps || !is_between || epoch.get() >= self.settings.epochs {
            return;
        }
        let Some(present) = self.present.get_mut(&session) else {
            return;
        };
        let before = &self.stints[*present];
        if before.fate == Fate::Uploaded && before.stage == stage && before.epoch.next() == epoch {
            *present = self.stints.len();
            self.stints.push(Stint {
                session,
                stage,
                epoch,
                is_installed: false,
                backwards: 0,
                fate: Fate::Open,
            });
        }
    }

    /// Whoever is to upload has learned something since the epoch began, from what its stage started it with.
    pub(crate) fn fix_roster(&mut self, stage: StageIndex, roster: &[Session]) {
        let (epoch, elements) = (self.epoch, self.stage_elements(stage));
        let has_learned = |session: &Session| {
            let stint = self.present.get(session).map(|stint| &self.stints[*stint]);
            stint.is_some_and(|stint| {
                stint.is_of(stage, epoch) && stint.is_installed && stint.backwards > 0
            })
        };
        let named_before = |place: usize| roster[..place].contains(&roster[place]);
        let idle = (0..roster.len())
            .filter(|place| named_before(*place) || !has_learned(&roster[*place]))
            .map(|place| Discrepancy::NothingToUpload {
                epoch,
                stage,
                session: roster[place],
            });
        self.discrepancies.extend(idle.collect::<Vec<_>>());
        let merge = StageMerge::new(stage, epoch, elements, roster);
        self.merges.insert((epoch, stage), merge);
    }

    /// An upload is left out because its author is banned, or because somebody could not read it.
    pub(crate) fn excluded(&mut self, stage: StageIndex, session: Session, why: ExclusionReason) {
        self.look_for_spared_liars(stage);
        let is_banned = self.is_banned(session.peer);
        let Some(merge) = self.merges.get_mut(&(self.epoch, stage)) else {
            return;
        };
        let fits = match why {
            ExclusionReason::Banned => is_banned,
            ExclusionReason::Accused => merge.accused.contains(&session),
        };
        if !fits {
            self.discrepancies
                .push(Discrepancy::ExcludedForNothing { stage, session });
        }
        merge.exclude(session, why);
    }

    /// Whoever was outvoted in the stage's present merge is banned.
    fn look_for_spared_liars(&mut self, stage: StageIndex) {
        let epoch = self.epoch;
        let liars = self.merges.get(&(epoch, stage)).map(StageMerge::liars);
        let spared = liars.into_iter().flatten();
        let spared: Vec<Discrepancy> = spared
            .filter(|(_, liar)| !self.is_banned(liar.peer))
            .map(|(cell, liar)| Discrepancy::LiarSpared {
                epoch,
                stage,
                cell,
                liar,
            })
            .collect();
        self.discrepancies.extend(spared);
    }

    fn is_banned(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|account| account.banned)
    }

    pub(crate) fn banned(&mut self, peer: PeerId, why: &BanReason) {
        self.peers.entry(peer).or_default().banned = true;
        if let BanReason::Merge { epoch, stage, cell } = *why {
            let merge = self.merges.get(&(epoch, stage));
            if !merge.is_some_and(|merge| merge.dissented(cell, peer)) {
                self.discrepancies
                    .push(Discrepancy::BannedForNothing { peer, stage, cell });
            }
        }
        let merging = self.merges.values_mut();
        let merging = merging.filter(|merge| merge.elements.is_none());
        merging.for_each(|merge| merge.forget_results_of(peer));
    }

    pub(crate) fn commit(&mut self, checkpoint: &Checkpoint) {
        let (stage, epoch) = (checkpoint.stage, checkpoint.epoch);
        let merged = Epoch::new(epoch.get().saturating_sub(1));
        self.look_for_spared_liars(stage);
        self.look_for_gaps(checkpoint);
        let before = self.checkpoints.get(&(merged, stage));
        if let Some(merge) = self.merges.get_mut(&(merged, stage)) {
            let rule = self.settings.merging.cells;
            self.discrepancies
                .extend(merge.compare(checkpoint, before, rule));
            merge.count_elements(checkpoint);
        } else {
            self.discrepancies
                .push(Discrepancy::FromNowhere { epoch, stage });
        }
        self.checkpoints.insert((epoch, stage), checkpoint.clone());
        self.accused.retain(|(of, _)| *of != stage);
    }

    pub(crate) fn repair(&mut self, checkpoint: &Checkpoint, lost: ObjectName) {
        let (stage, epoch) = (checkpoint.stage, checkpoint.epoch);
        let merged = Epoch::new(epoch.get().saturating_sub(1));
        self.look_for_gaps(checkpoint);
        let before = self.checkpoints.get(&(merged, stage));
        let broken = self.checkpoints.get(&(epoch, stage));
        if let (Some(merge), Some(broken)) = (self.merges.get_mut(&(merged, stage)), broken) {
            let is_unreadable = |object| self.accused.contains(&(stage, object));
            let found = merge.compare_repair(checkpoint, lost, (broken, before), is_unreadable);
            self.discrepancies.extend(found);
            merge.count_elements(checkpoint);
        } else {
            self.discrepancies
                .push(Discrepancy::FromNowhere { epoch, stage });
        }
        self.checkpoints.insert((epoch, stage), checkpoint.clone());
    }

    fn look_for_gaps(&mut self, checkpoint: &Checkpoint) {
        let (stage, epoch) = (checkpoint.stage, checkpoint.epoch);
        if !covers(checkpoint, self.stage_elements(stage)) {
            self.discrepancies
                .push(Discrepancy::CheckpointHasGaps { epoch, stage });
        }
    }
}
