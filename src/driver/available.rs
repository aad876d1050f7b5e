//! The memory left to this OS process: from `/proc`, and from the control groups that it is in, of either version
//! (cgroups(7)).

use std::fs;
use std::path::{Path, PathBuf};

/// The two layouts of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupVersion {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy for all.
    Two,
}

/// The directories of this process' group and of those above it, in which `controller` has its files. `root` is `/`.
pub fn group_directories(root: &Path, controller: &str) -> Vec<(GroupVersion, PathBuf)> {
    // Without control groups there is no such file.
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    groups.lines().filter_map(|line| of_line(root, line, controller)).flatten().collect()
}

fn of_line(root: &Path, line: &str, controller: &str) -> Option<Vec<(GroupVersion, PathBuf)>> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (version, mount) = match controllers {
        "" => (GroupVersion::Two, root.join("sys/fs/cgroup")),
        list if list.split(',').any(|name| name == controller) => {
            (GroupVersion::One, root.join("sys/fs/cgroup").join(controller))
        }
        _ => return None,
    };
    let group = mount.join(path.trim_start_matches('/'));
    let upwards = group.ancestors().take_while(|directory| directory.starts_with(&mount));
    Some(upwards.map(|directory| (version, directory.to_owned())).collect())
}

/// The memory that this OS process may still take: of the machine, and of every control group above it. `root` is `/`.
/// None: unknown.
pub fn memory_bytes(root: &Path) -> Option<usize> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let free = field(&text, "MemAvailable:")? * 1024;
    let groups = group_directories(root, "memory");
    Some(groups.iter().filter_map(|(version, directory)| left_in_group(*version, directory)).fold(free, usize::min))
}

/// The memory left in one group.
fn left_in_group(version: GroupVersion, directory: &Path) -> Option<usize> {
    let (limit, usage, cache) = match version {
        GroupVersion::Two => ("memory.max", "memory.current", "inactive_file"),
        GroupVersion::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    };
    let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
    // `max` in the second version; in the first no limit is a number beyond all memory.
    let limit: usize = read(limit)?.trim().parse().ok()?;
    let usage: usize = read(usage)?.trim().parse().ok()?;
    // The kernel takes back what is merely cached.
    let cached = read("memory.stat").and_then(|stat| field(&stat, cache)).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(cached)))
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}
