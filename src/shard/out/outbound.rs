//! What waits to be sent on one connection.
//!
//! As long as the socket takes what it is offered, a queue is ranges of the shard's [`Window`], nearly always one. After
//! a short send the rest is copied out (blobs stay by reference) into a [`Backlog`] of the connection's own, and so is
//! everything that follows until it has drained: a slow peer never pins the window.
//!
//! Invariants:
//! - the queue is `first`, then the backlog's pieces, in order;
//! - `until_boundary` bytes at its front belong to something that has no boundary inside: an HTTP response, or the
//!   frame in progress. Behind them stand whole frames only;
//! - once a send was cut short, those bytes are a piece of their own, so that frames can be dropped, and control frames
//!   inserted, right behind them.
//!
//! Knows nothing of sockets, owners or policies; it says what fits, the shard decides.

use crate::proto::server_frame_len;
use crate::shard::memory::Charge;
use crate::shard::out::conflation::Conflated;
use crate::shard::out::frame::{FrameParts, is_control};
use crate::shard::out::window::{Named, Range, Window};
use crate::shard::policy::Policy;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;

/// Owned pieces grow up to this size before the next one starts, so that memory whose bytes have left is let go of.
const OWNED_PIECE_BYTES: usize = 64 * 1024;

/// A control frame of our own, whole: a header of 2 bytes and at most 125 (RFC 6455 5.5).
pub type ControlFrame = SmallVec<[u8; 32]>;

/// See the module. 24 bytes while nothing is in the way.
#[derive(Default)]
pub struct Outbound {
    first: Range,
    until_boundary: u32,
    backlog: Option<Box<Backlog>>,
}

/// The part of a queue that is not one range. Boxes are recycled by the shard ([`Spares`]).
#[derive(Default)]
pub struct Backlog {
    pieces: VecDeque<Piece>,
    /// The bytes of all pieces.
    bytes: usize,
    /// Those of them that are payloads by reference.
    shared: usize,
    /// The policy under which the newest frame behind the full socket was pushed.
    policy: Option<Policy>,
    /// The socket was full: wait until it is writable.
    blocked: bool,
    /// While blocked, so many pieces at the front are not dropped: frames behind them refer to what is in them.
    pinned: usize,
    /// Our own pong and ping that wait for a boundary: the newest of each kind (RFC 6455 5.5.3).
    lane: [Option<ControlFrame>; 2],
    /// Frames that a newer one of the same key may still replace. They follow the pieces.
    held: Conflated,
}

enum Piece {
    Range(Range),
    Owned {
        bytes: Vec<u8>,
        sent: usize,
    },
    Blob {
        header: SmallVec<[u8; 10]>,
        payload: Bytes,
        #[expect(dead_code, reason = "let go of together with the payload")]
        charge: Charge,
    },
}

/// Which place in the control lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The answer to the newest ping.
    Pong = 0,
    /// A liveness probe.
    Ping = 1,
}

/// Backlogs that are not in use.
#[derive(Default)]
pub struct Spares {
    #[expect(clippy::vec_box, reason = "the boxes themselves are what moves between here and the queues")]
    backlogs: Vec<Box<Backlog>>,
}

impl Spares {
    /// Keeps what one batch of sends may need; more is given back to the allocator.
    const MAX: usize = 256;

    fn take(&mut self) -> Box<Backlog> {
        self.backlogs.pop().unwrap_or_default()
    }

    fn give(&mut self, mut backlog: Box<Backlog>) {
        if self.backlogs.len() < Self::MAX && backlog.pieces.capacity() <= 64 {
            backlog.pieces.clear();
            *backlog = Backlog { pieces: std::mem::take(&mut backlog.pieces), ..Backlog::default() };
            self.backlogs.push(backlog);
        }
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Range(range) => range.len(),
            Piece::Owned { bytes, sent } => bytes.len() - sent,
            Piece::Blob { header, payload, .. } => header.len() + payload.len(),
        }
    }

    /// What of it is in memory once for all who wait for it.
    fn shared_len(&self) -> usize {
        if let Piece::Blob { payload, .. } = self { payload.len() } else { 0 }
    }

    /// Forgets the first `count` bytes; fewer than its length.
    fn advance(&mut self, count: usize) {
        match self {
            Piece::Range(range) => *range = range.split_at(count).1,
            Piece::Owned { sent, .. } => *sent += count,
            Piece::Blob { header, payload, .. } => {
                let of_header = count.min(header.len());
                header.drain(..of_header);
                *payload = payload.slice(count - of_header..);
            }
        }
    }

    /// Whether the frame that starts `at` bytes into this piece is a control frame. Not for ranges.
    fn is_control(&self, at: usize) -> bool {
        is_control(match self {
            Piece::Owned { bytes, sent } => bytes[sent + at],
            Piece::Blob { header, .. } => header[at],
            Piece::Range(_) => unreachable!("a blocked queue holds no ranges"),
        })
    }

    /// The length of the frame that starts `at` bytes into this piece.
    fn frame_len(&self, at: usize, window: &Window) -> usize {
        let joined = match self {
            Piece::Blob { .. } => return self.len() - at,
            Piece::Owned { bytes, sent } => &bytes[sent + at..],
            Piece::Range(range) => match window.get(range.split_at(at).1) {
                Named::Joined(bytes) => bytes,
                Named::Blob { header, len, .. } => return header.len() + len,
            },
        };
        server_frame_len(joined).expect("whole frames of our own making stand behind a boundary")
    }
}

impl Outbound {
    /// Whether nothing waits. A queue whose frames were all dropped may still be blocked.
    pub fn is_empty(&self) -> bool {
        let is_drained = |backlog: &Backlog| {
            backlog.bytes == 0 && backlog.held.is_empty() && backlog.lane.iter().all(Option::is_none)
        };
        self.first.is_empty() && self.backlog.as_deref().is_none_or(is_drained)
    }

    /// Whether the socket was full when last offered bytes.
    pub fn is_blocked(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.blocked)
    }

    /// The socket says that it takes bytes again: the lane enters at the boundary. From now on control frames are frames
    /// like any other, and where a frame ends in the queue is where it ends on the wire.
    pub fn unblock(&mut self) {
        let boundary = usize::from(self.until_boundary > 0);
        let Some(backlog) = &mut self.backlog else { return };
        backlog.blocked = false;
        for frame in backlog.lane.iter_mut().rev().filter_map(Option::take) {
            backlog.bytes += frame.len();
            backlog.pieces.insert(boundary, Piece::Owned { bytes: frame.to_vec(), sent: 0 });
        }
    }

    /// Everything that waits and counts against the budget: all but the lane.
    pub fn queued_bytes(&self) -> usize {
        self.offerable_bytes() + self.backlog.as_ref().map_or(0, |backlog| backlog.held.bytes())
    }

    /// As [`queued_bytes`](Self::queued_bytes), if the socket has left anything behind.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.bytes + backlog.held.bytes())
    }

    /// What it takes of memory that nothing else counts: no ranges, no payloads by reference.
    pub fn own_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.bytes - backlog.shared + backlog.held.own_bytes())
    }

    /// The policy under which the newest frame behind the full socket was pushed, if one was.
    pub fn policy(&self) -> Option<Policy> {
        self.backlog.as_ref()?.policy
    }

    /// Remembers the policy of a push while the socket is full.
    pub fn set_policy(&mut self, policy: Policy) {
        self.backlog.as_mut().expect("a blocked queue has a backlog").policy = Some(policy);
    }

    /// What waits for the socket: all but the lane and what is held for conflation.
    pub fn offerable_bytes(&self) -> usize {
        self.first.len() + self.backlog.as_ref().map_or(0, |backlog| backlog.bytes)
    }

    /// Appends whole frames in the window. Only while not blocked.
    pub fn push_range(&mut self, range: Range, copy_bytes_max: usize, spares: &mut Spares) {
        debug_assert!(!self.is_blocked());
        if let Some(backlog) = &mut self.backlog {
            // Values that were held until now are older: the last word on their key must not come before them.
            backlog.let_go_of_held(copy_bytes_max);
        }
        if self.backlog.is_none() && (self.first.is_empty() || self.first.try_extend(range)) {
            if self.first.is_empty() {
                self.first = range;
            }
            return;
        }
        let backlog = self.backlog.get_or_insert_with(|| spares.take());
        backlog.bytes += range.len();
        if let Some(Piece::Range(last)) = backlog.pieces.back_mut()
            && last.try_extend(range)
        {
            return;
        }
        backlog.pieces.push_back(Piece::Range(range));
    }

    /// Appends bytes that are not frames (HTTP). Only while not blocked and with no frame in the queue.
    pub fn push_opaque(&mut self, range: Range, spares: &mut Spares) {
        debug_assert_eq!(self.queued_bytes(), self.until_boundary as usize);
        self.until_boundary += range.len() as u32;
        // No frame is in the queue, so none is held.
        self.push_range(range, 0, spares);
    }

    /// Appends bytes that are not frames while the socket is full. With no frame in the queue.
    pub fn push_opaque_behind(&mut self, bytes: Vec<u8>) {
        debug_assert_eq!(self.queued_bytes(), self.until_boundary as usize);
        self.until_boundary += bytes.len() as u32;
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        backlog.bytes += bytes.len();
        match backlog.pieces.back_mut() {
            Some(Piece::Owned { bytes: last, .. }) => last.extend_from_slice(&bytes),
            _ => backlog.pieces.push_back(Piece::Owned { bytes, sent: 0 }),
        }
    }

    /// Appends a frame while the socket is full: small ones are copied, large ones kept by reference.
    pub fn push_behind(&mut self, frame: &FrameParts, copy_bytes_max: usize) {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        debug_assert!(backlog.blocked);
        backlog.let_go_of_held(copy_bytes_max);
        backlog.push_frame(frame, copy_bytes_max);
    }

    /// Holds the newest value of `key` while the socket is full. Answers whether it took the place of an older one.
    pub fn conflate(&mut self, key: u64, frame: FrameParts) -> bool {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        debug_assert!(backlog.blocked);
        backlog.held.set(key, frame)
    }

    /// The length of the value that waits for `key`, 0 if there is none.
    pub fn held_len(&self, key: u64) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.held.len_of(key))
    }

    /// Puts a control frame of our own into its lane, in the place of an older one. Only while blocked; else it is
    /// a frame like any other.
    pub fn set_lane(&mut self, lane: Lane, frame: ControlFrame) {
        let backlog = self.backlog.as_mut().expect("a blocked queue has a backlog");
        backlog.lane[lane as usize] = Some(frame);
    }

    /// Whether there are data frames of `bytes` bytes together that [`drop_oldest`](Self::drop_oldest) could drop.
    pub fn can_drop(&self, bytes: usize, window: &Window) -> bool {
        let Some(backlog) = &self.backlog else { return bytes == 0 };
        let mut found = backlog.held.bytes();
        for piece in backlog.pieces.iter().skip(self.undroppable_pieces()) {
            let mut at = 0;
            while found < bytes && at < piece.len() {
                let len = piece.frame_len(at, window);
                found += if piece.is_control(at) { 0 } else { len };
                at += len;
            }
        }
        found >= bytes
    }

    /// Drops data frames from the oldest on until `bytes` are gone or none is left; control frames and the frame in
    /// progress stay. Only while blocked. Answers how many frames and bytes went.
    pub fn drop_oldest(&mut self, bytes: usize, window: &Window) -> (usize, usize) {
        let mut at = self.undroppable_pieces();
        let Some(backlog) = self.backlog.as_mut() else { return (0, 0) };
        let (mut frames, mut dropped) = (0, 0);
        while dropped < bytes && at < backlog.pieces.len() {
            match backlog.drop_frame(at, window) {
                Some(len) => (frames, dropped) = (frames + 1, dropped + len),
                None => at += 1,
            }
        }
        while dropped < bytes
            && let Some(frame) = backlog.held.pop()
        {
            (frames, dropped) = (frames + 1, dropped + frame.len());
        }
        (frames, dropped)
    }

    /// As [`drop_oldest`](Self::drop_oldest), but from the newest on. Answers how many frames went.
    pub fn drop_newest(&mut self, bytes: usize, window: &Window) -> usize {
        let from = self.undroppable_pieces();
        let Some(backlog) = self.backlog.as_mut() else { return 0 };
        let (mut frames, mut dropped) = (0, 0);
        while dropped < bytes
            && let Some(frame) = backlog.held.pop_newest()
        {
            (frames, dropped) = (frames + 1, dropped + frame.len());
        }
        for at in (from..backlog.pieces.len()).rev() {
            if dropped >= bytes {
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
    pub fn drop_behind_boundary(&mut self, window: &Window, spares: &mut Spares) -> usize {
        let before = self.queued_bytes();
        if before == 0 {
            return 0;
        }
        self.settle(0, window, spares);
        let keep = usize::from(self.until_boundary > 0);
        let backlog = self.backlog.as_mut().expect("bytes are queued, so settling made a backlog");
        while backlog.pieces.len() > keep {
            if let Some(piece) = backlog.pieces.pop_back() {
                backlog.bytes -= piece.len();
                backlog.shared -= piece.shared_len();
            }
        }
        backlog.held.clear();
        backlog.lane = Default::default();
        if backlog.pieces.is_empty() {
            self.clear(spares);
        }
        before - self.queued_bytes()
    }

    /// Makes the queue ready to be offered: held frames follow when nothing stands before them any more.
    /// Answers whether there is anything to send.
    pub fn prepare(&mut self, copy_bytes_max: usize) -> bool {
        // As long as older bytes wait, a newer value may still take the place of a held one.
        if let Some(backlog) = &mut self.backlog
            && backlog.pieces.is_empty()
        {
            backlog.let_go_of_held(copy_bytes_max);
        }
        self.offerable_bytes() > 0
    }

    /// When all that waits is one joined slice: that slice.
    pub fn as_slice<'a>(&'a self, window: &'a Window) -> Option<&'a [u8]> {
        if self.first.is_empty() || self.backlog.is_some() {
            return None;
        }
        match window.get(self.first) {
            Named::Joined(bytes) => Some(bytes),
            Named::Blob { .. } => None,
        }
    }

    /// Appends the front of the queue as slices to `out`, at most `bytes_max` and `parts_max`; answers how many bytes.
    pub fn gather<'a>(
        &'a self,
        window: &'a Window,
        bytes_max: usize,
        parts_max: usize,
        out: &mut Vec<IoSlice<'a>>,
    ) -> usize {
        let mut gathered = Gather { out, parts_left: parts_max, bytes_left: bytes_max };
        if !self.first.is_empty() {
            gathered.range(window, self.first);
        }
        for piece in self.backlog.iter().flat_map(|backlog| &backlog.pieces) {
            if gathered.is_full() {
                break;
            }
            match piece {
                Piece::Range(range) => gathered.range(window, *range),
                Piece::Owned { bytes, sent } => gathered.slice(&bytes[*sent..]),
                Piece::Blob { header, payload, .. } => {
                    gathered.slice(header);
                    gathered.slice(payload);
                }
            }
        }
        bytes_max - gathered.bytes_left
    }

    /// Everything that was offered has left: all but the held frames, whose turn is next.
    pub fn sent_all(&mut self, spares: &mut Spares) {
        self.first = Range::default();
        self.until_boundary = 0;
        if let Some(backlog) = &mut self.backlog {
            backlog.pieces.clear();
            (backlog.bytes, backlog.shared) = (0, 0);
            if backlog.held.is_empty() {
                self.clear(spares);
            }
        }
    }

    /// Some bytes have left, others not: they are copied out of the window. `full` tells that the socket took no more.
    pub fn sent_some(&mut self, count: usize, full: bool, window: &Window, spares: &mut Spares) {
        self.settle(count, window, spares);
        if let Some(backlog) = &mut self.backlog {
            backlog.blocked = full;
            backlog.pinned = 0;
        }
    }

    /// What waits now may be referred to by what follows: none of it is dropped unless all that follows is. To be said
    /// whenever the socket turns out to be full.
    pub fn pin(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.pinned = backlog.pieces.len();
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self, spares: &mut Spares) {
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
        if !self.first.is_empty() {
            backlog.bytes += self.first.len();
            backlog.pieces.push_front(Piece::Range(std::mem::take(&mut self.first)));
        }
        let boundary = backlog.consume(count, self.until_boundary as usize, window);
        self.until_boundary = u32::try_from(boundary).expect("frames are bounded far below 4 GiB");
        if backlog.pieces.is_empty() && backlog.held.is_empty() && backlog.lane.iter().all(Option::is_none) {
            return self.clear(spares);
        }
        backlog.own(window);
        backlog.split_front(boundary);
    }
}

impl Backlog {
    fn push_frame(&mut self, frame: &FrameParts, copy_bytes_max: usize) {
        let header = frame.header.as_slice();
        self.bytes += frame.len();
        if frame.payload.len() > copy_bytes_max {
            self.shared += frame.payload.len();
            let (payload, charge) = (frame.payload.clone(), frame.charge.clone());
            self.pieces.push_back(Piece::Blob { header: header.into(), payload, charge });
            return;
        }
        // The first piece may be the rest of a frame in progress, which stays alone.
        let joins = self.pieces.len() > self.pinned.max(1)
            && matches!(self.pieces.back(), Some(Piece::Owned { bytes, .. }) if bytes.len() < OWNED_PIECE_BYTES);
        if !joins {
            self.pieces.push_back(Piece::Owned { bytes: Vec::with_capacity(frame.len()), sent: 0 });
        }
        if let Some(Piece::Owned { bytes, .. }) = self.pieces.back_mut() {
            bytes.extend_from_slice(header);
            bytes.extend_from_slice(&frame.payload);
        }
    }

    /// Held frames join the queue: nothing stands before them any more, or a frame without a key follows them.
    fn let_go_of_held(&mut self, copy_bytes_max: usize) {
        while let Some(frame) = self.held.pop() {
            self.push_frame(&frame, copy_bytes_max);
        }
    }

    /// Removes `count` bytes at the front. Answers how many bytes now stand before the next boundary.
    fn consume(&mut self, mut count: usize, mut boundary: usize, window: &Window) -> usize {
        while let Some(piece) = self.pieces.front_mut()
            && count > 0
        {
            let len = piece.len();
            let gone = len.min(count);
            let mut walked = boundary;
            while walked < gone {
                walked += piece.frame_len(walked, window);
            }
            boundary = walked - gone;
            count -= gone;
            self.bytes -= gone;
            self.shared -= piece.shared_len();
            if gone == len {
                self.pieces.pop_front();
            } else {
                piece.advance(gone);
                self.shared += piece.shared_len();
            }
        }
        boundary
    }

    /// Copies ranges out of the window, joined; blobs become references of our own.
    fn own(&mut self, window: &Window) {
        if !self.pieces.iter().any(|piece| matches!(piece, Piece::Range(_))) {
            return;
        }
        let mut owned = VecDeque::with_capacity(self.pieces.len());
        for piece in self.pieces.drain(..) {
            let Piece::Range(range) = piece else {
                owned.push_back(piece);
                continue;
            };
            match window.get(range) {
                Named::Joined(from) => match owned.back_mut() {
                    Some(Piece::Owned { bytes, .. }) if bytes.len() < OWNED_PIECE_BYTES => {
                        bytes.extend_from_slice(from)
                    }
                    _ => owned.push_back(Piece::Owned { bytes: from.to_vec(), sent: 0 }),
                },
                Named::Blob { header, blob, skip, len, charge } => {
                    self.shared += len;
                    let (payload, charge) = (blob.slice(skip..skip + len), charge.clone());
                    owned.push_back(Piece::Blob { header: header.into(), payload, charge });
                }
            }
        }
        self.pieces = owned;
    }

    /// Makes the first `boundary` bytes a piece of their own.
    fn split_front(&mut self, boundary: usize) {
        if boundary == 0 {
            return;
        }
        if let Some(Piece::Owned { bytes, sent }) = self.pieces.front_mut()
            && bytes.len() - *sent > boundary
        {
            let front = bytes[*sent..*sent + boundary].to_vec();
            *sent += boundary;
            self.pieces.push_front(Piece::Owned { bytes: front, sent: 0 });
        }
    }

    /// Drops data frames of piece `at`, the last one first, until `bytes` are gone or none is left. Answers how many
    /// frames and bytes went.
    fn drop_from_end(&mut self, at: usize, bytes: usize, window: &Window) -> (usize, usize) {
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
        self.bytes -= dropped;
        if kept_from == 0 && control.is_empty() {
            self.shared -= piece.shared_len();
            self.pieces.remove(at);
        } else if let Piece::Owned { bytes, sent } = &mut self.pieces[at] {
            let control: Vec<u8> =
                control.into_iter().rev().flat_map(|f| bytes[*sent + f.start..*sent + f.end].to_vec()).collect();
            bytes.truncate(*sent + kept_from);
            bytes.extend_from_slice(&control);
        }
        (frames, dropped)
    }

    /// Drops the data frame at the front of piece `at`, or steps over a control frame there. Answers its length, or
    /// `None` when piece `at` is now a control frame alone.
    fn drop_frame(&mut self, at: usize, window: &Window) -> Option<usize> {
        let len = self.pieces[at].frame_len(0, window);
        let is_whole = self.pieces[at].len() == len;
        if self.pieces[at].is_control(0) {
            if !is_whole && let Piece::Owned { bytes, sent } = &mut self.pieces[at] {
                let frame = bytes[*sent..*sent + len].to_vec();
                *sent += len;
                self.pieces.insert(at, Piece::Owned { bytes: frame, sent: 0 });
            }
            return None;
        }
        self.bytes -= len;
        if is_whole {
            self.shared -= self.pieces[at].shared_len();
            self.pieces.remove(at);
        } else {
            self.pieces[at].advance(len);
        }
        Some(len)
    }
}

struct Gather<'a, 'b> {
    out: &'b mut Vec<IoSlice<'a>>,
    parts_left: usize,
    bytes_left: usize,
}

impl<'a> Gather<'a, '_> {
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
            Named::Joined(bytes) => self.slice(bytes),
            Named::Blob { header, blob, skip, len, .. } => {
                self.slice(header);
                self.slice(&blob[skip..skip + len]);
            }
        }
    }
}

#[cfg(test)]
#[path = "outbound_tests.rs"]
mod tests;
