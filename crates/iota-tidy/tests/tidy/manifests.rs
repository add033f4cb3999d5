//! What a member's manifest leaves to the root: versions, lints, metadata.

use std::collections::BTreeSet;

use toml::Value;

use crate::repository::{packages, read_toml};

fn inherits(value: &Value) -> bool {
    value.get("workspace").and_then(Value::as_bool) == Some(true)
}

#[test]
fn versions_stand_in_the_root_manifest_only() {
    let mut wrong = Vec::new();
    for package in packages() {
        for dependency in package.dependencies() {
            if !inherits(&dependency.value) {
                wrong.push(format!(
                    "{}: write `{}.workspace = true`",
                    package.folder, dependency.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_version_in_the_root_manifest_is_used() {
    let used: BTreeSet<String> = packages()
        .iter()
        .flat_map(|package| package.dependencies())
        .map(|dependency| dependency.name)
        .collect();
    let root = read_toml("Cargo.toml");
    let listed = root["workspace"]["dependencies"]
        .as_table()
        .expect("the root lists dependencies");
    let unused: Vec<&String> = listed.keys().filter(|name| !used.contains(*name)).collect();
    // A library that embedders are meant to use is listed for them even if no member does.
    let unused: Vec<_> = unused
        .into_iter()
        .filter(|name| !name.starts_with("iota-"))
        .collect();
    assert!(
        unused.is_empty(),
        "nobody uses {unused:?}: take them out of the root Cargo.toml"
    );
}

#[test]
fn every_package_inherits_lints_and_metadata() {
    let mut wrong = Vec::new();
    for package in packages() {
        if !package.manifest.get("lints").is_some_and(inherits) {
            wrong.push(format!(
                "{}: write `[lints]` with `workspace = true`",
                package.folder
            ));
        }
        for field in ["version", "edition", "rust-version", "license", "publish"] {
            if !package.manifest["package"].get(field).is_some_and(inherits) {
                wrong.push(format!(
                    "{}: write `{field}.workspace = true`",
                    package.folder
                ));
            }
        }
        if package.manifest["package"].get("description").is_none() {
            wrong.push(format!(
                "{}: say in a `description` what it is",
                package.folder
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn folders_are_called_like_what_they_build() {
    for package in packages()
        .iter()
        .filter(|package| package.folder.contains('/'))
    {
        let folder = package
            .folder
            .split('/')
            .next_back()
            .expect("split gives at least one part");
        if package.folder.starts_with("crates/") {
            assert_eq!(package.name, folder);
        } else if package.folder.starts_with("bins/") {
            let programs = package.manifest["bin"]
                .as_array()
                .expect("a package under bins builds a program");
            assert!(
                programs
                    .iter()
                    .all(|program| program["name"].as_str() == Some(folder)),
                "{}",
                package.folder
            );
        }
    }
}

#[test]
fn every_ban_says_what_to_do_instead() {
    let deny = read_toml("deny.toml");
    for ban in deny["bans"]["deny"]
        .as_array()
        .expect("deny.toml bans something")
    {
        let reason = ban
            .get("reason")
            .and_then(Value::as_str)
            .unwrap_or_default();
        assert!(reason.starts_with("use "), "{ban}");
    }
}

#[test]
fn tests_are_not_retried() {
    let nextest = read_toml(".config/nextest.toml");
    let profiles = nextest["profile"].as_table().expect("nextest has profiles");
    assert_eq!(profiles["default"]["retries"].as_integer(), Some(0));
    for (name, profile) in profiles {
        assert!(
            profile
                .get("retries")
                .is_none_or(|retries| retries.as_integer() == Some(0)),
            "{name}"
        );
        assert!(
            profile["slow-timeout"].get("terminate-after").is_some(),
            "{name}: a hanging test is never ended"
        );
    }
}
