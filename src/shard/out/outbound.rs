//! Data that waits to be sent on one connection.
//!
//! As long as the socket takes what it is offered, a queue is ranges of the shard's [`Window`], nearly always one.
//! After a short send the rest is copied out (blobs stay by reference) into a [`Backlog`] of the connection's own, and
//! so is everything that follows until it has drained: a slow peer never pins the window.
//!
//! Invariants:
//! - the queue is the sealed bytes, then `first`, then the backlog's pieces, in order; only `first` may go on beyond
//!   the end of its segment;
//! - sealed bytes (TLS) leave unchanged: no frame is dropped from them, and nothing is put before them;
//! - `until_boundary` bytes at its front belong to something that has no boundary inside: an HTTP response, or the
//!   frame in progress. Behind them stand whole frames only;
//! - once a send was cut short, those bytes are a piece of their own, so that frames can be dropped, and control frames
//!   inserted, right behind them.
//!
//! Does not depend on sockets, owners or policies; it says what fits, and the shard decides.

use crate::shard::memory::SharedCharge;
use crate::shard::out::conflation::{Conflated, KEYS_MAX};
use crate::shard::out::frame::FrameParts;
use crate::shard::out::pieces::{DataFrames, OutboundPiece, Pieces};
use crate::shard::out::window::{Range, RangeBytes, WINDOW_BYTES_MAX, Window};
use bytes::Bytes;
use smallvec::SmallVec;
use std::io::IoSlice;

/// Ranges that wait for one client and do not touch: each takes memory, however short it is.
const RANGES_MAX: usize = 64;

/// Control frames that are stepped over at a time, to drop what is behind them: under half a millisecond of work.
const STEPS_MAX: usize = 8192;

/// A control frame of our own, whole: a header of 2 bytes and at most 125 (RFC 6455 5.5).
pub(crate) type ControlFrame = SmallVec<[u8; 32]>;

/// See the module. 24 bytes while nothing is in the way.
#[derive(Default)]
pub(crate) struct Outbound {
    first: Range,
    until_boundary: u32,
    backlog: Option<Box<Backlog>>,
}

/// The part of a queue that is not one range. Boxes are recycled by the shard ([`Spares`]).
#[derive(Default)]
pub(crate) struct Backlog {
    pieces: Pieces,
    /// Records of TLS that were sealed and have not left, and how much of them has.
    sealed: Vec<u8>,
    sealed_sent: usize,
    /// The socket was full: wait until it is writable.
    blocked: bool,
    /// While blocked, so many pieces at the front are not dropped: frames behind them refer to what is in them.
    pinned: usize,
    /// While blocked: the piece in which the control frames are that dropping has stepped over, so that it steps over
    /// each once.
    stepped_over: Option<usize>,
    /// While blocked: the bytes of data frames in the pieces that may be dropped, once they were counted.
    droppable: Option<usize>,
    /// Our own pongs and ping that wait for a boundary: the newest of each kind (RFC 6455 5.5.3).
    lane: [Option<ControlFrame>; 3],
    /// Frames that a newer one of the same key may still replace. They follow the pieces.
    held: Conflated,
}

/// Which place in the control lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ControlLane {
    /// The answer to the newest ping.
    Pong = 0,
    /// A liveness probe.
    Ping = 1,
    /// The answer to the newest ping in a control text (`pushring.1`): a whole message of its own.
    TextPong = 2,
}

/// Backlogs that are not in use.
#[derive(Default)]
pub(crate) struct Spares {
    #[expect(clippy::vec_box, reason = "the boxes themselves are what moves between here and the queues")]
    backlogs: Vec<Box<Backlog>>,
    /// The bytes that they take of the heap.
    bytes: usize,
}

impl Spares {
    /// As much as a full window: where messages to single channels fill it, nearly every channel that they reach has a
    /// queue, and the next window needs them again.
    const BYTES_MAX: usize = WINDOW_BYTES_MAX;

    fn take(&mut self) -> Box<Backlog> {
        let Some(backlog) = self.backlogs.pop() else { return Box::default() };
        self.bytes -= backlog.spare_bytes();
        backlog
    }

    pub(crate) fn len(&self) -> usize {
        self.backlogs.len()
    }

    /// All that is allocated here.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.bytes + self.backlogs.capacity() * size_of::<Box<Backlog>>()
    }

    /// The bytes that the next one would have to be allocated.
    fn growth(&self) -> usize {
        if self.backlogs.is_empty() { size_of::<Backlog>() } else { 0 }
    }

    fn give(&mut self, mut backlog: Box<Backlog>) {
        if self.bytes < Self::BYTES_MAX && backlog.pieces.capacity() <= RANGES_MAX {
            backlog.pieces.clear();
            *backlog = Backlog { pieces: std::mem::take(&mut backlog.pieces), ..Backlog::default() };
            self.bytes += backlog.spare_bytes();
            self.backlogs.push(backlog);
        }
    }
}

impl Backlog {
    /// The bytes that an empty one takes of the heap.
    fn spare_bytes(&self) -> usize {
        size_of::<Self>() + self.pieces.heap_bytes()
    }
}

impl Outbound {
    /// Returns whether nothing waits. A queue whose frames were all dropped may still be blocked.
    pub(crate) fn is_empty(&self) -> bool {
        let is_drained = |backlog: &Backlog| backlog.pieces.bytes() == 0 && backlog.is_empty_but_for_pieces();
        self.first.is_empty() && self.backlog.as_deref().is_none_or(is_drained)
    }

    /// Returns whether the socket was full when last offered bytes.
    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.blocked)
    }

    /// The socket says that it takes bytes again: the lane enters at the boundary. From now on control frames are
    /// frames like any other, and where a frame ends in the queue is where it ends on the wire.
    pub(crate) fn unblock(&mut self) {
        let boundary = usize::from(self.until_boundary > 0);
        let Some(backlog) = &mut self.backlog else { return };
        backlog.blocked = false;
        backlog.recount();
        for frame in backlog.lane.iter_mut().rev().filter_map(Option::take) {
            backlog.pieces.insert(boundary, OutboundPiece::of(&frame));
        }
    }

    /// Everything that waits and counts against the budget: all but the lane.
    #[inline]
    pub(crate) fn queued_bytes(&self) -> usize {
        self.first.len() + self.backlog_bytes()
    }

    /// Sealed bytes that have not left: they go before all others.
    pub(crate) fn sealed(&self) -> &[u8] {
        self.backlog.as_ref().map_or(&[], |backlog| backlog.sealed())
    }

    /// As [`queued_bytes`](Self::queued_bytes), if the socket has left anything behind.
    #[inline]
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.queued_bytes())
    }

    /// Its memory that is not counted elsewhere: no ranges, no payloads by reference.
    pub(crate) fn own_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.heap_bytes())
    }

    /// The bytes that wait for the socket in plain form: all but the sealed ones, the lane and frames held for
    /// conflation.
    pub(crate) fn offerable_bytes(&self) -> usize {
        self.first.len() + self.backlog.as_ref().map_or(0, |backlog| backlog.pieces.bytes())
    }

    /// Returns whether so many ranges wait, none of which touches the next, that they are to be sent before more are
    /// appended.
    #[inline]
    pub(crate) fn is_scattered(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| !backlog.blocked && backlog.pieces.len() >= RANGES_MAX)
    }

    /// Appends whole frames in the window. Only while not blocked. If it takes more of the heap now, returns how many
    /// bytes had to be allocated: none where a spare backlog served.
    #[inline]
    pub(crate) fn push_range(
        &mut self,
        range: Range,
        copy_bytes_max: usize,
        window: &Window,
        spares: &mut Spares,
    ) -> Option<usize> {
        debug_assert!(!self.is_blocked());
        if self.extend(range, window) { None } else { self.push_apart(range, copy_bytes_max, spares) }
    }

    /// The same where all that waits is one range then. Returns whether it is; if not, nothing has happened. Inlined,
    /// for a call takes a tenth of the instructions that a broadcast's frame takes for a channel.
    #[inline(always)]
    pub(crate) fn extend(&mut self, range: Range, window: &Window) -> bool {
        if self.backlog.is_some() {
            return false;
        }
        if self.first.is_empty() {
            self.first = range;
            return true;
        }
        window.try_extend(&mut self.first, range)
    }

    /// The same where it is not.
    fn push_apart(&mut self, range: Range, copy_bytes_max: usize, spares: &mut Spares) -> Option<usize> {
        if let Some(backlog) = &mut self.backlog {
            // Values that were held until now are older: the last word on their key must not come before them.
            backlog.let_go_of_held(copy_bytes_max);
        }
        let (is_first, box_bytes) = (self.backlog.is_none(), spares.growth());
        let backlog = self.backlog.get_or_insert_with(|| spares.take());
        let before = backlog.pieces.heap_bytes();
        backlog.pieces.push_range(range);
        let grown = backlog.pieces.heap_bytes() - before;
        (is_first || grown > 0).then_some(grown + if is_first { box_bytes } else { 0 })
    }

    /// Appends bytes that are not frames (HTTP). Only while not blocked and with no frame in the queue.
    pub(crate) fn push_opaque(&mut self, range: Range, window: &Window, spares: &mut Spares) {
        debug_assert_eq!(self.offerable_bytes(), self.until_boundary as usize);
        self.until_boundary += range.len() as u32;
        // No frame is in the queue, so none is held.
        self.push_range(range, 0, window, spares);
    }

    /// Appends bytes that are not frames while the socket is full. With no frame in the queue.
    pub(crate) fn push_opaque_behind(&mut self, bytes: Vec<u8>) {
        debug_assert_eq!(self.offerable_bytes(), self.until_boundary as usize);
        self.until_boundary += bytes.len() as u32;
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        backlog.pieces.push_back(OutboundPiece::Chunk { bytes, sent: 0, data: None });
    }

    /// The heap bytes that the queue would add for this frame, appended or held for `key`.
    pub(crate) fn growth(&self, frame: &FrameParts, key: Option<u64>, copy_bytes_max: usize) -> usize {
        let Some(backlog) = &self.backlog else { return 0 };
        match key {
            Some(key) => backlog.held.growth(key, frame),
            // A frame held until now is counted already, in another way.
            None if frame.payload.len() > copy_bytes_max => backlog.pieces.places_growth(),
            None => backlog.pieces.growth(frame.len(), backlog.joins()),
        }
    }

    /// Appends a frame while the socket is full: small ones are copied, large ones kept by reference.
    pub(crate) fn push_behind(&mut self, frame: &FrameParts, copy_bytes_max: usize) {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        debug_assert!(backlog.blocked);
        backlog.let_go_of_held(copy_bytes_max);
        backlog.push_frame(frame, copy_bytes_max);
    }

    /// Appends a copy of whole frames while the socket is full.
    pub(crate) fn push_copied_behind(&mut self, frames: &[u8]) {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        let joins = backlog.joins();
        backlog.pieces.append_frames(frames, joins);
        backlog.recount();
    }

    /// Appends a frame while the socket is full, its payload by reference.
    pub(crate) fn push_blob_behind(&mut self, header: &[u8], payload: Bytes, charge: SharedCharge) {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        backlog.pieces.push_back(OutboundPiece::Blob { header: header.into(), payload, charge });
        backlog.recount();
    }

    /// Holds the newest value of `key` while the socket is full. Returns whether it took the place of an older one.
    /// Beyond so many keys the value whose key came first joins the queue, and is replaced no more.
    pub(crate) fn conflate(&mut self, key: u64, frame: FrameParts, copy_bytes_max: usize) -> bool {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        debug_assert!(backlog.blocked);
        let is_replaced = backlog.held.set(key, frame);
        if backlog.held.len() > KEYS_MAX
            && let Some(first) = backlog.held.pop()
        {
            backlog.push_frame(&first, copy_bytes_max);
        }
        is_replaced
    }

    /// How many values newer ones may replace.
    pub(crate) fn held_values(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.held.len())
    }

    /// The length of the value that waits for `key`, 0 if there is none.
    pub(crate) fn held_len(&self, key: u64) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.held.len_of(key))
    }

    /// Puts a control frame of our own into its lane, in the place of an older one. Only while blocked; else it is
    /// a frame like any other.
    pub(crate) fn set_lane(&mut self, lane: ControlLane, frame: ControlFrame) {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        backlog.lane[lane as usize] = Some(frame);
    }

    /// Returns whether there are data frames of `bytes` bytes together that [`drop_oldest`](Self::drop_oldest) could
    /// drop.
    pub(crate) fn can_drop(&mut self, bytes: usize) -> bool {
        let from = self.undroppable_pieces();
        let Some(backlog) = &mut self.backlog else { return bytes == 0 };
        backlog.droppable_bytes(from) + backlog.held.bytes() >= bytes
    }

    /// Drops data frames from the oldest on until `bytes` are gone, none is left, or very many control frames were
    /// before them; control frames and the frame in progress stay. Only while blocked. Returns how many frames and
    /// bytes went.
    pub(crate) fn drop_oldest(&mut self, bytes: usize, window: &Window) -> (usize, usize) {
        let from = self.undroppable_pieces();
        let Some(backlog) = self.backlog.as_mut() else { return (0, 0) };
        let (mut frames, mut dropped, mut steps) = (0, 0, 0);
        while dropped < bytes && backlog.droppable_bytes(from) > 0 {
            match backlog.drop_frames(from, bytes - dropped, window) {
                Some((more, len)) => (frames, dropped) = (frames + more, dropped + len),
                None if steps == STEPS_MAX => return (frames, dropped),
                None => {
                    steps += 1;
                    backlog.step_over(from, window);
                }
            }
        }
        while dropped < bytes
            && let Some(frame) = backlog.held.pop()
        {
            (frames, dropped) = (frames + 1, dropped + frame.len());
        }
        (frames, dropped)
    }

    /// As [`drop_oldest`](Self::drop_oldest), but from the newest on. Returns how many frames went.
    pub(crate) fn drop_newest(&mut self, bytes: usize, window: &Window) -> usize {
        let from = self.undroppable_pieces();
        let Some(backlog) = self.backlog.as_mut() else { return 0 };
        let (mut frames, mut dropped) = (0, 0);
        while dropped < bytes
            && let Some(frame) = backlog.held.pop_newest()
        {
            (frames, dropped) = (frames + 1, dropped + frame.len());
        }
        for at in (from..backlog.pieces.len()).rev() {
            if dropped >= bytes || backlog.droppable_bytes(from) == 0 {
                break;
            }
            let (more, len) = backlog.drop_from_end(at, bytes - dropped, window);
            (frames, dropped) = (frames + more, dropped + len);
        }
        frames
    }

    fn undroppable_pieces(&self) -> usize {
        let pinned = self.backlog.as_ref().map_or(0, |backlog| backlog.pinned);
        pinned.max(usize::from(self.until_boundary > 0))
    }

    /// Drops everything behind the frame in progress; answers how many bytes that were.
    pub(crate) fn drop_behind_boundary(&mut self, window: &Window, spares: &mut Spares) -> usize {
        let before = self.queued_bytes();
        if before == 0 {
            return 0;
        }
        self.settle(0, window, spares);
        let keep = usize::from(self.until_boundary > 0);
        let backlog = self.backlog.as_mut().expect("bytes are queued, so settling made a backlog");
        backlog.pieces.truncate(keep);
        backlog.held.clear();
        backlog.recount();
        backlog.lane = Default::default();
        if backlog.pieces.is_empty() && backlog.sealed().is_empty() {
            self.clear(spares);
        }
        before - self.queued_bytes()
    }

    /// Appends records to those that were sealed before; they leave before anything that was not.
    pub(crate) fn push_sealed(&mut self, records: &[u8], spares: &mut Spares) {
        if records.is_empty() {
            return;
        }
        let backlog = self.backlog.get_or_insert_with(|| spares.take());
        backlog.sealed.extend_from_slice(records);
    }

    /// The socket has taken `count` bytes of what is sealed. `full` tells that it took no more.
    pub(crate) fn sent_sealed(&mut self, count: usize, full: bool, window: &Window, spares: &mut Spares) {
        let Some(backlog) = &mut self.backlog else { return };
        backlog.sealed_sent += count;
        if backlog.sealed().is_empty() {
            (backlog.sealed, backlog.sealed_sent) = (Vec::new(), 0);
        }
        if full || self.offerable_bytes() == 0 {
            self.sent_some(0, full, window, spares);
        }
    }

    /// `records` hold what was taken from the queue's front, and the full socket has not taken them.
    pub(crate) fn keep_sealed(&mut self, records: &[u8], spares: &mut Spares) {
        self.push_sealed(records, spares);
        if let Some(backlog) = &mut self.backlog {
            backlog.blocked = true;
            backlog.recount();
        }
    }

    /// Forgets everything that is not sealed.
    pub(crate) fn keep_only_sealed(&mut self, spares: &mut Spares) {
        let (sealed, blocked) = (self.sealed().to_vec(), self.is_blocked());
        self.clear(spares);
        self.push_sealed(&sealed, spares);
        if let Some(backlog) = &mut self.backlog {
            backlog.blocked = blocked;
        }
    }

    /// Makes the queue ready to be offered: held frames follow when nothing stands before them any more.
    /// Returns whether there is anything to send.
    #[inline]
    pub(crate) fn prepare(&mut self, copy_bytes_max: usize) -> bool {
        match &mut self.backlog {
            None => !self.first.is_empty(),
            Some(backlog) => backlog.prepare(copy_bytes_max) || !self.first.is_empty(),
        }
    }

    /// When all that waits is one joined slice: that slice.
    #[inline]
    pub(crate) fn as_slice<'a>(&'a self, window: &'a Window) -> Option<&'a [u8]> {
        if self.first.is_empty() || self.backlog.is_some() {
            return None;
        }
        window.slice(self.first)
    }

    /// Appends the front of the queue as slices to `out`, at most `bytes_max` and `parts_max`; answers how many bytes.
    pub(crate) fn gather<'a>(
        &'a self,
        window: &'a Window,
        bytes_max: usize,
        parts_max: usize,
        out: &mut Vec<IoSlice<'a>>,
    ) -> usize {
        let mut gathered = SliceGather { out, parts_left: parts_max, bytes_left: bytes_max };
        for part in window.parts(self.first) {
            if gathered.is_full() {
                break;
            }
            gathered.range(window, part);
        }
        for piece in self.backlog.iter().flat_map(|backlog| backlog.pieces.iter()) {
            if gathered.is_full() {
                break;
            }
            match piece {
                OutboundPiece::Range(range) => gathered.range(window, *range),
                OutboundPiece::Chunk { bytes, sent, .. } => gathered.slice(&bytes[*sent..]),
                OutboundPiece::Blob { header, payload, .. } => {
                    gathered.slice(header);
                    gathered.slice(payload);
                }
            }
        }
        bytes_max - gathered.bytes_left
    }

    /// So much has left. Returns whether that was all, where all that waited was one range; if not, nothing has
    /// happened.
    #[inline]
    pub(crate) fn sent_only_range(&mut self, bytes: usize) -> bool {
        let is_all = self.backlog.is_none() && self.first.len() == bytes;
        if is_all {
            (self.first, self.until_boundary) = (Range::default(), 0);
        }
        is_all
    }

    /// Everything that was offered has left: all but the held frames, whose turn is next. With nothing sealed.
    pub(crate) fn sent_all(&mut self, spares: &mut Spares) {
        self.first = Range::default();
        self.until_boundary = 0;
        if let Some(backlog) = &mut self.backlog {
            backlog.pieces.clear();
            if backlog.held.is_empty() {
                self.clear(spares);
            }
        }
    }

    /// Some bytes have left, others not: they are copied out of the window. `full` tells that the socket took no more.
    pub(crate) fn sent_some(&mut self, count: usize, full: bool, window: &Window, spares: &mut Spares) {
        self.settle(count, window, spares);
        if let Some(backlog) = &mut self.backlog {
            backlog.blocked = full;
            backlog.pinned = 0;
            backlog.recount();
        }
    }

    /// Later messages may refer to those waiting now: none of these is dropped unless all later ones are. To be called
    /// whenever the socket turns out to be full.
    pub(crate) fn pin(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.pinned = backlog.pieces.len();
            backlog.recount();
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self, spares: &mut Spares) {
        self.first = Range::default();
        self.until_boundary = 0;
        if let Some(backlog) = self.backlog.take() {
            spares.give(backlog);
        }
    }

    /// Forgets the first `count` bytes and brings the rest into the form that the invariants ask for after a cut.
    fn settle(&mut self, count: usize, window: &Window, spares: &mut Spares) {
        debug_assert!(count <= self.offerable_bytes());
        let backlog = self.backlog.get_or_insert_with(|| spares.take());
        for (at, part) in window.parts(std::mem::take(&mut self.first)).enumerate() {
            backlog.pieces.insert(at, OutboundPiece::Range(part));
        }
        let boundary = backlog.consume(count, self.until_boundary as usize, window);
        self.until_boundary = u32::try_from(boundary).expect("frames are bounded far below 4 GiB");
        if backlog.pieces.is_empty() && backlog.is_empty_but_for_pieces() {
            return self.clear(spares);
        }
        backlog.pieces.own(window, boundary);
    }
}

impl Backlog {
    /// Everything here that waits and counts against the budget.
    fn queued_bytes(&self) -> usize {
        self.pieces.bytes() + self.held.bytes() + self.sealed().len()
    }

    /// As [`Outbound::prepare`].
    fn prepare(&mut self, copy_bytes_max: usize) -> bool {
        // As long as older bytes wait, a newer value may still take the place of a held one.
        if self.pieces.is_empty() {
            self.let_go_of_held(copy_bytes_max);
        }
        self.pieces.bytes() > 0 || !self.sealed().is_empty()
    }

    fn sealed(&self) -> &[u8] {
        &self.sealed[self.sealed_sent..]
    }

    fn is_empty_but_for_pieces(&self) -> bool {
        self.held.is_empty() && self.sealed().is_empty() && self.lane.iter().all(Option::is_none)
    }

    fn push_frame(&mut self, frame: &FrameParts, copy_bytes_max: usize) {
        let header = frame.header.as_slice();
        if let Some(droppable) = self.droppable.as_mut().filter(|_| !frame.is_control()) {
            *droppable += frame.len();
        }
        if frame.payload.len() > copy_bytes_max {
            let (payload, charge) = (frame.payload.clone(), frame.charge.clone());
            self.pieces.push_back(OutboundPiece::Blob { header: header.into(), payload, charge });
            return;
        }
        self.pieces.append(&[header, &frame.payload], self.joins());
    }

    /// Returns whether a frame may join the last piece: the first may be the rest of a frame in progress, which stays
    /// alone.
    fn joins(&self) -> bool {
        let alone = self.pinned.max(1).max(self.stepped_over.map_or(0, |at| at + 1));
        self.pieces.len() > alone
    }

    /// The heap bytes of this queue alone.
    fn heap_bytes(&self) -> usize {
        let lane: usize =
            self.lane.iter().flatten().filter(|frame| frame.spilled()).map(|frame| frame.capacity()).sum();
        let own = size_of::<Self>() + self.pieces.heap_bytes() + self.held.own_bytes() + self.sealed.capacity() + lane;
        // A queue that was empty when it was blocked holds a reusable box, in which nothing waits.
        let is_empty = self.pieces.is_empty() && self.held.is_empty() && self.sealed().is_empty() && lane == 0;
        if is_empty { 0 } else { own }
    }

    /// The pieces, or the droppable part of them, have changed.
    fn recount(&mut self) {
        (self.stepped_over, self.droppable) = (None, None);
    }

    /// The bytes of data frames in pieces from `from` on. Counted once; then each addition and removal updates the
    /// count.
    fn droppable_bytes(&mut self, from: usize) -> usize {
        if let Some(droppable) = self.droppable {
            return droppable;
        }
        let droppable = (from..self.pieces.len()).map(|at| self.pieces.data_of(at).bytes).sum();
        self.droppable = Some(droppable);
        droppable
    }

    /// The first piece from `from` on whose front may be a data frame.
    fn first_droppable(&self, from: usize) -> usize {
        self.stepped_over.map_or(from, |at| at + 1)
    }

    /// Moves the control frame at the front of what may be dropped to those before it that were stepped over.
    fn step_over(&mut self, from: usize, window: &Window) {
        let at = self.first_droppable(from);
        let len = self.pieces[at].frame_len(0, window);
        let frame: ControlFrame = match &self.pieces[at] {
            OutboundPiece::Chunk { bytes, sent, .. } => bytes[*sent..*sent + len].into(),
            OutboundPiece::Blob { header, payload, .. } => header.iter().chain(payload).copied().collect(),
            OutboundPiece::Range(_) => unreachable!("a blocked queue holds no ranges"),
        };
        let whole = self.pieces[at].len() == len;
        self.pieces.advance_frames(at, len, DataFrames::default());
        if let Some(into) = self.stepped_over
            && self.pieces.append_at(into, &[&frame])
        {
            return;
        }
        // In the place of the piece that is gone, or before the rest of it.
        debug_assert!(whole || self.pieces.len() > at);
        self.pieces.insert_chunk(at, &frame);
        self.stepped_over = Some(at);
    }

    /// Held frames join the queue: nothing stands before them any more, or a frame without a key follows them.
    fn let_go_of_held(&mut self, copy_bytes_max: usize) {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            held.into_values().for_each(|frame| self.push_frame(&frame, copy_bytes_max));
        }
    }

    /// Removes `count` bytes at the front. Returns how many bytes now stand before the next boundary.
    fn consume(&mut self, mut count: usize, mut boundary: usize, window: &Window) -> usize {
        while count > 0 && !self.pieces.is_empty() {
            let piece = &self.pieces[0];
            let gone = piece.len().min(count);
            let mut walked = boundary;
            while walked < gone {
                walked += piece.frame_len(walked, window);
            }
            boundary = walked - gone;
            count -= gone;
            self.pieces.advance(0, gone);
        }
        boundary
    }

    /// Drops piece `at` in one step, if it has data frames only and no more than `bytes`. Returns how many frames and
    /// bytes went.
    fn drop_whole(&mut self, at: usize, bytes: usize) -> Option<(usize, usize)> {
        let data = self.pieces.data_of(at);
        if data.bytes == 0 || data.bytes > bytes || data.bytes < self.pieces[at].len() {
            return None;
        }
        self.droppable = self.droppable.map(|droppable| droppable - data.bytes);
        self.pieces.remove(at);
        Some((data.frames, data.bytes))
    }

    /// Drops data frames of piece `at`, the last one first, until `bytes` are gone or none is left. Returns how many
    /// frames and bytes went.
    fn drop_from_end(&mut self, at: usize, bytes: usize, window: &Window) -> (usize, usize) {
        if let Some(all) = self.drop_whole(at, bytes) {
            return all;
        }
        let piece = &self.pieces[at];
        let mut starts: SmallVec<[usize; 64]> = SmallVec::new();
        let mut end = 0;
        while end < piece.len() {
            starts.push(end);
            end += piece.frame_len(end, window);
        }
        let (mut frames, mut dropped) = (0, 0);
        let mut kept_from = end;
        // Control frames behind what is dropped, the last one first.
        let mut control: SmallVec<[std::ops::Range<usize>; 4]> = SmallVec::new();
        while dropped < bytes
            && let Some(start) = starts.pop()
        {
            let frame = start..std::mem::replace(&mut kept_from, start);
            if piece.is_control(start) {
                control.push(frame);
            } else {
                (frames, dropped) = (frames + 1, dropped + frame.len());
            }
        }
        self.droppable = self.droppable.map(|droppable| droppable - dropped);
        if kept_from == 0 && control.is_empty() {
            self.pieces.remove(at);
        } else if dropped > 0 {
            self.pieces.keep(at, kept_from, control.into_iter().rev());
        }
        (frames, dropped)
    }

    /// Drops data frames at the front of what may be dropped, until `bytes` are gone, their piece is or a control frame
    /// is next. Returns how many frames and bytes went; `None`: a control frame was next.
    fn drop_frames(&mut self, from: usize, bytes: usize, window: &Window) -> Option<(usize, usize)> {
        let at = self.first_droppable(from);
        if let Some(all) = self.drop_whole(at, bytes) {
            return Some(all);
        }
        let piece = &self.pieces[at];
        let (mut frames, mut end) = (0, 0);
        while end < bytes && end < piece.len() && !piece.is_control(end) {
            end += piece.frame_len(end, window);
            frames += 1;
        }
        if frames == 0 {
            return None;
        }
        self.droppable = self.droppable.map(|droppable| droppable - end);
        self.pieces.advance_frames(at, end, DataFrames { frames, bytes: end });
        Some((frames, end))
    }
}

struct SliceGather<'a, 'b> {
    out: &'b mut Vec<IoSlice<'a>>,
    parts_left: usize,
    bytes_left: usize,
}

impl<'a> SliceGather<'a, '_> {
    fn is_full(&self) -> bool {
        self.parts_left == 0 || self.bytes_left == 0
    }

    fn slice(&mut self, bytes: &'a [u8]) {
        let len = bytes.len().min(self.bytes_left);
        if len > 0 && self.parts_left > 0 {
            self.out.push(IoSlice::new(&bytes[..len]));
            self.parts_left -= 1;
            self.bytes_left -= len;
        }
    }

    fn range(&mut self, window: &'a Window, range: Range) {
        match window.get(range) {
            RangeBytes::Joined(bytes) => self.slice(bytes),
            RangeBytes::Blob { header, blob, skip, len, .. } => {
                self.slice(header);
                self.slice(&blob[skip..skip + len]);
            }
        }
    }
}

#[cfg(test)]
#[path = "outbound_tests.rs"]
mod tests;
