//! The lists of connections that have something to send, and the frames whose outcome someone waits for.

use crate::shard::flush::Short;
use crate::shard::outcome::Part;
use crate::shard::table::slot::Slot;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Connections that have something to send.
#[derive(Default)]
pub(super) struct Waiting {
    pub urgent: VecDeque<Slot>,
    pub bulk: VecDeque<Bulk>,
    /// How many were taken off `bulk`.
    pub offered: u64,
    pub short: Vec<Short>,
}

/// A connection that waits for a broadcast.
pub(super) struct Bulk {
    pub slot: Slot,
    /// No range of this connection, or of those behind it, lies before this segment.
    pub segment: u32,
}

/// Frames whose outcome someone waits for, by connection.
pub(super) type Watches = FxHashMap<Slot, SmallVec<[Watch; 1]>>;

/// One such frame.
pub(super) struct Watch {
    /// Where the frame ends, counted from the front of the connection's queue.
    pub end: usize,
    /// Where its outcome is counted. The last to let go of it answers.
    pub part: SharedPart,
}

/// A part of a ticket, shared by the frames of one push on this shard.
pub(super) type SharedPart = Rc<RefCell<Box<Part>>>;
