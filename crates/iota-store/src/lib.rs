//! Activations, weights and manifests in S3-compatible storage, by typed keys and narrow grants.
