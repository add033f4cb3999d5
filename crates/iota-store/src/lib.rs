//! Activations, weights and manifests in S3-compatible storage, by typed keys and narrow grants.

pub mod client;
pub mod error;
pub mod grant;
pub mod key;
mod manifest;
pub mod seal;
pub mod store;
pub mod tensor;

pub use client::GrantClient;
pub use error::{Error, ErrorKind, Result};
pub use grant::{Credentials, Grant, Grants, Method};
pub use key::{KeyPrefix, ObjectKey};
pub use seal::seal;
pub use store::{Listed, Store};
pub use tensor::{Dtype, TensorSpec};
