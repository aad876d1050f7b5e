//! The name of a process: `process:package:publisher`.
//!
//! Knows nothing of what a process does; routes, tokens, the node contract and the embedding API all name processes
//! with it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, sync::Arc};

/// A process id, `process:package:publisher`: exactly three non-empty parts. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(Arc<str>);

/// Why a string is not a [`ProcessId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseProcessIdError {
    /// More than three parts.
    #[error("a process id has three parts, process:package:publisher; this one has more")]
    TooManyColons,
    /// Fewer than three parts, or an empty one.
    #[error("a process id has three parts, process:package:publisher; one is missing or empty")]
    MissingField,
}

impl ProcessId {
    /// Builds an id from its three parts.
    ///
    /// # Errors
    /// When a part is empty or holds a colon.
    pub fn new(process: &str, package: &str, publisher: &str) -> Result<Self, ParseProcessIdError> {
        format!("{process}:{package}:{publisher}").parse()
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first part.
    pub fn process(&self) -> &str {
        self.part(0)
    }

    /// The second part.
    pub fn package(&self) -> &str {
        self.part(1)
    }

    /// The third part.
    pub fn publisher(&self) -> &str {
        self.part(2)
    }

    /// Whether a process of this id may bind paths: process and package match `[a-z0-9-]+`, the publisher
    /// `[a-z0-9.-]+` (contract section 1). Others may still own registered channels.
    pub fn may_bind(&self) -> bool {
        self.may_bind_in_old_nodes() && !self.0.contains('_')
    }

    /// The same in nodes before Kinode 0.10, where underscores are as good as dashes.
    pub(crate) fn may_bind_in_old_nodes(&self) -> bool {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        self.process().bytes().all(plain)
            && self.package().bytes().all(plain)
            && self.publisher().bytes().all(|c| plain(c) || c == b'.')
    }

    /// Whether these are its parts.
    #[cfg(feature = "node")]
    pub(crate) fn is_of(&self, process: &str, package: &str, publisher: &str) -> bool {
        let rest = self.0.strip_prefix(process).and_then(|rest| rest.strip_prefix(':'));
        let rest = rest.and_then(|rest| rest.strip_prefix(package)).and_then(|rest| rest.strip_prefix(':'));
        rest == Some(publisher)
    }

    fn part(&self, index: usize) -> &str {
        self.0.split(':').nth(index).expect("checked when it was parsed")
    }
}

impl FromStr for ProcessId {
    type Err = ParseProcessIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = 0;
        for part in text.split(':') {
            parts += 1;
            if part.is_empty() {
                return Err(ParseProcessIdError::MissingField);
            }
        }
        match parts {
            3 => Ok(Self(text.into())),
            4.. => Err(ParseProcessIdError::TooManyColons),
            _ => Err(ParseProcessIdError::MissingField),
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Clients and peers name processes, so what cannot be printed is escaped.
        write!(f, "ProcessId({})", self.0.escape_debug())
    }
}

impl Serialize for ProcessId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ProcessId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_non_empty_parts_and_nothing_else() {
        let id: ProcessId = "my_package:my_package:template.os".parse().unwrap();
        assert_eq!((id.process(), id.package(), id.publisher()), ("my_package", "my_package", "template.os"));
        assert!(!id.may_bind(), "an underscore may own channels but not bind");
        assert!(id.may_bind_in_old_nodes() && !"P:p:t.os".parse::<ProcessId>().unwrap().may_bind_in_old_nodes());
        assert!("chess:chess:template.os".parse::<ProcessId>().unwrap().may_bind());
        for bad in ["", ":", "a:b", "a::c", "a:b:", ":b:c", "a:b:c:"] {
            assert_eq!(bad.parse::<ProcessId>(), Err(ParseProcessIdError::MissingField), "{bad}");
        }
        assert_eq!("a:b:c:d".parse::<ProcessId>(), Err(ParseProcessIdError::TooManyColons));
    }
}
