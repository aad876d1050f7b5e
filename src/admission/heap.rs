//! Heap use of values: as the allocator counts, by capacity, without the space they take in place.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Something that may wait and take memory meanwhile.
pub trait HeapBytes {
    /// The bytes that it keeps allocated beside its own size.
    fn heap_bytes(&self) -> usize;
}

/// Two counts beside what an `Arc` shares.
const ARC_COUNTS_BYTES: usize = 2 * size_of::<usize>();

impl HeapBytes for Bytes {
    /// Its length: the allocation it is part of is unknown. Code that keeps a small part of a large one for long copies
    /// it.
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl HeapBytes for String {
    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

impl HeapBytes for Box<str> {
    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

impl HeapBytes for Arc<str> {
    /// In full, as if it were not shared.
    fn heap_bytes(&self) -> usize {
        if self.is_empty() { ARC_COUNTS_BYTES } else { ARC_COUNTS_BYTES + self.len() }
    }
}

impl<T: HeapBytes> HeapBytes for Option<T> {
    fn heap_bytes(&self) -> usize {
        self.as_ref().map_or(0, HeapBytes::heap_bytes)
    }
}

impl<T: HeapBytes> HeapBytes for Box<T> {
    fn heap_bytes(&self) -> usize {
        size_of::<T>() + (**self).heap_bytes()
    }
}

impl<T: HeapBytes> HeapBytes for Vec<T> {
    fn heap_bytes(&self) -> usize {
        self.capacity() * size_of::<T>() + self.iter().map(HeapBytes::heap_bytes).sum::<usize>()
    }
}

impl<A: HeapBytes, B: HeapBytes> HeapBytes for (A, B) {
    fn heap_bytes(&self) -> usize {
        self.0.heap_bytes() + self.1.heap_bytes()
    }
}

impl<K: HeapBytes, V: HeapBytes> HeapBytes for BTreeMap<K, V> {
    /// About: nodes have places for 11 entries, and most of them are filled.
    fn heap_bytes(&self) -> usize {
        let nodes = self.len().div_ceil(8);
        nodes * (11 * (size_of::<K>() + size_of::<V>()) + 16)
            + self.iter().map(|(key, value)| key.heap_bytes() + value.heap_bytes()).sum::<usize>()
    }
}

impl<K: HeapBytes> HeapBytes for BTreeSet<K> {
    /// As of a map.
    fn heap_bytes(&self) -> usize {
        let nodes = self.len().div_ceil(8);
        nodes * (11 * size_of::<K>() + 16) + self.iter().map(HeapBytes::heap_bytes).sum::<usize>()
    }
}

/// The memory of a hash table with room for so many entries, seven eighths full: an entry and a byte for each bucket.
pub fn table_bytes<K, V>(capacity: usize) -> usize {
    match capacity {
        0 => 0,
        1..=3 => 4 * (size_of::<(K, V)>() + 1) + 16,
        4..=7 => 8 * (size_of::<(K, V)>() + 1) + 16,
        more => (more * 8 / 7).next_power_of_two() * (size_of::<(K, V)>() + 1) + 16,
    }
}

/// About what a tree takes of so many entries that came in the order of their keys: its nodes have places for 11, and
/// each was split when it was full, behind the sixth.
pub fn tree_bytes_in_order<K, V>(len: usize) -> usize {
    let leaf = 11 * (size_of::<K>() + size_of::<V>()) + 16;
    let leaves = len.div_ceil(6);
    leaves * leaf + leaves / 6 * (leaf + 12 * size_of::<usize>())
}

impl HeapBytes for u8 {
    fn heap_bytes(&self) -> usize {
        0
    }
}
