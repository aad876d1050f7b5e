//! References to bytes that wait: a range of a segment, of the [window](super::window) or of [kept](super::kept)
//! frames.
//!
//! Invariant: a range stays within its segment, or goes on from its segment's end at the start of the next one: that is
//! for the window to say ([`Window::try_extend`](super::window::Window::try_extend)). Does not depend on either.

use crate::shard::memory::SharedCharge;
use bytes::Bytes;

/// Set in both ends of a range of what is kept: offsets are far below, and segments of the two are numbered apart.
pub(super) const KEPT: u32 = 1 << 31;

/// A run of bytes from a place in one segment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Range {
    /// The segment's number; numbers wrap around.
    pub(super) segment: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Range {
    /// How many bytes it names.
    pub(crate) fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Returns whether it names something that is kept for later rather than in the window.
    pub(super) fn is_kept(self) -> bool {
        self.start & KEPT != 0
    }

    /// Returns whether it names no byte.
    pub(crate) fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Grows by `next` when that starts where this ends, in the same segment.
    pub(crate) fn try_extend(&mut self, next: Range) -> bool {
        let touches = self.segment == next.segment && self.end == next.start;
        if touches {
            self.end = next.end;
        }
        touches
    }

    /// The first `len` bytes, and the rest.
    pub(crate) fn split_at(self, len: usize) -> (Range, Range) {
        assert!(len <= self.len());
        let middle = self.start + len as u32;
        (Range { end: middle, ..self }, Range { start: middle, ..self })
    }
}

/// The bytes of a range: one slice, or a header and a blob that stays in the process' own memory.
pub(crate) enum RangeBytes<'a> {
    /// Joined bytes.
    Joined(&'a [u8]),
    /// The rest of a header (perhaps empty) and of a blob by reference.
    Blob {
        /// The rest of the header.
        header: &'a [u8],
        /// The whole blob; `skip` of its bytes are before the range.
        blob: &'a Bytes,
        /// See `blob`.
        skip: usize,
        /// How many bytes of the blob the range names.
        len: usize,
        /// The blob's claim on memory.
        charge: &'a SharedCharge,
    },
}
