//! Settings with former names. The old key, flag and variable still work, with a warning that names the new one.
//!
//! Invariant: a setting given under both names is an error, since one of them would be ignored.

use super::variable;
use std::fmt;

/// A setting with an older name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renamed {
    /// The old name. Its flag is an alias of the new one (see `SettingsFlags`).
    pub old: &'static str,
    /// The new name.
    pub new: &'static str,
}

/// All that there are. Such a name means nothing else for as long as it stands here.
const RENAMED: [Renamed; 1] = [Renamed { old: "tls", new: "behind_tls" }];

/// The setting that was called `key`.
pub(super) fn renamed(key: &str) -> Option<&'static Renamed> {
    RENAMED.iter().find(|renamed| renamed.old == key)
}

/// The key that `key` stands for: its new name, if it is an old one.
pub(super) fn current(key: &str) -> &str {
    renamed(key).map_or(key, |renamed| renamed.new)
}

/// Gives the settings of a file their current names; tells which had an old one.
pub(super) fn rename(table: &mut toml::Table) -> Vec<OldName> {
    let mut found = Vec::new();
    for renamed in RENAMED {
        if let Some(value) = table.remove(renamed.old) {
            table.insert(renamed.new.to_owned(), value);
            found.push(OldName { given: renamed.old.to_owned(), now: renamed.new.to_owned() });
        }
    }
    found
}

/// The variable that gives the setting `key`: the one of its old name where only that is set.
pub(crate) fn variable_in_use(key: &str) -> String {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let now = variable(key);
    let old = RENAMED.iter().find(|renamed| renamed.new == key).map(|renamed| variable(renamed.old));
    old.filter(|old| !is_set(&now) && is_set(old)).unwrap_or(now)
}

/// The old flags and variables by which this process was started.
pub(super) fn old_names_of_start() -> Vec<OldName> {
    let args: Vec<_> = std::env::args_os().filter_map(|arg| arg.into_string().ok()).collect();
    let flags = RENAMED.iter().filter_map(|renamed| {
        let [old, new] = [renamed.old, renamed.new].map(|key| format!("--{}", key.replace('_', "-")));
        let is_given = args.iter().any(|arg| *arg == old || arg.starts_with(&format!("{old}=")));
        is_given.then_some(OldName { given: old, now: new })
    });
    let variables = RENAMED.iter().filter_map(|renamed| {
        let given = variable(renamed.old);
        std::env::var_os(&given).map(|_| OldName { given, now: variable(renamed.new) })
    });
    flags.chain(variables).collect()
}

/// An old name that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OldName {
    /// A key, a flag or a variable.
    pub(super) given: String,
    /// The new name in the same form.
    now: String,
}

impl fmt::Display for OldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is an old name, which still works: write {} instead", self.given, self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::is_key;
    use super::*;

    #[test]
    fn an_old_name_is_no_key_and_stands_for_one() {
        for renamed in RENAMED {
            assert!(!is_key(renamed.old) && is_key(renamed.new), "{renamed:?}");
            assert_eq!((current(renamed.old), current(renamed.new)), (renamed.new, renamed.new));
        }
    }

    #[test]
    fn a_file_gets_the_current_names() {
        let mut table: toml::Table = "tls = true\nshards = 1".parse().unwrap();
        let found = rename(&mut table);
        assert_eq!(table, "behind_tls = true\nshards = 1".parse().unwrap());
        assert_eq!(found[0].to_string(), "tls is an old name, which still works: write behind_tls instead");
        assert!(rename(&mut table).is_empty());
    }
}
