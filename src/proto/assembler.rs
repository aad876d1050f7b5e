//! An incomplete message: its fragments joined, its text checked as it arrives.
//!
//! Invariant: allocation follows the bytes that arrived, never a declared length: at most twice those bytes, or
//! [`AHEAD_BYTES`] more than them.

use super::frame::MessageKind;
use super::message::{Joined, MessageLimits, Payload};
use super::utf8::Utf8Stream;
use super::violation::Violation;

/// How much is reserved for declared bytes before they arrive, while little has. A whole message in one read never
/// comes here, so what does is mostly the tail of a read, and 16 KiB spares it a second allocation; 50,000 clients
/// that declare and do not send cost the pages they touched, not 50,000 declared lengths.
const AHEAD_BYTES: usize = 16 * 1024;

/// The message in progress on a connection.
#[derive(Debug)]
pub(super) struct Assembler {
    bytes: Vec<u8>,
    fragments: u32,
    utf8: Utf8Stream,
    kind: MessageKind,
    compressed: bool,
}

impl Assembler {
    /// A message whose first frame's header has come.
    pub(super) fn new(kind: MessageKind, compressed: bool) -> Self {
        Self { bytes: Vec::new(), fragments: 1, utf8: Utf8Stream::default(), kind, compressed }
    }

    /// How much of the message is here.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes allocated for the message.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Counts a further fragment, by its header.
    pub(super) fn begin_fragment(&mut self, limits: &MessageLimits) -> Result<(), Violation> {
        if self.fragments >= limits.fragments_max {
            return Err(Violation::TooManyFragments);
        }
        self.fragments += 1;
        Ok(())
    }

    /// Takes unmasked payload, of which `to_come` more bytes are declared in the same frame.
    pub(super) fn push(&mut self, payload: &[u8], to_come: usize) -> Result<(), Violation> {
        if self.kind == MessageKind::Text && !self.compressed {
            // 8.1 asks for the failure; doing it at the first bad byte spares us the rest of the message.
            self.utf8.push(payload).map_err(|_| Violation::TextNotUtf8)?;
        }
        let arrived = self.bytes.len() + payload.len();
        if arrived > self.bytes.capacity() {
            let declared = to_come.min(arrived.max(AHEAD_BYTES));
            // Later fragments are not declared, and each must not move all bytes before it.
            let undeclared = if self.fragments > 1 { self.bytes.len() / 2 } else { 0 };
            self.bytes.reserve_exact(payload.len() + declared.max(undeclared));
        }
        self.bytes.extend_from_slice(payload);
        Ok(())
    }

    /// The message, once its last fragment has wholly arrived.
    pub(super) fn finish<'a>(self) -> Result<Joined<'a>, Violation> {
        if !self.utf8.is_complete() {
            return Err(Violation::TextNotUtf8);
        }
        Ok(Joined { kind: self.kind, compressed: self.compressed, payload: Payload::Owned(self.bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_follows_arrival() {
        let declared = 16 << 20;
        let mut message = Assembler::new(MessageKind::Binary, false);
        message.push(&[], declared).unwrap();
        assert!(message.allocated_bytes() <= AHEAD_BYTES);
        let mut reallocations = 0;
        while message.len() < declared {
            let before = message.allocated_bytes();
            message.push(&[1; 1000][..1000.min(declared - message.len())], declared - message.len()).unwrap();
            assert!(message.allocated_bytes() <= 1000 + AHEAD_BYTES.max(2 * message.len()));
            reallocations += usize::from(message.allocated_bytes() != before);
        }
        assert!(reallocations < 16, "{reallocations} reallocations for 16 MiB");
        assert!(message.allocated_bytes() <= declared + 1000);
    }

    #[test]
    fn a_fragment_does_not_move_those_before_it() {
        let mut message = Assembler::new(MessageKind::Binary, false);
        let mut moved_bytes = 0;
        for fragment in 0..100_000 {
            let before = message.allocated_bytes();
            message.begin_fragment(&MessageLimits::default()).unwrap();
            message.push(&[7], 0).unwrap();
            if message.allocated_bytes() != before {
                moved_bytes += fragment;
            }
            assert!(message.allocated_bytes() <= 2 * message.len());
        }
        assert!(moved_bytes < 5 * message.len(), "{moved_bytes} bytes moved to join {}", message.len());
    }

    #[test]
    fn a_fragment_too_many_is_refused_by_its_header() {
        let limits = MessageLimits { fragments_max: 3, ..MessageLimits::default() };
        let mut message = Assembler::new(MessageKind::Binary, false);
        assert_eq!(message.begin_fragment(&limits), Ok(()));
        assert_eq!(message.begin_fragment(&limits), Ok(()));
        assert_eq!(message.begin_fragment(&limits), Err(Violation::TooManyFragments));
    }
}
