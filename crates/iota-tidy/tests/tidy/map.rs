//! What a newcomer sees first: the top level, and the map in docs/ARCHITECTURE.md.

use std::collections::BTreeSet;

use crate::repository::{files, package_folders, read};

/// Everything at the top level, so that `ls` stays a table of contents.
const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".config",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "bins",
    "clippy.toml",
    "crates",
    "deny.toml",
    "docs",
    "examples",
    "proto",
];

#[test]
fn the_top_level_is_a_table_of_contents() {
    let there: BTreeSet<String> = files()
        .iter()
        .map(|path| {
            path.split('/')
                .next()
                .expect("a path has a first part")
                .to_owned()
        })
        .collect();
    let agreed: BTreeSet<String> = TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect();
    let missing: Vec<_> = agreed.difference(&there).collect();
    let stray: Vec<_> = there.difference(&agreed).collect();
    assert!(
        missing.is_empty() && stray.is_empty(),
        "missing: {missing:?}; not agreed: {stray:?}"
    );
}

#[test]
fn the_map_shows_every_crate_once() {
    // A row of the map starts with the folder: | `crates/iota-node` | … |
    let map = read("docs/ARCHITECTURE.md");
    let folder_of = |line: &str| Some(line.strip_prefix("| `")?.split_once("` |")?.0.to_owned());
    let is_package = |folder: &String| folder.starts_with("crates/") || folder.starts_with("bins/");
    let rows: Vec<String> = map
        .lines()
        .filter_map(folder_of)
        .filter(is_package)
        .collect();
    let shown: BTreeSet<String> = rows.iter().cloned().collect();
    assert_eq!(
        shown.len(),
        rows.len(),
        "a folder stands in docs/ARCHITECTURE.md twice"
    );
    let mut there = package_folders("crates");
    there.append(&mut package_folders("bins"));
    assert_eq!(
        shown, there,
        "docs/ARCHITECTURE.md (left) and `ls crates bins` (right) differ"
    );
}
