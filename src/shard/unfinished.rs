//! Orders that need more work than a turn, or than their producer's part of one: suspended and resumed later.
//!
//! Invariant: the rest of a batch follows the part that was begun, so orders of one producer stay in order.

use super::command::{Command, PushEach};
use super::out::broadcast::{GuestPush, UncountedLoss, UnfinishedBroadcast};
use super::table::cohort::{Closing, Cutting, Stopping};
use std::vec::IntoIter;

/// The rest of an order.
pub struct Unfinished {
    /// The part that was begun.
    pub(super) long: Option<LongOrder>,
    /// The orders of a batch behind it.
    pub(super) then: IntoIter<Command>,
}

/// An order that concerns many channels, as far as it is not done.
pub(super) enum LongOrder {
    Broadcast(Box<UnfinishedBroadcast>),
    Each(Box<PushEach>),
    GuestPush(Box<GuestPush>),
    UncountedLoss(Box<UncountedLoss>),
    Closing(Box<Closing>),
    Stopping(Box<Stopping>),
    Cutting(Box<Cutting>),
}
