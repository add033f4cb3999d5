//! The one task that owns a run's state: it takes a command, has the rules decide, has the events written to the journal,
//! and only then answers.
//!
//! ```text
//!   calls ──► bounded queue ──► State::handle ──► writer ─────────────────────────► durable
//!   timer ──► Tick ────────────────┘                                                   │
//!                                  └──► what is to be told, in order, each with the ───┴──► answers, polls, followers,
//!                                       last entry that it rests on                         readers of the state
//! ```
//!
//! The owner does not wait for the disk: it goes on deciding, and tells once the journal has caught up. A refusal and a
//! glance at the state rest on what was decided before as much as a success does, so they wait in the same line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use iota_journal::{Entry, Snapshot};
use iota_node::{Clock, Shutdown, blocking};
use iota_protocol::event::Event;
use iota_protocol::registration::Place;
use iota_protocol::work::Lease;
use iota_protocol::{Command, LeaseId, PeerId, Rejection, Session, State, Timestamp};
use iota_wire::LeasedWork;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::Error;
use crate::grants::Granter;
use crate::parked::Parked;
use crate::writer::{Job, Writer};

/// Requests that may wait for the owner. A caller beyond that waits in its own task, which the server bounds.
const QUEUE: usize = 1024;

/// How to reach the owner. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct OwnerHandle {
    requests: mpsc::Sender<Request>,
}

/// Events from one snapshot to the next: so many are replayed in a fraction of a second (docs/BENCHES.md), and a snapshot
/// takes less than the disk takes for so many.
const SNAPSHOT_EVERY: u64 = 20_000;

/// What a long poll comes to.
#[derive(Debug, Default)]
pub(crate) struct PollAnswer {
    pub(crate) leases: Vec<LeasedWork>,
    pub(crate) revoked: Vec<LeaseId>,
}

/// Why somebody who would join is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) rejection: Rejection,
    /// Its place on the waiting list, if it has one.
    pub(crate) place: Option<Place>,
}

enum Request {
    Command(Command, oneshot::Sender<Result<Vec<Event>, Rejection>>),
    Join(
        PeerId,
        Command,
        oneshot::Sender<Result<Vec<Event>, Refused>>,
    ),
    Poll(Poll),
    Lease(LeaseId, oneshot::Sender<Option<Lease>>),
}

struct Poll {
    session: Session,
    room: u32,
    held: Vec<LeaseId>,
    until: Timestamp,
    reply: oneshot::Sender<Result<PollAnswer, Rejection>>,
}

/// The owner is gone: the run's process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

impl OwnerHandle {
    /// Has the rules decide on a command; returns its events once they are durable.
    pub(crate) async fn command(
        &self,
        command: Command,
    ) -> Result<Result<Vec<Event>, Rejection>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Command(command, reply))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// As [`command`](Self::command), for one with which `peer` joins.
    pub(crate) async fn join(
        &self,
        peer: PeerId,
        command: Command,
    ) -> Result<Result<Vec<Event>, Refused>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Join(peer, command, reply))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// A lease that somebody holds.
    pub(crate) async fn lease(&self, lease: LeaseId) -> Result<Option<Lease>, Gone> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Lease(lease, reply))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Offers a session's room and waits, at most until `until`, for something that the caller does not hold yet.
    pub(crate) async fn poll(
        &self,
        session: Session,
        room: u32,
        held: Vec<LeaseId>,
        until: Timestamp,
    ) -> Result<Result<PollAnswer, Rejection>, Gone> {
        let (reply, answer) = oneshot::channel();
        let poll = Poll {
            session,
            room,
            held,
            until,
            reply,
        };
        self.requests
            .send(Request::Poll(poll))
            .await
            .map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }
}

/// Something to be told once what it rests on is durable.
#[derive(Debug)]
enum News {
    Answer(
        oneshot::Sender<Result<Vec<Event>, Rejection>>,
        Result<Vec<Event>, Rejection>,
    ),
    Join(
        oneshot::Sender<Result<Vec<Event>, Refused>>,
        Result<Vec<Event>, Refused>,
    ),
    Poll(
        oneshot::Sender<Result<PollAnswer, Rejection>>,
        Result<PollAnswer, Rejection>,
    ),
    Lease(oneshot::Sender<Option<Lease>>, Option<Box<Lease>>),
    Entry(Arc<Entry>),
    State(Arc<State>),
}

/// The owner's parts.
pub(crate) struct Owner {
    state: State,
    /// The last entry.
    sequence: u64,
    writer: Writer,
    /// What waits for the journal, each with the entry that it rests on; in order.
    untold: VecDeque<(u64, News)>,
    events_since_snapshot: u64,
    snapshot: Option<JoinHandle<()>>,
    granter: Granter,
    clock: Arc<dyn Clock>,
    requests: mpsc::Receiver<Request>,
    parked: Parked<Poll>,
    followers: mpsc::Sender<Arc<Entry>>,
    published: watch::Sender<Arc<State>>,
    published_at: Timestamp,
    /// A copy waits to be published: one is enough, however long the disk takes.
    copy_waits: bool,
    /// How long the last copy took.
    copy_took: Duration,
    /// When it came back, until it has leased something.
    resumed_at: Option<Timestamp>,
}

/// What the owner starts from.
pub(crate) struct Start {
    pub(crate) state: State,
    /// The last entry of the journal.
    pub(crate) sequence: u64,
    /// When this process began to resume the run, if it does.
    pub(crate) resumed_at: Option<Timestamp>,
}

/// The state is copied for readers at most this often.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// One in so many parts of the owner's time, at most, goes into copies for readers: fewer calls than one in a hundred meet
/// one.
const COPY_SHARE: u32 = 200;

impl Owner {
    pub(crate) fn new(
        start: Start,
        writer: Writer,
        granter: Granter,
        clock: Arc<dyn Clock>,
        followers: mpsc::Sender<Arc<Entry>>,
    ) -> (Self, OwnerHandle, watch::Receiver<Arc<State>>) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let (published, readers) = watch::channel(Arc::new(start.state.clone()));
        let owner = Self {
            state: start.state,
            sequence: start.sequence,
            writer,
            untold: VecDeque::new(),
            events_since_snapshot: 0,
            snapshot: None,
            granter,
            published_at: clock.now(),
            clock,
            requests,
            parked: Parked::default(),
            followers,
            published,
            copy_waits: false,
            copy_took: Duration::ZERO,
            resumed_at: start.resumed_at,
        };
        (owner, OwnerHandle { requests: sender }, readers)
    }

    /// Works until `shutdown` is requested or all handles are gone.
    ///
    /// # Errors
    /// If the journal cannot be written: what is not durable is not acknowledged, so nothing can go on.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Result<(), Error> {
        let worked = self.work(&shutdown).await;
        if worked == Ok(()) {
            info!(phase = ?self.state.phase(), epoch = %self.state.epoch(), "the run's owner ends");
        }
        if let Some(snapshot) = self.snapshot.take() {
            drop(snapshot.await);
        }
        // If the writer is gone, this says why.
        self.writer.finish().await?;
        worked.map_err(|WriterGone| Error::Panicked("the journal's writer ended".to_owned()))
    }

    async fn work(&mut self, shutdown: &Shutdown) -> Result<(), WriterGone> {
        let ended = shutdown.wait();
        tokio::pin!(ended);
        if self.resumed_at.is_some() {
            let resumed = self.decide(&Command::Resume).await?;
            debug_assert!(resumed.is_ok(), "coming back cannot be refused");
        }
        loop {
            let now = self.clock.now();
            // Here and not on a timer alone: requests that never cease must not starve those that wait.
            self.answer_overdue(now);
            if now.since(self.published_at) >= self.publish_every() {
                self.publish().await;
            }
            let next = self.next_wake();
            let wait = next.map_or(Duration::from_secs(3600), |at| at.since(now));
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(Request::Command(command, reply)) => {
                        let answer = self.decide(&command).await?;
                        self.tell(News::Answer(reply, answer)).await;
                    }
                    Some(Request::Join(peer, command, reply)) => {
                        let answer = self.join(peer, &command).await?;
                        self.tell(News::Join(reply, answer)).await;
                    }
                    Some(Request::Poll(poll)) => self.take_poll(poll).await?,
                    Some(Request::Lease(lease, reply)) => {
                        let lease = self.state.lease(lease).cloned().map(Box::new);
                        self.tell(News::Lease(reply, lease)).await;
                    }
                    None => break,
                },
                durable = self.writer.durable.changed(), if !self.untold.is_empty() => {
                    durable.map_err(|_| WriterGone)?;
                    self.tell_what_is_durable().await;
                }
                () = &mut ended => break,
                () = tokio::time::sleep(wait) => {
                    let now = self.clock.now();
                    if self.state.next_deadline().is_some_and(|deadline| deadline <= now) {
                        let ticked = self.decide(&Command::Tick).await?;
                        debug_assert!(ticked.is_ok(), "time cannot be refused");
                    }
                }
            }
        }
        while !self.untold.is_empty() {
            let durable = self.writer.durable.changed().await;
            durable.map_err(|_| WriterGone)?;
            self.tell_what_is_durable().await;
        }
        self.publish().await;
        Ok(())
    }

    /// Tells something that rests on everything that was decided so far.
    async fn tell(&mut self, news: News) {
        let durable = *self.writer.durable.borrow();
        if self.untold.is_empty() && durable >= self.sequence {
            self.say(news).await;
        } else {
            self.untold.push_back((self.sequence, news));
        }
    }

    async fn tell_what_is_durable(&mut self) {
        let durable = *self.writer.durable.borrow_and_update();
        while self
            .untold
            .front()
            .is_some_and(|(rests_on, _)| *rests_on <= durable)
        {
            if let Some((_, news)) = self.untold.pop_front() {
                self.say(news).await;
            }
        }
    }

    /// Whoever asked may have gone meanwhile; the decision stands. A follower that died has said why itself, and the run
    /// does not depend on it.
    async fn say(&mut self, news: News) {
        match news {
            News::Answer(reply, answer) => drop(reply.send(answer)),
            News::Join(reply, answer) => drop(reply.send(answer)),
            News::Poll(reply, answer) => drop(reply.send(answer)),
            News::Lease(reply, lease) => drop(reply.send(lease.map(|lease| *lease))),
            News::Entry(entry) => drop(self.followers.send(entry).await),
            News::State(state) => {
                self.copy_waits = false;
                let earlier = self.published.send_replace(state);
                // To take a large state apart takes as long as to copy it.
                drop(blocking::spawn(move || drop(earlier)));
            }
        }
    }

    fn next_wake(&self) -> Option<Timestamp> {
        let polls = self.parked.next_due();
        let publish = self.published_at + self.publish_every() * 5;
        self.state
            .next_deadline()
            .into_iter()
            .chain(polls)
            .chain([publish])
            .min()
    }

    async fn decide(
        &mut self,
        command: &Command,
    ) -> Result<Result<Vec<Event>, Rejection>, WriterGone> {
        let now = self.clock.now();
        let events = match self.state.handle(command, now) {
            Ok(events) => events,
            Err(rejection) => {
                debug!(?command, code = rejection.code(), "refused");
                return Ok(Err(rejection));
            }
        };
        if events.is_empty() {
            return Ok(Ok(events));
        }
        self.sequence += 1;
        let entry = Arc::new(Entry {
            sequence: self.sequence,
            at: now,
            events: events.clone(),
        });
        let job = Job::Entry(Arc::clone(&entry));
        self.writer.jobs.send(job).await.map_err(|_| WriterGone)?;
        self.tell(News::Entry(entry)).await;
        self.answer_parked(&events).await;
        self.take_snapshot(events.len() as u64).await;
        if now.since(self.published_at) >= self.publish_every() || self.state.is_over() {
            self.publish().await;
        }
        Ok(Ok(events))
    }

    /// Has a peer join, or wait. Whoever is admitted in the same instant in which it begins to wait need not ask again.
    async fn join(
        &mut self,
        peer: PeerId,
        command: &Command,
    ) -> Result<Result<Vec<Event>, Refused>, WriterGone> {
        for _ in 0..2 {
            let rejection = match self.decide(command).await? {
                Ok(events) => match events.iter().find_map(Event::refusal) {
                    None => return Ok(Ok(events)),
                    Some(rejection) => rejection,
                },
                Err(rejection) => rejection,
            };
            let place = self.state.place_of(peer);
            if rejection != Rejection::Waiting || place.is_some() {
                return Ok(Err(Refused { rejection, place }));
            }
        }
        let (rejection, place) = (Rejection::Waiting, None);
        Ok(Err(Refused { rejection, place }))
    }

    /// Packs the state, if it is time, beside the work: the owner only copies it, and readers get the same copy.
    async fn take_snapshot(&mut self, new_events: u64) {
        self.events_since_snapshot += new_events;
        let busy = self
            .snapshot
            .as_ref()
            .is_some_and(|task| !task.is_finished());
        if self.events_since_snapshot < SNAPSHOT_EVERY || busy {
            return;
        }
        self.events_since_snapshot = 0;
        let (sequence, state) = (self.sequence, self.copy());
        if !self.copy_waits {
            self.publish_copy(Arc::clone(&state)).await;
        }
        let jobs = self.writer.jobs.clone();
        self.snapshot = Some(tokio::spawn(async move {
            let packed = blocking::spawn(move || Snapshot::of(sequence, &state)).await;
            // It stands in line behind the entry that it was taken after. One that panicked, or comes when the writer is
            // gone, is one snapshot less.
            if let Ok(snapshot) = packed {
                drop(jobs.send(Job::Snapshot(snapshot)).await);
            }
        }));
    }

    async fn take_poll(&mut self, poll: Poll) -> Result<(), WriterGone> {
        // A caller that has gone has another poll open by now, which must not be replaced by this one.
        if poll.reply.is_closed() {
            return Ok(());
        }
        if let Some(earlier) = self.parked.remove(poll.session) {
            drop(earlier.reply.send(Ok(PollAnswer::default())));
        }
        let offer = Command::OfferRoom {
            session: poll.session,
            room: poll.room,
        };
        if let Err(rejection) = self.decide(&offer).await? {
            self.tell(News::Poll(poll.reply, Err(rejection))).await;
            return Ok(());
        }
        self.park_or_answer(poll).await;
        Ok(())
    }

    async fn park_or_answer(&mut self, poll: Poll) {
        if poll.reply.is_closed() {
            return;
        }
        let answer = self.answer(&poll);
        // Whose session has ended hears why from the next poll.
        let is_live = self.state.session(poll.session).is_some();
        if !answer.leases.is_empty() || !answer.revoked.is_empty() || !is_live {
            self.note_first_lease(&answer);
            self.tell(News::Poll(poll.reply, Ok(answer))).await;
        } else {
            self.parked.insert(poll.session, poll.until, poll);
        }
    }

    /// What a session should know and does not.
    fn answer(&self, poll: &Poll) -> PollAnswer {
        let now = self.clock.now();
        let mut revoked: Vec<LeaseId> = poll.held.clone();
        let mut leases = Vec::new();
        for lease in self.state.leases_of(poll.session) {
            revoked.retain(|held| *held != lease.id);
            if !poll.held.contains(&lease.id) {
                leases.push(self.granter.grant(lease, now));
            }
        }
        PollAnswer { leases, revoked }
    }

    /// Polls whose session an event touched may have their answer now.
    async fn answer_parked(&mut self, events: &[Event]) {
        let mut touched: Vec<Session> = Vec::new();
        for event in events {
            match event {
                Event::Leased(lease) => touched.push(lease.session),
                Event::LeaseEnded { session, .. } | Event::SessionEnded { session, .. } => {
                    touched.push(*session)
                }
                _ => {}
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for session in touched {
            if let Some(poll) = self.parked.remove(session) {
                self.park_or_answer(poll).await;
            }
        }
    }

    fn answer_overdue(&mut self, now: Timestamp) {
        while let Some(poll) = self.parked.pop_due(now) {
            drop(poll.reply.send(Ok(PollAnswer::default())));
        }
        if self.state.is_over() {
            while let Some(poll) = self.parked.pop() {
                drop(poll.reply.send(Ok(PollAnswer::default())));
            }
        }
    }

    /// How often the state is copied for readers: so seldom that all the copying takes next to nothing of the owner's time,
    /// however large the run is.
    fn publish_every(&self) -> Duration {
        PUBLISH_EVERY.max(self.copy_took * COPY_SHARE)
    }

    /// A copy of the state, which nobody else is served during.
    fn copy(&mut self) -> Arc<State> {
        let began = Instant::now();
        let copy = Arc::new(self.state.clone());
        self.copy_took = began.elapsed();
        copy
    }

    async fn publish(&mut self) {
        if self.copy_waits {
            self.published_at = self.clock.now();
        } else {
            let copy = self.copy();
            self.publish_copy(copy).await;
        }
    }

    async fn publish_copy(&mut self, copy: Arc<State>) {
        self.published_at = self.clock.now();
        self.copy_waits = true;
        self.tell(News::State(copy)).await;
    }

    /// How long it took until a resumed run went on.
    fn note_first_lease(&mut self, answer: &PollAnswer) {
        if !answer.leases.is_empty()
            && let Some(resumed_at) = self.resumed_at.take()
        {
            let elapsed_ms = self.clock.now().since(resumed_at).as_millis();
            info!(elapsed_ms, "the first lease since the run was resumed");
        }
    }
}

/// The journal's writer has ended; it says why itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WriterGone;

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use iota_journal::{Genesis, Journal, MemoryDisk, MemoryJournal, Result};
    use iota_protocol::{PeerId, Role};

    use super::*;
    use crate::{Orchestrator, Participants, RunOptions, Setup};

    /// A disk that takes as long as a test wants: every append says that it has begun, and waits for a permit.
    #[derive(Debug)]
    struct Slow {
        journal: MemoryJournal,
        begun: mpsc::Sender<usize>,
        permits: mpsc::Receiver<()>,
    }

    impl Journal for Slow {
        fn append(&mut self, entries: &[Entry]) -> Result<()> {
            // Once the test has let go of its ends, everything may pass.
            let _ = self.begun.send(entries.len());
            let _ = self.permits.recv();
            self.journal.append(entries)
        }

        fn place(&self) -> String {
            self.journal.place()
        }

        fn begin(&mut self, genesis: &Genesis) -> Result<()> {
            self.journal.begin(genesis)
        }

        fn keep_snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
            self.journal.keep_snapshot(snapshot)
        }

        fn genesis(&self) -> Result<Option<Genesis>> {
            self.journal.genesis()
        }

        fn entries_after(&self, sequence: u64, at_most: usize) -> Result<Vec<Entry>> {
            self.journal.entries_after(sequence, at_most)
        }

        fn snapshots(&self) -> Result<Vec<u64>> {
            self.journal.snapshots()
        }

        fn snapshot(&self, sequence: u64) -> Result<Snapshot> {
            self.journal.snapshot(sequence)
        }
    }

    /// J1: what has been decided is told to nobody while the disk is at it.
    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_is_told_before_the_disk_has_it() {
        let options = RunOptions {
            preset: "tiny".to_owned(),
            stages: 1,
            ..RunOptions::default()
        };
        let participants = Participants {
            miners_to_start: 9,
            validators: vec![],
        };
        let (begun, has_begun) = mpsc::channel();
        let (permit, permits) = mpsc::channel();
        let journal = Slow {
            journal: MemoryDisk::default().open(),
            begun,
            permits,
        };
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new(&options, participants).unwrap();
        let orchestrator = Orchestrator::builder(setup, folder.path())
            .with_journal(journal)
            .start(&Shutdown::new())
            .await
            .unwrap();
        let join = |name: u8| {
            let owner = orchestrator.owner.clone();
            let command = Command::Join {
                peer: PeerId::from_bytes([name; 32]),
                role: Role::Miner,
                capacity: 1,
            };
            tokio::spawn(async move { owner.command(command).await })
        };
        let mut state = orchestrator.state();

        let first = join(1);
        assert_eq!(has_begun.recv().unwrap(), 1);
        // It is decided and on its way to the disk.
        assert!(!first.is_finished());
        assert_eq!(state.borrow_and_update().peers().count(), 0);
        let others: Vec<_> = (2..=5).map(join).collect();
        permit.send(()).unwrap();
        first.await.unwrap().unwrap().unwrap();

        // The others are written together, or in a few writes if they were not all there in time. None is told before.
        let mut written = 1;
        while written < 5 {
            written += has_begun.recv().unwrap();
            let told = others.iter().filter(|other| other.is_finished()).count();
            assert!(1 + told < written, "{told} were told of {written}");
            permit.send(()).unwrap();
        }
        for other in others {
            other.await.unwrap().unwrap().unwrap();
        }
        state
            .wait_for(|state| state.peers().count() == 5)
            .await
            .unwrap();
        drop(permit);
        orchestrator.stop().await;
        orchestrator.finish().await.unwrap();
    }
}
