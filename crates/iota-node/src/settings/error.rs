//! What can be wrong with settings, said so that whoever wrote them can mend it.

use std::path::PathBuf;

use super::{Origin, variable_of};

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A settings file cannot be read.
    #[error("the settings file {} cannot be read", path.display())]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A settings file is not TOML.
    #[error("the settings file {} is not valid TOML", path.display())]
    Syntax {
        /// Its path.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// An environment variable cannot be used, whatever the settings are.
    #[error("{name}: {problem}")]
    Variable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no such setting.
    #[error("there is no setting \"{key}\" ({origin}); {}", suggestion(origin, nearest.as_deref(), known))]
    UnknownKey {
        /// As it was written, with dots.
        key: String,
        /// Where.
        origin: Origin,
        /// The known key next to it that looks most like it, if one does.
        nearest: Option<String>,
        /// All the keys that there are in its table.
        known: Vec<String>,
    },
    /// A setting has a value that it cannot have.
    #[error("{key}: {problem} ({origin})")]
    Invalid {
        /// Which.
        key: String,
        /// Where the value came from.
        origin: Origin,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting without a default was not given.
    #[error(
        "the setting \"{key}\" is missing; set it in the settings file or as {}",
        variable_of(key)
    )]
    Missing {
        /// Which.
        key: String,
    },
    /// Settings that cannot be written as TOML: a fault of the program.
    #[error("the settings cannot be written as TOML")]
    Unwritable {
        /// Why not.
        source: toml::ser::Error,
    },
}

fn suggestion(origin: &Origin, nearest: Option<&str>, known: &[String]) -> String {
    let written = |key: &str| match origin {
        Origin::Variable(_) => variable_of(key),
        Origin::Default | Origin::File { .. } | Origin::Flags => format!("\"{key}\""),
    };
    match nearest {
        Some(key) => format!("did you mean {}?", written(key)),
        None => format!(
            "there are {}",
            known
                .iter()
                .map(|key| written(key))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// The candidate that `written` is most likely a misspelling of.
pub(super) fn nearest<'a>(written: &str, candidates: &[&'a str]) -> Option<&'a str> {
    // A third of the letters wrong is about where "did you mean" turns from help into noise.
    let distance_max = written.chars().count().div_ceil(3);
    candidates
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(written, candidate), *candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min()
        .map(|(_, candidate)| candidate)
}
