//! What the compiler makes of `proto/iota/v1`, for tools that want to speak to an orchestrator without [`Client`].
//!
//! Everything else in this crate exists so that nobody has to: these types hold whatever a stranger sends.
//!
//! [`Client`]: crate::Client
#![expect(
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated code"
)]

tonic::include_proto!("iota.v1");

/// The compiled files as an encoded `google.protobuf.FileDescriptorSet`, with comments: what reflection serves.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/iota_descriptor.bin"));
