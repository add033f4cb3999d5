//! A keypair on disk, in the plain JSON layout of a Bittensor hotkey, so that an existing hotkey serves as it is.
//!
//! ```json
//! {"publicKey": "0x..", "secretSeed": "0x..", "ss58Address": "5..", "cryptoType": 1}
//! ```
//!
//! Reading is lenient about what does not matter (order, unknown fields, the leading space that old wallets put before
//! `ss58Address`) and strict about what does: the public key and the address must be those of the seed, the scheme must
//! be sr25519, and nobody but the owner may be able to read the file.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use iota_protocol::PeerId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::address;
use crate::keypair::{Keypair, new_seed};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// Reading, writing or linking failed.
    #[error("cannot {action} key file {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Others than the owner have access to the file; the key may be known already.
    #[error("key file {} has mode {mode:03o}; only its owner may have access (chmod 600)", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is in a form that this crate does not open.
    #[error("key file {} is {form}; {advice}", path.display())]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// What it is.
        form: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The file is not a key file. The cause is described without quoting the file.
    #[error("key file {} is malformed: {problem}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, never with contents of the file.
        problem: String,
    },
    /// The stored public key or address is not the seed's: the file was mixed up or edited.
    #[error("key file {}: {field} is not the one of its secret seed", path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// Which field is wrong.
        field: &'static str,
    },
}

/// The key in the file at `path`; if there is none yet, a new one, saved there first.
///
/// The new file appears complete or not at all, readable by its owner only. If two processes do this at a time, both get
/// the key of whichever was first.
///
/// # Errors
/// See [`KeyFileError`]; an unusable file is never replaced.
pub fn load_or_create(path: impl AsRef<Path>) -> Result<Keypair, KeyFileError> {
    let path = path.as_ref();
    match load(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded,
    }
    match create(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            load(path)
        }
        created => created,
    }
}

/// The key in the file at `path`.
///
/// # Errors
/// See [`KeyFileError`].
pub fn load(path: impl AsRef<Path>) -> Result<Keypair, KeyFileError> {
    let path = path.as_ref();
    let failed = |source| KeyFileError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    refuse_exposed(&file, path)?;
    // Reserved in full, so that no copy of the secret is left behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(LENGTH_MAX_BYTES + 1));
    match file
        .take(LENGTH_MAX_BYTES as u64 + 1)
        .read_to_string(&mut text)
    {
        Ok(length) if length > LENGTH_MAX_BYTES => Err(malformed(path, "it is too long")),
        Ok(_) => parse(&text, path),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(malformed(path, "it is not text"))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes a new key and saves it at `path`, together with the folders above it.
///
/// # Errors
/// [`KeyFileError::Io`]; of kind [`io::ErrorKind::AlreadyExists`] if there is a file already.
pub fn create(path: impl AsRef<Path>) -> Result<Keypair, KeyFileError> {
    create_from_seed(path, &new_seed())
}

/// Saves the key that a seed stands for at `path`, together with the folders above it.
///
/// # Errors
/// As [`create`].
pub fn create_from_seed(path: impl AsRef<Path>, seed: &[u8; 32]) -> Result<Keypair, KeyFileError> {
    let path = path.as_ref();
    let failed = |action| {
        move |source| KeyFileError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(failed("create the folder of"))?;

    let keypair = Keypair::from_seed(*seed);
    let text = render(seed, &keypair);

    // Written in full under another name, then linked: a link, unlike a rename, never replaces a file that is there.
    let suffix: String = new_seed()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{suffix}"));
    let draft = PathBuf::from(draft);
    let written = write_private(&draft, text.as_bytes())
        .map_err(failed("write"))
        .and_then(|()| fs::hard_link(&draft, path).map_err(failed("create")));
    // The draft may be missing if writing failed at its first step; the error to report is that one.
    let removed = fs::remove_file(&draft).map_err(failed("remove the draft of"));
    written.and(removed)?;
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync the folder of"))?;
    Ok(keypair)
}

/// The part of a hotkey file that matters. Borrows from the text, so that wiping the text wipes the secret.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Contents<'a> {
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    public_key: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    secret_seed: Option<Cow<'a, str>>,
    #[serde(
        borrow,
        alias = " ss58Address",
        skip_serializing_if = "Option::is_none"
    )]
    ss58_address: Option<Cow<'a, str>>,
    crypto_type: Option<u32>,
    /// Only in exports of polkadot.js, where the secret is encrypted.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    encoded: Option<Cow<'a, str>>,
}

fn parse(text: &str, path: &Path) -> Result<Keypair, KeyFileError> {
    let unsupported = |form, advice| {
        Err(KeyFileError::Unsupported {
            path: path.to_owned(),
            form,
            advice,
        })
    };
    if ["$NACL", "$ANSIBLE_VAULT", "gAAAAA"]
        .iter()
        .any(|magic| text.starts_with(magic))
    {
        return unsupported(
            "encrypted",
            "give an unencrypted hotkey; a coldkey has no place on a miner",
        );
    }
    // serde_json's own message may quote the text, so only the place of the error is passed on.
    let contents: Contents<'_> = serde_json::from_str(text).map_err(|error| {
        malformed(
            path,
            format!(
                "no JSON key at line {}, column {}",
                error.line(),
                error.column()
            ),
        )
    })?;
    if contents.encoded.is_some() {
        return unsupported(
            "a polkadot.js export",
            "export the hotkey with btcli instead",
        );
    }
    if !matches!(contents.crypto_type, None | Some(SR25519)) {
        return unsupported("of another scheme than sr25519", "make an sr25519 hotkey");
    }
    let Some(seed) = contents.secret_seed.as_deref() else {
        return Err(malformed(path, "secretSeed is missing"));
    };
    let seed =
        unhex(seed).ok_or_else(|| malformed(path, "secretSeed is not 0x and 64 hex digits"))?;
    let keypair = Keypair::from_seed(*seed);

    let mismatch = |field| {
        Err(KeyFileError::Mismatch {
            path: path.to_owned(),
            field,
        })
    };
    if let Some(public) = contents.public_key.as_deref() {
        let public = unhex(public).map(|key| PeerId::from_bytes(*key));
        if public != Some(keypair.peer_id()) {
            return mismatch("publicKey");
        }
    }
    if let Some(stored) = contents.ss58_address.as_deref()
        && address::decode(stored) != Ok(keypair.peer_id())
    {
        return mismatch("ss58Address");
    }
    Ok(keypair)
}

fn render(seed: &[u8; 32], keypair: &Keypair) -> Zeroizing<String> {
    let hex = |bytes: &[u8; 32]| {
        let mut text = Zeroizing::new(String::with_capacity(2 + 2 * bytes.len()));
        text.push_str("0x");
        for byte in bytes {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).expect("four bits are a hex digit"));
            }
        }
        text
    };
    let seed = hex(seed);
    let contents = Contents {
        public_key: Some(Cow::Owned(hex(keypair.peer_id().as_bytes()).to_string())),
        secret_seed: Some(Cow::Borrowed(&seed)),
        ss58_address: Some(Cow::Owned(keypair.address())),
        crypto_type: Some(SR25519),
        encoded: None,
    };
    let mut bytes = Vec::with_capacity(LENGTH_MAX_BYTES);
    serde_json::to_writer(&mut bytes, &contents).expect("texts and a number always serialize");
    Zeroizing::new(String::from_utf8(bytes).expect("serde_json writes UTF-8"))
}

fn unhex(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = Zeroizing::new([0; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|value| u8::try_from(value).ok())
        };
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Looks at the open file, not at its path, so that what is checked is what is read.
#[cfg(unix)]
fn refuse_exposed(file: &File, path: &Path) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = file.metadata().map_err(|source| KeyFileError::Io {
        action: "read the mode of",
        path: path.to_owned(),
        source,
    })?;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o077 == 0 => Ok(()),
        mode => Err(KeyFileError::Exposed {
            path: path.to_owned(),
            mode,
        }),
    }
}

/// Other systems keep the folders of a user private by default, and have no mode to look at.
#[cfg(not(unix))]
fn refuse_exposed(_file: &File, _path: &Path) -> Result<(), KeyFileError> {
    Ok(())
}

fn malformed(path: &Path, problem: impl Into<String>) -> KeyFileError {
    KeyFileError::Malformed {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

/// `cryptoType` of sr25519 in Bittensor's files.
const SR25519: u32 = 1;

/// A Bittensor hotkey with its phrase takes some 500 bytes.
const LENGTH_MAX_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
