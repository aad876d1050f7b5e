//! The newest value of each key, for a channel that cannot take every value.
//!
//! Invariant: a key stands once, at the place where it first came. Knows nothing of frames but their length.

use crate::shard::out::frame::FrameParts;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// See the module.
#[derive(Default)]
pub struct Conflated {
    values: VecDeque<(u64, FrameParts)>,
    /// For each key, its place in `values` plus `gone`.
    places: FxHashMap<u64, u64>,
    /// How many values have left at the front since this was empty.
    gone: u64,
    bytes: usize,
    /// Those of them that are payloads by reference.
    shared: usize,
}

/// What a value takes beside its frame: its place in both tables.
const VALUE_BYTES: usize = size_of::<(u64, FrameParts)>() + size_of::<(u64, u64)>();

impl Conflated {
    /// The bytes of all values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the values take of memory, without the payloads by reference.
    pub fn own_bytes(&self) -> usize {
        self.bytes - self.shared + self.values.len() * VALUE_BYTES
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The length of the value of `key`, 0 if there is none.
    pub fn len_of(&self, key: u64) -> usize {
        self.places.get(&key).map_or(0, |place| self.values[(place - self.gone) as usize].1.len())
    }

    /// Sets the value of `key`; answers whether an older one was replaced.
    pub fn set(&mut self, key: u64, frame: FrameParts) -> bool {
        self.bytes += frame.len();
        self.shared += frame.shared_len();
        if let Some(place) = self.places.get(&key) {
            let value = &mut self.values[(place - self.gone) as usize].1;
            self.bytes -= value.len();
            self.shared -= value.shared_len();
            *value = frame;
            return true;
        }
        self.places.insert(key, self.gone + self.values.len() as u64);
        self.values.push_back((key, frame));
        false
    }

    /// Takes the value whose key came first.
    pub fn pop(&mut self) -> Option<FrameParts> {
        let (key, frame) = self.values.pop_front()?;
        self.places.remove(&key);
        self.gone += 1;
        self.bytes -= frame.len();
        self.shared -= frame.shared_len();
        Some(frame)
    }

    /// Takes the value whose key came last.
    pub fn pop_newest(&mut self) -> Option<FrameParts> {
        let (key, frame) = self.values.pop_back()?;
        self.places.remove(&key);
        self.bytes -= frame.len();
        self.shared -= frame.shared_len();
        Some(frame)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Opcode, server_header};
    use crate::shard::memory::Charge;
    use bytes::Bytes;

    fn frame(payload: &'static str) -> FrameParts {
        FrameParts {
            header: server_header(Opcode::Text, false, payload.len()),
            payload: Bytes::from_static(payload.as_bytes()),
            charge: Charge::default(),
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
