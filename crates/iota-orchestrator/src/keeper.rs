//! The task that keeps what outlasts the run's memory: metrics, manifests, and the objects that nobody needs any more.
//!
//! It follows the owner's events. It decides nothing, and the run does not wait for it until the end.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use iota_protocol::event::{Event, Phase};
use iota_protocol::work::{Checkpoint, Purpose};
use iota_protocol::{Epoch, RunId, Timestamp};
use iota_store::{KeyPrefix, ObjectKey, Store};
use serde::Serialize;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::Error;
use crate::course::Course;
use crate::owner::Batch;

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

/// Keeps metrics, manifests and order in the store.
#[derive(Debug)]
pub(crate) struct Keeper {
    run: RunId,
    store: Store,
    metrics: std::io::BufWriter<std::fs::File>,
    metrics_path: PathBuf,
    course: Course,
    epoch: Epoch,
    over: bool,
    /// Audits that may still read an epoch's objects, by epoch.
    unsettled: BTreeMap<iota_protocol::AuditId, Epoch>,
    /// The first epoch whose objects have not been deleted.
    oldest: Epoch,
}

impl Keeper {
    pub(crate) fn new(run: RunId, store: Store, folder: &Path) -> Result<Self, Error> {
        let metrics_path = folder.join("metrics.jsonl");
        let metrics = std::fs::File::create(&metrics_path).map_err(|source| Error::Folder {
            path: metrics_path.clone(),
            source,
        })?;
        Ok(Self {
            run,
            store,
            metrics: std::io::BufWriter::new(metrics),
            metrics_path,
            course: Course::default(),
            epoch: Epoch::default(),
            over: false,
            unsettled: BTreeMap::new(),
            oldest: Epoch::default(),
        })
    }

    /// Follows the run until its owner is gone; returns how it went.
    ///
    /// # Errors
    /// If metrics or a manifest cannot be written: a run whose results are not kept is better stopped.
    pub(crate) async fn run(mut self, mut batches: mpsc::Receiver<Batch>) -> Result<Course, Error> {
        while let Some(batch) = batches.recv().await {
            for record in batch.iter() {
                self.keep(record.at, &record.event).await?;
            }
        }
        self.flush()?;
        Ok(self.course)
    }

    async fn keep(&mut self, at: Timestamp, event: &Event) -> Result<(), Error> {
        self.course.follow(at, event);
        let (at_ms, epoch) = (at.as_millis(), self.epoch.get());
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
                self.epoch = *epoch;
                self.over = *phase == Phase::Over;
            }
            Event::AuditDrawn { audit, .. } | Event::DisputeOpened { audit, .. } => {
                self.unsettled.insert(*audit, self.epoch);
            }
            Event::AuditSettled { audit, .. } | Event::AuditAbandoned { audit, .. } => {
                self.unsettled.remove(audit);
            }
            Event::CheckpointCommitted(checkpoint) => self.commit(checkpoint).await?,
            _ => {}
        }
        self.write(&Metric::Event {
            at_ms,
            epoch,
            event,
        })?;
        if matches!(
            event,
            Event::PhaseChanged { .. } | Event::AuditSettled { .. } | Event::AuditAbandoned { .. }
        ) {
            self.flush()?;
            self.clean().await;
        }
        Ok(())
    }

    /// Writes a checkpoint's manifest, after everything that it names is there.
    async fn commit(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let key = ObjectKey::Checkpoint {
            run: self.run,
            epoch: checkpoint.epoch,
            stage: checkpoint.stage,
        };
        let objects = objects_of(self.run, checkpoint);
        self.store.put_manifest(&key, checkpoint, &objects).await?;
        info!(stage = %checkpoint.stage, epoch = %checkpoint.epoch, "checkpoint committed");
        Ok(())
    }

    /// Deletes the activations and uploads of epochs that neither training nor an audit can need.
    async fn clean(&mut self) {
        let current = self.epoch.get();
        let needed = if self.over {
            current + 1
        } else {
            current.saturating_sub(1)
        };
        let first_needed = self
            .unsettled
            .values()
            .map(|epoch| epoch.get())
            .chain([needed])
            .min();
        while Some(self.oldest.get()) < first_needed {
            for purpose in [Purpose::Activation, Purpose::Gradient, Purpose::Upload] {
                let prefix = KeyPrefix::Epoch(self.run, purpose, self.oldest);
                match self.store.delete_prefix(&prefix).await {
                    Ok(objects) => info!(%prefix, objects, "deleted what nobody needs any more"),
                    // The next phase tries again.
                    Err(error) => {
                        warn!(%prefix, %error, "could not delete");
                        return;
                    }
                }
            }
            self.oldest = self.oldest.next();
        }
    }

    fn write(&mut self, metric: &Metric<'_>) -> Result<(), Error> {
        let line = serde_json::to_string(metric).map_err(Error::Json)?;
        writeln!(self.metrics, "{line}").map_err(|source| self.trouble(source))
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.metrics.flush().map_err(|source| self.trouble(source))
    }

    fn trouble(&self, source: std::io::Error) -> Error {
        Error::Folder {
            path: self.metrics_path.clone(),
            source,
        }
    }
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
