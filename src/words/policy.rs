//! Policies: the fate of frames for a client that does not keep up.

use super::strict::digits;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The effect on a frame that does not fit its channel's budget.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Closes the channel with 1013.
    Close,
    /// Drops this frame.
    DropNewest,
    /// Drops queued data frames, oldest first, until it fits.
    DropOldest,
}

/// Defines [`Policy`] from one row for each: its number in the messages of a fleet, its name, what it does when a
/// channel is full, and that in a few words. One with a key keeps only the newest frame of a key while the client is
/// behind. No list of policies stands anywhere else.
macro_rules! policies {
    (@key) => { None };
    (@key $key:ident) => { Some($key) };
    ($($(#[$meta:meta])* $policy:ident $({ $(#[$key_meta:meta])* $key:ident })? =
        $number:literal, $name:literal, $when_full:ident, $does:literal;)+) => {
        /// The rule for a frame that would exceed the bytes that may wait for a client (`outbound_bytes_max`). Written
        /// `"close"`, `"drop_newest"`, `"drop_oldest"` or `{"conflate":{"key":7}}`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Policy {
            $($(#[$meta])* $policy $({ $(#[$key_meta])* $key: u64 })?,)+
        }

        impl Policy {
            /// One of each kind.
            pub const EACH: [Self; [$($number),+].len()] = [$(Self::$policy $({ $key: 0 })?),+];

            /// Its name, as it is written.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$policy $({ $key: _ })? => $name),+ }
            }

            /// Its effect, in a few words.
            pub const fn does(self) -> &'static str {
                match self { $(Self::$policy $({ $key: _ })? => $does),+ }
            }

            /// The key of its values, if it keeps only the newest.
            #[doc(hidden)]
            pub const fn key(self) -> Option<u64> {
                match self { $(Self::$policy $({ $key })? => policies!(@key $($key)?)),+ }
            }

            /// The same of another key, where it has one.
            #[doc(hidden)]
            pub const fn with_key(self, to: u64) -> Self {
                match self { $(Self::$policy $({ $key: _ })? => Self::$policy $({ $key: to })?),+ }
            }

            /// Its effect on a frame that does not fit.
            #[doc(hidden)]
            pub const fn when_full(self) -> WhenFull {
                match self { $(Self::$policy $({ $key: _ })? => WhenFull::$when_full),+ }
            }

            /// Its number in the messages of a fleet.
            #[cfg(feature = "fleet")]
            pub(crate) const fn number(self) -> u8 {
                match self { $(Self::$policy $({ $key: _ })? => $number),+ }
            }
        }
    };
}

policies! {
    /// Close the channel with 1013.
    #[default]
    Close = 1, "close", Close, "Close the channel with 1013";

    /// Drop this frame.
    DropNewest = 2, "drop_newest", DropNewest, "Drop this message";

    /// Drop queued data frames, oldest first, until it fits.
    DropOldest = 3, "drop_oldest", DropOldest, "Drop waiting messages, oldest first";

    /// While the client is behind, keep only the newest value of this key; over the budget even so, close.
    Conflate {
        /// The key of the values.
        key
    } = 4, "conflate", Close, "Keep only the newest value of a key";
}

const fn plain_count() -> usize {
    let (mut at, mut count) = (0, 0);
    while at < Policy::EACH.len() {
        count += Policy::EACH[at].key().is_none() as usize;
        at += 1;
    }
    count
}

impl Policy {
    /// Those that need nothing more than their name, and so can be what holds where a push does not say.
    pub const PLAIN: [Self; plain_count()] = {
        let mut plain = [Self::Close; plain_count()];
        let (mut at, mut count) = (0, 0);
        while at < Self::EACH.len() {
            if Self::EACH[at].key().is_none() {
                plain[count] = Self::EACH[at];
                count += 1;
            }
            at += 1;
        }
        plain
    };

    /// Returns whether it closes a channel that it can make no room at.
    pub const fn closes(self) -> bool {
        matches!(self.when_full(), WhenFull::Close)
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
        let (name, key) = match text.split_once(':') {
            Some((name, key)) => (name, Some(digits(key).ok_or(InvalidPolicy)?)),
            None => (text, None),
        };
        let named =
            Self::EACH.into_iter().find(|policy| policy.name() == name && policy.key().is_some() == key.is_some());
        named.map(|policy| policy.with_key(key.unwrap_or(0))).ok_or(InvalidPolicy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_written_in_one_word() {
        for policy in Policy::EACH {
            let written = match policy.key() {
                None => serde_json::json!(policy.name()),
                Some(key) => serde_json::json!({ policy.name(): { "key": key } }),
            };
            assert_eq!(serde_json::to_value(policy).unwrap(), written);
            let text = policy.name().to_owned() + if policy.key().is_some() { ":0" } else { "" };
            assert_eq!(text.parse(), Ok(policy));
            assert_eq!(Policy::PLAIN.contains(&policy), policy.key().is_none());
        }
        assert_eq!("conflate:7".parse(), Ok(Policy::Conflate { key: 7 }));
        for bad in ["", "Close", "conflate", "conflate:", "conflate:x", "conflate:-1", "conflate:+1", "close:1"] {
            assert_eq!(bad.parse::<Policy>(), Err(InvalidPolicy), "{bad}");
        }
    }
}
