//! A message of a client that only receives, on its way to the shard of its channel: plain data.

use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::http::PreparedResponse;
use crate::proto::MessageKind;
use crate::resume::ResumeToken;
use crate::shard::event::RequestId;
use crate::shard::out::kept_channels::ResumeHolder;
use bytes::Bytes;

/// See the module.
#[derive(Debug)]
pub struct RelayedMessage {
    /// The request that it came with, which waits.
    pub(in crate::shard) request: RequestId,
    /// The process whose path it came to.
    pub(in crate::shard) owner: OwnerId,
    /// Its channel, as the client says, and the token that proves it.
    pub(in crate::shard) channel: ChannelId,
    pub(in crate::shard) token: ResumeToken,
    /// The sender.
    pub(in crate::shard) holder: ResumeHolder,
    pub(in crate::shard) kind: MessageKind,
    pub(in crate::shard) payload: Bytes,
}

impl RelayedMessage {
    /// The bytes it keeps alive while it waits.
    pub fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.payload.len()
    }
}

/// The answer to a message with a token of no stream that is there.
pub(in crate::shard) fn no_such_stream() -> PreparedResponse {
    PreparedResponse::text(404, "there is no such channel, or it is another's")
}
