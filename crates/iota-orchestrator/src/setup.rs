//! From what an operator wants to what the rules, the peers and the store are given.

use bytes::Bytes;
use iota_data::{BatchShape, Corpus, DataManifest, Evaluation, Preparation, Split, Tokenizer};
use iota_model::{ModelConfig, UnknownPreset, preset};
use iota_protocol::event::Direction;
use iota_protocol::settings::InvalidSetting;
use iota_protocol::{PeerId, RunId, RunSettings};
use iota_run::{Description, VERSION};
use iota_store::{ObjectKey, Store, tensor};

use crate::Error;
use crate::options::{CutError, RunOptions};

/// A run that cannot be set up as wanted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// No such model.
    #[error(transparent)]
    Preset(#[from] UnknownPreset),
    /// The model cannot be cut like this.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The corpus cannot be used.
    #[error(transparent)]
    Data(#[from] iota_data::Error),
    /// A setting is out of range.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The pieces do not fit together.
    #[error(transparent)]
    Description(#[from] iota_run::Error),
    /// The list of the data's shards is longer than what peers are told at once.
    #[error(
        "the corpus is too long: describing the run takes {description_bytes} bytes, peers accept {}",
        iota_wire::limits::CONFIG_BYTES_MAX
    )]
    TooLong {
        /// Length of the description.
        description_bytes: usize,
    },
    /// A miner may take more steps in an epoch than tolerances were measured for.
    #[error(
        "a miner may take {steps} optimizer steps in an epoch, and tolerances reach no further than {steps_max}: measure \
         more of them, or let an epoch have fewer samples or more backward passes for a step"
    )]
    Horizon {
        /// Samples of an epoch by backward passes of a step.
        steps: u64,
        /// The last that tolerances are there for.
        steps_max: u64,
    },
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness: {0}")]
    Randomness(String),
}

/// Everything that a run begins with.
#[derive(Debug, Clone)]
pub struct Setup {
    settings: RunSettings,
    description: Description,
    held_out: DataManifest,
    shards: Vec<(ObjectKey, Bytes)>,
}

/// Who takes part, as far as the operator decides it.
#[derive(Debug, Clone, Default)]
pub struct Participants {
    /// Miners that every stage needs before training starts.
    pub miners_to_start: u32,
    /// Who may join as a validator.
    pub validators: Vec<PeerId>,
}

/// Tokens in a shard, about: small enough to be fetched in an instant, large enough that few are needed.
const SHARD_TOKENS: usize = 1 << 18;

impl Setup {
    /// Loads the corpus, cuts the model, checks every setting. Blocks for as long as it takes to read the corpus.
    ///
    /// # Errors
    /// Says which option cannot be used and why.
    pub fn new(options: &RunOptions, participants: Participants) -> Result<Self, SetupError> {
        let model = options.model.apply(preset(&options.preset)?);
        Self::with_model(model, options, participants)
    }

    /// As [`new`](Self::new), with a model of one's own: of the options, `model` is not used, and `preset` only for its published cuts.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_model(
        model: ModelConfig,
        options: &RunOptions,
        participants: Participants,
    ) -> Result<Self, SetupError> {
        let training = &options.training;
        let plan = options
            .cut
            .plan(&model, &options.preset, usize::from(options.stages))?;
        let run = RunId::from_bytes(random()?);
        let corpus = match options.corpus_path() {
            Some(path) => Corpus::load(&path)?,
            None => Corpus::bundled(),
        };
        let parts = corpus.split(training.held_out)?;
        let shape = shape(training.sequences, &model);
        let mut shards = Vec::new();
        let mut prepare = |corpus: &Corpus, split: Split| -> Result<DataManifest, SetupError> {
            // A shard's tokens are read in whole samples, so a multiple of one wastes none.
            let sample_tokens = usize::try_from(shape.tokens()).unwrap_or(usize::MAX).max(1);
            let shard_tokens = SHARD_TOKENS.next_multiple_of(sample_tokens);
            let mut preparation =
                Preparation::new(corpus, Tokenizer::default(), split, shard_tokens)?;
            for shard in &mut preparation {
                shards.push((
                    ObjectKey::shard(run, shard.entry.digest),
                    shard.bytes.into(),
                ));
            }
            Ok(preparation.finish())
        };
        let data = prepare(&parts.training, Split::Training)?;
        let held_out = prepare(&parts.held_out, Split::HeldOut)?;
        Evaluation::new(&held_out, shape)?;
        let description = Description {
            version: VERSION,
            run,
            seed: options.seed,
            model,
            cuts: plan.cuts().collect(),
            sequences: training.sequences,
            backwards_per_step: training.backwards_per_step,
            optimizer: training.optimizer()?,
            precision: training.precision,
            recompute: training.recompute,
            wire: options.wire,
            merge: options.merging.merge(),
            comparison: options.audits.comparison(),
            data,
        };
        description
            .validate_comparison()
            .map_err(iota_run::Error::from)?;
        let steps = training
            .samples_per_epoch
            .div_ceil(training.backwards_per_step.max(1).into());
        if let Some(steps_max) = description
            .comparison
            .steps_max()
            .filter(|max| *max < steps)
        {
            return Err(SetupError::Horizon { steps, steps_max });
        }
        description.sampler()?;
        let merge = description.merge;
        merge.validate().map_err(iota_run::Error::from)?;
        let cell_bytes = |elements| tensor::encoded_length(&merge.cell_spec(elements));
        let stage_parameters: Vec<u64> = (0..usize::from(options.stages))
            .map(|stage| plan.layout(stage).elements() as u64)
            .collect();
        let miners_to_start = participants.miners_to_start;
        let audited = !participants.validators.is_empty();
        let in_flight = match training.samples_in_flight {
            0 => (2 * miners_to_start).max(u32::from(options.stages) + 1),
            samples => samples,
        };
        let settings = RunSettings {
            run,
            secret: random()?,
            stage_parameters,
            activation_bytes: description.boundary_bytes(Direction::Forward),
            gradient_bytes: description.boundary_bytes(Direction::Backward),
            cell_element_bytes: cell_bytes(2) - cell_bytes(1),
            cell_overhead_bytes: cell_bytes(1) - (cell_bytes(2) - cell_bytes(1)),
            sample_tokens: description.sample_tokens() as u64,
            epochs: training.epochs,
            samples_per_epoch: training.samples_per_epoch,
            samples_in_flight: in_flight,
            in_batches: training.in_batches,
            backwards_per_step: training.backwards_per_step,
            miners_to_start,
            miners_per_stage_max: options
                .registration
                .miners_per_stage_max
                .max(miners_to_start),
            registration: options.registration.into(),
            validators: participants.validators,
            audit_every_epochs: training.audit_every_epochs,
            learning_rate: training.schedule(),
            merging: options
                .merging
                .rules(audited, !description.comparison.is_bits()),
            timing: options.timing.into(),
        };
        settings.validate()?;
        let description_bytes = description.to_json()?.len();
        if description_bytes > iota_wire::limits::CONFIG_BYTES_MAX {
            return Err(SetupError::TooLong { description_bytes });
        }
        Ok(Self {
            settings,
            description,
            held_out,
            shards,
        })
    }

    /// What the rules are given.
    pub const fn settings(&self) -> &RunSettings {
        &self.settings
    }

    /// What everybody is told.
    pub const fn description(&self) -> &Description {
        &self.description
    }

    /// The text that is never trained on.
    pub const fn held_out(&self) -> &DataManifest {
        &self.held_out
    }

    /// The objects with the tokens: those of the description's shards, in their order, then the held-out ones.
    pub fn shards(&self) -> &[(ObjectKey, Bytes)] {
        &self.shards
    }

    /// Writes the data to the store; returns the rest.
    pub(crate) async fn publish(
        self,
        store: &Store,
    ) -> Result<(RunSettings, Description, DataManifest), Error> {
        for (key, bytes) in self.shards {
            store.put(&key, bytes).await?;
        }
        Ok((self.settings, self.description, self.held_out))
    }
}

/// The shape of a sample.
fn shape(sequences: u32, model: &ModelConfig) -> BatchShape {
    BatchShape {
        sequences,
        context: u32::try_from(model.context).unwrap_or(u32::MAX),
    }
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], SetupError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| SetupError::Randomness(error.to_string()))?;
    Ok(bytes)
}
