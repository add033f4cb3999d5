//! The grants that go with a lease: exactly the objects that its work names, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use iota_data::Sampler;
use iota_protocol::work::{
    Lease, LogEntry, ObjectName, ObjectRef, Seal, Segment, SegmentSource, UploadRecord, Work,
};
use iota_protocol::{RunId, RunSettings, SampleId, StageIndex, Timestamp};
use iota_run::Description;
use iota_store::{Grants, Method, ObjectKey};
use iota_wire::{Grant, GrantMethod, GrantTarget, LeasedWork};

/// Grants outlive the lease by this, so that late work can still arrive.
const GRACE: Duration = Duration::from_secs(120);

/// Signs what leases need.
#[derive(Debug)]
pub(crate) struct Granter {
    run: RunId,
    /// Of each stage.
    needs_tokens: Vec<bool>,
    /// Whether validators read what miners made, and do not only compare digests.
    compares_values: bool,
    settings: RunSettings,
    shards: Vec<Seal>,
    sampler: Sampler,
    signer: Grants,
}

/// Collects the grants of one lease.
struct Collector<'a> {
    granter: &'a Granter,
    ttl: Duration,
    now: Timestamp,
    grants: Vec<Grant>,
    readable: BTreeSet<GrantTarget>,
}

impl Granter {
    pub(crate) fn new(
        settings: RunSettings,
        description: &Description,
        signer: Grants,
    ) -> Result<Self, iota_run::Error> {
        let shards = description
            .data
            .shards
            .iter()
            .map(|shard| Seal {
                digest: shard.digest,
                length: shard.length_bytes,
            })
            .collect();
        let sampler = description.sampler()?;
        Ok(Self {
            run: settings.run,
            needs_tokens: (0..settings.stages())
                .map(|stage| description.needs_tokens(StageIndex::new(stage)))
                .collect(),
            compares_values: !description.comparison.is_bits(),
            settings,
            shards,
            sampler,
            signer,
        })
    }

    /// The lease with its grants.
    pub(crate) fn grant(&self, lease: &Lease, now: Timestamp) -> LeasedWork {
        let ttl = lease.deadline.since(now) + GRACE;
        let mut collector = Collector {
            granter: self,
            ttl,
            now,
            grants: Vec::new(),
            readable: BTreeSet::new(),
        };
        collector.work(&lease.work, lease.stage);
        LeasedWork {
            lease: lease.clone(),
            grants: collector.grants,
        }
    }
}

impl Collector<'_> {
    fn work(&mut self, work: &Work, stage: StageIndex) {
        let settings = &self.granter.settings;
        match work {
            Work::Forward {
                sample,
                input,
                output,
            } => {
                self.read_operation(*sample, input.as_ref(), None, stage);
                self.write(*output, settings.activation_bytes);
            }
            Work::Backward {
                sample,
                input,
                output_gradient,
                gradient,
                ..
            } => {
                self.read_operation(*sample, input.as_ref(), output_gradient.as_ref(), stage);
                if let Some(gradient) = gradient {
                    self.write(*gradient, settings.gradient_bytes);
                }
            }
            Work::Upload { cells, .. } => {
                for cell in cells {
                    let elements = cell.range.end - cell.range.start;
                    self.write(cell.output, settings.upload_bytes(elements));
                }
            }
            Work::HandOver { began_with, keeps } => {
                for object in began_with.iter().chain(keeps) {
                    self.write(object.name, object.seal.length);
                }
            }
            Work::Merge {
                range,
                inputs,
                output,
                delta,
                stores,
                base,
                ..
            } => {
                for input in inputs {
                    self.read(&input.object);
                }
                self.read_segments(base);
                let elements = range.end - range.start;
                if *stores {
                    self.write(*output, settings.cell_bytes(elements));
                    self.write_if_asked_for(*delta, settings.delta_bytes(elements, inputs.len()));
                }
            }
            Work::Fetch { segments } => self.read_segments_or_deltas(segments),
            Work::Install { checkpoint, .. } => self.read_segments_or_deltas(&checkpoint.segments),
            Work::Replay {
                checkpoint,
                kept,
                entries,
                upload,
                ..
            } => {
                self.read_segments(&checkpoint.segments);
                kept.iter().for_each(|kept| self.read(kept));
                for entry in entries {
                    match &entry.work {
                        Work::Forward { sample, input, .. } => {
                            self.read_operation(*sample, input.as_ref(), None, stage);
                        }
                        Work::Backward {
                            sample,
                            input,
                            output_gradient,
                            ..
                        } => {
                            self.read_operation(
                                *sample,
                                input.as_ref(),
                                output_gradient.as_ref(),
                                stage,
                            );
                        }
                        // The rules log operations of a stage only.
                        _ => {}
                    }
                }
                if self.granter.compares_values {
                    entries
                        .iter()
                        .filter_map(LogEntry::output)
                        .for_each(|made| self.read(&made));
                    upload
                        .iter()
                        .flat_map(UploadRecord::objects)
                        .for_each(|made| self.read(&made));
                }
            }
            Work::Inspect { object, .. } => self.read(object),
        }
    }

    fn read_operation(
        &mut self,
        sample: SampleId,
        input: Option<&ObjectRef>,
        output_gradient: Option<&ObjectRef>,
        stage: StageIndex,
    ) {
        for object in input.into_iter().chain(output_gradient) {
            self.read(object);
        }
        if self.granter.needs_tokens[usize::from(stage.get())] {
            let shard = self.granter.sampler.slice(sample).shard;
            let target = GrantTarget::Shard {
                index: u32::try_from(shard).expect("a manifest has fewer shards"),
            };
            let seal = self.granter.shards[shard];
            let key = ObjectKey::Shard {
                run: self.granter.run,
                digest: seal.digest,
            };
            self.add_read(target, &key, &seal);
        }
    }

    /// Whoever has the checkpoint before may read what changed in place of the whole.
    fn read_segments_or_deltas(&mut self, segments: &[Segment]) {
        self.read_segments(segments);
        for segment in segments {
            if let SegmentSource::Merged {
                delta: Some(delta), ..
            } = &segment.source
            {
                self.read(delta);
            }
        }
    }

    fn read_segments(&mut self, segments: &[Segment]) {
        for segment in segments {
            if let SegmentSource::Merged { object, .. } = &segment.source {
                self.read(object);
            }
        }
    }

    fn read(&mut self, object: &ObjectRef) {
        let key = ObjectKey::Object {
            run: self.granter.run,
            name: object.name,
        };
        self.add_read(GrantTarget::Object(object.name), &key, &object.seal);
    }

    fn add_read(&mut self, target: GrantTarget, key: &ObjectKey, seal: &Seal) {
        if self.readable.insert(target) {
            let grant = self.granter.signer.get(key, seal, self.ttl, self.now);
            self.grants.push(travelling(target, grant));
        }
    }

    /// Something that only some runs want.
    fn write_if_asked_for(&mut self, name: Option<ObjectName>, length_bytes: Option<u64>) {
        if let (Some(name), Some(length_bytes)) = (name, length_bytes) {
            self.write(name, length_bytes);
        }
    }

    fn write(&mut self, name: ObjectName, length_bytes: u64) {
        let key = ObjectKey::Object {
            run: self.granter.run,
            name,
        };
        let grant = self
            .granter
            .signer
            .put(&key, length_bytes, self.ttl, self.now);
        self.grants
            .push(travelling(GrantTarget::Object(name), grant));
    }
}

/// A grant as it travels.
fn travelling(target: GrantTarget, grant: iota_store::Grant) -> Grant {
    Grant {
        target,
        method: match grant.method {
            Method::Get => GrantMethod::Get,
            Method::Put => GrantMethod::Put,
        },
        url: grant.url.into(),
        headers: grant.headers,
        length_bytes: grant.length_bytes,
        digest: grant.digest,
        expires_at: Timestamp::from_millis(grant.expires_at_ms),
    }
}
