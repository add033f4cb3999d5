//! Results: whether they fit, whether they still count, and what they show.

use std::collections::BTreeMap;

use super::Found;
use crate::event::{BanReason, Direction, Event, LeaseEnd, Phase, Piece};
use crate::handing_over::Owed;
use crate::id::{Digest, Epoch, LeaseId, Session, StageIndex};
use crate::rejection::Rejection;
use crate::state::State;
use crate::state::samples::Holder;
use crate::state::sessions::{Answer, SessionState};
use crate::state::vain::passes;
use crate::work::{Lease, MergeInput, Outcome, Seal, Verdict, Work, WorkKind};

impl State {
    pub(super) fn decide_complete(
        &self,
        session: Session,
        id: LeaseId,
        outcome: &Outcome,
    ) -> Result<Vec<Event>, Rejection> {
        if let Some(in_vain) = self.finished_in_vain(session, id, outcome) {
            return Ok(vec![in_vain]);
        }
        let state = self.live(session)?;
        let (lease, lapsed) = match self.find_lease(session, state, id)? {
            Found::Held(lease) => (lease, false),
            Found::Lapsed(lease) => (lease, true),
            Found::Answered(Answer::Accepted { outcome: said }) if said == outcome => {
                return Ok(Vec::new());
            }
            Found::Answered(Answer::Superseded { outcome: said }) if said == outcome => {
                return Err(Rejection::Superseded);
            }
            Found::Answered(Answer::GivenBack) => return Err(Rejection::UnknownLease),
            Found::Answered(_) => return Err(Rejection::WrongOutcome),
        };
        self.check_outcome(lease, outcome)?;
        if let Outcome::Forward { ordinal, .. } | Outcome::Backward { ordinal, .. } = outcome
            && state.ordinals.contains(ordinal)
        {
            return Err(Rejection::OrdinalUsed);
        }
        let credited = !lapsed || self.is_open(lease, state);
        if !credited && lease.work.sample().is_none() {
            // Only a sample's work leaves traces in a session that have to be logged.
            return Err(Rejection::Superseded);
        }
        if !credited && self.has_uploaded(lease, session) {
            let why = Rejection::StaleEpoch;
            let done = passes(
                (lease.work.kind(), lease.stage),
                outcome,
                self.settings.tail(),
            );
            let in_vain = done.map(|passes| Event::FinishedInVain {
                lease: id,
                session,
                passes,
                why,
            });
            return in_vain.map(|event| vec![event]).ok_or(why);
        }
        let mut events = Vec::new();
        if lapsed && credited {
            events.extend(
                self.displaced_by(lease)
                    .map(|(lease, session)| Event::LeaseEnded {
                        lease,
                        session,
                        why: LeaseEnd::Superseded,
                    }),
            );
        }
        events.push(Event::Completed {
            lease: id,
            session,
            outcome: outcome.clone(),
            credited,
        });
        if credited {
            events.extend(self.shown_by(lease, outcome));
        }
        Ok(events)
    }

    /// What was finished although nobody waited for it any more; none if that is not what this is.
    fn finished_in_vain(&self, session: Session, id: LeaseId, outcome: &Outcome) -> Option<Event> {
        let vain = self.leases.in_vain.get(id)?;
        let passes = vain.passes(outcome, self.settings.tail());
        let passes = passes.filter(|_| vain.session == session)?;
        let why = match self.live(session) {
            Err(why) => why,
            Ok(state) => self.find_lease(session, state, id).err()?,
        };
        Some(Event::FinishedInVain {
            lease: id,
            session,
            passes,
            why,
        })
    }

    /// Whether an outcome is one of the leased work, by kind, length and number.
    fn check_outcome(&self, lease: &Lease, outcome: &Outcome) -> Result<(), Rejection> {
        let is_long = |length: u64, expected: u64| {
            if length == expected {
                Ok(())
            } else {
                Err(Rejection::WrongLength)
            }
        };
        let settings = &self.settings;
        // Whether something that some runs ask for and others do not is there exactly if it was asked for, and as long.
        let is_asked_for =
            |asked: bool, seal: &Option<Seal>, bytes: Option<u64>| match (asked, seal) {
                (false, None) => Ok(()),
                (true, Some(seal)) => is_long(seal.length, bytes.unwrap_or(0)),
                _ => Err(Rejection::WrongOutcome),
            };
        match (&lease.work, outcome) {
            (Work::Forward { .. }, Outcome::Forward { output, .. }) => {
                is_long(output.length, self.settings.activation_bytes)
            }
            (
                Work::Backward {
                    gradient: wanted, ..
                },
                Outcome::Backward { gradient, loss, .. },
            ) => {
                let at_tail = lease.stage == self.settings.tail();
                if wanted.is_some() != gradient.is_some() || loss.is_some() != at_tail {
                    return Err(Rejection::WrongOutcome);
                }
                if loss.is_some_and(|loss| !loss.is_finite()) {
                    return Err(Rejection::NotFinite);
                }
                gradient.map_or(Ok(()), |gradient| {
                    is_long(gradient.length, self.settings.gradient_bytes)
                })
            }
            (
                Work::Upload {
                    cells, seals_kept, ..
                },
                Outcome::Upload {
                    cells: seals,
                    kept: seal,
                    ..
                },
            ) => {
                if cells.len() != seals.len() {
                    return Err(Rejection::WrongOutcome);
                }
                let elements = settings.stage_parameters[usize::from(lease.stage.get())];
                let kept_bytes = settings.merging.kept.map(|size| size.bytes(elements));
                is_asked_for(*seals_kept, seal, kept_bytes)?;
                let mut pairs = cells.iter().zip(seals);
                pairs.try_for_each(|(cell, seal)| {
                    let elements = cell.range.end - cell.range.start;
                    is_long(seal.length, settings.upload_bytes(elements))
                })
            }
            (
                Work::Merge {
                    range,
                    inputs,
                    delta,
                    ..
                },
                Outcome::Merge {
                    merged,
                    quarantined,
                    delta: seal,
                },
            ) => {
                let elements = range.end - range.start;
                let delta_bytes = settings.delta_bytes(elements, inputs.len());
                is_asked_for(delta.is_some(), seal, delta_bytes)?;
                // A mean of nothing is no result.
                if !are_uploaders(inputs, quarantined) || quarantined.len() == inputs.len() {
                    return Err(Rejection::WrongOutcome);
                }
                is_long(merged.length, settings.cell_bytes(elements))
            }
            (Work::Merge { inputs, .. }, Outcome::Unmergeable { quarantined }) => {
                if are_uploaders(inputs, quarantined) {
                    Ok(())
                } else {
                    Err(Rejection::WrongOutcome)
                }
            }
            (Work::HandOver { .. }, Outcome::HandedOver)
            | (Work::Fetch { .. }, Outcome::Fetched)
            | (Work::Install { .. }, Outcome::Install { .. })
            | (Work::Replay { .. } | Work::Inspect { .. }, Outcome::Audit { .. }) => Ok(()),
            _ => Err(Rejection::WrongOutcome),
        }
    }

    /// Whether a session has uploaded what the epoch of this lease made of its stage: its log of that is closed.
    fn has_uploaded(&self, lease: &Lease, session: Session) -> bool {
        matches!(self.phase, Phase::Uploading | Phase::Merging)
            && lease.epoch == self.epoch
            && self.merge_of(lease.stage).uploads.contains_key(&session)
    }

    /// Whether a session may do its stage's passes for the epoch of this lease.
    fn trains_under(&self, lease: &Lease, state: &SessionState) -> bool {
        lease.epoch == self.trains_for() && self.may_train(state)
    }

    /// Whether the work of a lease that ran out is still to be done, from the same inputs.
    fn is_open(&self, lease: &Lease, state: &SessionState) -> bool {
        match &lease.work {
            Work::Forward { sample, input, .. } => {
                let piece = Piece {
                    stage: lease.stage,
                    direction: Direction::Forward,
                };
                self.trains_under(lease, state)
                    && self.samples.flying.get(sample).is_some_and(|sample| {
                        sample.next_piece(self.settings.tail()) == Some(piece)
                            && sample.input_of(lease.stage) == *input
                    })
            }
            Work::Backward {
                sample,
                input,
                output_gradient,
                ..
            } => {
                let piece = Piece {
                    stage: lease.stage,
                    direction: Direction::Backward,
                };
                self.trains_under(lease, state)
                    && self.samples.flying.get(sample).is_some_and(|sample| {
                        sample.next_piece(self.settings.tail()) == Some(piece)
                            && sample.input_of(lease.stage) == *input
                            && sample.backwards.last().and_then(|hop| hop.object)
                                == *output_gradient
                    })
            }
            Work::Upload { .. } => {
                let merge = self.merge_of(lease.stage);
                self.phase == Phase::Uploading && merge.waits_for_upload_of(lease.session)
            }
            Work::HandOver { began_with, keeps } => {
                let offered = Owed {
                    began_with: began_with.map(|object| object.seal),
                    keeps: keeps.map(|object| object.seal),
                };
                self.may_hand_over(lease.session) == Some(offered)
            }
            Work::Merge { .. } => self.merge_is_open(lease),
            // Whoever fetched something late has it; nothing here depends on it.
            Work::Fetch { .. } => false,
            Work::Install { checkpoint, .. } => {
                *checkpoint == *self.checkpoint(lease.stage) && !state.is_installed(self.epoch)
            }
            Work::Replay { .. } | Work::Inspect { .. } => self.audit_of(&lease.work).is_some(),
        }
    }

    /// Leases that a late result makes pointless: of the same piece, audit, upload or installation.
    fn displaced_by(&self, late: &Lease) -> impl Iterator<Item = (LeaseId, Session)> {
        let holder = match &late.work {
            Work::Forward { sample, .. } | Work::Backward { sample, .. } => {
                match self.samples.flying.get(sample).map(|sample| &sample.holder) {
                    Some(Holder::Leased { lease }) => Some(*lease),
                    _ => None,
                }
            }
            Work::Replay { .. } | Work::Inspect { .. } => {
                self.audit_of(&late.work).and_then(|(_, audit)| audit.lease)
            }
            Work::Upload { .. }
            | Work::HandOver { .. }
            | Work::Fetch { .. }
            | Work::Install { .. } => self
                .leases_of(late.session)
                .find(|lease| lease.work.kind() == late.work.kind())
                .map(|lease| lease.id),
            Work::Merge {
                cell: late_cell, ..
            } => self
                .leases_of(late.session)
                .find(|lease| {
                    lease.stage == late.stage
                        && matches!(&lease.work, Work::Merge { cell, .. } if cell == late_cell)
                })
                .map(|lease| lease.id),
        };
        holder
            .and_then(|holder| self.lease(holder))
            .map(|lease| (lease.id, lease.session))
            .into_iter()
    }

    /// What a credited result shows beyond itself: a complete sample, an equal or odd replica, a verdict.
    fn shown_by(&self, lease: &Lease, outcome: &Outcome) -> Vec<Event> {
        match (&lease.work, outcome) {
            (
                Work::Backward {
                    sample,
                    gradient: None,
                    ..
                },
                Outcome::Backward { loss, .. },
            ) => {
                let state = &self.samples.flying[sample];
                let loss = state
                    .loss
                    .or(*loss)
                    .expect("the tail's backward pass, checked above, gave a loss");
                let path = std::iter::once(lease.session)
                    .chain(state.backwards.iter().rev().map(|hop| hop.session));
                vec![Event::SampleCompleted {
                    sample: *sample,
                    loss,
                    path: path.collect(),
                }]
            }
            (Work::Install { .. }, Outcome::Install { state, .. }) => {
                self.compare_replicas(lease.stage, lease.epoch, lease.session, *state)
            }
            (Work::Replay { .. } | Work::Inspect { .. }, Outcome::Audit { verdict }) => {
                self.settle_audit(lease, *verdict)
            }
            _ => Vec::new(),
        }
    }

    /// Compares what the sessions of a stage say they installed. Whoever is outnumbered installs again. Where no side
    /// outnumbers the other nobody can tell who is right: the difference is noted and all go on, because a liar could
    /// otherwise keep an honest miner out for ever.
    fn compare_replicas(
        &self,
        stage: StageIndex,
        epoch: Epoch,
        reporter: Session,
        digest: Digest,
    ) -> Vec<Event> {
        let mut reports: BTreeMap<Session, Digest> = self
            .sessions
            .miners_of(stage)
            .filter_map(|(session, state)| Some((session, state.installation?)))
            .filter(|(_, installation)| installation.epoch == epoch)
            .map(|(session, installation)| (session, installation.state))
            .collect();
        reports.insert(reporter, digest);
        let mut votes: BTreeMap<Digest, usize> = BTreeMap::new();
        for digest in reports.values() {
            *votes.entry(*digest).or_default() += 1;
        }
        let most = votes.values().copied().max().unwrap_or(0);
        let leading: Vec<Digest> = votes
            .into_iter()
            .filter(|(_, votes)| *votes == most)
            .map(|(digest, _)| digest)
            .collect();
        let is_usual = |digest: &Digest| leading.contains(digest);
        let was_fine = |session: &Session| {
            *session != reporter
                && self
                    .session(*session)
                    .is_some_and(|state| state.is_installed(epoch))
        };
        let mut events = Vec::new();
        let odd: Vec<Session> = reports
            .iter()
            .filter(|(session, digest)| {
                !is_usual(digest) && (**session == reporter || was_fine(session))
            })
            .map(|(session, _)| *session)
            .collect();
        if !odd.is_empty() || (leading.len() > 1 && leading.contains(&digest)) {
            // What the reporter is answering is no lease of it any more.
            let leases = odd.iter().flat_map(|session| self.leases_of(*session));
            for lease in
                leases.filter(|lease| lease.session != reporter || lease.work.sample().is_some())
            {
                events.push(Event::LeaseEnded {
                    lease: lease.id,
                    session: lease.session,
                    why: LeaseEnd::Withdrawn,
                });
            }
            events.push(Event::ReplicasDiffer { stage, epoch, odd });
        }
        for (session, state) in reports
            .iter()
            .filter(|(session, digest)| is_usual(digest) && !was_fine(session))
        {
            // One that was thought odd need not install again.
            let again = self
                .leases_of(*session)
                .filter(|lease| *session != reporter && lease.work.kind() == WorkKind::Install);
            events.extend(again.map(|lease| Event::LeaseEnded {
                lease: lease.id,
                session: *session,
                why: LeaseEnd::Superseded,
            }));
            events.push(Event::Installed {
                session: *session,
                stage,
                epoch,
                state: *state,
            });
        }
        events
    }

    fn settle_audit(&self, lease: &Lease, verdict: Verdict) -> Vec<Event> {
        let Some((audit_id, audit)) = self.audit_of(&lease.work) else {
            return Vec::new();
        };
        let subject = audit.subject;
        let mut events = vec![Event::AuditSettled {
            audit: audit_id,
            subject,
            verdict,
            auditor: lease.session,
        }];
        if let Verdict::Differs {
            ordinal,
            difference,
        } = verdict
        {
            let why = match &audit.work {
                Work::Inspect { object, .. } => BanReason::Inspection {
                    audit: audit_id,
                    object: object.name,
                    difference,
                },
                _ => BanReason::Audit {
                    audit: audit_id,
                    epoch: audit.epoch,
                    ordinal,
                    difference,
                },
            };
            events.extend(self.ban(subject.peer, why));
        }
        events
    }
}

/// Whether these are some of those whose copies were to be merged, in order.
fn are_uploaders(inputs: &[MergeInput], sessions: &[Session]) -> bool {
    let uploaded = |session: &Session| inputs.iter().any(|input| input.session == *session);
    sessions.iter().all(uploaded) && sessions.is_sorted_by(|a, b| a < b)
}
