//! The words that clients, processes and operators share: one type each, with the form in which it is written down.
//!
//! Knows nothing but them: what a word does is told where it is obeyed.

pub(crate) mod audience;
pub(crate) mod close_reason;
pub(crate) mod policy;
pub(crate) mod topic;
