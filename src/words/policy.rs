//! What happens to a frame for a client that does not keep up.

use serde::{Deserialize, Serialize};

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
    /// One of each kind.
    pub const EACH: [Self; 4] = [Self::Close, Self::DropNewest, Self::DropOldest, Self::Conflate { key: 0 }];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_listed_and_written_in_one_word() {
        let written = Policy::EACH.map(|policy| serde_json::to_value(policy).unwrap());
        assert_eq!(written[..3], ["close", "drop_newest", "drop_oldest"]);
        assert_eq!(written[3], serde_json::json!({"conflate": {"key": 0}}));
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
