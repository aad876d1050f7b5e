//! A place in a shard's table.

use std::fmt;

/// Names a connection inside its shard for as long as it lives; then the place may be another's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

impl Slot {
    /// The place of this number.
    pub(crate) fn new(number: u32) -> Self {
        Self(number)
    }

    /// Its number.
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    /// The same, for an index.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}
