//! Objects in somebody's S3 service, for the orchestrator that holds its credentials.

use std::sync::Arc;
use std::time::Duration;

use object_store::ClientOptions;
use object_store::aws::AmazonS3Builder;
use url::Url;

use crate::error::{Error, Result};
use crate::grant::{Credentials, Grants};
use crate::store::Store;

/// Where a bucket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// Address of the service as the orchestrator reaches it; path-style requests go to `endpoint/bucket/key`.
    pub endpoint: Url,
    /// Name of the bucket.
    pub bucket: String,
    /// Region of the bucket; services without regions accept any name.
    pub region: String,
}

/// object_store's own limit is 30 s for a whole transfer, which a cell of 100 MB over a home line does not keep.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl S3Location {
    /// The bucket as a store.
    ///
    /// The service must honour `If-None-Match: *` on writes (AWS S3, R2 and Ceph do; Garage ignores it), or objects
    /// could be replaced.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if the location cannot be used. Nothing is sent yet.
    pub fn open(&self, credentials: &Credentials) -> Result<Store> {
        iota_tls::install_provider();
        let objects = AmazonS3Builder::new()
            .with_endpoint(self.endpoint.as_str().trim_end_matches('/'))
            .with_bucket_name(&self.bucket)
            .with_region(&self.region)
            .with_access_key_id(credentials.access_key())
            .with_secret_access_key(credentials.secret_key())
            .with_allow_http(self.endpoint.scheme() == "http")
            // TLS protects the bytes already; hashing them with SHA-256 would halve the speed of large writes.
            .with_unsigned_payload(self.endpoint.scheme() == "https")
            .with_client_options(
                ClientOptions::new()
                    .with_timeout(TRANSFER_TIMEOUT)
                    .with_allow_http(self.endpoint.scheme() == "http"),
            )
            .build()
            .map_err(|error| Error::Endpoint {
                endpoint: self.endpoint.to_string(),
                reason: error.to_string(),
            })?;
        Ok(Store::new(Arc::new(objects)))
    }

    /// A signer of grants for peers that reach the bucket at the same address.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if the location cannot be used.
    pub fn grants(&self, credentials: &Credentials) -> Result<Grants> {
        Grants::new(&self.endpoint, &self.bucket, &self.region, credentials)
    }
}
