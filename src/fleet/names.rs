//! Names of fleets and nodes: those that a subject of NATS can carry unchanged, and that permissions can spell.

use crate::broker::name_of_node;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 64;

/// The name of a fleet or of a node in it: 1 to 64 letters, digits, `-` and `_`. In NATS' subjects `.`, `*` and `>`
/// mean something.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<str>);

/// A text that is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name in a fleet: write 1 to {NAME_BYTES_MAX} letters, digits, `-` and `_`")]
#[non_exhaustive]
pub struct InvalidName(pub String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// It is none.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        match (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_fit) {
            true => Ok(Self(text.into())),
            false => Err(InvalidName(text.chars().take(2 * NAME_BYTES_MAX).collect())),
        }
    }

    /// How a node of this name is called in a fleet, unless it is named otherwise: with `-` for `.`.
    ///
    /// # Errors
    /// It cannot be called so.
    pub fn of_node(node: &str) -> Result<Self, InvalidName> {
        Self::new(&name_of_node(node))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, to be shared.
    pub(crate) fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "node-1", "Node_2", &"x".repeat(NAME_BYTES_MAX)] {
            assert_eq!(Name::new(name).unwrap().as_str(), name);
        }
        for name in ["", "a.b", "*", ">", "a b", "ä", "a/b", "a\n", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(Name::new(name).is_err(), "{name}");
        }
    }
}
