//! What a network has trained, and those who use it.

use std::path::Path;

use iota_model::{BlockTensor, TensorId};
use iota_orchestrator::{BoundaryChoice, History};
use iota_protocol::Epoch;
use iota_protocol::work::{Checkpoint, SegmentSource};
use iota_trained::{Error, Exported, Numbers, export, stage_weights};
use safetensors::SafeTensors;

use crate::{run, small};

const NAMES: [(TensorId, &str); 4] = [
    (TensorId::Embedding, "model.embed_tokens.weight"),
    (
        TensorId::Block {
            block: 1,
            tensor: BlockTensor::Key,
        },
        "model.layers.1.self_attn.k_proj.weight",
    ),
    (
        TensorId::Block {
            block: 3,
            tensor: BlockTensor::FeedForwardNorm,
        },
        "model.layers.3.post_attention_layernorm.weight",
    ),
    (TensorId::Projection, "lm_head.weight"),
];

type Spoil = fn(&mut Checkpoint);

/// What makes a checkpoint none of its stage, and what is said of it.
const SPOILT: [(Spoil, &str); 4] = [
    (|it| it.segments.clear(), "cover"),
    (|it| it.segments[0].range.start += 1, "cover"),
    (|it| it.segments[0].range.end = u64::MAX, "cover"),
    (
        |it| {
            let SegmentSource::Merged { offset, .. } = &mut it.segments[0].source else {
                panic!("everything was merged");
            };
            *offset += 1;
        },
        "exceeds its cell",
    ),
];

/// What a folder holds.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The tensor of that name, by way of the index.
fn exported(folder: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let index = std::fs::read(folder.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let file = index["weight_map"][name].as_str().unwrap();
    let bytes = std::fs::read(folder.join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = tensors.tensor(name).unwrap();
    let numbers = tensor.data().chunks_exact(4);
    let values = numbers.map(|x| f32::from_le_bytes(x.try_into().unwrap()));
    (tensor.shape().to_vec(), values.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_network_has_trained_is_in_the_files_for_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = small(folder.path());
    settings.model.boundary = BoundaryChoice::None;
    let out = settings.out.clone();
    let report = run(settings).await;
    assert!(report.trained, "{report:?}");

    let history = History::open(&out).unwrap();
    let (description, store) = (history.description(), history.store().unwrap());
    let plan = description.plan().unwrap();
    let at = |epoch| history.checkpoints(Some(Epoch::new(epoch))).unwrap();
    let (first, last) = (at(0).unwrap(), at(2).unwrap());
    assert_eq!(history.checkpoints(None).unwrap().as_ref(), Some(&last));
    assert_eq!(at(3), None);
    let to = folder.path().join("models").join("llama");
    // A slash behind it, as shells put it there.
    let named = to.join("");
    let written = export(description, &store, &last, Numbers::F32, &named)
        .await
        .unwrap();
    let expected = Exported {
        // Embedding, projection and last norm; of each of four blocks nine.
        tensors: 3 + 4 * 9,
        parameters: plan.parameters(),
        is_llama: true,
    };
    assert_eq!(written, expected);
    for (id, name) in NAMES {
        let layouts = (0..2).map(|stage| (stage, plan.layout(stage)));
        let (stage, tensor) = layouts
            .filter_map(|(stage, layout)| Some((stage, layout.find(id)?.clone())))
            .next()
            .unwrap();
        let weights = |epoch: &[Checkpoint]| {
            let (store, checkpoint) = (&store, epoch[stage].clone());
            async move { stage_weights(description, store, &checkpoint).await }
        };
        let (then, now) = (
            weights(&first).await.unwrap(),
            weights(&last).await.unwrap(),
        );
        let trained = now[tensor.range()].to_vec();
        assert_ne!(then[tensor.range()], trained);
        assert_eq!(exported(&to, name), (tensor.shape, trained), "{name}");
    }

    let again = export(description, &store, &last, Numbers::F32, &named).await;
    assert!(matches!(again, Err(Error::Occupied { .. })));
    let halves = folder.path().join("models").join("halves");
    // Somebody's, although it looks like one of ours.
    let neighbour = folder.path().join("models").join("halves.partial");
    std::fs::create_dir(&neighbour).unwrap();
    let empty = iota_store::Store::in_memory();
    let gone = export(description, &empty, &last, Numbers::Bf16, &halves).await;
    assert!(matches!(gone, Err(Error::Store(_))));
    assert_eq!(
        names(&folder.path().join("models")),
        ["halves.partial", "llama"]
    );
    export(description, &store, &last, Numbers::Bf16, &halves)
        .await
        .unwrap();
    assert_eq!(
        names(&folder.path().join("models")),
        ["halves", "halves.partial", "llama"]
    );
    let bytes = |folder: &Path| -> u64 {
        let files = std::fs::read_dir(folder).unwrap();
        files.map(|it| it.unwrap().metadata().unwrap().len()).sum()
    };
    let saved = bytes(&to) - bytes(&halves);
    assert!(
        saved.abs_diff(2 * plan.parameters() as u64) < 100,
        "{saved}"
    );

    for (spoil, word) in SPOILT {
        let mut checkpoint = last[1].clone();
        spoil(&mut checkpoint);
        let error = stage_weights(description, &store, &checkpoint)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
    }
}
