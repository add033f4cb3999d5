//! A model as other programs read it.
//!
//! The folder has what Hugging Face's transformers want: `config.json`, the weights as safetensors, a file for each stage, and
//! an index of which tensor is in which. Tensors are named as Llama's are there. A model without bottleneck boundaries is a
//! Llama and loads as one; the boundaries of others are tensors of their own, `model.layers.N.iota.*`, which nobody else
//! knows, and `config.json` says so by another name for the architecture.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;
use iota_model::{BlockTensor, Boundary, ModelConfig, TensorId, TensorLayout};
use iota_protocol::work::Checkpoint;
use iota_run::Description;
use iota_store::Store;
use safetensors::{Dtype, View};
use serde_json::{Value, json};

use crate::{Error, stage_weights};

/// What numbers are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numbers {
    /// As they are.
    #[default]
    F32,
    /// Rounded to the nearest, in half the space.
    Bf16,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Tensors.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Whether it is a Llama, which other programs load without knowing more.
    pub is_llama: bool,
}

/// Writes the model as checkpoints have it, one for each stage from head to tail, to a new folder: whole or not at all. Until
/// it is whole it grows in a folder beside that one.
///
/// One stage is in memory at a time.
///
/// # Errors
/// [`Error::Occupied`]; those of [`stage_weights`]; [`Error::File`], [`Error::Tensors`].
pub async fn export(
    description: &Description,
    store: &Store,
    checkpoints: &[Checkpoint],
    numbers: Numbers,
    folder: &Path,
) -> Result<Exported, Error> {
    // Without the slash that a shell puts behind a folder's name.
    let folder: PathBuf = folder.components().collect();
    // A link that leads nowhere is in the way, too.
    if folder.symlink_metadata().is_ok() {
        return Err(Error::Occupied { folder });
    }
    let plan = description.plan()?;
    let growing = Growing::beside(&folder)?;
    let partial = &growing.0;
    let (mut files, mut written) = (BTreeMap::new(), Vec::new());
    let mut parameters = 0;
    for (index, checkpoint) in checkpoints.iter().enumerate() {
        let weights = stage_weights(description, store, checkpoint).await?;
        parameters += weights.len();
        let count = checkpoints.len();
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        let layout = plan.layout(index);
        let tensors: Vec<_> = layout
            .tensors()
            .iter()
            .map(|tensor| (name_of(tensor.id), Part::of(tensor, &weights, numbers)))
            .collect();
        files.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone())));
        let path = partial.join(file);
        // What transformers look for before they read it.
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        safetensors::serialize_to_file(tensors, Some(metadata), &path).map_err(|source| {
            let path = path.clone();
            Error::Tensors { path, source }
        })?;
        written.push(path);
    }
    let exported = Exported {
        tensors: files.len(),
        parameters,
        is_llama: is_llama(&description.model, plan.boundaries()),
    };
    let bytes = parameters * numbers.bytes();
    let index = json!({ "metadata": { "total_size": bytes }, "weight_map": files });
    let config = config(description, plan.boundaries(), numbers);
    for (name, contents) in [
        ("model.safetensors.index.json", index),
        ("config.json", config),
    ] {
        let path = partial.join(name);
        std::fs::write(&path, format!("{contents:#}\n")).map_err(cannot_write(&path))?;
    }
    // The library lets nobody else read its files; these are for others.
    let as_others = std::fs::metadata(partial.join("config.json"))
        .map_err(cannot_write(partial))?
        .permissions();
    for path in written {
        std::fs::set_permissions(&path, as_others.clone()).map_err(cannot_write(&path))?;
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(cannot_write(&path))?;
    }
    std::fs::rename(partial, &folder).map_err(cannot_write(&folder))?;
    Ok(exported)
}

/// A folder that is not whole yet. What has not become another one is gone with it.
struct Growing(PathBuf);

impl Growing {
    /// Of this process alone: another one may write the same model, and what is there already is somebody's.
    fn beside(folder: &Path) -> Result<Self, Error> {
        let mut name = folder.as_os_str().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let path = PathBuf::from(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(cannot_write(parent))?;
        }
        std::fs::create_dir(&path).map_err(cannot_write(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        // There is nothing under this name any more if it has become the other folder. What cannot be removed stays, under a
        // name that says what it is.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a model has no boundary in it, whichever it would have at its cuts.
fn is_llama(model: &ModelConfig, boundaries: &[usize]) -> bool {
    model.boundary == Boundary::None || boundaries.is_empty()
}

fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::File { path, source }
}

impl Numbers {
    const fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// A tensor within a stage's weights.
struct Part<'a> {
    shape: Vec<usize>,
    values: &'a [f32],
    numbers: Numbers,
}

impl<'a> Part<'a> {
    fn of(tensor: &TensorLayout, weights: &'a [f32], numbers: Numbers) -> Self {
        Self {
            shape: tensor.shape.clone(),
            values: &weights[tensor.range()],
            numbers,
        }
    }
}

/// Its bytes are there only while they are written.
impl View for Part<'_> {
    fn dtype(&self) -> Dtype {
        self.numbers.dtype()
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.values.iter();
        match self.numbers {
            Numbers::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            Numbers::Bf16 => values
                .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
                .collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.values.len() * self.numbers.bytes()
    }
}

/// As Llama's tensors are named in transformers.
fn name_of(id: TensorId) -> String {
    let TensorId::Block { block, tensor } = id else {
        let name = match id {
            TensorId::Embedding => "model.embed_tokens",
            TensorId::FinalNorm => "model.norm",
            TensorId::Projection | TensorId::Block { .. } => "lm_head",
        };
        return format!("{name}.weight");
    };
    let name = match tensor {
        BlockTensor::AttentionNorm => "input_layernorm",
        BlockTensor::Query => "self_attn.q_proj",
        BlockTensor::Key => "self_attn.k_proj",
        BlockTensor::Value => "self_attn.v_proj",
        BlockTensor::AttentionOutput => "self_attn.o_proj",
        BlockTensor::FeedForwardNorm => "post_attention_layernorm",
        BlockTensor::Gate => "mlp.gate_proj",
        BlockTensor::Up => "mlp.up_proj",
        BlockTensor::Down => "mlp.down_proj",
        BlockTensor::Decoder => "iota.decoder",
        BlockTensor::DecoderHidden => "iota.decoder_hidden",
        BlockTensor::DecoderOutput => "iota.decoder_output",
        BlockTensor::Anchor => "iota.anchor",
        BlockTensor::Encoder => "iota.encoder",
        BlockTensor::EncoderHidden => "iota.encoder_hidden",
        BlockTensor::EncoderOutput => "iota.encoder_output",
    };
    format!("model.layers.{block}.{name}.weight")
}

/// `boundaries`: the blocks behind one.
fn config(description: &Description, boundaries: &[usize], numbers: Numbers) -> Value {
    let model = &description.model;
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocabulary,
        "hidden_size": model.width,
        "intermediate_size": model.feed_forward,
        "num_hidden_layers": model.blocks,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_width(),
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rope.base,
        "rope_scaling": rope_scaling(model),
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": false,
        "bos_token_id": null,
        "eos_token_id": null,
        "torch_dtype": numbers.name(),
        "iota": {
            "run": description.run.to_string(),
            "tokenizer": description.data.tokenizer.name(),
        },
    });
    if !is_llama(model, boundaries) {
        config["architectures"] = json!(["IotaForCausalLM"]);
        config["model_type"] = json!("iota");
        config["iota"]["boundary"] = json!(model.boundary);
        config["iota"]["behind_a_boundary"] = json!(boundaries);
    }
    config
}

fn rope_scaling(model: &ModelConfig) -> Option<Value> {
    let scaling = model.rope.scaling?;
    Some(json!({
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_context,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use iota_model::{StagePlan, preset};

    use super::*;

    #[test]
    fn no_two_tensors_have_a_name_and_only_those_of_a_boundary_have_one_of_our_own() {
        for boundary in [
            Boundary::Iota { channels: 3 },
            Boundary::ResBm { channels: 3 },
            Boundary::Anchored { channels: 3 },
        ] {
            let model = ModelConfig {
                boundary,
                ..preset("tiny").unwrap()
            };
            let layout = StagePlan::new(&model, 2)
                .unwrap()
                .regroup(1)
                .unwrap()
                .layout(0);
            let names: BTreeSet<String> =
                layout.tensors().iter().map(|it| name_of(it.id)).collect();
            assert_eq!(names.len(), layout.tensors().len());
            let own = names.iter().filter(|name| name.contains(".iota.")).count();
            // Embedding, projection and last norm; of each block nine.
            assert_eq!(names.len() - own, 3 + 9 * model.blocks);
            assert!(own > 0);
        }
    }

    #[test]
    fn a_model_that_is_cut_nowhere_or_without_bottlenecks_is_a_llama() {
        let narrow = preset("tiny").unwrap();
        assert_ne!(narrow.boundary, Boundary::None);
        let wide = ModelConfig {
            boundary: Boundary::None,
            ..narrow.clone()
        };
        for (model, stages, expected) in [(&narrow, 2, false), (&narrow, 1, true), (&wide, 2, true)]
        {
            let plan = StagePlan::new(model, stages).unwrap();
            assert_eq!(is_llama(model, plan.boundaries()), expected, "{stages}");
        }
    }
}
