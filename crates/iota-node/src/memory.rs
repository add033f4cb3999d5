//! How much memory this process may still take.

use std::path::Path;

/// Bytes that the process can allocate without pushing others out, as far as the system says: on Linux the least of what
/// the machine has available and what the process's control group has left. None elsewhere.
pub fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// As [`available_bytes`], of a machine whose files lie under `root`.
fn available_under(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let machine = read("proc/meminfo").and_then(|text| field(&text, "MemAvailable:", 1024));
    // In a container its own group is seen at the root of the file system: version 2, or version 1.
    let group = [
        (
            "sys/fs/cgroup/memory.max",
            "sys/fs/cgroup/memory.current",
            "sys/fs/cgroup/memory.stat",
            "inactive_file",
        ),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "sys/fs/cgroup/memory/memory.usage_in_bytes",
            "sys/fs/cgroup/memory/memory.stat",
            "total_inactive_file",
        ),
    ]
    .into_iter()
    .find_map(|(limit, used, statistics, reclaimable)| {
        // Without a limit version 2 says "max", which is no number.
        let limit: u64 = read(limit)?.trim().parse().ok()?;
        let used: u64 = read(used)?.trim().parse().ok()?;
        // Pages of files that nobody has used lately count as used, and go as soon as they are in the way.
        let reclaimable = read(statistics).and_then(|text| field(&text, reclaimable, 1));
        Some(limit.saturating_sub(used.saturating_sub(reclaimable.unwrap_or(0))))
    });
    match (machine, group) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

/// The number behind a name at the start of a line, in `unit` bytes.
fn field(text: &str, name: &str, unit: u64) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some(name) {
            return None;
        }
        words.next()?.parse::<u64>().ok()?.checked_mul(unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16384 kB\nMemFree:  100 kB\nMemAvailable:    8192 kB\n";

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert_eq!(available_under(root.path()), expected);
    }

    #[test]
    fn a_machine_without_limits_has_what_it_says_is_available() {
        check(&[("proc/meminfo", MEMINFO)], Some(8 << 20));
        check(
            &[
                ("proc/meminfo", MEMINFO),
                ("sys/fs/cgroup/memory.max", "max\n"),
                ("sys/fs/cgroup/memory.current", "4096\n"),
            ],
            Some(8 << 20),
        );
    }

    #[test]
    fn a_container_has_what_its_limit_leaves_and_files_are_no_use_of_it() {
        let version_2 = [
            ("proc/meminfo", MEMINFO),
            ("sys/fs/cgroup/memory.max", "5000000\n"),
            ("sys/fs/cgroup/memory.current", "3000000\n"),
            (
                "sys/fs/cgroup/memory.stat",
                "anon 1\ninactive_file 1000000\n",
            ),
        ];
        check(&version_2, Some(3_000_000));
        let version_1 = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "6000000\n"),
        ];
        check(&version_1, Some(0));
    }

    #[test]
    fn a_system_that_does_not_say_is_not_guessed_at() {
        check(&[], None);
        check(&[("proc/meminfo", "MemTotal: 5 kB\n")], None);
    }
}
