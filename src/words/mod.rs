//! Domain types that clients, processes and operators share: one type each, with its written form, and strict readers
//! of what they write.
//!
//! It must not know the rest of the crate: their effects are implemented elsewhere.

pub(crate) mod audience;
pub(crate) mod close_reason;
pub(crate) mod policy;
pub(crate) mod strict;
pub(crate) mod topic;
