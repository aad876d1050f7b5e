//! The words that clients, processes and operators share: one type each, with the form in which it is written down.
//!
//! Knows nothing but them: what a word does is told where it is obeyed.

pub mod audience;
pub mod close_reason;
pub mod policy;
pub mod topic;
