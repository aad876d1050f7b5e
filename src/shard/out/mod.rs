//! The way out: what is pushed, where it waits, and how it leaves.

mod conflation;
pub mod deflate;
pub(super) mod outbound;
pub(super) mod push;
pub(super) mod sending;
pub(super) mod window;
