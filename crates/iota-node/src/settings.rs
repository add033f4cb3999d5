//! Settings in layers, checked, and each with its origin.
//!
//! ```text
//!   flags          --epochs 4                      strongest
//!   environment    IOTA_RUN__EPOCHS=4                 ▲
//!   file           [run] epochs = 4                   │
//!   defaults       Settings::default()             weakest
//! ```
//!
//! A setting's *key* is its path with dots: `run.epochs`. In the environment the dots are `__` and the letters are
//! capitals. Lists are replaced whole; tables are merged key by key, unless a variable holds a whole table
//! (`IOTA_OPTIMIZER='{ muon = { momentum = 0.9 } }'`), which then replaces the one below.
//!
//! A settings type is plain serde data; [`Layers::load`] reads it with a deserializer that knows where every value
//! came from. The type's own fields are the known keys, whether or not it says `deny_unknown_fields`, so a misspelt
//! key is always an error that names its place and its nearest neighbour. Text from the environment is read as the
//! type asks for it: `IOTA_NAME=42` is a string where the field is one. `#[serde(flatten)]` hides a type's fields from
//! deserializers; do not use it in settings.

mod error;
mod node;
mod read;
mod show;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

pub use self::error::SettingsError;
use self::node::Node;
use crate::telemetry::{FILTER_VARIABLE, FORMAT_VARIABLE};

/// What the names of our variables start with.
pub const VARIABLE_PREFIX: &str = "IOTA_";

/// Where a value came from, weakest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The program's own default.
    Default,
    /// A settings file.
    File {
        /// As it was given.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An environment variable of this name.
    Variable(String),
    /// The command line.
    Flags,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flags => f.write_str("command line"),
        }
    }
}

/// Layers of settings, weakest first: each call adds one over those before.
#[derive(Debug, Clone)]
pub struct Layers {
    merged: Node,
    reserved: Vec<String>,
}

impl Layers {
    /// Starts with the program's defaults.
    ///
    /// # Errors
    /// [`SettingsError::Unwritable`] if the defaults cannot be written as TOML.
    pub fn new<T: Serialize>(defaults: &T) -> Result<Self, SettingsError> {
        let table =
            Table::try_from(defaults).map_err(|source| SettingsError::Unwritable { source })?;
        Ok(Self {
            merged: Node::from_table(table, &Origin::Default),
            reserved: vec![FILTER_VARIABLE.to_owned(), FORMAT_VARIABLE.to_owned()],
        })
    }

    /// Leaves variables of these names alone: the program reads them in some other way. The names of
    /// [`telemetry`](crate::telemetry) are left alone anyway.
    pub fn reserve(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.reserved.extend(names.into_iter().map(Into::into));
        self
    }

    /// Adds a TOML file.
    ///
    /// # Errors
    /// It cannot be read or is not TOML.
    pub fn file(mut self, path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        self.merged.overlay(Node::from_file(&text, path)?);
        Ok(self)
    }

    /// Adds those of the variables whose names start with [`VARIABLE_PREFIX`]. A program passes
    /// `std::env::vars_os()`.
    ///
    /// # Errors
    /// A value is not UTF-8, or two variables contradict each other (`IOTA_RUN` and `IOTA_RUN__EPOCHS`).
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsError> {
        // Sorted, since the order of an environment is an accident and errors should not be.
        let mut ours = BTreeMap::new();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else {
                continue;
            };
            if name.starts_with(VARIABLE_PREFIX) && !self.reserved.contains(&name) {
                ours.insert(name, value);
            }
        }
        self.merged.overlay(Node::from_variables(ours)?);
        Ok(self)
    }

    /// Adds what the command line says, as a partial table.
    pub fn flags(mut self, flags: Table) -> Self {
        self.merged.overlay(Node::from_table(flags, &Origin::Flags));
        self
    }

    /// Reads the layers as settings of type `T`.
    ///
    /// # Errors
    /// A key that `T` does not have, one that it misses, or a value that it cannot hold; always by key and origin.
    pub fn load<T: DeserializeOwned>(self) -> Result<Loaded<T>, SettingsError> {
        let mut origins = BTreeMap::new();
        self.merged.collect_origins(&mut origins);
        let settings = read::read(self.merged)?;
        Ok(Loaded { settings, origins })
    }
}

/// Settings as they came out of the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded<T> {
    /// The settings.
    pub settings: T,
    origins: BTreeMap<String, Origin>,
}

impl<T> Loaded<T> {
    /// Where the value of this key came from. `None` if no layer has it: the type filled it in.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        origin_of(key, &self.origins)
    }

    /// The settings as a TOML file that loads to the same settings, every line with the origin of its value.
    ///
    /// ```text
    /// name = "first try"  # iota.toml:1
    /// run.epochs = 4      # IOTA_RUN__EPOCHS
    /// run.samples = 100   # default
    /// ```
    ///
    /// # Errors
    /// [`SettingsError::Unwritable`] if the settings cannot be written as TOML.
    pub fn show(&self) -> Result<String, SettingsError>
    where
        T: Serialize,
    {
        let table = Table::try_from(&self.settings)
            .map_err(|source| SettingsError::Unwritable { source })?;
        Ok(show::show(&table, &self.origins))
    }
}

/// The key of `name` inside the table of key `parent`, which is empty at the top.
fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}.{name}")
    }
}

/// The origin of `key`, or of the table around it if that came as one piece, as a variable may bring it.
fn origin_of<'a>(key: &str, origins: &'a BTreeMap<String, Origin>) -> Option<&'a Origin> {
    let shorter = std::iter::successors(Some(key), |key| Some(key.rsplit_once('.')?.0));
    shorter.filter_map(|key| origins.get(key)).next()
}

/// The variable that sets this key.
fn variable_of(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.replace('.', "__").to_uppercase())
}

#[cfg(test)]
mod tests;
