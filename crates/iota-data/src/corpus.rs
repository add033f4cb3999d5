//! Text to train on: the bundled one, or any file or folder.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::Error;

/// What part of a corpus is held out by default: the last twentieth.
pub const HELD_OUT_FRACTION: f64 = 0.05;

/// The Authorized (King James) Version, packed with zlib. `corpus/README.md` says where it comes from.
static BUNDLED: &[u8] = include_bytes!("../corpus/king-james-bible.txt.z");

/// Length of the bundled text, so that unpacking needs no guess and no growing buffer.
const BUNDLED_BYTES: usize = 4_153_206;

/// One text that hangs together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Where it comes from: a path below the corpus, with `/` between its parts.
    pub name: String,
    /// The text.
    pub text: String,
}

/// Text in a fixed order, in memory.
///
/// Always true: there is at least one document, and no document is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpus {
    documents: Vec<Document>,
}

/// A corpus cut in two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The beginning, to train on.
    pub training: Corpus,
    /// The end, which is only ever measured on.
    pub held_out: Corpus,
}

impl Corpus {
    /// The text that comes with this crate: 4 MB of public-domain English, one document.
    ///
    /// ```
    /// let corpus = iota_data::Corpus::bundled();
    /// assert!(corpus.documents()[0].text.starts_with("Genesis 1\n\nIn the beginning God created"));
    /// ```
    #[must_use]
    pub fn bundled() -> Self {
        let bytes = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(BUNDLED, BUNDLED_BYTES)
            .expect(
                "the bundled text is a whole zlib stream of the known length, which a test unpacks",
            );
        let text = String::from_utf8(bytes)
            .expect("the bundled text is ASCII, which a test pins by its digest");
        Self {
            documents: vec![Document {
                name: "king-james-bible.txt".to_owned(),
                text,
            }],
        }
    }

    /// The text at `path`: one UTF-8 file, or a folder with all that is below it.
    ///
    /// Of a folder, every regular file is a document, in the order of their names, level by level, the same on every
    /// platform. What is hidden (named with a leading dot) is skipped, and so are empty files and whatever is neither
    /// file nor folder. A link to a file is read; a link to a folder is not followed, for it might lead in circles.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Unreadable`], [`Error::NotUtf8`] with the file and the place in it, and
    /// [`Error::Empty`] if all that adds up to no text.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                path: path.to_owned(),
            },
            _ => Error::Unreadable {
                path: path.to_owned(),
                source,
            },
        })?;
        let mut documents = Vec::new();
        if metadata.is_dir() {
            load_folder(path, "", &mut documents)?;
        } else {
            let name = path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned();
            documents.push(Document {
                name,
                text: read(path)?,
            });
        }
        Self::from_documents(documents).ok_or_else(|| Error::Empty {
            path: path.to_owned(),
        })
    }

    /// A corpus of these documents, less the empty ones; `None` if no text is left.
    #[must_use]
    pub fn from_documents(mut documents: Vec<Document>) -> Option<Self> {
        documents.retain(|document| !document.text.is_empty());
        (!documents.is_empty()).then_some(Self { documents })
    }

    /// The documents, in order.
    #[must_use]
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Length of the text in bytes.
    #[must_use]
    pub fn length_bytes(&self) -> usize {
        self.documents
            .iter()
            .map(|document| document.text.len())
            .sum()
    }

    /// Holds out the end of the corpus: `fraction` of its bytes (see [`HELD_OUT_FRACTION`]), rounded so that the cut
    /// falls where a document or a line begins. A corpus of a single line is cut between two characters.
    ///
    /// The end and not lines here and there: neighbouring lines tell much about each other, and a loss measured on them
    /// would flatter the model.
    ///
    /// # Errors
    /// [`Error::Split`] if one of the parts would have no text.
    pub fn split(mut self, fraction: f64) -> Result<Parts, Error> {
        let bytes = self.length_bytes();
        let error = Error::Split { fraction, bytes };
        if !(fraction > 0.0 && fraction < 1.0) {
            return Err(error);
        }
        // One product and one rounding to a whole number: the same cut on every platform.
        let mut before = bytes - (bytes as f64 * fraction).ceil() as usize;
        let mut index = 0;
        while before >= self.documents[index].text.len() {
            before -= self.documents[index].text.len();
            index += 1;
        }

        let mut held_out = self.documents.split_off(index);
        let text = &held_out[0].text;
        let cut = match line_start(text, before) {
            Some(line) => line,
            None if held_out.len() > 1 => text.len(),
            None => text.floor_char_boundary(before),
        };
        let beginning: String = held_out[0].text.drain(..cut).collect();
        self.documents.push(Document {
            name: held_out[0].name.clone(),
            text: beginning,
        });
        match (
            Self::from_documents(self.documents),
            Self::from_documents(held_out),
        ) {
            (Some(training), Some(held_out)) => Ok(Parts { training, held_out }),
            _ => Err(error),
        }
    }
}

/// The beginning of the line that `at` lies in or, if that is the first line, of the next one. `None` in a text of a
/// single line. 0 stays 0: a document begins there.
fn line_start(text: &str, at: usize) -> Option<usize> {
    let at = text.floor_char_boundary(at);
    if at == 0 {
        return Some(0);
    }
    let next = || text[at..].find('\n').map(|newline| at + newline);
    text[..at]
        .rfind('\n')
        .or_else(next)
        .map(|newline| newline + 1)
        .filter(|line| *line < text.len())
}

fn load_folder(folder: &Path, prefix: &str, documents: &mut Vec<Document>) -> Result<(), Error> {
    let unreadable = |source| Error::Unreadable {
        path: folder.to_owned(),
        source,
    };
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        entries.push((entry.file_name(), entry));
    }
    entries.sort_by(|a, b| a.0.as_encoded_bytes().cmp(b.0.as_encoded_bytes()));
    for (name, entry) in entries {
        let (path, name) = (entry.path(), name.to_string_lossy());
        if name.starts_with('.') {
            continue;
        }
        let unreadable = |source| Error::Unreadable {
            path: path.clone(),
            source,
        };
        let kind = entry.file_type().map_err(unreadable)?;
        if kind.is_dir() {
            load_folder(&path, &format!("{prefix}{name}/"), documents)?;
        } else if kind.is_file()
            || (kind.is_symlink() && fs::metadata(&path).map_err(unreadable)?.is_file())
        {
            documents.push(Document {
                name: format!("{prefix}{name}"),
                text: read(&path)?,
            });
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = fs::read(path).map_err(|source| Error::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
        path: path.to_owned(),
        offset_bytes: error.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
mod tests;
