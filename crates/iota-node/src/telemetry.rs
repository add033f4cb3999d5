//! Where `tracing` events go, and in which dress.
//!
//! A person at a terminal gets short lines (in colour unless `NO_COLOR` is set); a pipe gets the same lines plain; a
//! log collector asks for JSON, one object per line. `IOTA_LOG` says how much (`info`, `debug,hyper=warn`),
//! `IOTA_LOG_FORMAT` says `text` or `json`. Standard output is never written to: it belongs to a program's results.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, OnceLock};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;

/// The variable that says how much is logged.
pub const FILTER_VARIABLE: &str = "IOTA_LOG";
/// The variable that says how it looks.
pub const FORMAT_VARIABLE: &str = "IOTA_LOG_FORMAT";

const FILTER_DEFAULT: &str = "info";

/// The dress of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// One short line for people.
    #[default]
    Text,
    /// One JSON object per line for programs.
    Json,
}

impl FromStr for Format {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(TelemetryError::Format {
                given: other.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Telemetry that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "the log filter {filter:?} does not parse; write something like \"info\" or \"debug,hyper=warn\""
    )]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// There is no such format.
    #[error("there is no log format {given:?}; there are \"text\" and \"json\"")]
    Format {
        /// As it was given.
        given: String,
    },
    /// The log file cannot be written.
    #[error("the log file {} cannot be opened", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What to log, how and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    filter: String,
    format: Format,
    file: Option<PathBuf>,
}

impl Default for Telemetry {
    /// `info` as text to standard error.
    fn default() -> Self {
        Self {
            filter: FILTER_DEFAULT.to_owned(),
            format: Format::Text,
            file: None,
        }
    }
}

impl Telemetry {
    /// As `IOTA_LOG` and `IOTA_LOG_FORMAT` say, else the default.
    ///
    /// # Errors
    /// [`TelemetryError::Format`].
    pub fn from_environment() -> Result<Self, TelemetryError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, TelemetryError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let mut telemetry = Self::default();
        if let Some(filter) = set(FILTER_VARIABLE) {
            telemetry.filter = filter;
        }
        if let Some(format) = set(FORMAT_VARIABLE) {
            telemetry.format = format.parse()?;
        }
        Ok(telemetry)
    }

    /// Logs what this filter lets through, in the syntax of `tracing_subscriber::EnvFilter`.
    pub fn with_filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = filter.into();
        self
    }

    /// Logs in this format.
    pub const fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Appends to this file instead of standard error: for a testnet, whose live view owns the terminal.
    pub fn with_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Sends the events of this process there from now on. Only the first call in a process does anything, so tests
    /// may all call it.
    ///
    /// # Errors
    /// The filter does not parse, or the file cannot be opened. Nothing is changed then.
    pub fn init(&self) -> Result<(), TelemetryError> {
        static STARTED: OnceLock<()> = OnceLock::new();
        let filter = self.parse_filter()?;
        let subscriber = match &self.file {
            Some(path) => subscriber(filter, self.format, false, Mutex::new(open(path)?)),
            None => subscriber(filter, self.format, has_colours(), io::stderr),
        };
        STARTED.get_or_init(|| {
            // Fails if somebody else has set a subscriber: a program that embeds us and keeps its own.
            let _kept_the_other = tracing::subscriber::set_global_default(subscriber);
        });
        Ok(())
    }

    fn parse_filter(&self) -> Result<EnvFilter, TelemetryError> {
        EnvFilter::builder()
            .parse(&self.filter)
            .map_err(|source| TelemetryError::Filter {
                filter: self.filter.clone(),
                source,
            })
    }
}

fn has_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn open(path: &Path) -> Result<File, TelemetryError> {
    let open = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        File::options().create(true).append(true).open(path)
    };
    open().map_err(|source| TelemetryError::File {
        path: path.to_owned(),
        source,
    })
}

fn subscriber<W>(
    filter: EnvFilter,
    format: Format,
    colours: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let common = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(writer);
    match format {
        Format::Text => Box::new(common.compact().finish()),
        Format::Json => Box::new(common.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tracing::{debug, info};

    use super::*;

    /// What is written to a telemetry's file by `events`.
    fn logged(telemetry: &Telemetry, events: impl FnOnce()) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/run.log");
        let filter = telemetry.parse_filter().unwrap();
        let writer = Mutex::new(open(&path).unwrap());
        tracing::subscriber::with_default(
            Arc::new(subscriber(filter, telemetry.format, false, writer)),
            events,
        );
        std::fs::read_to_string(path).unwrap()
    }

    fn from_variables(pairs: &[(&str, &str)]) -> Result<Telemetry, TelemetryError> {
        Telemetry::from_variables(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn info_is_logged_by_default_and_debug_is_not() {
        let text = logged(&Telemetry::default(), || {
            debug!("one activation arrived");
            info!(epoch = 3, "merge finished");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.contains("merge finished") && text.contains("epoch=3"),
            "{text}"
        );
    }

    #[test]
    fn the_variables_set_filter_and_format() {
        let telemetry =
            from_variables(&[("IOTA_LOG", "debug"), ("IOTA_LOG_FORMAT", "json")]).unwrap();
        let line = logged(&telemetry, || debug!(epoch = 3, "merge finished"));
        assert!(line.starts_with('{') && line.ends_with("}\n"), "{line}");
        assert!(
            line.contains(r#""message":"merge finished""#) && line.contains(r#""epoch":3"#),
            "{line}"
        );
    }

    #[test]
    fn an_empty_variable_is_no_variable() {
        assert_eq!(
            from_variables(&[("IOTA_LOG", ""), ("IOTA_LOG_FORMAT", "")]).unwrap(),
            Telemetry::default()
        );
    }

    #[test]
    fn an_unknown_format_is_an_error_that_names_the_known_ones() {
        let error = from_variables(&[("IOTA_LOG_FORMAT", "xml")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"there is no log format "xml"; there are "text" and "json""#
        );
    }

    #[test]
    fn a_filter_that_does_not_parse_is_an_error_that_shows_it() {
        let error = Telemetry::default()
            .with_filter("iota_node=loud")
            .init()
            .unwrap_err();
        assert!(
            matches!(&error, TelemetryError::Filter { filter, .. } if filter == "iota_node=loud"),
            "{error}"
        );
    }

    #[test]
    fn starting_twice_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let telemetry = Telemetry::default()
            .with_filter("off")
            .with_file(folder.path().join("log"));
        telemetry.init().unwrap();
        telemetry.init().unwrap();
    }
}
