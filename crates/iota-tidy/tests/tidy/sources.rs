//! What no file may do without, and what none may hold.

use crate::repository::{files, packages, read};

/// Longer files hold more than one concern.
const LINES_MAX: usize = 700;

/// Files that are longer, and why that is right.
const LONGER: &[(&str, &str)] = &[];

/// Unfinished code. In pieces, since this file is searched too.
const UNFINISHED: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("FIX", "ME"),
];

/// Places on somebody's machine, which mean nothing to a reader.
const PLACES: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("fa", "rm-"),
    concat!("sha", "red/"),
    concat!("/ro", "ot/"),
    concat!("/tmp/", "wt"),
];

fn rust_files() -> impl Iterator<Item = String> {
    files().into_iter().filter(|path| path.ends_with(".rs"))
}

/// Every line of `paths` that holds one of `words`, as `path:line: word`.
fn occurrences(paths: impl Iterator<Item = String>, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        for (index, line) in read(&path).lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{path}:{}: {word}", index + 1));
            }
        }
    }
    found
}

#[test]
fn every_package_opens_with_what_it_is() {
    let files = files();
    let mut wrong = Vec::new();
    for package in packages() {
        let main = format!("{}/src/main.rs", package.folder);
        let path = if files.contains(&main) {
            main
        } else {
            format!("{}/src/lib.rs", package.folder)
        };
        if !read(&path).starts_with("//! ") {
            wrong.push(format!("{path} does not open with `//!` docs"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_crate_is_drawn_and_says_what_it_does_not_know() {
    let mut wrong = Vec::new();
    for package in packages()
        .iter()
        .filter(|package| package.folder.starts_with("crates/"))
    {
        let path = format!("{}/src/lib.rs", package.folder);
        let source = read(&path);
        let docs = source.lines().map_while(|line| line.strip_prefix("//!"));
        let docs: Vec<&str> = docs.flat_map(str::split_whitespace).collect();
        let docs = docs.join(" ").replace('*', "");
        if !docs.contains("not know") {
            wrong.push(format!(
                "{path} does not say what the crate does *not* know"
            ));
        }
        if !docs.contains("```text") {
            wrong.push(format!("{path} does not draw the crate in a ```text block"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let sources = || rust_files().filter(|path| path.contains("/src/"));
    let is_excused = |path: &str| LONGER.iter().any(|(excused, _)| *excused == path);
    let is_long = |path: &str| read(path).lines().count() > LINES_MAX;
    let long: Vec<String> = sources()
        .filter(|path| !is_excused(path) && is_long(path))
        .collect();
    assert!(
        long.is_empty(),
        "over {LINES_MAX} lines: {long:?}; cut them, or say in LONGER why not"
    );
    for (path, reason) in LONGER {
        assert!(
            !reason.is_empty() && is_long(path),
            "{path} needs no excuse, or has none"
        );
    }
}

#[test]
fn no_code_is_unfinished() {
    let found = occurrences(rust_files(), UNFINISHED);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Ways out of an async thread that a simulation, which has one thread, cannot follow.
const WAYS_OUT: &[&str] = &[
    "spawn_blocking",
    "block_in_place",
    "blocking_recv",
    "blocking_send",
    "thread::spawn",
    "thread::Builder",
];

/// Crates that run in simulations as they are.
const SIMULATED: &[&str] = &[
    "crates/iota-wire/src/",
    "crates/iota-peer/src/",
    "crates/iota-miner/src/",
    "crates/iota-validator/src/",
    "crates/iota-orchestrator/src/",
];

#[test]
fn runtimes_leave_their_thread_through_iota_node_only() {
    let mut wrong = Vec::new();
    for path in rust_files().filter(|path| SIMULATED.iter().any(|folder| path.starts_with(folder)))
    {
        let source = read(&path);
        let code = source.split("#[cfg(test)]").next().unwrap_or(&source);
        for way in WAYS_OUT.iter().filter(|way| code.contains(**way)) {
            wrong.push(format!("{path} names {way}; use iota_node::blocking"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_names_a_place_on_somebodys_machine() {
    let is_text = |path: &String| {
        let endings = [
            ".rs",
            ".toml",
            ".md",
            ".proto",
            ".sh",
            ".yml",
            ".json",
            ".html",
            ".gitignore",
        ];
        path == ".ci/run" || endings.iter().any(|ending| path.ends_with(ending))
    };
    let found = occurrences(files().into_iter().filter(is_text), PLACES);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_search_finds_what_is_there() {
    let here = "crates/iota-tidy/tests/tidy/sources.rs".to_owned();
    assert!(rust_files().any(|path| path == here));
    assert_eq!(
        occurrences(
            [here].into_iter(),
            &["fn the_search_finds_what_is_there() {"]
        )
        .len(),
        2
    );
}
