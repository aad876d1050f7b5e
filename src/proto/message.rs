//! A message of a client: its limits, and its bytes.
//!
//! Invariant: borrowed bytes are valid until the next read. It must not know how frames are parsed.

use super::frame::MessageKind;
use std::ops::Deref;

/// Limits of a connection. All three are checked on a frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// The largest message, in bytes, both as it travels and inflated.
    pub message_bytes_max: usize,
    /// The largest payload of one frame, in bytes.
    pub frame_bytes_max: usize,
    /// The most fragments of one message, empty ones included.
    pub fragments_max: u32,
}

impl MessageLimits {
    /// 16 MiB: what a browser's page sends in one piece at the very most, and what one message may cost us.
    pub const MESSAGE_BYTES_MAX_DEFAULT: usize = 16 << 20;
    /// The smallest fragments sent on purpose (Autobahn 9.3.1 sends 4 MiB in such). Smaller ones, down to an endless
    /// series of empty ones, would cost more in headers than they carry.
    const FRAGMENT_BYTES_MIN: usize = 64;

    /// Limits for messages of up to `message_bytes_max` bytes, in one frame or in fragments of 64 bytes.
    pub const fn for_messages(message_bytes_max: usize) -> Self {
        let fragments = message_bytes_max / Self::FRAGMENT_BYTES_MIN;
        // A small limit still leaves room for a client that writes a message in a few dozen pieces.
        let fragments_max = if fragments < 64 {
            64
        } else if fragments > u32::MAX as usize {
            u32::MAX
        } else {
            fragments as u32
        };
        Self { message_bytes_max, frame_bytes_max: message_bytes_max, fragments_max }
    }
}

impl Default for MessageLimits {
    fn default() -> Self {
        Self::for_messages(Self::MESSAGE_BYTES_MAX_DEFAULT)
    }
}

/// The bytes of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// They lie in the input, or in the [`Scratch`](super::Scratch), and must be used or copied before the next
    /// `receive`.
    Borrowed(&'a [u8]),
    /// They were gathered from several frames or reads, and are the receiver's to keep.
    Owned(Vec<u8>),
}

impl Payload<'_> {
    /// The bytes as a vector of their own: copied if they were borrowed.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Borrowed(bytes) => bytes.to_vec(),
            Self::Owned(bytes) => bytes,
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The frames of a whole message, joined. Text is checked unless it is compressed.
pub(super) struct Joined<'a> {
    pub kind: MessageKind,
    pub compressed: bool,
    pub payload: Payload<'a>,
}
