//! Compression of pushes (RFC 7692): one message, compressed once for all channels that agreed on the same window.
//!
//! A broadcast is compressed by the thread that pushes it, before it is passed to the shards: once, whatever the number
//! of shards and channels, on the process' own time. For that it reads its owner's [`Windows`]. A push to one channel
//! is compressed by the shard, which alone knows what that channel has agreed on.
//!
//! Invariant: without a compressed form the message is sent as it is, which is always allowed (RFC 7692 6).

use crate::proto::deflate::{DeflateContext, Deflater, WINDOW_BITS_MAX, WINDOW_BITS_MIN};
use crate::shard::table::slot::Slot;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU32, Ordering};

/// The windows there are.
const WINDOWS: usize = (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize;

/// How many open channels of one owner, on all shards, have agreed on each window. Touched when such a channel opens
/// or ends, and read once per broadcast.
#[derive(Debug, Default)]
pub struct Windows([AtomicU32; WINDOWS]);

impl Windows {
    /// A channel with this window opens. Its owner hears of it later, so a broadcast in answer to that finds it here.
    pub(in crate::shard) fn enter(&self, window_bits: u8) {
        self.0[index(window_bits)].fetch_add(1, Ordering::Relaxed);
    }

    /// It ends.
    pub(in crate::shard) fn leave(&self, window_bits: u8) {
        self.0[index(window_bits)].fetch_sub(1, Ordering::Relaxed);
    }

    /// The windows that any channel has agreed on.
    pub fn in_use(&self) -> impl Iterator<Item = u8> + '_ {
        std::iter::zip(WINDOW_BITS_MIN.., &self.0)
            .filter(|(_, channels)| channels.load(Ordering::Relaxed) > 0)
            .map(|(window_bits, _)| window_bits)
    }
}

fn index(window_bits: u8) -> usize {
    usize::from(window_bits - WINDOW_BITS_MIN)
}

/// The compressed payloads of one message, by window. All shards share it.
#[derive(Debug)]
pub struct Compressed(SmallVec<[(u8, Bytes); 1]>);

impl Compressed {
    /// Compresses `message` once for each of `windows`; `None` when that makes it smaller for none of them.
    pub fn new(deflater: &mut Deflater, message: &[u8], windows: impl Iterator<Item = u8>) -> Option<Self> {
        let forms = windows.filter_map(|bits| Some((bits, Bytes::copy_from_slice(deflater.compress(bits, message)?))));
        let forms: SmallVec<_> = forms.collect();
        (!forms.is_empty()).then_some(Self(forms))
    }

    /// The payloads, by window.
    pub fn forms(&self) -> &[(u8, Bytes)] {
        &self.0
    }

    /// The bytes of all payloads.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(_, payload)| payload.len()).sum()
    }
}

/// The contexts of this shard's channels whose messages may refer to earlier ones, by place in the shard's table,
/// within a memory budget.
///
/// A client's context is all that was sent to it compressed, in order. So a message refers to earlier ones only when it
/// is sure to follow them: while the socket takes all that it is offered. Once a socket turns out to be full, the bytes
/// offered are pinned; later messages refer to nothing and may be dropped or replaced, so the context begins anew.
#[derive(Default)]
pub(in crate::shard) struct Contexts {
    by_slot: FxHashMap<Slot, DeflateContext>,
    /// The most bytes that they may take together, as agreed.
    bytes: usize,
}

impl Contexts {
    /// The bytes that all contexts may take together.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A channel-to-be agreed on taking context over.
    pub(crate) fn add(&mut self, slot: Slot, window_bits: u8) {
        self.bytes += DeflateContext::bytes_max(window_bits);
        self.by_slot.insert(slot, DeflateContext::new(window_bits));
    }

    /// Its connection has ended, if it had one.
    pub(crate) fn remove(&mut self, slot: Slot) {
        if let Some(context) = self.by_slot.remove(&slot) {
            self.bytes -= context.charged_bytes();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.by_slot.contains_key(&slot)
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&DeflateContext> {
        self.by_slot.get(&slot)
    }

    /// A compressed message will leave behind all that was sent before.
    pub(crate) fn sent(&mut self, slot: Slot, message: &[u8]) {
        if let Some(context) = self.by_slot.get_mut(&slot) {
            context.append(message);
        }
    }

    /// A compressed message may or may not leave.
    pub(crate) fn unsure(&mut self, slot: Slot) {
        if let Some(context) = self.by_slot.get_mut(&slot) {
            context.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_in_use_while_any_channel_has_it() {
        let windows = Windows::default();
        assert_eq!(windows.in_use().count(), 0);
        for bits in [15, 9, 15] {
            windows.enter(bits);
        }
        windows.leave(15);
        assert_eq!(windows.in_use().collect::<Vec<_>>(), [9, 15]);
        windows.leave(15);
        assert_eq!(windows.in_use().collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn a_message_is_compressed_for_each_window_or_not_at_all() {
        let mut deflater = Deflater::new(6);
        let compressed = Compressed::new(&mut deflater, &[b'x'; 500], [9, 15].into_iter()).unwrap();
        assert_eq!(compressed.forms().iter().map(|form| form.0).collect::<Vec<_>>(), [9, 15]);
        assert!(compressed.bytes() < 100);
        assert!(Compressed::new(&mut deflater, b"Hello", [9, 15].into_iter()).is_none());
        assert!(Compressed::new(&mut deflater, &[b'x'; 500], std::iter::empty()).is_none());
    }
}
