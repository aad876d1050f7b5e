//! The newest value of each key, for a channel that cannot take every value.
//!
//! Invariants: a key has one entry, at the position where it first came; values lie in chunks of one size, so that what
//! one channel lets go of is of use to the next. Processes choose the keys, so their hashes are keyed at random. Knows
//! only the length of frames.

use crate::shard::out::frame::FrameParts;
use std::collections::{HashMap, VecDeque};

/// So many keys of one channel have a value that a newer one may replace: all of them join the queue at once when the
/// socket has room, or a frame without a key follows them.
pub(super) const KEYS_MAX: usize = 8192;

type KeyedValue = (u64, FrameParts);

/// See the module.
#[derive(Default)]
pub(super) struct Conflated {
    /// Of [`CHUNK_VALUES`] each, but for what has left at the front of the first one and what is free in the last.
    chunks: VecDeque<VecDeque<KeyedValue>>,
    /// For each key, its place: how many came before it since this was empty.
    places: HashMap<u64, u64>,
    /// How many values have left at the front since this was empty.
    gone: u64,
    bytes: usize,
    /// The payloads that are counted here only.
    own: usize,
}

/// Places that are added at a time.
const CHUNK_VALUES: usize = 8;

/// Chunks whose places are made room for at first; then for twice as many.
const LISTS_MIN: usize = 4;

/// The memory of a chunk.
const CHUNK_BYTES: usize = CHUNK_VALUES * size_of::<KeyedValue>();

/// The allocation of a hash table of this capacity: a power of two of buckets, of which an eighth stay empty, with a
/// byte beside each.
fn table_bytes(capacity: usize) -> usize {
    let buckets = if capacity == 0 { 0 } else { (capacity * 8 / 7).next_power_of_two() };
    buckets * (size_of::<(u64, u64)>() + 1)
}

impl Conflated {
    /// The bytes of all values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes allocated for the values alone: without payloads that are counted elsewhere.
    pub(super) fn own_bytes(&self) -> usize {
        let lists = self.chunks.capacity() * size_of::<VecDeque<KeyedValue>>();
        self.own + lists + self.chunks.len() * CHUNK_BYTES + table_bytes(self.places.capacity())
    }

    /// The heap bytes that [`set`](Self::set) would add.
    pub(super) fn growth(&self, key: u64, frame: &FrameParts) -> usize {
        let mut growth = own_len(frame);
        if self.places.contains_key(&key) {
            return growth;
        }
        if self.has_full_chunks() {
            growth += CHUNK_BYTES;
            if self.chunks.len() == self.chunks.capacity() {
                growth += self.chunks.capacity().max(LISTS_MIN) * size_of::<VecDeque<KeyedValue>>();
            }
        }
        if self.places.len() == self.places.capacity() {
            let capacity = self.places.capacity();
            growth += table_bytes((2 * capacity).max(3)) - table_bytes(capacity);
        }
        growth
    }

    /// Returns whether the next new key needs another chunk.
    fn has_full_chunks(&self) -> bool {
        self.next_place().is_multiple_of(CHUNK_VALUES as u64) || self.chunks.is_empty()
    }

    fn next_place(&self) -> u64 {
        self.gone + self.len() as u64
    }

    /// In which chunk the value of this place is, and where there.
    fn at(&self, place: u64) -> (usize, usize) {
        let (chunk, first_chunk) = (place / CHUNK_VALUES as u64, self.gone / CHUNK_VALUES as u64);
        let within = place % CHUNK_VALUES as u64;
        let gone = if chunk == first_chunk { self.gone % CHUNK_VALUES as u64 } else { 0 };
        ((chunk - first_chunk) as usize, (within - gone) as usize)
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns whether there is no value.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The length of the value of `key`, 0 if there is none.
    pub(super) fn len_of(&self, key: u64) -> usize {
        self.places.get(&key).map_or(0, |&place| {
            let (chunk, within) = self.at(place);
            self.chunks[chunk][within].1.len()
        })
    }

    /// Sets the value of `key`; returns whether an older one was replaced.
    pub(super) fn set(&mut self, key: u64, frame: FrameParts) -> bool {
        self.bytes += frame.len();
        self.own += own_len(&frame);
        if let Some(&place) = self.places.get(&key) {
            let (chunk, within) = self.at(place);
            let value = &mut self.chunks[chunk][within].1;
            self.bytes -= value.len();
            self.own -= own_len(value);
            *value = frame;
            return true;
        }
        if self.has_full_chunks() {
            self.chunks.push_back(VecDeque::with_capacity(CHUNK_VALUES));
        }
        self.places.insert(key, self.next_place());
        self.chunks.back_mut().expect("there is one with room").push_back((key, frame));
        false
    }

    /// Takes the value whose key came first.
    pub(super) fn pop(&mut self) -> Option<FrameParts> {
        let chunk = self.chunks.front_mut()?;
        let (key, frame) = chunk.pop_front()?;
        self.gone += 1;
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        self.forget(key, &frame);
        Some(frame)
    }

    /// Takes the value whose key came last.
    pub(super) fn pop_newest(&mut self) -> Option<FrameParts> {
        let chunk = self.chunks.back_mut()?;
        let (key, frame) = chunk.pop_back()?;
        if chunk.is_empty() {
            self.chunks.pop_back();
        }
        self.forget(key, &frame);
        Some(frame)
    }

    /// A value has left.
    fn forget(&mut self, key: u64, frame: &FrameParts) {
        self.places.remove(&key);
        self.bytes -= frame.len();
        self.own -= own_len(frame);
        if self.is_empty() {
            self.clear();
        }
    }

    /// All values, in order.
    pub(super) fn into_values(self) -> impl Iterator<Item = FrameParts> {
        self.chunks.into_iter().flatten().map(|(_, frame)| frame)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The memory of a value that is counted here only.
fn own_len(frame: &FrameParts) -> usize {
    frame.payload.len() - frame.shared_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Opcode, server_header};
    use crate::shard::memory::SharedCharge;
    use bytes::Bytes;

    fn frame(payload: &'static str) -> FrameParts {
        FrameParts {
            header: server_header(Opcode::Text, false, payload.len()),
            payload: Bytes::from_static(payload.as_bytes()),
            charge: SharedCharge::default(),
        }
    }

    #[test]
    fn the_newest_value_stands_where_its_key_first_came() {
        let mut values = Conflated::default();
        assert!(!values.set(7, frame("old")));
        assert!(!values.set(8, frame("other")));
        assert!(values.set(7, frame("newer")));
        assert_eq!((values.len_of(7), values.len_of(9)), (7, 0));
        assert_eq!(values.pop().unwrap().payload, "newer");
        assert!(values.set(8, frame("x")));
        assert!(!values.set(7, frame("again")));
        assert_eq!((values.pop().unwrap().payload, values.pop().unwrap().payload), ("x".into(), "again".into()));
        assert!(values.pop().is_none() && values.bytes() == 0);
    }

    #[test]
    fn values_are_where_they_were_put_whatever_has_left_at_either_end() {
        let (mut values, mut twin) = (Conflated::default(), VecDeque::new());
        let payloads = ["a", "bb", "ccc", "dddd", "eeeee"];
        let mut seed = 1u32;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (what, key) = (seed >> 29, u64::from(seed >> 16 & 127));
            match what {
                0 | 1 => {
                    assert_eq!(values.pop().map(|frame| frame.payload), twin.pop_front().map(|(_, payload)| payload))
                }
                2 => assert_eq!(
                    values.pop_newest().map(|frame| frame.payload),
                    twin.pop_back().map(|(_, payload)| payload)
                ),
                _ => {
                    let payload = payloads[(seed >> 8) as usize % 5];
                    let old = twin.iter_mut().find(|(of, _)| *of == key);
                    assert_eq!(values.set(key, frame(payload)), old.is_some());
                    match old {
                        Some((_, old)) => *old = Bytes::from_static(payload.as_bytes()),
                        None => twin.push_back((key, Bytes::from_static(payload.as_bytes()))),
                    }
                }
            }
            assert_eq!(values.len(), twin.len());
            let sum: usize = twin.iter().map(|(_, payload): &(u64, Bytes)| 2 + payload.len()).sum();
            assert_eq!((values.bytes(), values.is_empty()), (sum, sum == 0));
            let held = twin.iter().find(|(of, _)| *of == key).map_or(0, |(_, payload)| 2 + payload.len());
            assert_eq!(values.len_of(key), held);
        }
        let left: Vec<_> = values.into_values().map(|frame| frame.payload).collect();
        assert_eq!(left, twin.into_iter().map(|(_, payload)| payload).collect::<Vec<_>>());
    }

    #[test]
    fn it_grows_by_what_was_foretold() {
        let mut values = Conflated::default();
        for key in 0..1000 {
            let expected = values.own_bytes() + values.growth(key, &frame("a value"));
            values.set(key, frame("a value"));
            assert_eq!(values.own_bytes(), expected, "with {key} others");
        }
    }
}
