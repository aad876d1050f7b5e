//! A message to push, checked when it is made.

use crate::proto::MessageKind;
use crate::shard::command::{PushFrame, PushKind};
use crate::shard::event::ClientMessage;
use bytes::Bytes;

/// The longest payload of a control frame (RFC 6455 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// The largest message, and the largest body of a response, in bytes: half of what 32 bits count, which is how places
/// in a queue are counted.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 31;

/// A message to push, checked when it is made. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(pub(super) PushFrame);

/// Why bytes cannot be pushed as what they were meant to be: the caller's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// Text must be UTF-8 (RFC 6455 5.6).
    #[error("text must be UTF-8")]
    NotUtf8,
    /// Control frames carry at most 125 bytes (RFC 6455 5.5).
    #[error("a control frame carries at most 125 bytes")]
    ControlTooLong,
    /// Over [`PAYLOAD_BYTES_MAX`].
    #[error("a message carries at most {PAYLOAD_BYTES_MAX} bytes")]
    TooLarge,
}

impl Message {
    /// A Text message. One over [`PAYLOAD_BYTES_MAX`] is refused when it is pushed.
    pub fn text(text: impl Into<String>) -> Self {
        let mut text = text.into();
        // It may wait for long, and counts as long as it is.
        text.shrink_to_fit();
        Self(PushFrame { kind: PushKind::Message(MessageKind::Text), payload: text.into_bytes().into() })
    }

    /// A Text message of bytes that are checked.
    ///
    /// # Errors
    /// They are not UTF-8, or too many.
    pub fn text_bytes(bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        let payload = within_limit(bytes.into())?;
        simdutf8::basic::from_utf8(&payload).map_err(|_| InvalidMessage::NotUtf8)?;
        Ok(Self(PushFrame { kind: PushKind::Message(MessageKind::Text), payload }))
    }

    /// A Binary message. One over [`PAYLOAD_BYTES_MAX`] is refused when it is pushed.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self(PushFrame { kind: PushKind::Message(MessageKind::Binary), payload: bytes.into() })
    }

    /// The same in memory of its own.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn copied(&self) -> Self {
        let PushFrame { kind, payload } = &self.0;
        Self(PushFrame { kind: *kind, payload: Bytes::copy_from_slice(payload) })
    }

    /// A message of the same kind as one that was received.
    ///
    /// # Errors
    /// The kind is Text and the bytes are not UTF-8, or there are too many.
    pub fn of_kind(kind: MessageKind, bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        match kind {
            MessageKind::Text => Self::text_bytes(bytes),
            MessageKind::Binary => Ok(Self::binary(within_limit(bytes.into())?)),
        }
    }

    /// A message as it was received: what that is has been checked, and cannot be too large.
    pub fn received(message: ClientMessage<'_>) -> Self {
        Self::valid(message.kind(), message.into_bytes())
    }

    /// Bytes that are known to be valid for `kind`.
    pub(super) fn valid(kind: MessageKind, payload: Bytes) -> Self {
        Self(PushFrame { kind: PushKind::Message(kind), payload })
    }

    /// A ping of the process' own; it keeps its place behind queued data.
    ///
    /// # Errors
    /// Over 125 bytes.
    pub fn ping(bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        Self::control(PushKind::Ping, bytes.into())
    }

    /// An unsolicited pong (RFC 6455 5.5.3).
    ///
    /// # Errors
    /// Over 125 bytes.
    pub fn pong(bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        Self::control(PushKind::Pong, bytes.into())
    }

    /// A control text of the subprotocol `pushring.1`, without the mark that it begins with, for the connection with
    /// which the client has come back so often.
    pub(crate) fn control_text(text: &str, to_return: u32) -> Self {
        let payload = format!("{}{text}", char::from(crate::resume::MARK)).into_bytes().into();
        Self(PushFrame { kind: PushKind::ControlText { to_return }, payload })
    }

    /// Returns whether it is Text.
    pub(crate) fn is_text(&self) -> bool {
        self.0.kind == PushKind::Message(MessageKind::Text)
    }

    /// Its bytes.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// Its payload.
    #[cfg(feature = "link")]
    pub(crate) fn into_frame(self) -> PushFrame {
        self.0
    }

    fn control(kind: PushKind, payload: Bytes) -> Result<Self, InvalidMessage> {
        match payload.len() {
            0..=CONTROL_BYTES_MAX => Ok(Self(PushFrame { kind, payload })),
            _ => Err(InvalidMessage::ControlTooLong),
        }
    }
}

fn within_limit(payload: Bytes) -> Result<Bytes, InvalidMessage> {
    if payload.len() <= PAYLOAD_BYTES_MAX { Ok(payload) } else { Err(InvalidMessage::TooLarge) }
}
