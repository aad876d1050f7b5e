//! The number of an attached process.

/// A process as long as it is attached: never reused, so that a successor of the same name is another owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(pub u32);
