//! The task that keeps what outlasts the run's memory: metrics, manifests, backups; and that deletes objects which nobody
//! needs any more.
//!
//! It follows the owner's events. It decides nothing, and the run does not wait for it until the end. How far it has come
//! it notes in `keeper.json` whenever what it wrote is on the disk: after a restart it cuts off what `metrics.jsonl` holds
//! beyond that and reads on in the journal from there, so that every line is there once.

use std::collections::BTreeMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iota_journal::Entry;
use iota_protocol::event::{Event, Phase};
use iota_protocol::work::{Checkpoint, Purpose};
use iota_protocol::{Epoch, RunId, Timestamp};
use iota_store::{KeyPrefix, ObjectKey, Store};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::Error;
use crate::backup::{Backups, Shipped, Sources};
use crate::course::Course;

/// One line of `metrics.jsonl`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
enum Metric<'a> {
    /// A sample was trained on by every stage.
    Sample {
        at_ms: u64,
        sample: u64,
        epoch: u64,
        loss: f32,
        path: Vec<String>,
    },
    /// Anything else that happens a few times an epoch, as the journal has it.
    Event {
        at_ms: u64,
        epoch: u64,
        event: &'a Event,
    },
}

/// How far the keeper has come, and what it remembers: `keeper.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Position {
    /// The last entry that it has followed.
    sequence: u64,
    /// Length of `metrics.jsonl` then.
    metrics_bytes: u64,
    course: Course,
    epoch: Epoch,
    over: bool,
    /// Audits that may still read an epoch's objects, by epoch.
    unsettled: BTreeMap<iota_protocol::AuditId, Epoch>,
    /// The first epoch whose objects have not been deleted.
    oldest: Epoch,
    /// What is in the store of the journal.
    #[serde(default)]
    shipped: Option<Shipped>,
    /// The run was restored: the store may have manifests of epochs as they were in the history that is lost.
    #[serde(default)]
    restored: bool,
}

impl Position {
    fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(POSITION);
        let json = serde_json::to_vec(self).map_err(Error::Json)?;
        iota_node::files::write_private(&path, &json)
            .map_err(|source| Error::Folder { path, source })
    }
}

/// Keeps metrics, manifests, backups and order in the store.
#[derive(Debug)]
pub(crate) struct Keeper {
    run: RunId,
    store: Store,
    folder: PathBuf,
    metrics: std::io::BufWriter<std::fs::File>,
    position: Position,
    noted: u64,
    backups: Backups,
}

const METRICS: &str = "metrics.jsonl";
const POSITION: &str = "keeper.json";
/// Entries after which the position is noted, if no phase ended meanwhile: what is read again after a restart.
const NOTE_EVERY: u64 = 10_000;

/// What is read in the epoch that it belongs to, and by audits of that epoch.
const OF_AN_EPOCH: [Purpose; 5] = [
    Purpose::Activation,
    Purpose::Gradient,
    Purpose::Upload,
    Purpose::Delta,
    Purpose::Kept,
];

impl Keeper {
    /// Of a run that begins.
    pub(crate) fn new(
        run: RunId,
        store: Store,
        folder: &Path,
        sources: Sources,
    ) -> Result<Self, Error> {
        Self::at(Position::default(), run, store, folder, sources)
    }

    /// Of a run that goes on. It has to be shown the entries after [`reads_from`](Self::reads_from).
    ///
    /// # Errors
    /// If the folder cannot be used. What it cannot make sense of it writes anew, from the first entry on.
    pub(crate) fn resume(
        run: RunId,
        store: Store,
        folder: &Path,
        sources: Sources,
    ) -> Result<Self, Error> {
        let path = folder.join(POSITION);
        let noted: Position = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(%error, path = %path.display(), "not readable; metrics are written anew");
                Position::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Position::default(),
            Err(source) => return Err(Error::Folder { path, source }),
        };
        // A power cut may have taken what no sync had made durable.
        let length = std::fs::metadata(folder.join(METRICS)).map_or(0, |metadata| metadata.len());
        let position = if length < noted.metrics_bytes {
            Position {
                shipped: noted.shipped,
                ..Position::default()
            }
        } else {
            noted
        };
        Self::at(position, run, store, folder, sources)
    }

    /// Notes in the folder of a run that is being restored what the store has of its journal: everything else is to be
    /// read from there.
    pub(crate) fn begin_with(shipped: Shipped, folder: &Path) -> Result<(), Error> {
        let position = Position {
            shipped: Some(shipped),
            ..Position::default()
        };
        position.write(folder)
    }

    fn at(
        position: Position,
        run: RunId,
        store: Store,
        folder: &Path,
        sources: Sources,
    ) -> Result<Self, Error> {
        let path = folder.join(METRICS);
        let open = || {
            let mut options = std::fs::OpenOptions::new();
            let mut metrics = options
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            metrics.set_len(position.metrics_bytes)?;
            metrics.seek(SeekFrom::End(0))?;
            Ok(metrics)
        };
        let metrics = open().map_err(|source| Error::Folder {
            path: path.clone(),
            source,
        })?;
        let shipped = position.shipped.clone();
        let backups = Backups::new(run, store.clone(), folder, sources, shipped);
        Ok(Self {
            run,
            store,
            folder: folder.to_owned(),
            metrics: std::io::BufWriter::new(metrics),
            noted: position.sequence,
            position,
            backups,
        })
    }

    /// The last entry that it has followed.
    pub(crate) const fn sequence(&self) -> u64 {
        self.position.sequence
    }

    /// The last entry that it need not be shown again: what is not in the store yet is read again, for the next backup.
    pub(crate) fn reads_from(&self) -> u64 {
        self.position
            .sequence
            .min(self.backups.shipped().head.sequence)
    }

    /// Follows the run until its owner is gone; returns how it went. The first entry that comes has to be the one after
    /// [`reads_from`](Self::reads_from).
    ///
    /// # Errors
    /// If metrics or a manifest cannot be written: a run whose results are not kept is better stopped.
    pub(crate) async fn run(
        mut self,
        mut entries: mpsc::Receiver<Arc<Entry>>,
    ) -> Result<Course, Error> {
        loop {
            let due = self.backups.due();
            tokio::select! {
                entry = entries.recv() => match entry {
                    Some(entry) => self.follow(&entry).await?,
                    None => break,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)),
                    if due.is_some() => self.back_up().await?,
            }
        }
        self.back_up().await?;
        self.note()?;
        Ok(self.position.course)
    }

    async fn follow(&mut self, entry: &Entry) -> Result<(), Error> {
        self.backups.follow(entry);
        let mut milestone = false;
        if entry.sequence > self.position.sequence {
            for event in &entry.events {
                self.keep(entry.at, event).await?;
                milestone |= is_milestone(event);
            }
            self.position.sequence = entry.sequence;
        }
        if milestone {
            self.clean().await;
        }
        if milestone || self.backups.is_full() {
            self.back_up().await?;
        }
        if milestone || self.position.sequence - self.noted >= NOTE_EVERY {
            self.note()?;
        }
        Ok(())
    }

    /// Makes a backup, and notes that there is one.
    async fn back_up(&mut self) -> Result<(), Error> {
        if self.backups.make().await? {
            self.position.shipped = Some(self.backups.shipped().clone());
            self.note()?;
        }
        Ok(())
    }

    async fn keep(&mut self, at: Timestamp, event: &Event) -> Result<(), Error> {
        self.position.course.follow(at, event);
        let (at_ms, epoch) = (at.as_millis(), self.position.epoch.get());
        match event {
            Event::RoomOffered { .. }
            | Event::Leased(_)
            | Event::Completed { .. }
            | Event::SampleOpened { .. } => {
                return Ok(());
            }
            Event::SampleCompleted { sample, loss, path } => {
                let path = path.iter().map(|session| session.peer.short()).collect();
                return self.write(&Metric::Sample {
                    at_ms,
                    sample: sample.get(),
                    epoch,
                    loss: *loss,
                    path,
                });
            }
            Event::PhaseChanged { epoch, phase, .. } => {
                self.position.epoch = *epoch;
                self.position.over = *phase == Phase::Over;
            }
            Event::AuditDrawn { audit, .. } | Event::DisputeOpened { audit, .. } => {
                self.position.unsettled.insert(*audit, self.position.epoch);
            }
            Event::AuditSettled { audit, .. } | Event::AuditAbandoned { audit, .. } => {
                self.position.unsettled.remove(audit);
            }
            Event::Restored { .. } => self.position.restored = true,
            Event::CheckpointCommitted(checkpoint) => self.commit(checkpoint).await?,
            Event::CheckpointRepaired { checkpoint, .. } => self.repair(checkpoint).await?,
            _ => {}
        }
        self.write(&Metric::Event {
            at_ms,
            epoch,
            event,
        })
    }

    /// Writes a checkpoint's manifest, after everything that it names is there.
    async fn commit(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let (key, objects) = self.manifest_of(checkpoint);
        let (stage, epoch) = (checkpoint.stage, checkpoint.epoch);
        let written = if self.position.restored {
            self.store
                .replace_manifest(&key, checkpoint, &objects)
                .await
        } else {
            self.store.put_manifest(&key, checkpoint, &objects).await
        };
        match written {
            Ok(_) => info!(%stage, %epoch, "checkpoint committed"),
            // This process has died and reads its journal again: the repair comes later in it.
            Err(iota_store::Error::Exists { .. }) => {
                info!(%stage, %epoch, "checkpoint was repaired since");
            }
            // Its miners cannot install it, and will say so: then it is repaired.
            Err(error @ iota_store::Error::Dangling { .. }) => {
                warn!(%stage, %epoch, %error, "checkpoint without all its objects");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes the manifest of a checkpoint that does without an object that nobody could read.
    async fn repair(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let (key, objects) = self.manifest_of(checkpoint);
        let (stage, epoch) = (checkpoint.stage, checkpoint.epoch);
        let replaced = self.store.replace_manifest(&key, checkpoint, &objects);
        match replaced.await {
            Ok(_) => warn!(%stage, %epoch, "checkpoint repaired"),
            // Another object is gone as well: its repair is to follow.
            Err(error @ iota_store::Error::Dangling { .. }) => {
                warn!(%stage, %epoch, %error, "checkpoint repaired in part");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn manifest_of(
        &self,
        checkpoint: &Checkpoint,
    ) -> (ObjectKey, Vec<(ObjectKey, iota_protocol::work::Seal)>) {
        let key = ObjectKey::Checkpoint {
            run: self.run,
            epoch: checkpoint.epoch,
            stage: checkpoint.stage,
        };
        (key, objects_of(self.run, checkpoint))
    }

    /// Deletes the activations and uploads of epochs that neither training nor an audit can need.
    async fn clean(&mut self) {
        let current = self.position.epoch.get();
        let needed = if self.position.over {
            current + 1
        } else {
            current.saturating_sub(1)
        };
        let first_needed = self
            .position
            .unsettled
            .values()
            .map(|epoch| epoch.get())
            .chain([needed])
            .min();
        while Some(self.position.oldest.get()) < first_needed {
            for purpose in OF_AN_EPOCH {
                let prefix = KeyPrefix::Epoch(self.run, purpose, self.position.oldest);
                match self.store.delete_prefix(&prefix).await {
                    Ok(objects) => info!(%prefix, objects, "deleted what nobody needs any more"),
                    // The next phase tries again.
                    Err(error) => {
                        warn!(%prefix, %error, "could not delete");
                        return;
                    }
                }
            }
            self.position.oldest = self.position.oldest.next();
        }
    }

    fn write(&mut self, metric: &Metric<'_>) -> Result<(), Error> {
        let mut line = serde_json::to_vec(metric).map_err(Error::Json)?;
        line.push(b'\n');
        self.position.metrics_bytes += line.len() as u64;
        self.metrics
            .write_all(&line)
            .map_err(|source| self.trouble(METRICS, source))
    }

    /// Makes durable what it has written, then notes how far that goes.
    fn note(&mut self) -> Result<(), Error> {
        self.metrics
            .flush()
            .and_then(|()| self.metrics.get_ref().sync_data())
            .map_err(|source| self.trouble(METRICS, source))?;
        self.position.write(&self.folder)?;
        self.noted = self.position.sequence;
        Ok(())
    }

    fn trouble(&self, name: &str, source: std::io::Error) -> Error {
        Error::Folder {
            path: self.folder.join(name),
            source,
        }
    }
}

/// Whether something has come about that nobody should have to do again: it is backed up at once.
const fn is_milestone(event: &Event) -> bool {
    matches!(
        event,
        Event::PhaseChanged { .. }
            | Event::AuditSettled { .. }
            | Event::AuditAbandoned { .. }
            | Event::Restored { .. }
    )
}

/// The merged cells that a checkpoint consists of.
fn objects_of(run: RunId, checkpoint: &Checkpoint) -> Vec<(ObjectKey, iota_protocol::work::Seal)> {
    use iota_protocol::work::SegmentSource;
    let merged = checkpoint
        .segments
        .iter()
        .filter_map(|segment| match &segment.source {
            SegmentSource::Merged { object, .. } => Some((
                ObjectKey::Object {
                    run,
                    name: object.name,
                },
                object.seal,
            )),
            SegmentSource::Genesis => None,
        });
    merged.collect()
}

#[cfg(test)]
mod tests {
    use iota_protocol::SampleId;

    use super::*;

    fn entry(sequence: u64) -> Entry {
        Entry {
            sequence,
            at: Timestamp::from_millis(sequence),
            events: vec![Event::SampleCompleted {
                sample: SampleId::new(sequence),
                loss: 2.0,
                path: vec![],
            }],
        }
    }

    fn resumed(folder: &Path) -> Keeper {
        let store = Store::in_folder(folder.join("store")).unwrap();
        let participants = crate::Participants {
            miners_to_start: 1,
            validators: vec![],
        };
        let options = crate::RunOptions {
            preset: "tiny".to_owned(),
            stages: 1,
            ..crate::RunOptions::default()
        };
        let setup = crate::Setup::new(&options, participants).unwrap();
        // The same beginning each time: it has a secret, which is drawn.
        let settings = iota_protocol::RunSettings {
            run: RunId::from_bytes([7; 16]),
            secret: [7; 32],
            ..setup.settings().clone()
        };
        let genesis = iota_journal::Genesis {
            settings,
            began: Timestamp::default(),
        };
        let files = vec![];
        let sources = Sources { genesis, files };
        Keeper::resume(RunId::from_bytes([7; 16]), store, folder, sources).unwrap()
    }

    fn lines(folder: &Path) -> usize {
        let metrics = std::fs::read_to_string(folder.join(METRICS)).unwrap();
        metrics.lines().count()
    }

    #[tokio::test]
    async fn a_line_is_there_once_wherever_the_process_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = resumed(folder.path());
        for sequence in 1..=5 {
            keeper.follow(&entry(sequence)).await.unwrap();
        }
        // It dies with lines written that it had not noted.
        drop(keeper);
        assert_eq!(lines(folder.path()), 5);

        let mut keeper = resumed(folder.path());
        assert_eq!((keeper.sequence(), lines(folder.path())), (0, 0));
        for sequence in 1..=5 {
            keeper.follow(&entry(sequence)).await.unwrap();
        }
        keeper.note().unwrap();
        for sequence in 6..=7 {
            keeper.follow(&entry(sequence)).await.unwrap();
        }
        let position = keeper.position.clone();
        drop(keeper);
        assert_eq!(lines(folder.path()), 7);

        let mut keeper = resumed(folder.path());
        assert_eq!((keeper.sequence(), lines(folder.path())), (5, 5));
        // It is shown again what no backup has, and writes no line twice.
        assert_eq!(keeper.reads_from(), 0);
        for sequence in 1..=7 {
            keeper.follow(&entry(sequence)).await.unwrap();
        }
        assert_eq!(keeper.position, position);
        keeper.note().unwrap();
        assert_eq!(lines(folder.path()), 7);
    }

    #[tokio::test]
    async fn a_repaired_checkpoint_replaces_the_manifest_also_when_the_journal_is_read_again() {
        use iota_protocol::event::Repair;
        use iota_protocol::work::{Segment, SegmentSource};
        use iota_protocol::{Epoch, StageIndex};

        let folder = tempfile::tempdir().unwrap();
        let run = RunId::from_bytes([7; 16]);
        let mut keeper = resumed(folder.path());
        let name = iota_protocol::work::ObjectName {
            purpose: Purpose::Merged,
            epoch: Epoch::new(1),
            id: iota_protocol::ObjectId::from_bytes([3; 16]),
        };
        let lost = SegmentSource::Merged {
            object: iota_protocol::work::ObjectRef {
                name,
                seal: iota_protocol::work::Seal {
                    digest: iota_protocol::Digest::of(b"gone"),
                    length: 4,
                },
            },
            offset: 0,
            cell_elements: 9,
            delta: None,
        };
        let of = |source| Checkpoint {
            epoch: Epoch::new(1),
            stage: StageIndex::new(0),
            segments: vec![Segment {
                range: 0..9,
                source,
            }],
            optimizer_steps: 1,
        };
        let (before, after) = (of(lost), of(SegmentSource::Genesis));
        let events = [
            Event::CheckpointCommitted(before),
            Event::CheckpointRepaired {
                checkpoint: after.clone(),
                object: name,
                how: Repair::OlderValues,
            },
        ];
        let key = ObjectKey::checkpoint(run, Epoch::new(1), StageIndex::new(0));
        for _ in 0..2 {
            for event in &events {
                keeper.keep(Timestamp::from_millis(1), event).await.unwrap();
            }
            let kept: Checkpoint = keeper.store.get_manifest(&key).await.unwrap();
            assert_eq!(kept, after);
        }
    }

    #[test]
    fn metrics_that_lost_their_end_are_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut keeper = resumed(folder.path());
        keeper.position.sequence = 9;
        keeper.position.metrics_bytes = 1_000;
        keeper.note().unwrap();
        drop(keeper);
        // A power cut, say: the note is there, what it speaks of is not.
        assert_eq!(resumed(folder.path()).sequence(), 0);
    }
}
