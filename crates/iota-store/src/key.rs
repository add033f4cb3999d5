//! Where things lie in the store: keys that cannot be wrong.
//!
//! A key is a value with typed parts, never a path that somebody concatenated. Its printed form is what the store
//! sees; every segment of it comes from an id, so neither `..` nor an empty segment can occur.
//!
//! ```text
//! run_<32 hex>/activation/epoch_3/obj_<32 hex>          one object of an epoch, by purpose
//! run_<32 hex>/data/b3_<64 hex>                         one shard of the corpus, by its digest
//! run_<32 hex>/checkpoints/epoch_4/stage_1.json         one stage's manifest for the epoch that starts from it
//! run_<32 hex>/journal/b3_<64 hex>                      one page of the run's journal, by its digest
//! run_<32 hex>/backups/7.json                           what it takes to go on with the run, by number
//! ```

use std::fmt;
use std::str::FromStr;

use iota_protocol::id::{Digest, Epoch, RunId, StageIndex};
use iota_protocol::work::{ObjectName, Purpose};
use object_store::path::Path;

use crate::error::Error;

/// The key of one object.
///
/// Always true: its printed form has only lower-case letters, digits, `_`, `-`, `.` and single slashes between
/// segments, and parses back to the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// An activation, gradient, upload or merged cell.
    Object {
        /// The run it belongs to.
        run: RunId,
        /// What the orchestrator named it.
        name: ObjectName,
    },
    /// A shard of token data.
    Shard {
        /// The run it belongs to.
        run: RunId,
        /// BLAKE3 of its bytes.
        digest: Digest,
    },
    /// The manifest of one stage's checkpoint.
    Checkpoint {
        /// The run it belongs to.
        run: RunId,
        /// The epoch that starts from it.
        epoch: Epoch,
        /// The stage.
        stage: StageIndex,
    },
    /// A page of the run's journal. It is the orchestrator's own: nobody is ever granted it.
    JournalPage {
        /// The run it belongs to.
        run: RunId,
        /// BLAKE3 of its bytes.
        digest: Digest,
    },
    /// A list of journal pages and what else it takes to go on with the run from there. Nobody is ever granted it.
    Backup {
        /// The run it belongs to.
        run: RunId,
        /// Later ones have higher numbers.
        number: u64,
    },
}

impl ObjectKey {
    /// The key of what the orchestrator named `name`.
    pub const fn object(run: RunId, name: ObjectName) -> Self {
        Self::Object { run, name }
    }

    /// The key of the data shard with this digest.
    pub const fn shard(run: RunId, digest: Digest) -> Self {
        Self::Shard { run, digest }
    }

    /// The key of the manifest that `stage` starts `epoch` from.
    pub const fn checkpoint(run: RunId, epoch: Epoch, stage: StageIndex) -> Self {
        Self::Checkpoint { run, epoch, stage }
    }

    /// The run it belongs to.
    pub const fn run(&self) -> RunId {
        match self {
            Self::Object { run, .. }
            | Self::Shard { run, .. }
            | Self::Checkpoint { run, .. }
            | Self::JournalPage { run, .. }
            | Self::Backup { run, .. } => *run,
        }
    }

    pub(crate) fn path(&self) -> Path {
        Path::parse(self.to_string()).expect("a key has no empty or dot segments")
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object { run, name } => {
                let purpose = purpose_segment(name.purpose);
                write!(f, "{run}/{purpose}/{}/{}", name.epoch, name.id)
            }
            Self::Shard { run, digest } => write!(f, "{run}/{DATA}/{digest}"),
            Self::Checkpoint { run, epoch, stage } => {
                write!(f, "{run}/{CHECKPOINTS}/{epoch}/{stage}{JSON}")
            }
            Self::JournalPage { run, digest } => write!(f, "{run}/{JOURNAL}/{digest}"),
            Self::Backup { run, number } => write!(f, "{run}/{BACKUPS}/{number}{JSON}"),
        }
    }
}

impl FromStr for ObjectKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text)
            // Numbers parse from more texts than they print to (`epoch_007`); one object has one key.
            .filter(|key| key.to_string() == text)
            .ok_or_else(|| Error::InvalidKey {
                text: text.to_owned(),
            })
    }
}

/// A set of keys that begin alike; always whole segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyPrefix {
    /// Everything of a run.
    Run(RunId),
    /// Everything with one purpose.
    Purpose(RunId, Purpose),
    /// Everything with one purpose in one epoch: the unit of retention.
    Epoch(RunId, Purpose, Epoch),
    /// All data shards.
    Shards(RunId),
    /// All checkpoint manifests.
    Checkpoints(RunId),
    /// The manifests that one epoch starts from.
    CheckpointsOf(RunId, Epoch),
    /// All backups.
    Backups(RunId),
}

impl KeyPrefix {
    pub(crate) fn path(&self) -> Path {
        Path::parse(self.to_string()).expect("a prefix has no empty or dot segments")
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(run) => write!(f, "{run}"),
            Self::Purpose(run, purpose) => write!(f, "{run}/{}", purpose_segment(*purpose)),
            Self::Epoch(run, purpose, epoch) => {
                write!(f, "{run}/{}/{epoch}", purpose_segment(*purpose))
            }
            Self::Shards(run) => write!(f, "{run}/{DATA}"),
            Self::Checkpoints(run) => write!(f, "{run}/{CHECKPOINTS}"),
            Self::CheckpointsOf(run, epoch) => write!(f, "{run}/{CHECKPOINTS}/{epoch}"),
            Self::Backups(run) => write!(f, "{run}/{BACKUPS}"),
        }
    }
}

const DATA: &str = "data";
const CHECKPOINTS: &str = "checkpoints";
const JOURNAL: &str = "journal";
const BACKUPS: &str = "backups";
const JSON: &str = ".json";

const PURPOSES: [Purpose; 6] = [
    Purpose::Activation,
    Purpose::Gradient,
    Purpose::Upload,
    Purpose::Merged,
    Purpose::Delta,
    Purpose::Kept,
];

const fn purpose_segment(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Activation => "activation",
        Purpose::Gradient => "gradient",
        Purpose::Upload => "upload",
        Purpose::Merged => "merged",
        Purpose::Delta => "delta",
        Purpose::Kept => "kept",
    }
}

fn parse(text: &str) -> Option<ObjectKey> {
    let mut segments = text.split('/');
    let run = segments.next()?.parse().ok()?;
    let key = match segments.next()? {
        DATA => ObjectKey::Shard {
            run,
            digest: segments.next()?.parse().ok()?,
        },
        CHECKPOINTS => ObjectKey::Checkpoint {
            run,
            epoch: segments.next()?.parse().ok()?,
            stage: segments.next()?.strip_suffix(JSON)?.parse().ok()?,
        },
        JOURNAL => ObjectKey::JournalPage {
            run,
            digest: segments.next()?.parse().ok()?,
        },
        BACKUPS => ObjectKey::Backup {
            run,
            number: segments.next()?.strip_suffix(JSON)?.parse().ok()?,
        },
        segment => ObjectKey::Object {
            run,
            name: ObjectName {
                purpose: PURPOSES
                    .into_iter()
                    .find(|purpose| purpose_segment(*purpose) == segment)?,
                epoch: segments.next()?.parse().ok()?,
                id: segments.next()?.parse().ok()?,
            },
        },
    };
    segments.next().is_none().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iota_protocol::id::ObjectId;
    use proptest::prelude::*;

    pub(crate) fn any_key() -> impl Strategy<Value = ObjectKey> {
        let run = any::<[u8; 16]>().prop_map(RunId::from_bytes);
        let epoch = any::<u64>().prop_map(Epoch::new);
        prop_oneof![
            (
                run.clone(),
                0..PURPOSES.len(),
                epoch.clone(),
                any::<[u8; 16]>()
            )
                .prop_map(|(run, purpose, epoch, id)| {
                    ObjectKey::object(
                        run,
                        ObjectName {
                            purpose: PURPOSES[purpose],
                            epoch,
                            id: ObjectId::from_bytes(id),
                        },
                    )
                }),
            (run.clone(), any::<[u8; 32]>())
                .prop_map(|(run, digest)| ObjectKey::shard(run, Digest::from_bytes(digest))),
            (run.clone(), any::<[u8; 32]>()).prop_map(|(run, digest)| ObjectKey::JournalPage {
                run,
                digest: Digest::from_bytes(digest)
            }),
            (run.clone(), any::<u64>()).prop_map(|(run, number)| ObjectKey::Backup { run, number }),
            (run, epoch, any::<u16>()).prop_map(|(run, epoch, stage)| ObjectKey::checkpoint(
                run,
                epoch,
                StageIndex::new(stage)
            )),
        ]
    }

    proptest! {
        #[test]
        fn a_key_parses_back_from_its_printed_form(key in any_key()) {
            prop_assert_eq!(key.to_string().parse::<ObjectKey>().unwrap(), key);
        }

        #[test]
        fn a_key_has_only_plain_segments(key in any_key()) {
            let text = key.to_string();
            prop_assert!(text.split('/').all(|segment| !segment.is_empty() && !segment.starts_with('.')));
            prop_assert!(text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'/')));
            let path = key.path();
            prop_assert_eq!(path.as_ref(), text.as_str());
        }

        #[test]
        fn a_text_that_parses_is_the_printed_form_of_its_key(
            text in "run_[0-9a-f]{32}/(data|checkpoints|journal|backups|activation|merged)/(epoch_[0-9+]{1,3}|[0-9+]{1,3}.json|b3_[0-9a-f]{64})(/(obj_[0-9a-f]{32}|stage_[0-9]{1,6}.json|[.]{1,2}))?"
        ) {
            if let Ok(key) = text.parse::<ObjectKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }

    #[test]
    fn the_layout_of_keys_is_fixed() {
        let run = RunId::from_bytes([0xab; 16]);
        let name = ObjectName {
            purpose: Purpose::Gradient,
            epoch: Epoch::new(7),
            id: ObjectId::from_bytes([1; 16]),
        };
        let run_text = format!("run_{}", "ab".repeat(16));
        assert_eq!(
            ObjectKey::object(run, name).to_string(),
            format!("{run_text}/gradient/epoch_7/obj_{}", "01".repeat(16))
        );
        assert_eq!(
            ObjectKey::checkpoint(run, Epoch::new(7), StageIndex::new(2)).to_string(),
            format!("{run_text}/checkpoints/epoch_7/stage_2.json")
        );
        assert_eq!(
            ObjectKey::shard(run, Digest::from_bytes([2; 32])).to_string(),
            format!("{run_text}/data/b3_{}", "02".repeat(32))
        );
        let digest = Digest::from_bytes([2; 32]);
        assert_eq!(
            ObjectKey::JournalPage { run, digest }.to_string(),
            format!("{run_text}/journal/b3_{}", "02".repeat(32))
        );
        assert_eq!(
            ObjectKey::Backup { run, number: 7 }.to_string(),
            format!("{run_text}/backups/7.json")
        );
    }

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        let run = format!("run_{}", "ab".repeat(16));
        let object = format!("obj_{}", "01".repeat(16));
        for text in [
            String::new(),
            "/".to_owned(),
            run.clone(),
            format!("{run}/activation/epoch_1/.."),
            format!("{run}/../epoch_1/{object}"),
            format!("/{run}/activation/epoch_1/{object}"),
            format!("{run}/activation/epoch_1/{object}/"),
            format!("{run}/activation/epoch_01/{object}"),
            format!("{run}/activation/epoch_+1/{object}"),
            format!("{run}/weights/epoch_1/{object}"),
            format!("{run}/checkpoints/epoch_1/stage_0"),
            format!("{run}/data/b3_00"),
            format!("{run}/backups/7"),
            format!("{run}/backups/07.json"),
        ] {
            let error = text.parse::<ObjectKey>().unwrap_err();
            assert!(
                matches!(error, Error::InvalidKey { text: ref named } if *named == text),
                "{text}"
            );
        }
    }
}
