//! Activations, weights and manifests in S3-compatible storage, by typed keys and narrow grants.

pub mod client;
#[doc(hidden)]
pub mod conformance;
pub mod error;
pub mod grant;
pub mod key;
mod manifest;
pub mod seal;
#[cfg(feature = "server")]
pub mod server;
pub mod store;
pub mod tensor;

pub use client::GrantClient;
pub use error::{Error, ErrorKind, Result};
pub use grant::{Credentials, Grant, Grants, Method};
pub use key::{KeyPrefix, ObjectKey};
pub use seal::seal;
#[cfg(feature = "server")]
pub use server::{S3Server, ServerSettings};
pub use store::{Listed, Store};
pub use tensor::{Dtype, TensorSpec};
