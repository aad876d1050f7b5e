//! The bytes that wait for their first send: a window of append-only segments, shared by all channels of the shard.
//!
//! A frame is written here once per push; channels hold [`Range`]s of it. Ranges that touch grow into one, so what
//! waits for a channel usually leaves as one slice, and channels for which the same frames wait send the same slice.
//!
//! Invariants: bytes never move or change while a range can name them; a frame never crosses segments; segments leave
//! at the front only ([`Window::release_before`]), which the shard calls once every channel has been offered them. Does
//! not depend on channels.

use super::kept::KeptFrames;
pub(super) use super::range::{Range, RangeBytes};
use crate::proto::ServerHeader;
use crate::shard::memory::SharedCharge;
use bytes::Bytes;
use std::collections::VecDeque;

/// The size of a segment of joined frames. Large enough that merging is seldom cut short, small enough to stay in the
/// second-level cache while a broadcast walks over the channels.
const SEGMENT_BYTES: usize = 64 * 1024;

/// How many spent segments are kept for reuse: what a busy turn fills between two releases.
const SPARE_SEGMENTS_MAX: usize = 16;

enum WindowSegment {
    Joined(JoinedFrames),
    Blob { header: Option<ServerHeader>, blob: Bytes, charge: SharedCharge },
}

/// Frames side by side.
#[derive(Default)]
struct JoinedFrames {
    bytes: Vec<u8>,
    /// The large ones of them, in order.
    large: Vec<LargeFrame>,
}

/// A frame that was copied, since one copy serves all sockets that take it at once; a queue that falls behind in it
/// keeps its payload by reference, so that it is not copied for each of them.
struct LargeFrame {
    start: usize,
    payload_start: usize,
    payload: Bytes,
    charge: SharedCharge,
}

impl LargeFrame {
    fn end(&self) -> usize {
        self.payload_start + self.payload.len()
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Window {
    segments: VecDeque<WindowSegment>,
    /// The number of the front segment.
    front: u32,
    /// All bytes of all segments in the window.
    bytes: usize,
    /// The heap bytes of its segments.
    heap_bytes: usize,
    spare: Vec<Vec<u8>>,
    /// Frames that channels which outlive their connections may need again.
    pub kept: KeptFrames,
}

impl Window {
    /// All bytes that wait here.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.kept.waiting_bytes()
    }

    /// The heap bytes of the frames copied here.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.heap_bytes
    }

    /// The first segment in which a later frame may come to lie.
    pub(crate) fn tail(&self) -> u32 {
        self.end().wrapping_sub(u32::from(!self.segments.is_empty()))
    }

    /// Returns whether an earlier range is still there, and in the segment in which a later frame may be placed. A kept
    /// range is, if it is there at all.
    pub(crate) fn is_at_end(&self, range: Range) -> bool {
        if range.is_kept() { self.kept.has(range) } else { !self.segments.is_empty() && range.segment == self.tail() }
    }

    /// The number that the next new segment gets.
    fn end(&self) -> u32 {
        self.front.wrapping_add(self.segments.len() as u32)
    }

    /// Appends header and payload as joined bytes: one copy, whatever the number of channels that will send them.
    pub(crate) fn append_joined(&mut self, header: &[u8], payload: &[u8]) -> Range {
        let len = header.len() + payload.len();
        let bytes = &mut self.segment_with_room(len).bytes;
        let start = bytes.len();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(payload);
        self.bytes += len;
        Range { segment: self.end().wrapping_sub(1), start: start as u32, end: (start + len) as u32 }
    }

    /// The same for one frame. All bytes that a header may have cost less to move than as many as this one has.
    #[inline]
    pub(crate) fn append_frame(&mut self, header: &ServerHeader, payload: &[u8]) -> Range {
        let padded = header.padded();
        let bytes = &mut self.segment_with_room(padded.len() + payload.len()).bytes;
        let start = bytes.len();
        bytes.extend_from_slice(padded);
        bytes.truncate(start + header.as_slice().len());
        bytes.extend_from_slice(payload);
        let end = bytes.len();
        self.bytes += end - start;
        Range { segment: self.end().wrapping_sub(1), start: start as u32, end: end as u32 }
    }

    /// As [`append_joined`](Self::append_joined); a queue that falls behind in this frame keeps `payload` by reference.
    pub(crate) fn append_large(&mut self, header: &ServerHeader, payload: &Bytes, charge: &SharedCharge) -> Range {
        let range = self.append_joined(header.as_slice(), payload);
        if let Some(WindowSegment::Joined(joined)) = self.segments.back_mut() {
            let (start, payload, charge) = (range.start as usize, payload.clone(), charge.clone());
            joined.large.push(LargeFrame { start, payload_start: start + header.as_slice().len(), payload, charge });
        }
        range
    }

    /// Gives the bytes of a range in order, as they are to be kept beyond the window: what is joined is to be copied.
    pub(crate) fn each_to_own<'a>(&'a self, range: Range, mut each: impl FnMut(RangeBytes<'a>)) {
        let place = range.segment.wrapping_sub(self.front) as usize;
        let joined = match self.segments.get(place) {
            Some(WindowSegment::Joined(joined)) if !range.is_kept() && !joined.large.is_empty() => joined,
            _ => return each(self.get(range)),
        };
        let (mut at, end) = (range.start as usize, range.end as usize);
        let first = joined.large.partition_point(|large| large.end() <= at);
        for large in joined.large[first..].iter().take_while(|large| large.start < end) {
            if at < large.start {
                each(RangeBytes::Joined(&joined.bytes[at..large.start]));
            }
            let from = at.max(large.start);
            let until = end.min(large.end());
            let header = &joined.bytes[from.min(large.payload_start)..until.min(large.payload_start)];
            let skip = from.saturating_sub(large.payload_start);
            let len = until.saturating_sub(large.payload_start) - skip;
            each(RangeBytes::Blob { header, blob: &large.payload, skip, len, charge: &large.charge });
            at = until;
        }
        if at < end {
            each(RangeBytes::Joined(&joined.bytes[at..end]));
        }
    }

    /// Appends a blob that is not copied, behind a header if it is a frame.
    pub(crate) fn append_blob(&mut self, header: Option<ServerHeader>, blob: Bytes, charge: SharedCharge) -> Range {
        let len = slice_of(&header).len() + blob.len();
        let segment = self.end();
        self.bytes += len;
        self.segments.push_back(WindowSegment::Blob { header, blob, charge });
        Range { segment, start: 0, end: u32::try_from(len).expect("payloads are bounded far below 4 GiB") }
    }

    /// The bytes of a range.
    ///
    /// # Panics
    /// It was kept, and is gone: callers that may have such a range ask [`KeptFrames::get`].
    #[inline]
    pub(crate) fn get(&self, range: Range) -> RangeBytes<'_> {
        if range.is_kept() {
            return self.kept.get(range).expect("what waits for its first send is kept");
        }
        let (start, end) = (range.start as usize, range.end as usize);
        match &self.segments[range.segment.wrapping_sub(self.front) as usize] {
            WindowSegment::Joined(joined) => RangeBytes::Joined(&joined.bytes[start..end]),
            WindowSegment::Blob { header, blob, charge } => {
                let header = slice_of(header);
                let skip = start.saturating_sub(header.len());
                let len = end.saturating_sub(header.len()) - skip;
                let header = &header[start.min(header.len())..end.min(header.len())];
                RangeBytes::Blob { header, blob, skip, len, charge }
            }
        }
    }

    /// Lets go of every segment before `segment`.
    pub(crate) fn release_before(&mut self, segment: u32) {
        while self.front != segment && !self.segments.is_empty() {
            self.front = self.front.wrapping_add(1);
            match self.segments.pop_front().expect("it is not empty") {
                WindowSegment::Joined(JoinedFrames { bytes, .. }) => {
                    self.bytes -= bytes.len();
                    self.heap_bytes -= bytes.capacity();
                    self.keep_spare(bytes);
                }
                WindowSegment::Blob { header, blob, .. } => {
                    self.bytes -= slice_of(&header).len() + blob.len();
                }
            }
        }
    }

    /// Lets go of everything.
    pub(crate) fn release_all(&mut self) {
        self.kept.all_sent();
        if self.bytes > 0 {
            self.release_before(self.end());
        }
    }

    fn keep_spare(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() == SEGMENT_BYTES && self.spare.len() < SPARE_SEGMENTS_MAX {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// The last segment when `len` more bytes fit without moving it, else a new one.
    #[inline]
    fn segment_with_room(&mut self, len: usize) -> &mut JoinedFrames {
        let has_room = |joined: &JoinedFrames| joined.bytes.capacity() - joined.bytes.len() >= len;
        let fits = matches!(self.segments.back(), Some(WindowSegment::Joined(joined)) if has_room(joined));
        if !fits {
            self.add_segment(len);
        }
        match self.segments.back_mut() {
            Some(WindowSegment::Joined(joined)) => joined,
            _ => unreachable!("a joined segment was just pushed"),
        }
    }

    #[cold]
    fn add_segment(&mut self, len: usize) {
        let spare = if len <= SEGMENT_BYTES { self.spare.pop() } else { None };
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(len.max(SEGMENT_BYTES)));
        self.heap_bytes += bytes.capacity();
        self.segments.push_back(WindowSegment::Joined(JoinedFrames { bytes, large: Vec::new() }));
    }
}

fn slice_of(header: &Option<ServerHeader>) -> &[u8] {
    header.as_ref().map_or(&[], ServerHeader::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Opcode, server_header};

    fn bytes_of(window: &Window, range: Range) -> Vec<u8> {
        match window.get(range) {
            RangeBytes::Joined(bytes) => bytes.to_vec(),
            RangeBytes::Blob { header, blob, skip, len, .. } => [header, &blob[skip..skip + len]].concat(),
        }
    }

    #[test]
    fn neighbours_grow_into_one_range_and_strangers_do_not() {
        let mut window = Window::default();
        let mut first = window.append_joined(b"ab", b"cd");
        let second = window.append_joined(b"", b"ef");
        let third = window.append_joined(b"", b"gh");
        assert!(!{ first }.try_extend(third));
        assert!(first.try_extend(second) && first.try_extend(third));
        assert_eq!(bytes_of(&window, first), b"abcdefgh");
        let (head, rest) = first.split_at(3);
        assert_eq!((bytes_of(&window, head), bytes_of(&window, rest)), (b"abc".to_vec(), b"defgh".to_vec()));
    }

    #[test]
    fn a_frame_never_crosses_segments_and_release_keeps_later_ones() {
        let mut window = Window::default();
        let big = vec![7; SEGMENT_BYTES - 10];
        let first = window.append_joined(b"", &big);
        let second = window.append_joined(b"", &[8; 20]);
        assert_ne!(first.segment, second.segment);
        window.release_before(second.segment);
        assert_eq!(window.bytes(), 20);
        assert_eq!(bytes_of(&window, second), vec![8; 20]);
        window.release_all();
        assert_eq!(window.bytes(), 0);
    }

    #[test]
    fn who_falls_behind_in_a_large_frame_keeps_its_payload_by_reference() {
        let mut window = Window::default();
        let payloads = [5_000, 20, 6_000, 7_000].map(|len| Bytes::from(vec![len as u8; len]));
        let mut range = window.append_joined(b"ab", b"cd");
        for payload in &payloads {
            let header = server_header(Opcode::Binary, false, payload.len());
            let next = match payload.len() {
                ..=20 => window.append_joined(header.as_slice(), payload),
                _ => window.append_large(&header, payload, &SharedCharge::default()),
            };
            assert!(range.try_extend(next));
        }
        let whole = bytes_of(&window, range);
        for cut in (0..whole.len()).step_by(7) {
            let (mut all, mut copied) = (Vec::new(), 0);
            window.each_to_own(range.split_at(cut).1, |part| match part {
                RangeBytes::Joined(bytes) => {
                    copied += bytes.len();
                    all.extend_from_slice(bytes);
                }
                RangeBytes::Blob { header, blob, skip, len, .. } => {
                    assert!(payloads.iter().any(|payload| payload.as_ptr() == blob.as_ptr()));
                    all.extend_from_slice(header);
                    all.extend_from_slice(&blob[skip..skip + len]);
                }
            });
            assert_eq!(all, whole[cut..], "cut at {cut}");
            assert!(copied <= 4 + 22, "{copied} bytes are copied from {cut} on");
        }
        window.release_all();
        assert!(payloads.iter().all(Bytes::is_unique), "the window has let go of them");
    }

    #[test]
    fn a_blob_is_named_by_reference_at_every_cut() {
        let mut window = Window::default();
        let blob = Bytes::from(vec![9; 300]);
        let header = server_header(Opcode::Binary, false, blob.len());
        let whole = [header.as_slice(), &blob].concat();
        let range = window.append_blob(Some(header), blob.clone(), SharedCharge::default());
        for cut in 0..whole.len() {
            let (head, rest) = range.split_at(cut);
            assert_eq!([bytes_of(&window, head), bytes_of(&window, rest)].concat(), whole);
        }
        match window.get(range) {
            RangeBytes::Blob { blob: kept, .. } => assert_eq!(kept.as_ptr(), blob.as_ptr()),
            RangeBytes::Joined(_) => panic!("the blob was copied"),
        }
    }
}
