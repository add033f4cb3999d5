//! Who gets what: stages to joiners, pieces of work to sessions.
//!
//! A piece goes to the session that has been given the least expected time so far (interleaved weighted round-robin,
//! SWARM section 3.2): a miner that is twice as fast gets twice as much, and the order is spread, not bunched. Ties are
//! drawn, so that paths through the stages vary.

use std::collections::BTreeSet;

use crate::draw::Draw;
use crate::event::{Direction, Event, Phase, Piece};
use crate::id::{SampleId, Session, StageIndex};
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
        let miners_of = |stage| {
            self.sessions
                .miners_of(stage)
                .filter(|(session, _)| Some(*session) != leaving)
        };
        let rates = |stage| miners_of(stage).filter_map(|(_, state)| rate_of(state));
        let (sum, count) = self
            .stages()
            .flat_map(rates)
            .fold((0_u64, 0_u64), |(sum, count), rate| (sum + rate, count + 1));
        let usual = sum.checked_div(count).unwrap_or(1).max(1);
        let room = |stage: &StageIndex| {
            miners_of(*stage).count() < self.settings.miners_per_stage_max as usize
        };
        self.stages().filter(room).min_by_key(|stage| {
            let miners = miners_of(*stage);
            let (count, rate) = miners.fold((0_u64, 0_u64), |(count, rate), (_, state)| {
                (
                    count + 1,
                    rate.saturating_add(rate_of(state).unwrap_or(usual)),
                )
            });
            (rate, count, *stage)
        })
    }

    /// What this kind of work is expected to take a session, in microseconds: by its own pace, by the mean of its stage,
    /// or by default.
    pub(crate) fn expected_us(&self, session: Session, stage: StageIndex, kind: WorkKind) -> u64 {
        if let Some(own) = self.session(session).and_then(|state| state.pace_us(kind)) {
            return own;
        }
        let paces = self
            .sessions
            .miners_of(stage)
            .filter_map(|(_, state)| state.pace_us(kind));
        let (sum, count) = paces.fold((0_u64, 0_u64), |(sum, count), pace| {
            (sum.saturating_add(pace), count + 1)
        });
        sum.checked_div(count).unwrap_or(UNMEASURED_US)
    }

    /// The next lease to give, if there is work and somebody with room for it. Giving it may make another possible.
    pub(crate) fn next_assignment(&self, now: Timestamp) -> Option<Vec<Event>> {
        if self.phase != Phase::Settling
            && let Some(lease) = self.next_install(now)
        {
            return Some(vec![Event::Leased(lease)]);
        }
        let lease = match self.phase {
            Phase::Training => match self.next_piece(now) {
                Some(lease) => Some(lease),
                None => return self.next_sample().or_else(|| self.next_audit(now)),
            },
            Phase::Uploading => self.next_upload(now),
            Phase::Merging => self.next_merge(now),
            _ => None,
        };
        lease
            .map(|lease| vec![Event::Leased(lease)])
            .or_else(|| self.next_audit(now))
    }

    /// A miner that lacks the epoch's checkpoint gets it before anything else.
    fn next_install(&self, now: Timestamp) -> Option<Lease> {
        let lacks = |(session, state): &(Session, &crate::SessionState)| {
            state.room > 0
                && !state.is_installed(self.epoch)
                && !self
                    .leases_of(*session)
                    .any(|lease| lease.work.kind() == WorkKind::Install)
        };
        let (session, stage) = self.stages().find_map(|stage| {
            self.sessions
                .miners_of(stage)
                .find(lacks)
                .map(|(session, _)| (session, stage))
        })?;
        let checkpoint = self.checkpoint(stage).clone();
        Some(self.lease_for(session, stage, Work::Install { checkpoint }, now))
    }

    /// A waiting piece: backward before forward, later forwards before earlier ones, the oldest sample first.
    fn next_piece(&self, now: Timestamp) -> Option<Lease> {
        self.stages().rev().find_map(|stage| {
            let has_room = |(_, state): &(Session, &crate::SessionState)| state.room > 0;
            let able: Vec<Session> = self
                .sessions
                .installed(stage, self.epoch)
                .filter(has_room)
                .map(|(session, _)| session)
                .collect();
            if able.is_empty() {
                return None;
            }
            let bound = able
                .iter()
                .filter_map(|session| Some((*self.samples.bound.get(session)?.first()?, *session)));
            let open = |direction| {
                let waiting = self.samples.open.get(&Piece { stage, direction });
                waiting.into_iter().flatten().find_map(|sample| {
                    Some((*sample, self.choose(*sample, stage, direction, &able)?))
                })
            };
            let (sample, session) = bound
                .chain(open(Direction::Backward))
                .min()
                .or_else(|| open(Direction::Forward))?;
            Some(self.lease_piece(sample, session, now))
        })
    }

    /// Who of those with room does a piece. None if only those have room that have failed it, and others exist.
    fn choose(
        &self,
        sample: SampleId,
        stage: StageIndex,
        direction: Direction,
        able: &[Session],
    ) -> Option<Session> {
        let nobody = BTreeSet::new();
        let avoid = match &self.samples.flying[&sample].holder {
            Holder::Waits {
                preference: Preference { avoid, .. },
                ..
            } => avoid,
            _ => &nobody,
        };
        let others_exist = || {
            self.sessions
                .installed(stage, self.epoch)
                .any(|(session, _)| !avoid.contains(&session))
        };
        let allowed = |session: &&Session| !avoid.contains(session);
        let kind = match direction {
            Direction::Forward => WorkKind::Forward,
            Direction::Backward => WorkKind::Backward,
        };
        match self.least_given(able.iter().filter(allowed), stage, kind) {
            None if !others_exist() => self.least_given(able.iter(), stage, kind),
            choice => choice,
        }
    }

    fn least_given<'a>(
        &self,
        sessions: impl Iterator<Item = &'a Session>,
        stage: StageIndex,
        kind: WorkKind,
    ) -> Option<Session> {
        sessions.copied().min_by_key(|session| {
            let given = self.sessions.live[session].given_us;
            let tie = Draw::about(&self.settings.secret, "route")
                .number(self.leases.next.get())
                .number(stage.get().into())
                .number(kind as u64)
                .session(*session);
            (given, tie.value(), *session)
        })
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
        self.lease_for(session, stage, work, now)
    }

    /// A new sample, if the head has room for it, not too many are on their way and the epoch wants more.
    fn next_sample(&self) -> Option<Vec<Event>> {
        let wanted = self.samples.opened_in_epoch < self.settings.samples_per_epoch
            && self.samples.flying.len() < self.settings.samples_in_flight as usize
            && self.batch_is_open();
        let head_has_room = || {
            self.sessions
                .installed(self.settings.head(), self.epoch)
                .any(|(_, state)| state.room > 0)
        };
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

    fn next_upload(&self, now: Timestamp) -> Option<Lease> {
        self.stages().find_map(|stage| {
            let merge = self.merge_of(stage);
            let owes = |session: &&Session| {
                !merge.uploads.contains_key(session)
                    && self
                        .session(**session)
                        .is_some_and(|state| state.room > 0 && state.is_installed(self.epoch))
                    && !self
                        .leases_of(**session)
                        .any(|lease| lease.work.kind() == WorkKind::Upload)
            };
            let session = *merge.roster.iter().find(owes)?;
            let cells = merge
                .cells
                .iter()
                .zip(0_u32..)
                .map(|(cell, index)| CellUpload {
                    cell: crate::CellIndex::new(index),
                    range: cell.range.clone(),
                    output: self.object_name(Purpose::Upload, index.into()),
                });
            let work = Work::Upload {
                cells: cells.collect(),
                learning_rate: self.learning_rate(),
            };
            Some(self.lease_for(session, stage, work, now))
        })
    }

    /// An audit goes to the validator that was given the least; to one that did not fail it, if there is one.
    fn next_audit(&self, now: Timestamp) -> Option<Vec<Event>> {
        let validators = self.sessions.validators.iter();
        let with_room = |session: &&Session| self.sessions.live[session].room > 0;
        let validator = *validators
            .filter(with_room)
            .min_by_key(|session| (self.sessions.live[session].held.len(), **session))?;
        let ready = |audit: &&crate::state::Audit| audit.awaits.is_none() && audit.lease.is_none();
        let audit = self.audits.pending.values().find(ready)?;
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
fn rate_of(state: &crate::SessionState) -> Option<u64> {
    let sample_us = state
        .pace_us(WorkKind::Forward)
        .unwrap_or(0)
        .saturating_add(state.pace_us(WorkKind::Backward)?);
    Some(1_000_000_000_000 / sample_us.max(1))
}
