//! The newest value of each key, for a channel that cannot take every value.
//!
//! Invariant: a key has one entry, at the position where it first came. Processes choose the keys, so their hashes are
//! keyed at random. Knows only the length of frames.

use crate::shard::out::frame::FrameParts;
use std::collections::{HashMap, VecDeque};

/// See the module.
#[derive(Default)]
pub(super) struct Conflated {
    values: VecDeque<(u64, FrameParts)>,
    /// For each key, its place in `values` plus `gone`.
    places: HashMap<u64, u64>,
    /// How many values have left at the front since this was empty.
    gone: u64,
    bytes: usize,
    /// The payloads that are counted here only.
    own: usize,
}

/// Places that are added at a time, or an eighth of those there are.
const PLACES_MIN: usize = 8;

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
        self.own + self.values.capacity() * size_of::<(u64, FrameParts)>() + table_bytes(self.places.capacity())
    }

    /// The heap bytes that [`set`](Self::set) would add.
    pub(super) fn growth(&self, key: u64, frame: &FrameParts) -> usize {
        let mut growth = own_len(frame);
        if self.places.contains_key(&key) {
            return growth;
        }
        if self.values.len() == self.values.capacity() {
            growth += self.more_places() * size_of::<(u64, FrameParts)>();
        }
        if self.places.len() == self.places.capacity() {
            let capacity = self.places.capacity();
            growth += table_bytes((2 * capacity).max(3)) - table_bytes(capacity);
        }
        growth
    }

    fn more_places(&self) -> usize {
        (self.values.len() / 8).max(PLACES_MIN)
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Returns whether there is no value.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The length of the value of `key`, 0 if there is none.
    pub(super) fn len_of(&self, key: u64) -> usize {
        self.places.get(&key).map_or(0, |place| self.values[(place - self.gone) as usize].1.len())
    }

    /// Sets the value of `key`; returns whether an older one was replaced.
    pub(super) fn set(&mut self, key: u64, frame: FrameParts) -> bool {
        self.bytes += frame.len();
        self.own += own_len(&frame);
        if let Some(place) = self.places.get(&key) {
            let value = &mut self.values[(place - self.gone) as usize].1;
            self.bytes -= value.len();
            self.own -= own_len(value);
            *value = frame;
            return true;
        }
        self.places.insert(key, self.gone + self.values.len() as u64);
        if self.values.len() == self.values.capacity() {
            self.values.reserve_exact(self.more_places());
        }
        self.values.push_back((key, frame));
        false
    }

    /// Takes the value whose key came first.
    pub(super) fn pop(&mut self) -> Option<FrameParts> {
        let (key, frame) = self.values.pop_front()?;
        self.places.remove(&key);
        self.gone += 1;
        if self.values.is_empty() {
            self.clear();
            return Some(frame);
        }
        self.bytes -= frame.len();
        self.own -= own_len(&frame);
        Some(frame)
    }

    /// All values, in order.
    pub(super) fn into_values(self) -> impl Iterator<Item = FrameParts> {
        self.values.into_iter().map(|(_, frame)| frame)
    }

    /// Takes the value whose key came last.
    pub(super) fn pop_newest(&mut self) -> Option<FrameParts> {
        let (key, frame) = self.values.pop_back()?;
        self.places.remove(&key);
        self.bytes -= frame.len();
        self.own -= own_len(&frame);
        Some(frame)
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
}
