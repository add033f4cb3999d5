//! What a run folder holds beside the journal, so that the run can be resumed: `run.json`.
//!
//! The journal has what the rules know. This has what they do not: what peers are told of the run, and under which
//! addresses they know the orchestrator and its store. Both files together with `store/` are the run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use iota_data::DataManifest;
use iota_protocol::{PeerId, RunId};
use iota_run::Description;
use iota_tls::{CertificateFiles, ServerCertificate};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::Error;

const VERSION: u32 = 1;
pub(crate) const NAME: &str = "run.json";

/// Where the embedded store of a new run keeps its objects.
pub(crate) const STORE: &str = "store";

/// Where the run's journal is in its folder.
pub const JOURNAL: &str = "journal.sqlite";

/// `run.json`. Written once, when everything else of a new run is in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunFile {
    version: u32,
    pub(crate) run: RunId,
    /// Whom calls are for: peers sign for this key and no other.
    pub(crate) orchestrator: PeerId,
    /// Where that key is; none if a program brought it along.
    pub(crate) key_file: Option<PathBuf>,
    /// Where peers call.
    pub(crate) listen: SocketAddr,
    /// Where the embedded store listens.
    pub(crate) store_listen: SocketAddr,
    /// Under which URL peers reach the store, if not there.
    pub(crate) store_url: Option<Url>,
    /// Whether both speak TLS.
    #[serde(default, skip_serializing_if = "Tls::is_off")]
    pub(crate) tls: Tls,
    /// Where the embedded store keeps its objects, if not in `store` in the run folder: the run was restored from there.
    #[serde(default)]
    pub(crate) store_folder: Option<PathBuf>,
    /// What everybody is told.
    pub(crate) description: Description,
    /// The text that is never trained on.
    pub(crate) held_out: DataManifest,
}

/// How the network knows an orchestrator.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    pub(crate) orchestrator: PeerId,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) listen: SocketAddr,
    pub(crate) store_listen: SocketAddr,
    pub(crate) store_url: Option<Url>,
    pub(crate) tls: Tls,
}

/// Whether a run is served by TLS. A run that was does not go on without.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tls {
    #[default]
    Off,
    /// With a certificate that a program brought along.
    Brought,
    /// With what is in these files.
    Files { certificate: PathBuf, key: PathBuf },
}

impl Tls {
    /// What is to be noted of a certificate, so that whoever resumes the run finds it, from whatever folder.
    pub(crate) fn of(certificate: Option<&ServerCertificate>) -> Result<Self, Error> {
        let Some(certificate) = certificate else {
            return Ok(Self::Off);
        };
        let Some(files) = certificate.files() else {
            return Ok(Self::Brought);
        };
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|source| Error::Folder {
                path: path.clone(),
                source,
            })
        };
        Ok(Self::Files {
            certificate: absolute(&files.certificate)?,
            key: absolute(&files.key)?,
        })
    }

    /// The certificate, if the run needs one.
    pub(crate) fn load(&self) -> Result<Option<ServerCertificate>, Error> {
        match self {
            Self::Off => Ok(None),
            Self::Brought => Err(Error::NoCertificate),
            Self::Files { certificate, key } => {
                let files = CertificateFiles {
                    certificate: certificate.clone(),
                    key: key.clone(),
                };
                Ok(Some(ServerCertificate::from_files(&files)?))
            }
        }
    }

    fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

impl RunFile {
    pub(crate) fn new(
        addresses: Addresses,
        description: Description,
        held_out: DataManifest,
    ) -> Self {
        Self {
            version: VERSION,
            run: description.run,
            orchestrator: addresses.orchestrator,
            key_file: addresses.key_file,
            listen: addresses.listen,
            store_listen: addresses.store_listen,
            store_url: addresses.store_url,
            tls: addresses.tls,
            store_folder: None,
            description,
            held_out,
        }
    }

    /// Where it is in a run's folder.
    pub(crate) fn path(folder: &Path) -> PathBuf {
        folder.join(NAME)
    }

    pub(crate) fn read(folder: &Path) -> Result<Self, Error> {
        let path = Self::path(folder);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let folder = folder.to_owned();
                return Err(Error::NoRun { folder });
            }
            Err(source) => return Err(Error::Folder { path, source }),
        };
        Self::parse(&bytes, &path)
    }

    /// What is, or was, in the file at `path`.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let unusable = |problem: String| Error::RunFile {
            path: path.to_owned(),
            problem,
        };
        let file: Self =
            serde_json::from_slice(bytes).map_err(|error| unusable(error.to_string()))?;
        if file.version != VERSION {
            return Err(unusable(format!(
                "it has version {}, this program knows version {VERSION}",
                file.version
            )));
        }
        Ok(file)
    }

    /// Where the embedded store of the run in `folder` keeps its objects.
    pub(crate) fn store_folder(&self, folder: &Path) -> PathBuf {
        let elsewhere = self.store_folder.clone();
        elsewhere.unwrap_or_else(|| folder.join(STORE))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(NAME);
        let json = serde_json::to_vec_pretty(self).map_err(Error::Json)?;
        iota_node::files::write_private(&path, &json)
            .map_err(|source| Error::Folder { path, source })
    }
}
