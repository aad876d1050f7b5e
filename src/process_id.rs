//! The name of a process: `process:package:publisher`.
//!
//! It must not know what a process does; routes, tokens, the node contract and the embedding API all name processes
//! with it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, sync::Arc};

/// A process id: `process:package:publisher`, exactly three non-empty parts; or the [plain name](Self::named) of a
/// process in the program that runs the broker, which no process elsewhere can have. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(Arc<str>);

/// Why a string is not a [`ProcessId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseProcessIdError {
    /// More than three parts.
    #[error("a process id has three parts, process:package:publisher; this one has more")]
    TooManyColons,
    /// Fewer than three parts, or an empty one.
    #[error("a process id has three parts, process:package:publisher; one is missing or empty")]
    MissingField,
    /// It holds an `@`: no address could name it.
    #[error("a process id holds no `@`: in an address, that stands between the node and the id")]
    At,
    /// Not a plain name.
    #[error("a process is named by 1 to 64 lower case letters, digits, `-` and `_`, or by process:package:publisher")]
    NoName,
}

/// The longest plain name, in bytes: it stands in logs and metrics.
const NAME_BYTES_MAX: usize = 64;

impl ProcessId {
    /// Builds an id from its three parts.
    ///
    /// # Errors
    /// When a part is empty, or holds a colon or an `@`.
    pub fn new(process: &str, package: &str, publisher: &str) -> Result<Self, ParseProcessIdError> {
        format!("{process}:{package}:{publisher}").parse()
    }

    /// An id of three parts, or a plain name: 1 to 64 lower case letters, digits, `-` and `_`. Only the program that
    /// runs the broker names processes so: what comes from outside is parsed, and has three parts.
    ///
    /// # Errors
    /// It is neither.
    pub fn named(name: &str) -> Result<Self, ParseProcessIdError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
        match name.contains(':') {
            true => name.parse(),
            false if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) => Ok(Self(name.into())),
            false => Err(ParseProcessIdError::NoName),
        }
    }

    /// Returns whether this is a plain name rather than an id of three parts.
    pub fn is_plain(&self) -> bool {
        !self.0.contains(':')
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first part; all of a plain name.
    pub fn process(&self) -> &str {
        self.part(0)
    }

    /// The second part; empty for a plain name.
    pub fn package(&self) -> &str {
        self.part(1)
    }

    /// The third part; empty for a plain name.
    pub fn publisher(&self) -> &str {
        self.part(2)
    }

    /// Returns whether a process of this id may bind paths: process and package match `[a-z0-9-]+`, the publisher
    /// `[a-z0-9.-]+` (contract section 1). Others may still own registered channels. A plain name may.
    pub fn may_bind(&self) -> bool {
        self.is_plain() || (self.may_bind_in_old_nodes() && !self.0.contains('_'))
    }

    /// The same in nodes before Kinode 0.10, where underscores are as good as dashes.
    pub(crate) fn may_bind_in_old_nodes(&self) -> bool {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
        self.process().bytes().all(plain)
            && self.package().bytes().all(plain)
            && self.publisher().bytes().all(|c| plain(c) || c == b'.')
    }

    /// Returns whether these are its parts.
    #[cfg(feature = "node")]
    pub(crate) fn is_of(&self, process: &str, package: &str, publisher: &str) -> bool {
        let rest = self.0.strip_prefix(process).and_then(|rest| rest.strip_prefix(':'));
        let rest = rest.and_then(|rest| rest.strip_prefix(package)).and_then(|rest| rest.strip_prefix(':'));
        rest == Some(publisher)
    }

    fn part(&self, index: usize) -> &str {
        self.0.split(':').nth(index).unwrap_or_default()
    }
}

impl FromStr for ProcessId {
    type Err = ParseProcessIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('@') {
            return Err(ParseProcessIdError::At);
        }
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

/// Reads an id that this crate has written, which may be a plain name.
pub(crate) fn read_back<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ProcessId, D::Error> {
    ProcessId::named(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// As [`read_back`], where there may be none.
pub(crate) fn read_back_option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ProcessId>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    name.map(|name| ProcessId::named(&name)).transpose().map_err(serde::de::Error::custom)
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
        for bad in ["a@b:c:d", "a:b:c@d", "a:b:@", "@"] {
            assert_eq!(bad.parse::<ProcessId>(), Err(ParseProcessIdError::At), "{bad}");
        }
    }

    #[test]
    fn a_plain_name_is_given_by_the_program_alone() {
        let chat = ProcessId::named("chat_2").unwrap();
        assert!(chat.is_plain() && chat.may_bind());
        assert_eq!((chat.process(), chat.package(), chat.publisher()), ("chat_2", "", ""));
        assert!("chat".parse::<ProcessId>().is_err(), "what comes from outside has three parts");
        assert_eq!(ProcessId::named("a:b:c").unwrap(), "a:b:c".parse::<ProcessId>().unwrap());
        for bad in ["", "Chat", "a b", "a/b", &"a".repeat(65)] {
            assert_eq!(ProcessId::named(bad), Err(ParseProcessIdError::NoName), "{bad}");
        }
    }
}
