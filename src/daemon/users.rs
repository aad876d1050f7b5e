//! The groups of this machine's users (group(5)).

use anyhow::Context;
use std::fs;
use std::path::Path;

/// The number of the group `name`, which may be a number already. `root` is `/`.
///
/// # Errors
/// There is no such group in `/etc/group`.
pub(crate) fn group_id(root: &Path, name: &str) -> anyhow::Result<u32> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let groups =
        fs::read_to_string(root.join("etc/group")).context("cannot read /etc/group: give the group's number")?;
    let id = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    id.with_context(|| format!("there is no such group in /etc/group: groupadd --system {name}, or give its number"))
}
