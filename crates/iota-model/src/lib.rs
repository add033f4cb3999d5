//! The shape of a model: presets, stages, parameter layout, sizes; no tensors.
