//! Results on disk: one JSON object a line, added as they come.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a run was: together with the seed and the variant it decides the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    /// Channels of the residual stream.
    pub(crate) width: usize,
    /// Transformer blocks.
    pub(crate) blocks: usize,
    /// Tokens in a sequence.
    pub(crate) context: usize,
    /// Sequences in a batch.
    pub(crate) sequences: u32,
    /// Stages of every variant but the uncut one.
    pub(crate) stages: usize,
    /// Tokens trained on.
    pub(crate) tokens: u64,
    /// The optimizer's name.
    pub(crate) optimizer: String,
    /// Its learning rate after the warm-up.
    pub(crate) learning_rate: f32,
}

/// One run of one variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The variant's name.
    pub(crate) variant: String,
    /// Initial weights, the order of the text, and chance in encodings derive from it.
    pub(crate) seed: u64,
    /// What else it depends on.
    pub(crate) setting: Setting,
    /// Held-out loss at the end, in nats per token; absent if training broke down on numbers that are not finite.
    pub(crate) held_out: Option<f64>,
    /// Tokens trained on, and the held-out loss then, over fewer batches than at the end.
    pub(crate) curve: Vec<(u64, f64)>,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// A file of results.
#[derive(Debug)]
pub(crate) struct Results {
    path: PathBuf,
    file: Mutex<File>,
}

impl Results {
    /// Opens or makes the file; also returns what is in it. A line that was cut short when a process ended is left out.
    pub(crate) fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        let text = if path.exists() {
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
        } else {
            String::new()
        };
        let outcomes = complete_lines(&text)
            .with_context(|| format!("{} holds something else", path.display()))?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        let results = Self {
            path: path.to_owned(),
            file: Mutex::new(file),
        };
        Ok((results, outcomes))
    }

    /// Adds a result.
    pub(crate) fn add<T: Serialize>(&self, outcome: &T) -> Result<()> {
        let line = serde_json::to_string(outcome)? + "\n";
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

/// What the lines hold. Broken ones are left out if they end too early, as a killed process leaves them.
fn complete_lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, serde_json::Error> {
    text.lines()
        .filter(|line| !line.is_empty())
        .filter_map(|line| match serde_json::from_str(line) {
            Err(error) if error.is_eof() => None,
            read => Some(read),
        })
        .collect()
}

/// How a run came out, for whoever watches.
pub(crate) fn in_words(held_out: Option<f64>) -> String {
    held_out.map_or_else(
        || "broke down".to_owned(),
        |loss| format!("{loss:.4} nats per token"),
    )
}

/// Writes files by name into a folder, and says where they are.
pub(crate) fn write_all(
    folder: &Path,
    files: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<()> {
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn outcome(variant: &str, seed: u64, held_out: f64) -> Outcome {
        Outcome {
            variant: variant.to_owned(),
            seed,
            setting: Setting {
                width: 64,
                blocks: 3,
                context: 32,
                sequences: 2,
                stages: 3,
                tokens: 1000,
                optimizer: "adamw".to_owned(),
                learning_rate: 0.002,
            },
            held_out: held_out.is_finite().then_some(held_out),
            curve: vec![(500, held_out + 1.0), (1000, held_out)],
            seconds: 1.5,
        }
    }

    #[test]
    fn results_are_read_back_even_if_the_last_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let (results, before) = Results::open::<Outcome>(&path).unwrap();
        assert_eq!(before, []);
        let (first, second) = (outcome("a", 1, 2.25), outcome("b", 1, 2.5));
        results.add(&first).unwrap();
        results.add(&second).unwrap();
        drop(results);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 20]).unwrap();

        let (results, read) = Results::open::<Outcome>(&path).unwrap();
        assert_eq!(read, std::slice::from_ref(&first));
        results.add(&second).unwrap();
        drop(results);
        assert_eq!(Results::open::<Outcome>(&path).unwrap().1, [first, second]);
    }

    #[test]
    fn a_file_of_something_else_is_not_added_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        std::fs::write(&path, "{\"loss\": 1}\n").unwrap();
        assert!(Results::open::<Outcome>(&path).is_err());
    }
}
