//! Criterion benches; see .
