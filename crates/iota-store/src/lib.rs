//! Activations, weights and manifests in S3-compatible storage, by typed keys and narrow grants.
//!
//! Everything large goes through here; control messages carry names and digests only. The orchestrator holds the
//! storage. Peers, whom nobody trusts, hold [`Grant`]s: each is one HTTP request on one object, for a minute or so.
//!
//! ```text
//!    orchestrator                                                     peer
//!    Store ── put, get, list, delete ──┐          ┌── fetch, upload ── GrantClient
//!      │                               ▼          ▼                        ▲
//!      │      memory · folder ◀── S3Server ◀── presigned URL               │
//!      │      any S3 service  ◀────────────────── presigned URL            │
//!      └─ Grants ── signs ── Grant ── travels inside a lease ──────────────┘
//! ```
//!
//! Two rules hold for every object (S1): its key is written once, and its bytes are verified against the [`Seal`] of
//! whoever wrote it each time they are read. So it does not matter who stores them.
//!
//! ```
//! use std::time::Duration;
//!
//! use iota_protocol::id::{Epoch, ObjectId, RunId};
//! use iota_protocol::time::Timestamp;
//! use iota_protocol::work::{ObjectName, Purpose};
//! use iota_store::{Credentials, Grants, ObjectKey, Store, TensorSpec, tensor};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let name = ObjectName {
//!     purpose: Purpose::Activation,
//!     epoch: Epoch::new(3),
//!     id: ObjectId::from_bytes([7; 16]),
//! };
//! let key = ObjectKey::object(RunId::from_bytes([1; 16]), name);
//!
//! // The length of an activation is known before its values, so the permission to write it can be exact.
//! let specs = [TensorSpec::f32("activation", [2, 3])];
//! let length_bytes = tensor::encoded_length(&specs);
//! let endpoint = "http://127.0.0.1:9000".parse()?;
//! let credentials = Credentials::new("access", "secret");
//! let grants = Grants::new(&endpoint, "iota", "us-east-1", &credentials)?;
//! let now = Timestamp::from_millis(1_700_000_000_000);
//! let grant = grants.put(&key, length_bytes, Duration::from_secs(60), now);
//! assert_eq!(grant.expires_at_ms, 1_700_000_060_000);
//!
//! let [spec] = specs.clone();
//! let bytes = tensor::encode(&[(spec, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]);
//! assert_eq!(bytes.len() as u64, length_bytes);
//! let store = Store::in_memory();
//! let seal = store.put(&key, bytes).await?;
//! let read = store.get(&key, &seal).await?;
//! assert_eq!(tensor::decode(&read, &specs)?, [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! # Modules
//!
//! | module | concern |
//! |---|---|
//! | [`key`] | where an object lies: typed, printable, impossible to get wrong |
//! | [`mod@seal`] | what an object's bytes must be |
//! | [`store`] | whole objects for the operator, and manifests, written after all that they refer to |
//! | [`grant`] | presigned URLs bound to key, method, length, newness and time |
//! | [`client`] | what a peer does with a grant |
//! | [`counter`] | the other side of a grant without HTTP, for simulations |
//! | [`tensor`] | tensors as canonical safetensors bytes |
//! | `server` | the embedded S3 server over a folder (feature `server`) |
//! | `s3` | a bucket of an S3 service as the store (feature `s3`) |
//! | [`error`] | what can go wrong, and what to do about it |
//!
//! With the feature `tls`, which those of `server` and `s3` bring along, grants whose URLs begin with `https` can be used.
//!
//! # What it does not know
//!
//! This crate does *not* know when something is written or deleted, who may have a grant, or what a tensor means: the
//! rules decide the first two, the model the third. It reads no clock, makes no keys and tries nothing twice.
//!
//! [`Seal`]: iota_protocol::work::Seal

pub mod client;
#[doc(hidden)]
pub mod conformance;
pub mod counter;
pub mod error;
pub mod grant;
pub mod key;
mod manifest;
#[cfg(feature = "s3")]
pub mod s3;
pub mod seal;
#[cfg(feature = "server")]
pub mod server;
pub mod store;
pub mod tensor;

pub use client::{Carrier, GrantClient};
pub use counter::Counter;
pub use error::{Error, ErrorKind, Result};
pub use grant::{Credentials, Grant, Grants, Method};
pub use key::{KeyPrefix, ObjectKey};
#[cfg(feature = "s3")]
pub use s3::S3Location;
pub use seal::seal;
#[cfg(feature = "server")]
pub use server::{S3Server, ServerSettings};
pub use store::{Copied, Listed, Store};
pub use tensor::{Dtype, TensorError, TensorSpec};
