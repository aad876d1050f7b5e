//! Orders that need more work than a turn, or than their producer's part of one: suspended where they are, resumed
//! later.
//!
//! Invariant: what is left of a batch follows what was begun of it, so orders of one producer stay in order.

use super::command::{Command, PushEach};
use super::out::broadcast::{Missing, OfGuest, UnfinishedBroadcast};
use super::table::cohort::{Closing, Cutting, Stopping};
use std::vec::IntoIter;

/// What is left of an order.
pub struct Unfinished {
    /// What was begun.
    pub(super) long: Option<Long>,
    /// The orders of a batch behind it.
    pub(super) then: IntoIter<Command>,
}

/// What concerns many channels, as far as it was not done.
pub(super) enum Long {
    Broadcast(Box<UnfinishedBroadcast>),
    Each(Box<PushEach>),
    OfGuest(Box<OfGuest>),
    Missing(Box<Missing>),
    Closing(Box<Closing>),
    Stopping(Box<Stopping>),
    Cutting(Box<Cutting>),
}
