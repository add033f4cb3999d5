//! Who may depend on whom. The rows are those of docs/ARCHITECTURE.md, drawn a little finer.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

use crate::repository::{packages, read_toml};

/// From the top: a package depends on packages of lower rows only. Tests may look anywhere.
const ROWS: &[&[&str]] = &[
    // Programs, and what nobody builds upon.
    &[
        "iota-orchestrator-cli",
        "iota-miner-cli",
        "iota-validator-cli",
        "iota-examples",
        "iota-benches",
        "iota-experiments",
        "iota-load",
        "iota-sim",
        "iota-turmoil",
        "iota-tidy",
    ],
    // A network is made of all roles.
    &["iota-testnet"],
    &["iota-orchestrator", "iota-miner", "iota-validator"],
    // Whoever works on leases: a validator redoes what a miner did, through the same code.
    &["iota-peer"],
    // What a run has trained, for whoever wants to use it.
    &["iota-trained"],
    // A device for what computes, beside the CPU that is in it.
    &["iota-cuda"],
    // The upper half of plumbing (signs with identities) and of numbers (computes what the model describes), and what all
    // who take part know of a run (the model and the data, and the objects that follow from them).
    &["iota-wire", "iota-compute", "iota-run"],
    &[
        "iota-store",
        "iota-node",
        "iota-identity",
        "iota-model",
        "iota-merge",
        "iota-codec",
        "iota-data",
        "iota-journal",
        "iota-ledger",
    ],
    // Calls and objects are encrypted alike.
    &["iota-tls"],
    &["iota-protocol"],
];

/// Packages that are never linked, not even through others. A name ending in `*` is a family.
const NEVER_LINKED: &[(&str, &[&str])] = &[
    // Decisions are pure, so that a simulation and an auditor can repeat them.
    (
        "iota-protocol",
        &[
            "tokio",
            "candle*",
            "tonic*",
            "prost*",
            "object_store",
            "rand",
            "rayon",
        ],
    ),
    (
        "iota-merge",
        &["tokio", "candle*", "tonic*", "object_store"],
    ),
    (
        "iota-codec",
        &["tokio", "candle*", "tonic*", "object_store"],
    ),
    (
        "iota-model",
        &["tokio", "candle*", "tonic*", "object_store"],
    ),
    // A simulation drives its journal in memory without a runtime, and keeps its books.
    (
        "iota-journal",
        &["tokio", "candle*", "tonic*", "object_store"],
    ),
    (
        "iota-ledger",
        &["tokio", "candle*", "tonic*", "object_store", "rusqlite"],
    ),
    // An orchestrator moves no tensors and runs where there is no GPU.
    ("iota-orchestrator", &["iota-compute", "candle*"]),
];

/// Packages that only certain members may name outside of tests: everything else goes through those members.
const OWNED: &[(&[&str], &[&str])] = &[
    (
        &["prost*", "tonic-prost*", "tonic-build", "protox"],
        &["iota-wire"],
    ),
    (
        &["object_store", "s3s", "s3s-fs", "rusty-s3"],
        &["iota-store"],
    ),
    (&["candle*", "gemm"], &["iota-compute"]),
    (&["cudarc"], &["iota-cuda"]),
    (&["schnorrkel"], &["iota-identity"]),
    (&["rustls*", "tokio-rustls", "rcgen"], &["iota-tls"]),
    (&["rusqlite", "libsqlite3-sys"], &["iota-journal"]),
    // Chance comes from seeds that are passed in, time from iota_protocol::Timestamp, laziness from std.
    (
        &["rand", "fastrand", "chrono", "lazy_static", "once_cell"],
        &[],
    ),
    // Libraries have error types.
    (
        &["anyhow"],
        &[
            "iota-orchestrator-cli",
            "iota-miner-cli",
            "iota-validator-cli",
            "iota-examples",
            "iota-experiments",
            "iota-load",
        ],
    ),
];

fn row(package: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&package))
}

fn is_in(name: &str, patterns: &[&str]) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(family) => name.starts_with(family),
            None => name == *pattern,
        })
}

#[test]
fn every_package_has_its_row() {
    let named: Vec<&str> = ROWS.iter().copied().flatten().copied().collect();
    let rows: BTreeSet<&str> = named.iter().copied().collect();
    assert_eq!(rows.len(), named.len(), "a package stands in two rows");
    let packages = packages();
    let members: BTreeSet<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    assert_eq!(
        rows, members,
        "ROWS (left) and the workspace (right) differ: give the new package a row"
    );
}

#[test]
fn dependencies_point_down() {
    let mut wrong = Vec::new();
    for package in packages() {
        let own = row(&package.name);
        for dependency in package
            .dependencies()
            .iter()
            .filter(|dependency| !dependency.is_dev)
        {
            if row(&dependency.name).is_some_and(|below| own.is_some_and(|own| below <= own)) {
                wrong.push(format!(
                    "{} depends on {}, which is not below it",
                    package.name, dependency.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_its_owner_names_a_library() {
    let mut wrong = Vec::new();
    for package in packages() {
        for dependency in package
            .dependencies()
            .iter()
            .filter(|dependency| !dependency.is_dev)
        {
            for (libraries, owners) in OWNED {
                if is_in(&dependency.name, libraries) && !owners.contains(&package.name.as_str()) {
                    let name = &dependency.name;
                    wrong.push(format!(
                        "{} names {name}; those who may: {owners:?}",
                        package.name
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_crates_link_nothing_impure() {
    let links = Links::read();
    let mut wrong = Vec::new();
    for (package, never) in NEVER_LINKED {
        for linked in links.reached_from(package) {
            if is_in(&linked, never) {
                wrong.push(format!(
                    "{package} links {linked}; `cargo tree -p {package} -i {linked} -e normal`"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_walk_through_the_lock_file_finds_what_is_there() {
    let links = Links::read();
    assert!(links.reached_from("iota-testnet").contains("candle-core"));
    assert!(links.reached_from("iota-orchestrator").contains("tokio"));
    assert!(links.reached_from("iota-protocol").contains("serde_core"));
    assert!(
        !links.reached_from("iota-protocol").contains("proptest"),
        "what tests need is not linked"
    );
}

/// What links what, by Cargo.lock. For other people's packages that counts every feature that anybody in the workspace
/// turns on, so it errs towards finding too much.
struct Links {
    by_key: BTreeMap<String, Vec<String>>,
}

impl Links {
    fn read() -> Self {
        let lock = read_toml("Cargo.lock");
        let entries = lock["package"]
            .as_array()
            .expect("the lock file lists packages");
        let text =
            |entry: &Value, field: &str| entry[field].as_str().expect("it is text").to_owned();
        let mut keys_of: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for entry in entries {
            let (name, version) = (text(entry, "name"), text(entry, "version"));
            keys_of
                .entry(name.clone())
                .or_default()
                .push(format!("{name} {version}"));
        }
        // The lock file does not tell a member's test dependencies from the others; its manifest does.
        let linked_by_member: BTreeMap<String, BTreeSet<String>> = packages()
            .into_iter()
            .map(|package| {
                let linked = package
                    .dependencies()
                    .into_iter()
                    .filter(|dependency| !dependency.is_dev);
                let linked = linked.map(|dependency| dependency.name).collect();
                (package.name, linked)
            })
            .collect();
        let mut by_key = BTreeMap::new();
        for entry in entries {
            let (name, version) = (text(entry, "name"), text(entry, "version"));
            let mut linked = Vec::new();
            for dependency in entry
                .get("dependencies")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                // "name", or "name version" where there are several versions.
                let mut words = dependency.as_str().expect("it is text").split(' ');
                let dependency = words.next().expect("a dependency has a name");
                if linked_by_member
                    .get(&name)
                    .is_some_and(|linked| !linked.contains(dependency))
                {
                    continue;
                }
                match words.next() {
                    Some(version) => linked.push(format!("{dependency} {version}")),
                    None => linked.extend(keys_of[dependency].iter().cloned()),
                }
            }
            by_key.insert(format!("{name} {version}"), linked);
        }
        Self { by_key }
    }

    /// The names of all packages that `package` links, itself included.
    fn reached_from(&self, package: &str) -> BTreeSet<String> {
        let is_start = |key: &&String| key.split(' ').next() == Some(package);
        let mut waiting: Vec<&String> = self.by_key.keys().filter(is_start).collect();
        assert!(!waiting.is_empty(), "{package} is not in Cargo.lock");
        let mut seen = BTreeSet::new();
        while let Some(key) = waiting.pop() {
            if seen.insert(key) {
                waiting.extend(&self.by_key[key]);
            }
        }
        let name = |key: &String| {
            key.split(' ')
                .next()
                .expect("a key starts with a name")
                .to_owned()
        };
        seen.into_iter().map(name).collect()
    }
}
