//! Storage for the messages of one batch until its process has read them: small ones side by side, one allocation for
//! many.
//!
//! Invariant: a chunk holds messages of one batch alone, and the batch is charged for all of it. So a process that
//! leaves a message unread keeps only memory that is counted as its own, and none that others share.
//!
//! It must not depend on events, owners, or readers.

use crate::proto::Payload;
use bytes::{Bytes, BytesMut};

/// Messages up to this size lie side by side; larger ones get memory of their own.
const SMALL_BYTES_MAX: usize = 4 * 1024;

/// The largest chunk.
const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// The allocation beside a shared chunk (`bytes::BytesMut`).
const SHARED_BYTES: usize = 5 * size_of::<usize>();

/// See the module.
#[derive(Default)]
pub(super) struct Arena {
    room: BytesMut,
    /// Small messages of this batch, and those of the batch before.
    small_bytes: usize,
    small_bytes_before: usize,
    /// The bytes of this batch's chunks beyond the messages in them.
    spare_bytes: usize,
}

impl Arena {
    /// Gives a payload a life of its own.
    pub(super) fn keep(&mut self, payload: Payload<'_>) -> Bytes {
        match payload {
            Payload::Owned(mut bytes) => {
                // It grew with what came, so a part of it may be empty; given back in place.
                bytes.shrink_to_fit();
                bytes.into()
            }
            Payload::Borrowed(bytes) if bytes.len() > SMALL_BYTES_MAX => Bytes::copy_from_slice(bytes),
            Payload::Borrowed(bytes) => self.keep_small(bytes),
        }
    }

    fn keep_small(&mut self, bytes: &[u8]) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        if self.room.capacity() < bytes.len() {
            // As much as is still to come if this batch is like the one before, or as much again as has come.
            let expected = self.small_bytes_before.saturating_sub(self.small_bytes).max(2 * self.small_bytes);
            let chunk_bytes = expected.min(CHUNK_BYTES_MAX);
            if chunk_bytes < 2 * bytes.len() {
                self.small_bytes += bytes.len();
                return Bytes::copy_from_slice(bytes);
            }
            self.room = BytesMut::with_capacity(chunk_bytes);
            self.spare_bytes += chunk_bytes + SHARED_BYTES;
        }
        self.small_bytes += bytes.len();
        self.spare_bytes -= bytes.len();
        self.room.extend_from_slice(bytes);
        self.room.split().freeze()
    }

    /// The batch is whole. Returns what its chunks take beyond its messages.
    pub(super) fn end_batch(&mut self) -> usize {
        self.room = BytesMut::new();
        self.small_bytes_before = std::mem::take(&mut self.small_bytes);
        std::mem::take(&mut self.spare_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_message_is_an_allocation_of_its_own() {
        let mut arena = Arena::default();
        for _ in 0..3 {
            assert_eq!(arena.keep(Payload::Borrowed(b"alone")), &b"alone"[..]);
            assert_eq!(arena.end_batch(), 0);
        }
        let mut grown = Vec::with_capacity(1000);
        grown.extend_from_slice(b"gathered");
        assert_eq!(arena.keep(Payload::Owned(grown)), &b"gathered"[..]);
        assert_eq!(arena.end_batch(), 0);
    }

    #[test]
    fn a_batch_like_the_one_before_takes_one_allocation_that_it_fills() {
        let mut arena = Arena::default();
        for _ in 0..2 {
            (0..1000).for_each(|_| drop(arena.keep(Payload::Borrowed(&[7; 32]))));
            arena.end_batch();
        }
        (0..1000).for_each(|_| drop(arena.keep(Payload::Borrowed(&[7; 32]))));
        assert_eq!(arena.end_batch(), SHARED_BYTES);
    }

    proptest! {
        #[test]
        fn what_is_spare_is_bounded_by_what_was_kept(
            batches in proptest::collection::vec(proptest::collection::vec(0..5000usize, 0..40), 1..40),
        ) {
            let mut arena = Arena::default();
            let (mut kept, mut spare) = (0, 0);
            for batch in &batches {
                for &len in batch {
                    prop_assert_eq!(arena.keep(Payload::Borrowed(&vec![3; len])).len(), len);
                    kept += len;
                }
                spare += arena.end_batch();
            }
            // Each chunk is as large as what came before it, in this batch or the last, at most twice over.
            prop_assert!(spare <= 4 * kept + batches.len() * SHARED_BYTES * 8, "{spare} spare of {kept}");
        }
    }
}
