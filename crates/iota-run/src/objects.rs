//! The tensors in the objects that travel.

use iota_store::tensor::{self, TensorSpec};

/// Name of the tensor in an activation's or a gradient's object.
pub(crate) const ACTIVATION: &str = "activation";

/// Names of the tensors in a cell's object: the same range of the parameters and of both optimizer moments.
pub const CELL_PLANES: [&str; 3] = ["parameters", "first_moment", "second_moment"];

/// The tensors of a cell of so many elements: each `[elements]`, f32.
pub fn cell_spec(elements: usize) -> [TensorSpec; 3] {
    CELL_PLANES.map(|name| TensorSpec::f32(name, [elements]))
}

/// How many elements the cell has whose object is so long; none if no cell's is.
pub fn cell_elements(length_bytes: u64) -> Option<usize> {
    let per_element = CELL_PLANES.len() as u64 * 4;
    let overhead = tensor::encoded_length(&cell_spec(0));
    let elements = length_bytes.checked_sub(overhead)? / per_element;
    let elements = usize::try_from(elements)
        .ok()
        .filter(|elements| *elements > 0)?;
    (tensor::encoded_length(&cell_spec(elements)) == length_bytes).then_some(elements)
}
