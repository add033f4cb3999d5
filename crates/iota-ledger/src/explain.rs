//! What happened to a peer, a sample or an epoch, and why: a line for each event that has to do with it.
//!
//! Ordinary work is told in sums, whatever is out of the ordinary in lines of its own.

use std::collections::BTreeMap;

use iota_protocol::event::Phase;
use iota_protocol::work::{Lease, Work, WorkKind};
use iota_protocol::{Epoch, Event, LeaseId, PeerId, SampleId, Session, Timestamp};

use crate::account::{Inclusion, SampleEnd};
use crate::{Ledger, words};

/// What is to be explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// A miner or validator, in all its sessions.
    Peer(PeerId),
    /// A sample from its opening to its end.
    Sample(SampleId),
    /// An epoch, from the installation of what it starts from to its merge.
    Epoch(Epoch),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The entry of the journal that it is in.
    pub entry: u64,
    /// When.
    pub at: Timestamp,
    /// What, and why.
    pub text: String,
}

/// Collects what happened to a subject. Show it all events of a run from the first, in order.
#[derive(Debug)]
pub struct Explanation {
    subject: Subject,
    epoch: Epoch,
    leases: BTreeMap<LeaseId, Lease>,
    tally: Tally,
    lines: Vec<Line>,
}

/// What is told in sums.
#[derive(Debug, Default)]
struct Tally {
    forwards: u64,
    backwards: u64,
    opened: u64,
    losses: Vec<f32>,
    /// Leases that ended without a result, by reason.
    ended: BTreeMap<String, u64>,
    cells_agreed: u64,
    merged: u64,
}

impl Explanation {
    /// Of a run that nobody has joined yet.
    pub fn new(subject: Subject) -> Self {
        Self {
            subject,
            epoch: Epoch::new(0),
            leases: BTreeMap::new(),
            tally: Tally::default(),
            lines: Vec::new(),
        }
    }

    /// Takes in an event of an entry.
    pub fn follow(&mut self, entry: u64, at: Timestamp, event: &Event) {
        if let Event::Leased(lease) = event {
            self.leases.insert(lease.id, lease.clone());
        }
        if let Event::PhaseChanged { phase, epoch, .. } = event {
            if matches!(phase, Phase::Uploading | Phase::Installing | Phase::Over) {
                self.tell_tally(entry, at);
            }
            let before = std::mem::replace(&mut self.epoch, *epoch);
            // What its merge led to is the end of an epoch, and the beginning of the next.
            if self.subject == Subject::Epoch(before) || self.subject == Subject::Epoch(*epoch) {
                self.tell(entry, at, words::event(event));
            }
            if *phase == Phase::Training {
                self.leases
                    .retain(|_, lease| lease.epoch >= *epoch || lease.work.subject().is_some());
            }
            return;
        }
        if matches!(event, Event::Restored { .. }) {
            self.tell_tally(entry, at);
        }
        if let Some(text) = self.text(at, event) {
            self.tell(entry, at, text);
        }
    }

    /// What was collected, in order.
    pub fn into_lines(mut self) -> Vec<Line> {
        if let Some((entry, at)) = self.lines.last().map(|last| (last.entry, last.at)) {
            self.tell_tally(entry, at);
        }
        self.lines
    }

    fn tell(&mut self, entry: u64, at: Timestamp, text: String) {
        self.lines.push(Line { entry, at, text });
    }

    /// What to say of an event; nothing if it does not matter here, or is told in a sum.
    fn text(&mut self, at: Timestamp, event: &Event) -> Option<String> {
        match event {
            Event::Leased(lease) => self.leased(lease),
            Event::LeaseEnded { lease, why, .. } => {
                let lease = self.leases.get(lease)?.clone();
                let why = words::lease_end(why);
                match self.subject {
                    Subject::Epoch(_) if self.is_concerned(event) => {
                        let what = format!("{} ended: {why}", name(lease.work.kind()));
                        *self.tally.ended.entry(what).or_default() += 1;
                        None
                    }
                    Subject::Epoch(_) => None,
                    _ => self.about(&lease).then(|| {
                        let (id, session, work) = (lease.id, lease.session, describe(&lease));
                        format!("{id} of {session:?}, {work}, ended: {why}")
                    }),
                }
            }
            // Whatever is told of may be undone by it.
            Event::Restored { .. } => (!self.lines.is_empty()).then(|| words::event(event)),
            Event::Completed {
                lease, credited, ..
            } => self.completed(*lease, *credited, at),
            Event::SampleOpened { .. } if matches!(self.subject, Subject::Epoch(_)) => {
                self.tally.opened += u64::from(self.is_concerned(event));
                None
            }
            Event::SampleCompleted { loss, .. } if matches!(self.subject, Subject::Epoch(_)) => {
                if self.is_concerned(event) {
                    self.tally.losses.push(*loss);
                }
                None
            }
            // A peer's passes are in its sums.
            Event::SampleCompleted { .. } if matches!(self.subject, Subject::Peer(_)) => None,
            Event::CellSettled {
                result: iota_protocol::event::CellResult::Agreed,
                ..
            } => {
                self.tally.cells_agreed += u64::from(self.is_concerned(event));
                None
            }
            Event::FinishedInVain { why, .. } if matches!(self.subject, Subject::Epoch(_)) => {
                if self.is_concerned(event) {
                    let what = format!("finished pass was too late for any use: {why}");
                    *self.tally.ended.entry(what).or_default() += 1;
                }
                None
            }
            Event::RoomOffered { .. } | Event::WaiterHeard { .. } => None,
            _ => self.is_concerned(event).then(|| words::event(event)),
        }
    }

    /// A sample's leases are told one by one, and so is whatever a peer is given beside samples.
    fn leased(&self, lease: &Lease) -> Option<String> {
        let told = match self.subject {
            Subject::Sample(_) => self.about(lease),
            Subject::Peer(_) => self.about(lease) && is_rare(&lease.work),
            Subject::Epoch(_) => false,
        };
        let (id, session) = (lease.id, lease.session);
        let limit = words::seconds(lease.deadline.since(lease.issued_at));
        told.then(|| {
            format!(
                "{session:?} is given {id}: {}, within {limit}",
                describe(lease)
            )
        })
    }

    fn completed(&mut self, id: LeaseId, credited: bool, at: Timestamp) -> Option<String> {
        let lease = self.leases.remove(&id)?;
        let concerned = match self.subject {
            Subject::Epoch(epoch) => epoch == self.epoch,
            _ => self.about(&lease),
        };
        if !concerned {
            return None;
        }
        let whole_story = matches!(self.subject, Subject::Sample(_));
        if credited && !whole_story {
            match lease.work.kind() {
                WorkKind::Forward => self.tally.forwards += 1,
                WorkKind::Backward => self.tally.backwards += 1,
                WorkKind::Merge => self.tally.merged += 1,
                _ => {}
            }
            if !is_rare(&lease.work) {
                return None;
            }
        }
        let (session, work) = (lease.session, describe(&lease));
        let took = words::seconds(at.since(lease.issued_at));
        Some(if credited {
            format!("{session:?} did {id}, {work}, in {took}")
        } else {
            format!(
                "{session:?} reported {id}, {work}, after {took}: too late, it goes into its log and counts for nothing"
            )
        })
    }

    /// Whether a lease is the subject's.
    fn about(&self, lease: &Lease) -> bool {
        match self.subject {
            Subject::Peer(peer) => {
                lease.session.peer == peer
                    || lease
                        .work
                        .subject()
                        .is_some_and(|subject| subject.peer == peer)
            }
            Subject::Sample(sample) => lease.work.sample() == Some(sample),
            Subject::Epoch(epoch) => lease.epoch == epoch,
        }
    }

    fn is_concerned(&self, event: &Event) -> bool {
        match self.subject {
            Subject::Epoch(epoch) => epoch == self.epoch,
            Subject::Sample(subject) => match event {
                Event::SampleOpened { sample }
                | Event::PreferenceLapsed { sample }
                | Event::PieceUndone { sample, .. }
                | Event::SampleCompleted { sample, .. }
                | Event::SampleRestarted { sample, .. }
                | Event::SampleDropped { sample } => *sample == subject,
                _ => false,
            },
            Subject::Peer(peer) => concerns(event, peer),
        }
    }

    fn tell_tally(&mut self, entry: u64, at: Timestamp) {
        let tally = std::mem::take(&mut self.tally);
        let epoch = self.epoch;
        let mut parts = Vec::new();
        if tally.forwards + tally.backwards > 0 {
            let Tally {
                forwards,
                backwards,
                ..
            } = tally;
            parts.push(format!(
                "{forwards} forward and {backwards} backward passes credited"
            ));
        }
        if tally.opened > 0 {
            parts.push(format!("{} samples set out", tally.opened));
        }
        if !tally.losses.is_empty() {
            let count = tally.losses.len();
            let mean = tally.losses.iter().sum::<f32>() / count as f32;
            parts.push(format!("{count} samples complete, mean loss {mean:.3}"));
        }
        if tally.merged > 0 {
            parts.push(format!("{} cells merged by an owner", tally.merged));
        }
        if tally.cells_agreed > 0 {
            let cells = tally.cells_agreed;
            parts.push(format!("{cells} cells settled by owners who agree"));
        }
        let ended = tally.ended.into_iter();
        parts.extend(ended.map(|(what, times)| format!("{times} times {what}")));
        if !parts.is_empty() {
            self.tell(entry, at, format!("in {epoch}: {}", parts.join("; ")));
        }
    }
}

impl Ledger {
    /// What became of a sample by the books: where each stage's share of it is now. Empty if it never set out.
    pub fn whereabouts(&self, sample: SampleId) -> Vec<String> {
        let Some(account) = self.sample(sample) else {
            return Vec::new();
        };
        let mut lines = vec![match account.end {
            None => format!("{sample} is on its way"),
            Some(SampleEnd::Completed { epoch, .. }) => format!("{sample} counts once, in {epoch}"),
            Some(SampleEnd::Dropped { epoch }) => {
                format!("{sample} does not count: it was given up in {epoch}")
            }
        }];
        lines.extend(account.backwards.iter().rev().map(|pass| {
            let stage = self.stints[pass.stint].stage;
            let next = self.stints[pass.stint].epoch.next();
            let inclusion = match self.inclusion(pass) {
                Some(Inclusion::Pending) => "not merged yet".to_owned(),
                Some(Inclusion::Merged { elements, of }) if elements == of => {
                    format!("in all of what {stage} starts {next} from")
                }
                Some(Inclusion::Merged { elements, of }) => {
                    format!("in {elements} of {of} elements of what {stage} starts {next} from")
                }
                Some(Inclusion::Lost { loss }) => format!("in no merge: {loss}"),
                None => "in no merge, and nothing says why".to_owned(),
            };
            format!(
                "{stage}: learned from by {:?} ({}), {inclusion}",
                pass.session, pass.lease
            )
        }));
        if account.undone + account.superseded > 0 {
            lines.push(format!(
                "{} passes of it were done in vain, {} results came too late",
                account.undone, account.superseded
            ));
        }
        lines
    }
}

/// Work that is told even where work is told in sums.
const fn is_rare(work: &Work) -> bool {
    matches!(
        work.kind(),
        WorkKind::Upload
            | WorkKind::HandOver
            | WorkKind::Install
            | WorkKind::Replay
            | WorkKind::Inspect
    )
}

fn describe(lease: &Lease) -> String {
    format!("{} at {}", words::work(&lease.work), lease.stage)
}

const fn name(kind: WorkKind) -> &'static str {
    match kind {
        WorkKind::Forward => "a forward pass",
        WorkKind::Backward => "a backward pass",
        WorkKind::Upload => "an upload",
        WorkKind::HandOver => "handing over what an audit needs",
        WorkKind::Merge => "a merge",
        WorkKind::Fetch => "fetching merged cells",
        WorkKind::Install => "an installation",
        WorkKind::Replay => "a replay",
        WorkKind::Inspect => "an inspection",
    }
}

/// Whether an event that is about no lease has to do with a peer.
fn concerns(event: &Event, peer: PeerId) -> bool {
    let is = |session: &Session| session.peer == peer;
    match event {
        Event::SessionJoined { session, .. }
        | Event::SessionEnded { session, .. }
        | Event::UploadExcluded { session, .. }
        | Event::UploadQuarantined { session, .. }
        | Event::FinishedInVain { session, .. }
        | Event::Installed { session, .. } => is(session),
        Event::PieceUndone {
            producer, accuser, ..
        }
        | Event::UploadAccused {
            producer, accuser, ..
        }
        | Event::DisputeOpened {
            producer, accuser, ..
        } => is(producer) || is(accuser),
        Event::CheckpointAccused { accuser, .. } => is(accuser),
        Event::CellSettled {
            result: iota_protocol::event::CellResult::Arbitrated { liar },
            ..
        } => is(liar),
        Event::ReplicasDiffer { odd, .. } => odd.iter().any(is),
        Event::RosterFixed { roster, .. } => roster.iter().any(is),
        Event::AuditDrawn { subject, .. } | Event::AuditAbandoned { subject, .. } => is(subject),
        Event::AuditSettled {
            subject, auditor, ..
        } => is(subject) || is(auditor),
        Event::WaitBegan { peer: other, .. }
        | Event::WaitEnded { peer: other, .. }
        | Event::PlaceLapsed { peer: other, .. }
        | Event::PeerBanned { peer: other, .. } => *other == peer,
        _ => false,
    }
}
