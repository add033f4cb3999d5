use iota_compute::{Input, Stage, StageOptions};
use iota_model::{BoundaryKind, ModelConfig, StagePlan};
use safetensors::SafeTensors;

use crate::{assert_close, floats};

/// Made by `benches/peers/golden_stage.py`, which says what is in them.
const IOTA: &[u8] = include_bytes!("../data/pytorch_iota.safetensors");
const RESBM: &[u8] = include_bytes!("../data/pytorch_resbm.safetensors");

fn indices(file: &SafeTensors<'_>, name: &str) -> Vec<u32> {
    let tensor = file.tensor(name).unwrap();
    tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes).try_into().unwrap())
        .collect()
}

#[test]
fn a_model_with_iotas_bottlenecks_and_scaled_rotations_has_pytorchs_loss_and_gradients() {
    check(IOTA, BoundaryKind::Iota);
}

#[test]
fn a_model_with_residual_bottlenecks_has_pytorchs_loss_and_gradients() {
    check(RESBM, BoundaryKind::ResBm);
}

fn check(file: &[u8], kind: BoundaryKind) {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let model: ModelConfig = serde_json::from_str(&metadata["model"]).unwrap();
    let boundaries: Vec<usize> = serde_json::from_str(&metadata["boundaries"]).unwrap();
    assert_eq!(model.boundary.kind(), kind);
    let file = SafeTensors::deserialize(file).unwrap();
    let plan = StagePlan::with_cuts(&model, boundaries, &[]).unwrap();

    let mut stage = Stage::new(&plan, 0, StageOptions::default()).unwrap();
    let layout = stage.layout().clone();
    for tensor in layout.tensors() {
        let name = format!("weight.{}", tensor.id);
        assert_eq!(file.tensor(&name).unwrap().shape(), tensor.shape, "{name}");
        stage.state_mut().parameters[tensor.range()].copy_from_slice(&floats(&file, &name));
    }
    let (tokens, targets) = (indices(&file, "tokens"), indices(&file, "targets"));
    let (loss, _) = stage
        .forward_backward_loss(Input::Tokens(&tokens), &targets)
        .unwrap();
    assert_close("the loss", &[loss], &floats(&file, "loss"));
    for tensor in layout.tensors() {
        let expected = floats(&file, &format!("gradient.{}", tensor.id));
        assert_close(
            &tensor.name(),
            &stage.gradients()[tensor.range()],
            &expected,
        );
    }
    let in_file = file
        .names()
        .iter()
        .filter(|name| name.starts_with("gradient."))
        .count();
    assert_eq!(
        in_file,
        layout.tensors().len(),
        "PyTorch's model has no other parameters"
    );
}
