//! permessage-deflate (RFC 7692): what is agreed, inflating, compressing.

use super::connection::Payload;
use super::frame::MessageKind;
use super::violation::Violation;

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The base-two logarithm of the window that our compressed messages may look back on: 9 to 15.
    pub server_window_bits: u8,
}

impl Agreed {
    /// Appends the value of `Sec-WebSocket-Extensions` that tells the client.
    pub(super) fn append_to(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"permessage-deflate; server_no_context_takeover; client_no_context_takeover");
        if self.server_window_bits < 15 {
            out.extend_from_slice(format!("; server_max_window_bits={}", self.server_window_bits).as_bytes());
        }
    }
}

/// Inflates messages, one at a time, for all connections of a shard.
#[derive(Debug, Default)]
pub struct Inflater {}

impl Inflater {
    /// One that has not allocated yet.
    pub const fn new() -> Self {
        Self {}
    }

    /// Inflates one whole message.
    pub fn inflate<'a>(
        &'a mut self,
        _kind: MessageKind,
        _compressed: &[u8],
        _message_bytes_max: usize,
    ) -> Result<Payload<'a>, Violation> {
        Err(Violation::NotDeflate)
    }
}
