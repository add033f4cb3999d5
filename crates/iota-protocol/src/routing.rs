//! Who gets what: stages to joiners, pieces of work to sessions.
//!
//! A piece goes to the session that has been given the least expected time so far (interleaved weighted round-robin,
//! SWARM section 3.2): a miner that is twice as fast gets twice as much, and the order is spread, not bunched. Ties are
//! drawn, so that paths through the stages vary.

use std::collections::BTreeSet;

use crate::draw::Draw;
use crate::event::{Direction, Event, Phase, Piece};
use crate::id::{SampleId, Session, StageIndex};
use crate::index::Sum;
use crate::learning_rate::learning_rate_at;
use crate::lease::lease_duration;
use crate::state::State;
use crate::state::samples::{Holder, Preference};
use crate::time::Timestamp;
use crate::work::{CellUpload, Lease, Purpose, Work, WorkKind};

/// What a piece is expected to take while nothing of its kind was measured anywhere.
const UNMEASURED_US: u64 = 1_000_000;

impl State {
    /// The stage that a joining miner is to hold: the one that most limits throughput, among those with a free place.
    /// Ties go to the fewest miners, then to the lowest index.
    /// `leaving` makes room by joining again.
    pub(crate) fn stage_for_joiner(&self, leaving: Option<Session>) -> Option<StageIndex> {
        let leaves = |stage| {
            leaving.is_some_and(|session| {
                self.session(session)
                    .is_some_and(|state| state.stage == Some(stage))
            })
        };
        let miners = |stage| self.index.stage(stage).miners.len() as u64 - u64::from(leaves(stage));
        let measured = |stage| {
            let gone =
                leaving.map_or_else(Sum::default, |session| self.index.rate_in(session, stage));
            self.index.stage(stage).rates.minus(gone)
        };
        let all = self.stages().map(measured).fold(Sum::default(), Sum::plus);
        let usual = u128::from(all.mean().unwrap_or(1).max(1));
        let room =
            |stage: &StageIndex| miners(*stage) < u64::from(self.settings.miners_per_stage_max);
        self.stages().filter(room).min_by_key(|stage| {
            let (count, measured) = (miners(*stage), measured(*stage));
            let unmeasured = u128::from(count - measured.count());
            (measured.sum() + unmeasured * usual, count, *stage)
        })
    }

    /// What a piece of a sample is expected to take a session, in microseconds: by its own pace, by the mean of its stage,
    /// or by default.
    pub(crate) fn expected_us(&self, session: Session, stage: StageIndex, kind: WorkKind) -> u64 {
        if let Some(own) = self.session(session).and_then(|state| state.pace_us(kind)) {
            return own;
        }
        let of_stage = self.index.stage(stage).mean_pace_us(kind);
        of_stage.unwrap_or(UNMEASURED_US)
    }

    /// The next lease to give, if there is work and somebody with room for it. Giving it may make another possible.
    pub(crate) fn next_assignment(&self, now: Timestamp) -> Option<Vec<Event>> {
        if self.phase != Phase::Settling
            && let Some(lease) = self.next_install(now)
        {
            return Some(vec![Event::Leased(lease)]);
        }
        let of_phase = match self.phase {
            Phase::Uploading => self.next_upload(now),
            Phase::Merging => self.next_merge(now).or_else(|| self.next_fetch(now)),
            _ => None,
        };
        of_phase
            .or_else(|| self.is_training().then(|| self.next_piece(now))?)
            .map(|lease| vec![Event::Leased(lease)])
            .or_else(|| self.next_sample())
            .or_else(|| self.next_audit(now))
    }

    /// A miner that lacks the epoch's checkpoint gets it before anything else.
    fn next_install(&self, now: Timestamp) -> Option<Lease> {
        let (stage, session) = *self.index.to_install.first()?;
        let work = Work::Install {
            checkpoint: self.checkpoint(stage).clone(),
            goes_on: self.goes_on(session),
        };
        Some(self.lease_for(session, stage, work, now))
    }

    /// A waiting piece: backward before forward, later forwards before earlier ones, the oldest sample first.
    fn next_piece(&self, now: Timestamp) -> Option<Lease> {
        let mut end = StageIndex::new(self.settings.stages());
        loop {
            end = self.last_stage_with_work(end)?;
            if let Some((sample, session)) = self.next_piece_of(end) {
                return Some(self.lease_piece(sample, session, now));
            }
        }
    }

    /// The last stage before `end` where something waits and somebody has room for it.
    fn last_stage_with_work(&self, end: StageIndex) -> Option<StageIndex> {
        let (bound, _) = self.index.bound.range(..end).next_back().unzip();
        let first_of_end = Piece {
            stage: end,
            direction: Direction::Forward,
        };
        let waiting = self.samples.open.range(..first_of_end).rev();
        let open = waiting
            .map(|(piece, _)| piece.stage)
            .find(|stage| !self.index.stage(*stage).able.is_empty());
        bound.copied().max(open)
    }

    fn next_piece_of(&self, stage: StageIndex) -> Option<(SampleId, Session)> {
        let open = |direction| {
            let waiting = self.samples.open.get(&Piece { stage, direction });
            waiting
                .into_iter()
                .flatten()
                .find_map(|sample| Some((*sample, self.choose(*sample, stage, direction)?)))
        };
        let bound = self.index.bound.get(&stage);
        let bound = bound.and_then(|pieces| pieces.first().copied());
        bound
            .into_iter()
            .chain(open(Direction::Backward))
            .min()
            .or_else(|| open(Direction::Forward))
    }

    /// Who of those with room does a piece. None if only those have room that have failed it, and others exist.
    fn choose(&self, sample: SampleId, stage: StageIndex, direction: Direction) -> Option<Session> {
        let nobody = BTreeSet::new();
        let avoid = match &self.samples.flying[&sample].holder {
            Holder::Waits {
                preference: Preference { avoid, .. },
                ..
            } => avoid,
            _ => &nobody,
        };
        let others_exist = || {
            let mut installed = self.index.stage(stage).installed.iter();
            installed.any(|(_, session)| !avoid.contains(session))
        };
        match self.least_given(stage, direction, |session| !avoid.contains(session)) {
            None if !others_exist() => self.least_given(stage, direction, |_| true),
            choice => choice,
        }
    }

    /// Of those with room: who was given the least so far. Ties are drawn.
    fn least_given(
        &self,
        stage: StageIndex,
        direction: Direction,
        may: impl Fn(&Session) -> bool,
    ) -> Option<Session> {
        let able = &self.index.stage(stage).able;
        let mut able = able.iter().filter(|(_, session)| may(session)).peekable();
        let (least, _) = **able.peek()?;
        let mut tied = able.take_while(|(given_us, _)| *given_us == least);
        let count = tied.clone().count() as u64;
        let place = if count > 1 {
            Draw::about(&self.settings.secret, "route")
                .number(self.leases.next.get())
                .number(stage.get().into())
                .number(direction as u64)
                .below(count)
        } else {
            0
        };
        let place = usize::try_from(place).expect("below a count of what lies in memory");
        tied.nth(place).map(|(_, session)| *session)
    }

    fn lease_piece(&self, sample: SampleId, session: Session, now: Timestamp) -> Lease {
        let (head, tail) = (self.settings.head(), self.settings.tail());
        let state = &self.samples.flying[&sample];
        let Piece { stage, direction } = state
            .next_piece(tail)
            .expect("what waits has a piece to do");
        let input = state.input_of(stage);
        let work = match direction {
            Direction::Forward => Work::Forward {
                sample,
                input,
                output: self.object_name(Purpose::Activation, 0),
            },
            Direction::Backward => Work::Backward {
                sample,
                input,
                output_gradient: state.backwards.last().and_then(|hop| hop.object),
                gradient: (stage != head).then(|| self.object_name(Purpose::Gradient, 0)),
                learning_rate: self.learning_rate(),
            },
        };
        Lease {
            epoch: self.trains_for(),
            ..self.lease_for(session, stage, work, now)
        }
    }

    /// A new sample, if the head has room for it, not too many are on their way and the epoch wants more.
    fn next_sample(&self) -> Option<Vec<Event>> {
        let wanted = self.is_training()
            && self.samples.opened_in_epoch < self.settings.samples_per_epoch
            && self.samples.flying.len() < self.settings.samples_in_flight as usize
            && self.batch_is_open();
        let head_has_room = || !self.index.stage(self.settings.head()).able.is_empty();
        (wanted && head_has_room()).then(|| {
            vec![Event::SampleOpened {
                sample: self.samples.next,
            }]
        })
    }

    /// Whether a sample may join those that are on their way: with batches, until the batch has set out.
    fn batch_is_open(&self) -> bool {
        let size = u64::from(self.settings.samples_in_flight);
        !self.settings.in_batches
            || self.samples.flying.is_empty()
            || !self.samples.opened_in_epoch.is_multiple_of(size)
    }

    /// Who has not uploaded does; who was drawn to be audited then hands over what that takes.
    fn next_upload(&self, now: Timestamp) -> Option<Lease> {
        let (stage, session) = *self.index.to_upload.first()?;
        if !self.has_yet_to_upload(stage, session) {
            let work = self.what_to_hand_over(session)?;
            return Some(self.lease_for(session, stage, work, now));
        }
        let cells = self.merge_of(stage).cells.iter().zip(0_u32..);
        let cells = cells.map(|(cell, index)| CellUpload {
            cell: crate::CellIndex::new(index),
            range: cell.range.clone(),
            output: self.object_name(Purpose::Upload, index.into()),
        });
        let work = Work::Upload {
            cells: cells.collect(),
            learning_rate: self.learning_rate(),
            seals_kept: self.settings.merging.kept.is_some(),
        };
        Some(self.lease_for(session, stage, work, now))
    }

    /// An audit goes to the validator that was given the least; to one that did not fail it, if there is one.
    fn next_audit(&self, now: Timestamp) -> Option<Vec<Event>> {
        let validators = self.sessions.validators.iter();
        let with_room = |session: &&Session| self.sessions.live[session].room > 0;
        let validator = *validators
            .filter(with_room)
            .min_by_key(|session| (self.sessions.live[session].held.len(), **session))?;
        let audit = &self.audits.pending[self.index.ready_audits.first()?];
        let mut lease = self.lease_for(validator, audit.stage, audit.work.clone(), now);
        lease.epoch = audit.epoch;
        Some(vec![Event::Leased(lease)])
    }

    /// The learning rate of a step taken now.
    fn learning_rate(&self) -> f32 {
        let opened = self.samples.counts.opened.saturating_sub(1);
        learning_rate_at(
            &self.settings.learning_rate,
            opened,
            self.settings.samples_total(),
        )
    }

    /// A lease of the present epoch, as long as such work lately took.
    pub(crate) fn lease_for(
        &self,
        session: Session,
        stage: StageIndex,
        work: Work,
        now: Timestamp,
    ) -> Lease {
        let kind = work.kind();
        let length = lease_duration(
            &self.settings.timing,
            kind,
            self.durations.get(&(stage, kind)),
        );
        Lease {
            id: self.leases.next,
            session,
            stage,
            epoch: self.epoch,
            work,
            issued_at: now,
            deadline: now + length,
        }
    }
}

/// Samples per second, times a million, by the measured pace; none if nothing was measured.
pub(crate) fn rate_of(state: &crate::SessionState) -> Option<u64> {
    let sample_us = state
        .pace_us(WorkKind::Forward)
        .unwrap_or(0)
        .saturating_add(state.pace_us(WorkKind::Backward)?);
    Some(1_000_000_000_000 / sample_us.max(1))
}
