//! The repository as the other modules see it: files, packages, manifests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

/// The repository's root folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace is two folders up")
}

/// The text of a file, by its path from the root.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A TOML file, by its path from the root.
pub(crate) fn read_toml(path: &str) -> Table {
    read(path)
        .parse()
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file that is or could be committed, by its path from the root with `/`, sorted. What git ignores is not there.
pub(crate) fn files() -> BTreeSet<String> {
    let listed = files_by_git().unwrap_or_else(|| {
        let mut files = BTreeSet::new();
        walk(&root(), "", &mut files);
        files
    });
    assert!(
        listed.contains("Cargo.toml"),
        "the list of files is not that of the repository"
    );
    listed
}

/// `None` without git or outside a checkout, as in an unpacked archive.
fn files_by_git() -> Option<BTreeSet<String>> {
    let arguments = [
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ];
    let output = Command::new("git")
        .args(arguments)
        .current_dir(root())
        .output()
        .ok()?;
    let listed = String::from_utf8(output.stdout)
        .ok()
        .filter(|_| output.status.success())?;
    let exists = |path: &&str| !path.is_empty() && root().join(path).is_file();
    Some(
        listed
            .split('\0')
            .filter(exists)
            .map(str::to_owned)
            .collect(),
    )
}

fn walk(folder: &Path, prefix: &str, files: &mut BTreeSet<String>) {
    // As .gitignore has it, plus git's own folder.
    const IGNORED: [&str; 3] = [".git", "target", "iota-run"];
    for entry in fs::read_dir(folder).expect("a folder of the repository can be read") {
        let entry = entry.expect("a folder of the repository can be read");
        let name = entry.file_name().into_string().expect("names are UTF-8");
        let path = format!("{prefix}{name}");
        if !entry.path().is_dir() {
            files.insert(path);
        } else if !(prefix.is_empty() && IGNORED.contains(&name.as_str())) {
            walk(&entry.path(), &format!("{path}/"), files);
        }
    }
}

/// The folders directly inside `folder` that hold a package, such as `crates/iota-node`.
pub(crate) fn package_folders(folder: &str) -> BTreeSet<String> {
    let prefix = format!("{folder}/");
    let of_manifest = |path: &String| {
        let inner = path.strip_prefix(&prefix)?.strip_suffix("/Cargo.toml")?;
        (!inner.contains('/')).then(|| format!("{prefix}{inner}"))
    };
    files().iter().filter_map(of_manifest).collect()
}

/// A member of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    /// From the root.
    pub(crate) folder: String,
    pub(crate) manifest: Table,
}

/// One line of a manifest that names another package.
pub(crate) struct Dependency {
    /// The package's own name, whatever the manifest calls it.
    pub(crate) name: String,
    /// For tests, examples and benches only.
    pub(crate) is_dev: bool,
    pub(crate) value: Value,
}

impl Package {
    /// Everything that its manifest names, in all tables, for all targets.
    pub(crate) fn dependencies(&self) -> Vec<Dependency> {
        let for_targets = self.manifest.get("target").and_then(Value::as_table);
        let for_targets = for_targets
            .into_iter()
            .flat_map(Table::values)
            .filter_map(Value::as_table);
        let mut dependencies = Vec::new();
        for table in std::iter::once(&self.manifest).chain(for_targets) {
            for kind in ["dependencies", "build-dependencies", "dev-dependencies"] {
                for (name, value) in table
                    .get(kind)
                    .and_then(Value::as_table)
                    .into_iter()
                    .flatten()
                {
                    let renamed = value.get("package").and_then(Value::as_str);
                    dependencies.push(Dependency {
                        name: renamed.unwrap_or(name).to_owned(),
                        is_dev: kind == "dev-dependencies",
                        value: value.clone(),
                    });
                }
            }
        }
        dependencies
    }
}

/// All members of the workspace.
pub(crate) fn packages() -> Vec<Package> {
    let mut folders = package_folders("crates");
    folders.append(&mut package_folders("bins"));
    folders
        .extend(["examples", "benches", "benches/experiments", "benches/load"].map(str::to_owned));
    let package = |folder: String| {
        let manifest = read_toml(&format!("{folder}/Cargo.toml"));
        let name = manifest["package"]["name"]
            .as_str()
            .expect("a package has a name")
            .to_owned();
        Package {
            name,
            folder,
            manifest,
        }
    };
    folders.into_iter().map(package).collect()
}
