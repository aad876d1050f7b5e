//! The parts of a queue that its socket did not take: ranges of the window, chunks of the connection's own, and
//! payloads by reference.
//!
//! Invariants: the totals are the sums over the pieces, and what is held is counted as it was allocated; a chunk never
//! grows beyond its allocation, so appending moves nothing; a frame is within one piece; a chunk knows how many data
//! frames it has, or counts them once, so that chunks of small frames are dropped in one step each.

use crate::proto::server_frame_len;
use crate::shard::memory::SharedCharge;
use crate::shard::out::frame::is_control;
use crate::shard::out::window::{Range, RangeBytes, Window};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::ops::Index;

/// The allocation for small frames: at most so many bytes beyond those needed wait for nothing.
const CHUNK_BYTES: usize = 4 * 1024;

/// A frame above this gets a chunk of its own size, so that a chunk is never more than a quarter empty.
const SHARES_CHUNK_BYTES_MAX: usize = CHUNK_BYTES / 4;

/// Places that are added at a time, or an eighth of those there are.
const PLACES_MIN: usize = 8;

pub(super) enum OutboundPiece {
    Range(Range),
    Chunk {
        bytes: Vec<u8>,
        sent: usize,
        /// Where they were counted. Only of chunks that begin with a frame.
        data: Option<DataFrames>,
    },
    Blob {
        header: SmallVec<[u8; 10]>,
        payload: Bytes,
        #[expect(dead_code, reason = "let go of together with the payload")]
        charge: SharedCharge,
    },
}

/// The data frames of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DataFrames {
    pub frames: usize,
    pub bytes: usize,
}

impl DataFrames {
    /// Those of whole frames.
    fn of(mut frames: &[u8]) -> Self {
        let mut data = Self::default();
        while !frames.is_empty() {
            let (frame, rest) = frames.split_at(first_len(frames));
            data.add(frame[0], frame.len());
            frames = rest;
        }
        data
    }

    fn add(&mut self, first_byte: u8, len: usize) {
        if !is_control(first_byte) {
            self.frames += 1;
            self.bytes += len;
        }
    }
}

impl OutboundPiece {
    /// Exactly these bytes.
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self::Chunk { bytes: bytes.to_vec(), sent: 0, data: None }
    }

    /// For frames of `len` bytes, or the only one.
    fn empty_chunk(len: usize) -> Self {
        Self::Chunk { bytes: Vec::with_capacity(chunk_bytes(len)), sent: 0, data: Some(DataFrames::default()) }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::Chunk { bytes, sent, .. } => bytes.len() - sent,
            Self::Blob { header, payload, .. } => header.len() + payload.len(),
        }
    }

    /// Its own memory.
    fn chunk_len(&self) -> usize {
        if let Self::Chunk { bytes, .. } = self { bytes.capacity() } else { 0 }
    }

    /// Returns whether the frame that starts `at` bytes into this piece is a control frame. Not for ranges.
    pub(super) fn is_control(&self, at: usize) -> bool {
        is_control(match self {
            Self::Chunk { bytes, sent, .. } => bytes[sent + at],
            Self::Blob { header, .. } => header[at],
            Self::Range(_) => unreachable!("a blocked queue holds no ranges"),
        })
    }

    /// The length of the frame that starts `at` bytes into this piece.
    pub(super) fn frame_len(&self, at: usize, window: &Window) -> usize {
        let joined = match self {
            Self::Blob { .. } => return self.len() - at,
            Self::Chunk { bytes, sent, .. } => &bytes[sent + at..],
            Self::Range(range) => match window.get(range.split_at(at).1) {
                RangeBytes::Joined(bytes) => bytes,
                RangeBytes::Blob { header, len, .. } => return header.len() + len,
            },
        };
        server_frame_len(joined).expect("whole frames of our own making stand behind a boundary")
    }

    fn known_data(&self) -> Option<DataFrames> {
        if let Self::Chunk { data, .. } = self { *data } else { None }
    }

    /// Returns whether its data frames are known without going through them.
    #[cfg(test)]
    pub(super) fn is_counted(&self) -> bool {
        matches!(self, Self::Blob { .. } | Self::Chunk { data: Some(_), .. })
    }

    /// The data frames of a piece that begins with a frame. Not for ranges.
    fn data(&mut self) -> DataFrames {
        match self {
            Self::Chunk { bytes, sent, data } => *data.get_or_insert_with(|| DataFrames::of(&bytes[*sent..])),
            Self::Blob { header, payload, .. } => {
                let mut data = DataFrames::default();
                data.add(header[0], header.len() + payload.len());
                data
            }
            Self::Range(_) => unreachable!("a blocked queue holds no ranges"),
        }
    }

    fn has_room(&self, len: usize) -> bool {
        matches!(self, Self::Chunk { bytes, .. } if bytes.capacity() - bytes.len() >= len)
    }

    /// Forgets the first `count` bytes; fewer than its length. A chunk is moved once half of it has left, so what it
    /// holds is in proportion to what waits.
    fn advance(&mut self, count: usize) {
        match self {
            Self::Range(range) => *range = range.split_at(count).1,
            Self::Chunk { bytes, sent, data } => {
                (*sent, *data) = (*sent + count, None);
                if *sent >= CHUNK_BYTES && *sent >= bytes.len() / 2 {
                    bytes.drain(..std::mem::take(sent));
                    bytes.shrink_to_fit();
                }
            }
            Self::Blob { header, payload, .. } => {
                let of_header = count.min(header.len());
                header.drain(..of_header);
                *payload = payload.slice(count - of_header..);
            }
        }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Pieces {
    pieces: VecDeque<OutboundPiece>,
    bytes: usize,
    chunk_bytes: usize,
}

impl Index<usize> for Pieces {
    type Output = OutboundPiece;

    fn index(&self, at: usize) -> &OutboundPiece {
        &self.pieces[at]
    }
}

impl Pieces {
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The places that are allocated.
    pub(super) fn capacity(&self) -> usize {
        self.pieces.capacity()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &OutboundPiece> {
        self.pieces.iter()
    }

    /// The bytes of all pieces.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes allocated for them alone: no ranges, no payloads by reference.
    pub(super) fn heap_bytes(&self) -> usize {
        self.chunk_bytes + self.capacity() * size_of::<OutboundPiece>()
    }

    /// The heap bytes that [`append`](Self::append) would add for so many bytes, where `joins` allows joining them.
    pub(super) fn growth(&self, len: usize, joins: bool) -> usize {
        let joins = joins && self.pieces.back().is_some_and(|piece| piece.has_room(len));
        if joins { 0 } else { chunk_bytes(len) + self.places_growth() }
    }

    /// The same for a payload by reference.
    pub(super) fn places_growth(&self) -> usize {
        let is_full = self.pieces.len() == self.pieces.capacity();
        if is_full { self.more_places() * size_of::<OutboundPiece>() } else { 0 }
    }

    fn more_places(&self) -> usize {
        (self.pieces.len() / 8).max(PLACES_MIN)
    }

    fn enter(&mut self, piece: &OutboundPiece) {
        self.bytes += piece.len();
        self.chunk_bytes += piece.chunk_len();
        if self.pieces.len() == self.pieces.capacity() {
            self.pieces.reserve_exact(self.more_places());
        }
    }

    fn leave(&mut self, piece: &OutboundPiece) {
        self.bytes -= piece.len();
        self.chunk_bytes -= piece.chunk_len();
    }

    pub(super) fn push_back(&mut self, piece: OutboundPiece) {
        self.enter(&piece);
        self.pieces.push_back(piece);
    }

    pub(super) fn insert(&mut self, at: usize, piece: OutboundPiece) {
        self.enter(&piece);
        self.pieces.insert(at, piece);
    }

    pub(super) fn remove(&mut self, at: usize) {
        if let Some(piece) = self.pieces.remove(at) {
            self.leave(&piece);
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        while self.pieces.len() > len {
            self.remove(self.pieces.len() - 1);
        }
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        (self.bytes, self.chunk_bytes) = (0, 0);
    }

    /// Appends a range of the window.
    pub(super) fn push_range(&mut self, range: Range) {
        if let Some(OutboundPiece::Range(last)) = self.pieces.back_mut()
            && last.try_extend(range)
        {
            self.bytes += range.len();
            return;
        }
        self.push_back(OutboundPiece::Range(range));
    }

    /// Appends a copy of `parts`, which are one frame together: to the last chunk if it has room and `joins` allows it,
    /// else to a new one.
    pub(super) fn append(&mut self, parts: &[&[u8]], joins: bool) {
        let len = parts.iter().map(|part| part.len()).sum();
        let joins = joins && self.pieces.back().is_some_and(|piece| piece.has_room(len));
        if !joins {
            self.push_back(OutboundPiece::empty_chunk(len));
        }
        self.append_at(self.pieces.len() - 1, parts);
    }

    /// Appends whole frames, as many of them in a chunk as it holds.
    pub(super) fn append_frames(&mut self, frames: &[u8], joins: bool) {
        if frames.len() > SHARES_CHUNK_BYTES_MAX {
            return self.push_frames(frames);
        }
        let (mut rest, mut joins) = (frames, joins);
        while !rest.is_empty() {
            let frame;
            (frame, rest) = rest.split_at(first_len(rest));
            self.append(&[frame], joins);
            joins = true;
        }
    }

    /// The data frames of the piece at `at`, which begins with a frame.
    pub(super) fn data_of(&mut self, at: usize) -> DataFrames {
        self.pieces[at].data()
    }

    /// Appends one frame to the chunk at `at`, which has room; returns whether it had.
    pub(super) fn append_at(&mut self, at: usize, parts: &[&[u8]]) -> bool {
        let len = parts.iter().map(|part| part.len()).sum();
        let has_room = self.pieces[at].has_room(len);
        if has_room && let OutboundPiece::Chunk { bytes, data, .. } = &mut self.pieces[at] {
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            if let (Some(data), Some(first)) = (data, parts.iter().find_map(|part| part.first())) {
                data.add(*first, len);
            }
            self.bytes += len;
        }
        has_room
    }

    /// A new chunk at `at` that begins with `part`, with room for others like it.
    pub(super) fn insert_chunk(&mut self, at: usize, part: &[u8]) {
        self.insert(at, OutboundPiece::empty_chunk(part.len()));
        self.append_at(at, &[part]);
    }

    /// Forgets the first `count` bytes of piece `at`; all of it, if it is no longer.
    pub(super) fn advance(&mut self, at: usize, count: usize) {
        let piece = &mut self.pieces[at];
        if count >= piece.len() {
            return self.remove(at);
        }
        let chunk = piece.chunk_len();
        piece.advance(count);
        self.bytes -= count;
        self.chunk_bytes -= chunk - piece.chunk_len();
    }

    /// The same where these are whole frames, `gone` of which are data: those of the rest stay counted, so that going
    /// on frame by frame costs each frame once.
    pub(super) fn advance_frames(&mut self, at: usize, count: usize, gone: DataFrames) {
        let known = self.pieces[at].known_data().filter(|_| count < self.pieces[at].len());
        self.advance(at, count);
        if let Some(known) = known
            && let OutboundPiece::Chunk { data, .. } = &mut self.pieces[at]
        {
            *data = Some(DataFrames { frames: known.frames - gone.frames, bytes: known.bytes - gone.bytes });
        }
    }

    /// Keeps the first `kept` bytes of the chunk at `at`, and what lies at `others` behind them, in order.
    pub(super) fn keep(&mut self, at: usize, kept: usize, others: impl Iterator<Item = std::ops::Range<usize>>) {
        let piece = &mut self.pieces[at];
        let (len, chunk) = (piece.len(), piece.chunk_len());
        if let OutboundPiece::Chunk { bytes, sent, data } = piece {
            *data = None;
            let mut end = *sent + kept;
            for other in others {
                bytes.copy_within(*sent + other.start..*sent + other.end, end);
                end += other.len();
            }
            bytes.truncate(end);
            if bytes.capacity() - end >= CHUNK_BYTES {
                bytes.shrink_to_fit();
            }
        }
        self.bytes -= len - piece.len();
        self.chunk_bytes -= chunk - piece.chunk_len();
    }

    /// Copies ranges out of the window; large payloads become references of our own. The first `boundary` bytes, which
    /// are no whole frames, come to lie apart; behind them frames lie in chunks of one size, so that what one queue
    /// lets go of is of use to the next.
    pub(super) fn own(&mut self, window: &Window, mut boundary: usize) {
        for piece in std::mem::take(self).pieces {
            let apart = boundary.min(piece.len());
            boundary -= apart;
            match piece {
                OutboundPiece::Range(range) => self.own_range(window, range, apart),
                OutboundPiece::Chunk { bytes, sent, .. } if apart > 0 && bytes.len() - sent > apart => {
                    self.push_apart(&bytes[sent..sent + apart]);
                    let mut rest = OutboundPiece::Chunk { bytes, sent, data: None };
                    rest.advance(apart);
                    self.push_back(rest);
                }
                piece => self.push_back(piece),
            }
        }
    }

    fn own_range(&mut self, window: &Window, range: Range, mut apart: usize) {
        window.each_to_own(range, |part| match part {
            RangeBytes::Joined(from) => {
                let (first, frames) = from.split_at(apart.min(from.len()));
                apart -= first.len();
                self.push_apart(first);
                self.push_frames(frames);
            }
            RangeBytes::Blob { header, blob, skip, len, charge } => {
                apart = apart.saturating_sub(header.len() + len);
                let (payload, charge) = (blob.slice(skip..skip + len), charge.clone());
                self.push_back(OutboundPiece::Blob { header: header.into(), payload, charge });
            }
        });
    }

    fn push_apart(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.push_back(OutboundPiece::of(bytes));
        }
    }

    /// Appends a copy of whole frames, as many of them in a chunk as it holds.
    fn push_frames(&mut self, mut frames: &[u8]) {
        while !frames.is_empty() {
            let mut len = first_len(frames);
            let mut data = DataFrames::default();
            data.add(frames[0], len);
            while len < frames.len() {
                let next = first_len(&frames[len..]);
                if len + next > CHUNK_BYTES {
                    break;
                }
                data.add(frames[len], next);
                len += next;
            }
            let (chunk, rest) = frames.split_at(len);
            // A nearly full one has the size of all others.
            let is_nearly_full = (CHUNK_BYTES - SHARES_CHUNK_BYTES_MAX..=CHUNK_BYTES).contains(&len);
            let mut bytes = Vec::with_capacity(if is_nearly_full { CHUNK_BYTES } else { len });
            bytes.extend_from_slice(chunk);
            self.push_back(OutboundPiece::Chunk { bytes, sent: 0, data: Some(data) });
            frames = rest;
        }
    }

    /// Asserts what the module promises.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let sum = |of: fn(&OutboundPiece) -> usize| self.pieces.iter().map(of).sum::<usize>();
        assert_eq!(self.bytes, sum(OutboundPiece::len));
        assert_eq!(self.chunk_bytes, sum(OutboundPiece::chunk_len));
        for piece in &self.pieces {
            if let OutboundPiece::Chunk { bytes, sent, data: Some(data) } = piece {
                assert_eq!(*data, DataFrames::of(&bytes[*sent..]));
            }
        }
    }
}

/// The length of the first of these frames.
fn first_len(frames: &[u8]) -> usize {
    server_frame_len(frames).unwrap_or(frames.len())
}

/// The allocation for a frame of `len` bytes that fits no chunk.
fn chunk_bytes(len: usize) -> usize {
    if len > SHARES_CHUNK_BYTES_MAX { len } else { CHUNK_BYTES }
}
