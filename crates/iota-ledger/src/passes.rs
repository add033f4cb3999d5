//! A sample's way through the stages: each pass follows those before it, and reads what they made.

use iota_protocol::event::Phase;
use iota_protocol::work::{Lease, ObjectRef, Outcome, Work};
use iota_protocol::{SampleId, Session, StageIndex};

use crate::account::{Contribution, SampleAccount, SampleEnd};
use crate::{Discrepancy, Ledger};

impl Ledger {
    pub(crate) fn sample_opened(&mut self, sample: SampleId) {
        let expected = self.samples.keys().next_back();
        let expected = expected.map_or_else(SampleId::default, |last| last.next());
        if sample != expected {
            self.discrepancies
                .push(Discrepancy::SampleOutOfOrder { sample, expected });
        }
        if !self.samples.contains_key(&sample) {
            self.samples
                .insert(sample, SampleAccount::opened(self.trains_for()));
            self.flying.insert(sample);
        }
    }

    /// Adds a credited pass to a sample's way.
    pub(crate) fn pass(&mut self, sample: SampleId, lease: &Lease, outcome: &Outcome) {
        let (id, session) = (lease.id, lease.session);
        let is_backward = matches!(lease.work, Work::Backward { .. });
        let peer = self.peers.entry(session.peer).or_default();
        peer.forwards += u64::from(!is_backward);
        peer.backwards += u64::from(is_backward);
        self.go_ahead(lease);
        let trains_for = self.trains_for();
        let Some(&stint) = self.present.get(&session) else {
            self.discrepancies
                .push(Discrepancy::WithoutWeights { lease: id, session });
            return;
        };
        let (held, of) = (&mut self.stints[stint], lease.stage);
        let has_what_others_have = held.is_installed || self.phase != Phase::Training;
        if !held.is_of(of, lease.epoch) || lease.epoch != trains_for || !has_what_others_have {
            self.discrepancies.push(Discrepancy::WithOtherWeights {
                lease: id,
                session,
                stage: held.stage,
                epoch: held.epoch,
            });
        }
        held.backwards += u64::from(is_backward);
        let tail = self.tail();
        let Some(account) = self.on_its_way(sample, "a pass of it was credited") else {
            return;
        };
        let contribution = Contribution {
            lease: id,
            session,
            stint,
        };
        let found = account.extend(sample, lease, outcome, contribution, tail);
        self.discrepancies.extend(found);
    }

    pub(crate) fn sample_completed(&mut self, sample: SampleId, loss: f32, path: &[Session]) {
        let (epoch, tail) = (self.trains_for(), self.tail());
        let Some(account) = self.on_its_way(sample, "it is complete") else {
            return;
        };
        account.end = Some(SampleEnd::Completed { epoch, loss });
        account.made = (Vec::new(), Vec::new());
        let did: Vec<Session> = account
            .backwards
            .iter()
            .rev()
            .map(|pass| pass.session)
            .collect();
        self.flying.remove(&sample);
        let missing = (0..tail + 1 - did.len().min(tail + 1))
            .filter_map(|stage| Some(StageIndex::new(u16::try_from(stage).ok()?)));
        let missing = missing.map(|stage| Discrepancy::NeverLearned { sample, stage });
        self.discrepancies.extend(missing);
        if did != path {
            self.discrepancies.push(Discrepancy::AnotherPath { sample });
        }
        let completed = self.completed.entry(epoch).or_default();
        *completed += 1;
        let quota = self.settings.samples_per_epoch;
        if *completed > quota {
            self.discrepancies.push(Discrepancy::TooManySamples {
                epoch,
                quota,
                sample,
            });
        }
    }
}

impl SampleAccount {
    /// Adds a pass if it is the next one. Says if it is not, or if it read something else than the passes before it made.
    fn extend(
        &mut self,
        sample: SampleId,
        lease: &Lease,
        outcome: &Outcome,
        contribution: Contribution,
        tail: usize,
    ) -> Option<Discrepancy> {
        let (stage, id) = (lease.stage, lease.id);
        let place = usize::from(stage.get());
        let (forwards, backwards) = (self.forwards.len(), self.backwards.len());
        let activation = place
            .checked_sub(1)
            .and_then(|before| self.made.0.get(before).copied().flatten());
        let (is_next, was_there, fits) = match &lease.work {
            Work::Forward { input, .. } => (
                place == forwards && backwards == 0 && place < tail,
                place < forwards,
                *input == activation,
            ),
            Work::Backward {
                input,
                output_gradient,
                ..
            } => (
                place + backwards == tail && forwards == tail,
                place + backwards > tail,
                *input == activation && *output_gradient == self.made.1.last().copied().flatten(),
            ),
            _ => return None,
        };
        if !is_next {
            let lease = id;
            return Some(if was_there {
                Discrepancy::CountedTwice {
                    sample,
                    stage,
                    lease,
                }
            } else {
                Discrepancy::OutOfTurn {
                    sample,
                    stage,
                    lease,
                }
            });
        }
        match (&lease.work, outcome) {
            (Work::Forward { output, .. }, Outcome::Forward { output: seal, .. }) => {
                self.forwards.push(contribution);
                let (name, seal) = (*output, *seal);
                self.made.0.push(Some(ObjectRef { name, seal }));
            }
            (Work::Backward { gradient, .. }, Outcome::Backward { gradient: seal, .. }) => {
                self.backwards.push(contribution);
                let made = gradient.zip(*seal);
                let made = made.map(|(name, seal)| ObjectRef { name, seal });
                self.made.1.push(made);
            }
            // A result of other work than was leased: the way is not continued, and that shows.
            _ => {}
        }
        (!fits).then_some(Discrepancy::ReadSomethingElse {
            sample,
            stage,
            lease: id,
        })
    }
}
