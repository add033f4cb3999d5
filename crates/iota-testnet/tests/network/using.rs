//! What a network has trained, and those who use it.

use std::path::Path;

use iota_model::{BlockTensor, TensorId};
use iota_orchestrator::{BoundaryChoice, History};
use iota_protocol::{Epoch, StageIndex};
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
    let (first, last) = (Epoch::new(0), Epoch::new(2));
    let to = folder.path().join("model");
    let written = export(description, &store, &[last; 2], Numbers::F32, &to)
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
        let stage = StageIndex::new(stage as u16);
        let weights = |epoch| stage_weights(description, &store, stage, epoch);
        let (then, now) = (weights(first).await.unwrap(), weights(last).await.unwrap());
        let trained = now[tensor.range()].to_vec();
        assert_ne!(then[tensor.range()], trained);
        assert_eq!(exported(&to, name), (tensor.shape, trained), "{name}");
    }

    let again = export(description, &store, &[last; 2], Numbers::F32, &to).await;
    assert!(matches!(again, Err(Error::Occupied { .. })));
    let halves = folder.path().join("halves");
    let future = export(
        description,
        &store,
        &[Epoch::new(3); 2],
        Numbers::Bf16,
        &halves,
    )
    .await;
    assert!(matches!(future, Err(Error::Store(_))));
    assert!(!halves.exists());
    // What the one before has left in part is in nobody's way.
    export(description, &store, &[last; 2], Numbers::Bf16, &halves)
        .await
        .unwrap();
    let bytes = |folder: &Path| -> u64 {
        let files = std::fs::read_dir(folder).unwrap();
        files.map(|it| it.unwrap().metadata().unwrap().len()).sum()
    };
    let saved = bytes(&to) - bytes(&halves);
    assert!(
        saved.abs_diff(2 * plan.parameters() as u64) < 100,
        "{saved}"
    );
}
