//! A client's violations after the upgrade, with their close codes and reasons.
//!
//! Invariant: the mapping to close codes and reasons is total, and each reason fits a close frame.

use crate::words::close_reason::code;

/// A fault of the client. What happens next is always the same: the connection is failed (RFC 6455 7.1.7), which
/// means a close frame with [`Violation::close_code`] and [`Violation::reason`], then the end; nothing that the client
/// sends after it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A reserved bit is set that no agreed extension defines (5.2).
    #[error("reserved bit set")]
    ReservedBits,
    /// The opcode is one of 3 to 7 or 11 to 15 (5.2).
    #[error("reserved opcode")]
    ReservedOpcode,
    /// A client's frame is not masked (5.1).
    #[error("frame not masked")]
    Unmasked,
    /// A control frame declares more than 125 bytes (5.5).
    #[error("control frame over 125 bytes")]
    ControlTooLong,
    /// A control frame without FIN (5.5).
    #[error("fragmented control frame")]
    ControlFragmented,
    /// A continuation frame outside of a fragmented message (5.4).
    #[error("continuation without a message to continue")]
    LoneContinuation,
    /// A new data frame inside a fragmented message (5.4).
    #[error("new message inside a fragmented message")]
    MessageInsideMessage,
    /// The length is not in its shortest form (5.2).
    #[error("frame length not in its shortest form")]
    LengthNotMinimal,
    /// The most significant bit of a 64-bit length is set (5.2).
    #[error("frame length with the high bit set")]
    LengthHighBit,
    /// A frame declares more than `MessageLimits::frame_bytes_max`.
    #[error("frame too big")]
    FrameTooBig,
    /// A message is, or will be with the declared frame, larger than `MessageLimits::message_bytes_max`.
    #[error("message too big")]
    MessageTooBig,
    /// A message has more than `MessageLimits::fragments_max` fragments.
    #[error("too many fragments in a message")]
    TooManyFragments,
    /// More pings and pongs within a second than the connection's owner allows. Counted, and reported, by the shard:
    /// this module knows no time.
    #[error("too many control frames")]
    TooManyControlFrames,
    /// A text message that is not UTF-8 (8.1).
    #[error("text is not UTF-8")]
    TextNotUtf8,
    /// A close frame with a payload of one byte (5.5.1).
    #[error("close frame with half a code")]
    CloseTooShort,
    /// A close code that must not be on the wire (7.4).
    #[error("invalid close code {0}")]
    CloseCodeInvalid(u16),
    /// A close reason that is not UTF-8 (5.5.1).
    #[error("close reason is not UTF-8")]
    CloseReasonNotUtf8,
    /// An invalid control text of `pushring.1`. Reported by the shard: this module knows no subprotocols.
    #[error("invalid control text")]
    NoControlText,
    /// A compressed message whose bytes are no DEFLATE data (RFC 7692 7.2.2).
    #[error("compressed message does not inflate")]
    NotDeflate,
}

impl Violation {
    /// The close code that the client is sent (RFC 6455 7.4.1).
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::FrameTooBig | Self::MessageTooBig | Self::TooManyFragments => code::MESSAGE_TOO_BIG,
            Self::TooManyControlFrames | Self::NoControlText => code::POLICY_VIOLATION,
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 | Self::NotDeflate => code::INVALID_PAYLOAD,
            Self::ReservedBits
            | Self::ReservedOpcode
            | Self::Unmasked
            | Self::ControlTooLong
            | Self::ControlFragmented
            | Self::LoneContinuation
            | Self::MessageInsideMessage
            | Self::LengthNotMinimal
            | Self::LengthHighBit
            | Self::CloseTooShort
            | Self::CloseCodeInvalid(_) => code::PROTOCOL_ERROR,
        }
    }

    /// The close reason in words, for the client's developer: UTF-8, at most 123 bytes.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::ReservedBits => "reserved bit set without an extension that defines it",
            Self::ReservedOpcode => "reserved opcode",
            Self::Unmasked => "client frames must be masked",
            Self::ControlTooLong => "control frame over 125 bytes",
            Self::ControlFragmented => "control frame must not be fragmented",
            Self::LoneContinuation => "continuation frame without a message to continue",
            Self::MessageInsideMessage => "new message before the fragmented one ended",
            Self::LengthNotMinimal => "frame length not in its shortest form",
            Self::LengthHighBit => "frame length with the high bit set",
            Self::FrameTooBig => "frame too big",
            Self::MessageTooBig => "message too big",
            Self::TooManyFragments => "too many fragments in one message",
            Self::TooManyControlFrames => "too many control frames per second",
            Self::TextNotUtf8 => "text message is not UTF-8",
            Self::CloseTooShort => "close frame with half a code",
            Self::CloseCodeInvalid(_) => "invalid close code",
            Self::CloseReasonNotUtf8 => "close reason is not UTF-8",
            Self::NoControlText => "invalid control text (pushring.1)",
            Self::NotDeflate => "compressed message does not inflate",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::close::{ClosePayload, REASON_BYTES_MAX, code_may_travel};

    #[test]
    fn every_violation_makes_a_lawful_close_frame() {
        let all = [
            Violation::ReservedBits,
            Violation::ReservedOpcode,
            Violation::Unmasked,
            Violation::ControlTooLong,
            Violation::ControlFragmented,
            Violation::LoneContinuation,
            Violation::MessageInsideMessage,
            Violation::LengthNotMinimal,
            Violation::LengthHighBit,
            Violation::FrameTooBig,
            Violation::MessageTooBig,
            Violation::TooManyFragments,
            Violation::TooManyControlFrames,
            Violation::TextNotUtf8,
            Violation::CloseTooShort,
            Violation::CloseCodeInvalid(999),
            Violation::CloseReasonNotUtf8,
            Violation::NoControlText,
            Violation::NotDeflate,
        ];
        for violation in all {
            assert!(code_may_travel(violation.close_code()), "{violation:?}");
            assert!(violation.reason().len() <= REASON_BYTES_MAX, "{violation:?}");
            let payload = ClosePayload::new(violation.close_code(), violation.reason());
            assert_eq!(&payload.as_slice()[2..], violation.reason().as_bytes());
        }
    }

    #[test]
    fn a_violation_is_small_enough_to_return_everywhere() {
        assert!(size_of::<Violation>() <= 4);
    }
}
