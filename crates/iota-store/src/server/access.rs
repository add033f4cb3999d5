//! Who may ask for what. `s3s` has verified the signature by then; this narrows down what a good one is worth.

use async_trait::async_trait;
use s3s::access::{S3Access, S3AccessContext};
use s3s::{S3Result, s3_error};
use url::form_urlencoded;

use super::BUCKET;

/// What the server does at all. Not in it: forms, multipart uploads, buckets, access lists.
const OPERATIONS: [&str; 6] = [
    "DeleteObject",
    "DeleteObjects",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "PutObject",
];

/// Only signed requests (version 4) for the few operations there are, and nothing unsigned beside the signature.
pub(super) struct Access;

#[async_trait]
impl S3Access for Access {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        if request.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "a signature is required"));
        }
        let query = request.uri().query().unwrap_or_default();
        let signed_headers = form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == "X-Amz-SignedHeaders")
            .map(|(_, names)| names.into_owned());
        match &signed_headers {
            Some(signed) => {
                // A header that S3 acts upon must not be added to a URL by whoever was given it.
                let unsigned = request.headers().keys().find(|name| {
                    name.as_str().starts_with("x-amz-")
                        && !signed.split(';').any(|signed| signed == name.as_str())
                });
                if let Some(name) = unsigned {
                    return Err(s3_error!(AccessDenied, "header {name} is not signed"));
                }
            }
            None => {
                let version_4 = request
                    .headers()
                    .get("authorization")
                    .is_some_and(|value| value.as_bytes().starts_with(b"AWS4-HMAC-SHA256 "));
                if !version_4 {
                    return Err(s3_error!(AccessDenied, "signature version 4 is required"));
                }
            }
        }
        if !OPERATIONS.contains(&request.s3_op().name()) {
            return Err(s3_error!(NotImplemented, "not an operation of this server"));
        }
        if request.s3_path().get_bucket_name() != Some(BUCKET) {
            return Err(s3_error!(NoSuchBucket));
        }
        Ok(())
    }
}
