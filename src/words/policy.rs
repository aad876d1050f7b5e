//! What happens to a frame for a client that does not keep up.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What to do when a frame would put more bytes in wait for a client than its channel may have
/// (`outbound_bytes_max`). Written `"close"`, `"drop_newest"`, `"drop_oldest"` or `{"conflate":{"key":7}}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// Close the channel with 1013.
    #[default]
    Close,
    /// Drop this frame.
    DropNewest,
    /// Drop queued data frames, oldest first, until it fits.
    DropOldest,
    /// While the client is behind, keep only the newest value of this key; over the budget even so, close.
    Conflate {
        /// What the values are of.
        key: u64,
    },
}

impl Policy {
    /// Those that need nothing more than their name, and so can be what holds where a push does not say.
    pub const PLAIN: [Self; 3] = [Self::Close, Self::DropNewest, Self::DropOldest];

    /// One of each kind.
    pub const EACH: [Self; 4] = {
        let [first, second, third] = Self::PLAIN;
        [first, second, third, Self::Conflate { key: 0 }]
    };

    /// Its name, as it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::DropNewest => "drop_newest",
            Self::DropOldest => "drop_oldest",
            Self::Conflate { .. } => "conflate",
        }
    }

    /// What it does, in a few words.
    pub const fn does(self) -> &'static str {
        match self {
            Self::Close => "Close the channel with 1013",
            Self::DropNewest => "Drop this message",
            Self::DropOldest => "Drop waiting messages, oldest first",
            Self::Conflate { .. } => "Keep only the newest value of a key",
        }
    }

    /// Returns whether it closes a channel that it can make no room at.
    pub const fn closes(self) -> bool {
        match self {
            Self::Close | Self::Conflate { .. } => true,
            Self::DropNewest | Self::DropOldest => false,
        }
    }
}

/// A text names no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a policy is close, drop_newest, drop_oldest, or conflate:KEY with a number")]
pub struct InvalidPolicy;

impl FromStr for Policy {
    type Err = InvalidPolicy;

    /// Reads its name; that of [`Self::Conflate`] with its key, as `conflate:7`.
    fn from_str(text: &str) -> Result<Self, InvalidPolicy> {
        let conflated = |key: &str| key.parse().ok().map(|key| Self::Conflate { key });
        let plain = Self::PLAIN.into_iter().find(|policy| policy.name() == text);
        plain.or_else(|| text.strip_prefix("conflate:").and_then(conflated)).ok_or(InvalidPolicy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_listed_and_written_in_one_word() {
        let written = Policy::EACH.map(|policy| serde_json::to_value(policy).unwrap());
        assert_eq!(written[..3], Policy::PLAIN.map(Policy::name));
        assert_eq!(written[3], serde_json::json!({"conflate": {"key": 0}}));
        assert_eq!(Policy::PLAIN.map(|policy| policy.name().parse()), Policy::PLAIN.map(Ok));
        assert_eq!("conflate:7".parse(), Ok(Policy::Conflate { key: 7 }));
        for bad in ["", "Close", "conflate", "conflate:", "conflate:x", "conflate:-1"] {
            assert_eq!(bad.parse::<Policy>(), Err(InvalidPolicy), "{bad}");
        }
        for (at, policy) in Policy::EACH.into_iter().enumerate() {
            // The compiler names what is missing in the list.
            let place = match policy {
                Policy::Close => 0,
                Policy::DropNewest => 1,
                Policy::DropOldest => 2,
                Policy::Conflate { .. } => 3,
            };
            assert_eq!(place, at);
        }
    }
}
