//! Whose channels they are: the directory of all owners, what this shard keeps of each, and whom they let in.

pub mod directory;
pub mod grants;
pub(super) mod owner;
