//! Close frames (RFC 6455 5.5.1 and 7.4): codes, and the payload both ways.
//!
//! Invariants: a payload built here fits a control frame and has a code allowed on the wire and a reason of whole
//! UTF-8; so has a payload parsed here.

use super::violation::Violation;

pub use crate::words::close_reason::code;

/// The longest close reason: a control frame's 125 bytes less the code's two (5.5).
pub const REASON_BYTES_MAX: usize = 123;

/// Returns whether a close frame may carry this code, in either direction.
///
/// 1004 is reserved without a meaning; 1005, 1006 and 1015 stand for what happened without a frame and must not be in
/// one (7.4.1); the rest below 3000 is not registered. 3000 to 4999 belong to libraries and applications (7.4.2).
pub const fn code_may_travel(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The payload of a close frame that we send, inline.
#[derive(Clone, Copy)]
pub struct ClosePayload {
    bytes: [u8; 2 + REASON_BYTES_MAX],
    len: u8,
}

impl ClosePayload {
    /// A code and a reason; a reason over [`REASON_BYTES_MAX`] is cut at a character's end.
    ///
    /// # Panics
    /// When `code` must not travel: check what comes from outside with [`code_may_travel`].
    pub fn new(code: u16, reason: &str) -> Self {
        assert!(code_may_travel(code), "close code {code} must not be sent");
        let reason = cut(reason, REASON_BYTES_MAX).as_bytes();
        let mut bytes = [0; 2 + REASON_BYTES_MAX];
        bytes[..2].copy_from_slice(&code.to_be_bytes());
        bytes[2..2 + reason.len()].copy_from_slice(reason);
        Self { bytes, len: 2 + reason.len() as u8 }
    }

    /// No code and no reason: the answer to a close frame that had none (5.5.1).
    pub const fn empty() -> Self {
        Self { bytes: [0; 2 + REASON_BYTES_MAX], len: 0 }
    }

    /// The payload: empty, or two bytes of code and up to 123 of reason.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl AsRef<[u8]> for ClosePayload {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl std::fmt::Debug for ClosePayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClosePayload").field(&self.as_slice()).finish()
    }
}

/// The longest start of `text` that is no longer than `bytes_max` and ends between characters.
/// (`str::floor_char_boundary` is newer than our minimum Rust.)
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// The close frame of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseReceived<'a> {
    /// The code, or `None` when the payload was empty (what other places call 1005).
    pub code: Option<u16>,
    /// The reason, empty when there was none.
    pub reason: &'a str,
}

impl CloseReceived<'_> {
    /// The answer to it: the same code without the reason (5.5.1: "typically echos the status code").
    pub fn echo(&self) -> ClosePayload {
        match self.code {
            Some(code) => ClosePayload::new(code, ""),
            None => ClosePayload::empty(),
        }
    }
}

/// Reads the unmasked payload of a client's close frame.
pub fn parse(payload: &[u8]) -> Result<CloseReceived<'_>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        // 5.5.1: "If there is a body, the first two bytes of the body MUST be a 2-byte unsigned integer".
        return if payload.is_empty() {
            Ok(CloseReceived { code: None, reason: "" })
        } else {
            Err(Violation::CloseTooShort)
        };
    };
    let code = u16::from_be_bytes(*code);
    if !code_may_travel(code) {
        return Err(Violation::CloseCodeInvalid(code));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Violation::CloseReasonNotUtf8)?;
    Ok(CloseReceived { code: Some(code), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registered_and_private_codes_travel() {
        let lawful = |code: u16| {
            (1000..=1014).contains(&code) && ![1004, 1005, 1006].contains(&code) || (3000..=4999).contains(&code)
        };
        for code in 0..=u16::MAX {
            assert_eq!(code_may_travel(code), lawful(code), "{code}");
            let payload = code.to_be_bytes();
            match parse(&payload) {
                Ok(close) => assert_eq!((close.code, close.reason, lawful(code)), (Some(code), "", true)),
                Err(violation) => {
                    assert_eq!(violation, Violation::CloseCodeInvalid(code));
                    assert!(!lawful(code));
                }
            }
        }
    }

    #[test]
    fn what_is_built_is_parsed_back() {
        let built = ClosePayload::new(4401, "token expired");
        assert_eq!(parse(built.as_slice()), Ok(CloseReceived { code: Some(4401), reason: "token expired" }));
        assert_eq!(parse(ClosePayload::empty().as_slice()), Ok(CloseReceived { code: None, reason: "" }));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_characters_end() {
        for shift in 0..4 {
            let reason = "x".repeat(shift) + &"\u{1f980}".repeat(40);
            let built = ClosePayload::new(1011, &reason);
            let parsed = parse(built.as_slice()).unwrap();
            assert!(reason.starts_with(parsed.reason));
            assert!(parsed.reason.len() <= REASON_BYTES_MAX && parsed.reason.len() > REASON_BYTES_MAX - 4);
        }
    }

    #[test]
    fn half_a_code_and_a_reason_that_is_no_text_are_refused() {
        assert_eq!(parse(&[3]), Err(Violation::CloseTooShort));
        assert_eq!(parse(&[0x03, 0xe8, 0xce]), Err(Violation::CloseReasonNotUtf8));
    }

    #[test]
    fn the_answer_repeats_the_code_alone() {
        assert_eq!(parse(&[0x0f, 0xa0, b'h', b'i']).unwrap().echo().as_slice(), &[0x0f, 0xa0]);
        assert_eq!(parse(&[]).unwrap().echo().as_slice(), b"");
    }
}
