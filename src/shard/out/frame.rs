//! A frame of one push, in one form, as every channel that waits for it holds it.

use crate::proto::ServerHeader;
use crate::shard::memory::SharedCharge;
use bytes::Bytes;

/// A frame whose payload is shared.
#[derive(Clone)]
pub(crate) struct FrameParts {
    /// Its header.
    pub header: ServerHeader,
    /// Its payload, perhaps compressed.
    pub payload: Bytes,
    /// The payload's claim on memory, where it waits by reference.
    pub charge: SharedCharge,
}

impl FrameParts {
    /// Header and payload together.
    pub(crate) fn len(&self) -> usize {
        self.header.as_slice().len() + self.payload.len()
    }

    /// The part of it that is in memory once for all queues that hold it.
    pub(crate) fn shared_len(&self) -> usize {
        if self.charge.is_counted() { self.payload.len() } else { 0 }
    }

    /// Returns whether it is a control frame.
    pub(crate) fn is_control(&self) -> bool {
        is_control(self.header.as_slice()[0])
    }
}

/// Returns whether a frame that starts with this byte is a control frame: the most significant bit of its opcode (RFC
/// 6455 5.5). No event of a stream is, and none has FIN, as each frame of ours does.
pub(crate) fn is_control(first_byte: u8) -> bool {
    first_byte & 0x88 == 0x88
}
