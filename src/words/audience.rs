//! The audience of a push.

use crate::channel::ChannelId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The channels that a broadcast reaches. Written `{"channels":[7,8]}`, `{"path":"/lobby"}`, `{"topic":"room/7"}` or
/// `"process"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Audience {
    /// These channels, in this order.
    Channels(Vec<ChannelId>),
    /// The process' channels on this bound path (as it was bound, `/` for the process' own).
    Path(Arc<str>),
    /// The process' channels that are subscribed to this topic. Shards without subscribers are neither told nor woken.
    Topic(Arc<str>),
    /// All channels of the process.
    Process,
}

impl From<Vec<ChannelId>> for Audience {
    fn from(channels: Vec<ChannelId>) -> Self {
        Self::Channels(channels)
    }
}

impl From<&[ChannelId]> for Audience {
    fn from(channels: &[ChannelId]) -> Self {
        Self::Channels(channels.to_vec())
    }
}
