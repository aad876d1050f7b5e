//! Which of the two node systems is spoken. Knows nothing else.

use serde::{Deserialize, Serialize};

/// The two names under which the same node system exists. They differ in field and cookie names and in what
/// `WebSocketOpen` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Kinode 1.0: `WebSocketOpen` with two fields, `kinode_message_type`.
    #[default]
    Kinode,
    /// Hyperdrive 1.9: `WebSocketOpen` with four fields, `hyperware_message_type`.
    Hyperdrive,
}
