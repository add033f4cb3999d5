//! Compiles `proto/` without protoc, and keeps the descriptor for reflection and for the style test.

use std::path::PathBuf;
use std::{env, fs};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptor = protox::compile(
        [
            "iota/v1/orchestrator_service.proto",
            "iota/v1/request_auth.proto",
        ],
        [root],
    )?;
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("iota_descriptor.bin"),
        descriptor.encode_to_vec(),
    )?;
    tonic_prost_build::configure().compile_fds(descriptor)?;
    Ok(())
}
