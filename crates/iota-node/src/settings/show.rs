//! Writes settings as TOML, one key a line, each with its origin.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::Origin;

/// Every value of `settings` with the origin that `origins` has for its key.
pub(super) fn show(settings: &Table, origins: &BTreeMap<String, Origin>) -> String {
    let mut lines = Vec::new();
    collect("", "", settings, origins, &mut lines);
    let width = lines
        .iter()
        .map(|(line, _)| line.chars().count())
        .max()
        .unwrap_or(0);
    lines
        .into_iter()
        .map(|(line, origin)| format!("{line:width$}  # {origin}\n"))
        .collect()
}

/// `key` is what `origins` knows the table by, `written` the same with quotes where TOML needs them.
fn collect(
    key: &str,
    written: &str,
    table: &Table,
    origins: &BTreeMap<String, Origin>,
    lines: &mut Vec<(String, Origin)>,
) {
    for (name, value) in table {
        let (key, written) = (
            super::join(key, name),
            super::join(written, &quote_if_needed(name)),
        );
        match value {
            Value::Table(inner) if !inner.is_empty() => {
                collect(&key, &written, inner, origins, lines)
            }
            value => {
                let origin = super::origin_of(&key, origins)
                    .cloned()
                    .unwrap_or(Origin::Default);
                lines.push((format!("{written} = {value}"), origin));
            }
        }
    }
}

fn quote_if_needed(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        Value::String(name.to_owned()).to_string()
    }
}
