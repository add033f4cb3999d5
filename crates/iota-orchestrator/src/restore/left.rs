//! Where the objects of a run are that is to be restored.

use std::fmt;
use std::path::{Path, PathBuf};

use iota_protocol::RunId;
use iota_store::{Credentials, KeyPrefix, S3Location, Store};
use tracing::info;
use url::Url;

use crate::Error;
use crate::run_file::STORE;

/// What is left of a run: a store with its objects.
#[derive(Debug, Clone)]
pub enum LeftStore {
    /// The folder of an embedded store, as it was. The objects stay there, and the run goes on with them.
    Folder(PathBuf),
    /// A bucket of an S3 service. What it has of the run is copied into the store of the run's new folder; the bucket is
    /// only read.
    Bucket {
        /// Where the bucket is.
        location: S3Location,
        /// Keys that may list and read it.
        credentials: Credentials,
    },
}

/// Objects that are copied at a time.
const COPIES: usize = 8;

impl LeftStore {
    /// A store as an operator names it: a folder, or a bucket by its URL, `s3://BUCKET` or `https://HOST/BUCKET`.
    ///
    /// A bucket's keys and region are in the variables that other S3 tools read: `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` (else `us-east-1`), and `AWS_ENDPOINT_URL` for an `s3://` that is not Amazon's.
    ///
    /// # Errors
    /// Says what is missing or cannot be used.
    pub fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        if !text.contains("://") {
            return Ok(Self::Folder(text.into()));
        }
        let url: Url = text.parse().map_err(|error| format!("{error}"))?;
        let region = variable("AWS_REGION").unwrap_or_else(|| "us-east-1".to_owned());
        let (endpoint, bucket) = match url.scheme() {
            "s3" => {
                let endpoint = variable("AWS_ENDPOINT_URL")
                    .unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
                let endpoint: Url = endpoint
                    .parse()
                    .map_err(|error| format!("AWS_ENDPOINT_URL, {endpoint}: {error}"))?;
                if !matches!(url.path(), "" | "/") {
                    return Err("a run is at the top of its bucket; name the bucket alone".into());
                }
                (endpoint, url.host_str().unwrap_or_default().to_owned())
            }
            "http" | "https" => {
                let bucket = url.path().trim_matches('/').to_owned();
                let mut endpoint = url.clone();
                endpoint.set_path("");
                (endpoint, bucket)
            }
            other => return Err(format!("{other}:// is no kind of store; s3 and https are")),
        };
        if bucket.is_empty() || bucket.contains('/') {
            return Err(format!("{text} does not name one bucket"));
        }
        let key = |name: &str| variable(name).ok_or_else(|| format!("{name} is not set"));
        let credentials =
            Credentials::new(key("AWS_ACCESS_KEY_ID")?, key("AWS_SECRET_ACCESS_KEY")?);
        Ok(Self::Bucket {
            location: S3Location {
                endpoint,
                bucket,
                region,
            },
            credentials,
        })
    }

    /// The objects, to read backups from.
    pub(super) fn open(&self) -> Result<Store, Error> {
        match self {
            Self::Folder(folder) if !folder.is_dir() => Err(Error::NothingToRestore {
                store: self.to_string(),
                problem: "there is no such folder".to_owned(),
            }),
            Self::Folder(folder) => Ok(Store::in_folder(folder)?),
            Self::Bucket {
                location,
                credentials,
            } => Ok(location.open(credentials)?),
        }
    }

    /// The runs that it has anything of. Not every service can tell; whether it has a certain one is seen by its backups.
    pub(super) async fn has(&self, store: &Store, run: RunId) -> Result<bool, Error> {
        match self {
            Self::Folder(_) => Ok(store.runs().await?.contains(&run)),
            Self::Bucket { .. } => Ok(!store.list(&KeyPrefix::Backups(run)).await?.is_empty()),
        }
    }

    /// Makes the objects of a run those of its new folder. Gives the store's folder, if it is not in there.
    pub(super) async fn adopt(
        &self,
        store: &Store,
        run: RunId,
        folder: &Path,
    ) -> Result<Option<PathBuf>, Error> {
        match self {
            Self::Folder(left) => {
                let absolute = std::path::absolute(left).map_err(|source| Error::Folder {
                    path: left.clone(),
                    source,
                })?;
                Ok(Some(absolute))
            }
            Self::Bucket { .. } => {
                let own = Store::in_folder(folder.join(STORE))?;
                let copied = store.copy_to(&own, &KeyPrefix::Run(run), COPIES).await?;
                info!(%run, objects = copied.objects, bytes = copied.bytes, "copied from its bucket");
                Ok(None)
            }
        }
    }
}

impl Default for LeftStore {
    fn default() -> Self {
        Self::Folder(PathBuf::from(STORE))
    }
}

impl From<PathBuf> for LeftStore {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

impl fmt::Display for LeftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => folder.display().fmt(f),
            Self::Bucket { location, .. } => {
                let endpoint = location.endpoint.as_str().trim_end_matches('/');
                write!(f, "{endpoint}/{}", location.bucket)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let variable = |name: &str| {
            let mut variables = variables.iter();
            let found = variables.find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let left = LeftStore::parse(text, variable)?;
        let region = match &left {
            LeftStore::Folder(_) => String::new(),
            LeftStore::Bucket { location, .. } => format!(" in {}", location.region),
        };
        Ok(format!("{left}{region}"))
    }

    #[test]
    fn a_store_is_a_folder_or_a_bucket_by_its_url() {
        let keys = [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        let elsewhere = [
            keys[0],
            keys[1],
            ("AWS_REGION", "eu-north-1"),
            ("AWS_ENDPOINT_URL", "http://10.0.0.1:9000"),
        ];
        let ok = |text: &str| Ok(text.to_owned());
        assert_eq!(parse("iota-run/store", &[]), ok("iota-run/store"));
        let amazon = "https://s3.us-east-1.amazonaws.com/runs in us-east-1";
        assert_eq!(parse("s3://runs", &keys), ok(amazon));
        let other = "http://10.0.0.1:9000/runs in eu-north-1";
        assert_eq!(parse("s3://runs/", &elsewhere), ok(other));
        let by_address = "https://store.example:8443/runs in us-east-1";
        assert_eq!(
            parse("https://store.example:8443/runs", &keys),
            ok(by_address)
        );

        let missing = "AWS_ACCESS_KEY_ID is not set".to_owned();
        assert_eq!(parse("s3://runs", &[]), Err(missing));
        for unusable in [
            "https://store.example",
            "s3://runs/below",
            "ftp://store/runs",
            "s3://",
        ] {
            assert!(parse(unusable, &keys).is_err(), "{unusable}");
        }
    }
}
