//! The broker's memory budget: a size, or a part of what the system has left.
//!
//! Read once, at the start: a limit that changes later has no effect.

use super::units::{Size, UnitError};
use anyhow::Context;
use pushring::internals::driver::available::memory_bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The memory budget for clients and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryBudget {
    /// Half of what is available at the start. The other half is for memory that the budget does not count: connections
    /// themselves, the kernel's socket buffers, and other programs here.
    Auto,
    /// No limit.
    Unlimited,
    /// So much.
    Size(Size),
}

impl MemoryBudget {
    /// In bytes; `None` is without limit.
    ///
    /// # Errors
    /// The system does not tell what is available.
    pub(crate) fn bytes(self) -> anyhow::Result<Option<usize>> {
        Ok(match self {
            Self::Auto => Some(available_bytes(Path::new("/"))? / 2),
            Self::Unlimited => None,
            Self::Size(size) => Some(size.0),
        })
    }
}

impl FromStr for MemoryBudget {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "unlimited" => Ok(Self::Unlimited),
            text => text.parse().map(Self::Size),
        }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Unlimited => f.write_str("unlimited"),
            Self::Size(size) => size.fmt(f),
        }
    }
}

impl Serialize for MemoryBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemoryBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a size, \"auto\" or \"unlimited\"")]
        enum MemoryText {
            Bytes(usize),
            Text(String),
        }
        match MemoryText::deserialize(deserializer)? {
            MemoryText::Bytes(bytes) => Ok(Self::Size(Size(bytes))),
            MemoryText::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// The memory that this OS process may still take: of the machine, and of every control group above it. `root` is `/`.
pub(crate) fn available_bytes(root: &Path) -> anyhow::Result<usize> {
    memory_bytes(root).context("no MemAvailable in /proc/meminfo: set memory_budget")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// A root with these files, removed when dropped.
    pub(crate) struct Root(pub std::path::PathBuf);

    impl Root {
        pub(crate) fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("pushring-memory-{name}-{}", std::process::id()));
            for (file, text) in files {
                let file = root.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal: 9000 kB\nMemFree:   10 kB\nMemAvailable:    8000 kB\n");

    #[test]
    fn the_tightest_of_machine_and_groups_counts() {
        let machine = Root::new("machine", &[MEMINFO]);
        assert_eq!(available_bytes(&machine.0).unwrap(), 8000 * 1024);
        let second = Root::new(
            "v2",
            &[
                MEMINFO,
                ("proc/self/cgroup", "0::/a/b\n"),
                ("sys/fs/cgroup/a/memory.max", "3000000\n"),
                ("sys/fs/cgroup/a/memory.current", "1000000\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 400000\n"),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "1000000\n"),
            ],
        );
        assert_eq!(available_bytes(&second.0).unwrap(), 2_400_000);
        let first = Root::new(
            "v1",
            &[
                MEMINFO,
                ("proc/self/cgroup", "5:cpu:/\n4:memory:/hidden\n0::/\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "500\n"),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600\n"),
            ],
        );
        assert_eq!(available_bytes(&first.0).unwrap(), 0, "over its limit already");
    }

    #[test]
    fn this_machine_tells() {
        assert!(MemoryBudget::Auto.bytes().unwrap().is_some_and(|bytes| bytes > 0));
    }

    #[test]
    fn words_and_sizes() {
        for text in ["auto", "unlimited", "2GiB"] {
            assert_eq!(text.parse::<MemoryBudget>().unwrap().to_string(), text);
        }
        assert!("half".parse::<MemoryBudget>().is_err());
    }
}
