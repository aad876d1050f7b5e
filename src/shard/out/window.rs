//! The bytes that wait for their first send: a window of append-only segments, shared by all channels of the shard.
//!
//! A frame is written here once per push; channels hold [`Range`]s of it. Ranges that touch grow into one, over the
//! ends of segments too, so what waits for a channel usually leaves as one slice, and channels for which the same
//! frames wait send the same slice.
//!
//! Invariants: bytes never move or change while a range can name them; a frame never crosses segments; segments leave
//! at the front only ([`Window::release_to_many_before`]), which the shard calls once every channel has been offered
//! them. Does not depend on channels.

use super::kept::KeptFrames;
use super::range::KEPT;
pub(super) use super::range::{Range, RangeBytes};
use crate::proto::ServerHeader;
use crate::shard::memory::SharedCharge;
use bytes::Bytes;
use std::collections::VecDeque;

/// With so many bytes waiting for their first send, they go out before more pushes are taken in.
pub(super) const WINDOW_BYTES_MAX: usize = 1024 * 1024;

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

impl WindowSegment {
    fn len(&self) -> usize {
        match self {
            Self::Joined(joined) => joined.bytes.len(),
            Self::Blob { header, blob, .. } => slice_of(header).len() + blob.len(),
        }
    }
}

/// For whom frames are: those of broadcasts lie side by side though pushes to single channels come between them, so
/// that what waits for an audience stays one range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cast {
    /// One connection, which is sent them with the next batch.
    One,
    /// Many, to which several batches may go.
    Many,
}

impl Cast {
    /// Broadcasts know the first segment in which they may lie.
    pub(crate) fn of(since: Option<u32>) -> Self {
        if since.is_some() { Self::Many } else { Self::One }
    }
}

/// Each of the two has every second number.
const NUMBER_STEP: u32 = 2;

/// One of the two runs of segments, in order. Frames are appended to the last one, or to a new one behind it.
struct Segments {
    run: VecDeque<WindowSegment>,
    /// The number of the front segment.
    front: u32,
}

impl Segments {
    fn new(front: u32) -> Self {
        Self { run: VecDeque::new(), front }
    }

    fn place(&self, number: u32) -> usize {
        (number.wrapping_sub(self.front) / NUMBER_STEP) as usize
    }

    /// The number that the next new segment gets.
    fn end(&self) -> u32 {
        self.front.wrapping_add(self.run.len() as u32 * NUMBER_STEP)
    }

    /// The number of the last segment; that of the next, if there is none.
    fn tail(&self) -> u32 {
        self.end().wrapping_sub(if self.run.is_empty() { 0 } else { NUMBER_STEP })
    }
}

/// See the module.
pub(crate) struct Window {
    to_one: Segments,
    to_many: Segments,
    /// All bytes of all segments in the window.
    bytes: usize,
    /// The heap bytes of its segments.
    heap_bytes: usize,
    spare: Vec<Vec<u8>>,
    /// Frames that channels which outlive their connections may need again.
    pub kept: KeptFrames,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            to_one: Segments::new(0),
            to_many: Segments::new(1),
            bytes: 0,
            heap_bytes: 0,
            spare: Vec::new(),
            kept: KeptFrames::default(),
        }
    }
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

    /// The first segment in which a later frame for many may come to lie.
    pub(crate) fn tail(&self) -> u32 {
        self.to_many.tail()
    }

    /// Returns whether an earlier range for many is still there, and in the segment in which a later frame may be
    /// placed. A kept range is, if it is there at all.
    pub(crate) fn is_at_end(&self, range: Range) -> bool {
        let is_last = !self.to_many.run.is_empty() && range.segment == self.tail();
        if range.is_kept() { self.kept.has(range) } else { is_last }
    }

    fn segments(&self, cast: Cast) -> &Segments {
        match cast {
            Cast::One => &self.to_one,
            Cast::Many => &self.to_many,
        }
    }

    fn segments_mut(&mut self, cast: Cast) -> &mut Segments {
        match cast {
            Cast::One => &mut self.to_one,
            Cast::Many => &mut self.to_many,
        }
    }

    #[inline]
    fn segment(&self, number: u32) -> Option<&WindowSegment> {
        let segments = if number.is_multiple_of(NUMBER_STEP) { &self.to_one } else { &self.to_many };
        segments.run.get(segments.place(number))
    }

    /// Appends header and payload as joined bytes: one copy, whatever the number of channels that will send them.
    pub(crate) fn append_joined(&mut self, cast: Cast, header: &[u8], payload: &[u8]) -> Range {
        let len = header.len() + payload.len();
        let bytes = &mut self.segment_with_room(cast, len).bytes;
        let start = bytes.len();
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(payload);
        self.bytes += len;
        Range { segment: self.segments(cast).tail(), start: start as u32, end: (start + len) as u32 }
    }

    /// The same for one frame to one channel. All bytes that a header may have cost less to move than as many as this
    /// one has.
    #[inline]
    pub(crate) fn append_frame(&mut self, header: &ServerHeader, payload: &[u8]) -> Range {
        let padded = header.padded();
        let bytes = &mut self.segment_with_room(Cast::One, padded.len() + payload.len()).bytes;
        let start = bytes.len();
        bytes.extend_from_slice(padded);
        bytes.truncate(start + header.as_slice().len());
        bytes.extend_from_slice(payload);
        let end = bytes.len();
        self.bytes += end - start;
        Range { segment: self.to_one.tail(), start: start as u32, end: end as u32 }
    }

    /// As [`append_joined`](Self::append_joined); a queue that falls behind in this frame keeps `payload` by reference.
    pub(crate) fn append_large(
        &mut self,
        cast: Cast,
        header: &ServerHeader,
        payload: &Bytes,
        charge: &SharedCharge,
    ) -> Range {
        let range = self.append_joined(cast, header.as_slice(), payload);
        if let Some(WindowSegment::Joined(joined)) = self.segments_mut(cast).run.back_mut() {
            let (start, payload, charge) = (range.start as usize, payload.clone(), charge.clone());
            joined.large.push(LargeFrame { start, payload_start: start + header.as_slice().len(), payload, charge });
        }
        range
    }

    /// Gives the bytes of a range in one segment in order, as they are to be kept beyond the window: what is joined is
    /// to be copied.
    pub(crate) fn each_to_own<'a>(&'a self, range: Range, mut each: impl FnMut(RangeBytes<'a>)) {
        let joined = match self.segment(range.segment) {
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
    pub(crate) fn append_blob(
        &mut self,
        cast: Cast,
        header: Option<ServerHeader>,
        blob: Bytes,
        charge: SharedCharge,
    ) -> Range {
        let len = slice_of(&header).len() + blob.len();
        self.bytes += len;
        let segments = self.segments_mut(cast);
        let segment = segments.end();
        segments.run.push_back(WindowSegment::Blob { header, blob, charge });
        Range { segment, start: 0, end: u32::try_from(len).expect("payloads are bounded far below 4 GiB") }
    }

    /// The bytes of a range in one segment.
    ///
    /// # Panics
    /// It was kept, and is gone: callers that may have such a range ask [`KeptFrames::get`].
    #[inline]
    pub(crate) fn get(&self, range: Range) -> RangeBytes<'_> {
        if range.is_kept() {
            return self.kept.get(range).expect("what waits for its first send is kept");
        }
        let (start, end) = (range.start as usize, range.end as usize);
        match self.segment(range.segment).expect("what waits is not released") {
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

    /// The bytes of a range that lie side by side.
    #[inline]
    pub(crate) fn slice(&self, range: Range) -> Option<&[u8]> {
        if range.is_kept() {
            return self.kept.slice(range);
        }
        match self.segment(range.segment) {
            Some(WindowSegment::Joined(joined)) => joined.bytes.get(range.start as usize..range.end as usize),
            _ => None,
        }
    }

    /// Grows `range` by `next` when that starts where this ends, be it in a later segment of joined frames.
    #[inline]
    pub(crate) fn try_extend(&self, range: &mut Range, next: Range) -> bool {
        range.try_extend(next) || self.try_extend_beyond(range, next)
    }

    /// The same where they are not in one segment: every segment but the last is named to its end.
    #[cold]
    #[inline(never)]
    fn try_extend_beyond(&self, range: &mut Range, next: Range) -> bool {
        if range.is_kept() || next.is_kept() || range.end.saturating_add(next.end) >= KEPT {
            return false;
        }
        let (mut number, mut end) = (range.segment, range.end as usize);
        while number != next.segment {
            match self.segment(number) {
                Some(WindowSegment::Joined(joined)) if end >= joined.bytes.len() => end -= joined.bytes.len(),
                _ => return false,
            }
            number = number.wrapping_add(NUMBER_STEP);
        }
        let is_joined = matches!(self.segment(number), Some(WindowSegment::Joined(_)));
        let touches = is_joined && end == next.start as usize;
        if touches {
            range.end += next.len() as u32;
        }
        touches
    }

    /// The parts of a range in order, each in one segment.
    pub(crate) fn parts(&self, range: Range) -> impl Iterator<Item = Range> {
        let mut rest = range;
        std::iter::from_fn(move || {
            let here = match self.segment(rest.segment).filter(|_| !rest.is_kept()) {
                Some(segment) => rest.len().min(segment.len() - rest.start as usize),
                None => rest.len(),
            };
            let (part, behind) = rest.split_at(here);
            rest = Range { segment: rest.segment.wrapping_add(NUMBER_STEP), start: 0, end: behind.len() as u32 };
            (!part.is_empty()).then_some(part)
        })
    }

    /// Lets go of everything for one.
    pub(crate) fn release_to_one(&mut self) {
        let end = self.to_one.end();
        self.release(Cast::One, end);
    }

    /// Lets go of every segment for many before `number`.
    pub(crate) fn release_to_many_before(&mut self, number: u32) {
        self.release(Cast::Many, number);
    }

    fn release(&mut self, cast: Cast, until: u32) {
        loop {
            let segments = self.segments_mut(cast);
            if segments.front == until {
                return;
            }
            let Some(segment) = segments.run.pop_front() else { return };
            segments.front = segments.front.wrapping_add(NUMBER_STEP);
            self.bytes -= segment.len();
            if let WindowSegment::Joined(JoinedFrames { bytes, .. }) = segment {
                self.heap_bytes -= bytes.capacity();
                self.keep_spare(bytes);
            }
        }
    }

    /// Lets go of everything.
    pub(crate) fn release_all(&mut self) {
        self.kept.all_sent();
        if self.bytes > 0 {
            self.release_to_one();
            self.release_to_many_before(self.to_many.end());
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
    fn segment_with_room(&mut self, cast: Cast, len: usize) -> &mut JoinedFrames {
        let has_room = |joined: &JoinedFrames| joined.bytes.capacity() - joined.bytes.len() >= len;
        let fits = matches!(self.segments(cast).run.back(), Some(WindowSegment::Joined(joined)) if has_room(joined));
        if !fits {
            self.add_segment(cast, len);
        }
        match self.segments_mut(cast).run.back_mut() {
            Some(WindowSegment::Joined(joined)) => joined,
            _ => unreachable!("a joined segment was just pushed"),
        }
    }

    #[cold]
    fn add_segment(&mut self, cast: Cast, len: usize) {
        let spare = if len <= SEGMENT_BYTES { self.spare.pop() } else { None };
        let bytes = spare.unwrap_or_else(|| Vec::with_capacity(len.max(SEGMENT_BYTES)));
        self.heap_bytes += bytes.capacity();
        self.segments_mut(cast).run.push_back(WindowSegment::Joined(JoinedFrames { bytes, large: Vec::new() }));
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
        let mut first = window.append_joined(Cast::Many, b"ab", b"cd");
        let second = window.append_joined(Cast::Many, b"", b"ef");
        let third = window.append_joined(Cast::Many, b"", b"gh");
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
        let first = window.append_joined(Cast::Many, b"", &big);
        let second = window.append_joined(Cast::Many, b"", &[8; 20]);
        assert_ne!(first.segment, second.segment);
        window.release_to_many_before(second.segment);
        assert_eq!(window.bytes(), 20);
        assert_eq!(bytes_of(&window, second), vec![8; 20]);
        window.release_all();
        assert_eq!(window.bytes(), 0);
    }

    #[test]
    fn a_range_goes_on_over_the_ends_of_segments_and_not_over_a_gap() {
        let mut window = Window::default();
        let frames = [30_000, 30_000, 20_000, 40_000, 60_000, 10].map(|len| vec![len as u8; len]);
        let mut whole = window.append_joined(Cast::Many, b"", &frames[0]);
        for frame in &frames[1..] {
            // Neither what is sent to one channel, nor what is not joined, lies between.
            window.append_joined(Cast::One, b"", b"another's");
            let next = window.append_joined(Cast::Many, b"", frame);
            assert!(window.try_extend(&mut whole, next));
        }
        let parts: Vec<Range> = window.parts(whole).collect();
        assert_eq!(parts.iter().map(|part| part.segment).collect::<Vec<_>>(), [1, 3, 5]);
        assert_eq!(parts.iter().flat_map(|&part| bytes_of(&window, part)).collect::<Vec<_>>(), frames.concat());
        assert!(window.slice(whole).is_none() && window.slice(parts[0]).is_some());

        let gap = window.append_joined(Cast::Many, b"", b"not for all");
        let behind = window.append_joined(Cast::Many, b"", b"for all");
        assert!(!window.try_extend(&mut whole, behind) && window.try_extend(&mut { whole }, gap));
        assert!(!window.try_extend(&mut { gap }, whole), "it begins before");
        let blob = window.append_blob(Cast::Many, None, Bytes::from_static(b"blob"), SharedCharge::default());
        let to_one = window.append_joined(Cast::One, b"", b"to one");
        for next in [blob, to_one] {
            assert!(!window.try_extend(&mut { behind }, next));
        }
    }

    #[test]
    fn what_is_sent_to_one_leaves_before_what_many_still_need() {
        let mut window = Window::default();
        let to_many = window.append_joined(Cast::Many, b"", b"to many");
        let to_one = window.append_joined(Cast::One, b"", b"to one");
        window.release_to_one();
        assert_eq!((window.bytes(), window.slice(to_many)), (7, Some(&b"to many"[..])));
        assert!(window.slice(to_one).is_none());
        window.release_to_many_before(to_many.segment);
        assert_eq!(window.bytes(), 7);
        window.release_all();
        assert_eq!((window.bytes(), window.heap_bytes()), (0, 0));
    }

    #[test]
    fn who_falls_behind_in_a_large_frame_keeps_its_payload_by_reference() {
        let mut window = Window::default();
        let payloads = [5_000, 20, 6_000, 7_000].map(|len| Bytes::from(vec![len as u8; len]));
        let mut range = window.append_joined(Cast::Many, b"ab", b"cd");
        for payload in &payloads {
            let header = server_header(Opcode::Binary, false, payload.len());
            let next = match payload.len() {
                ..=20 => window.append_joined(Cast::Many, header.as_slice(), payload),
                _ => window.append_large(Cast::Many, &header, payload, &SharedCharge::default()),
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
    fn numbers_go_round_and_the_two_runs_stay_apart() {
        let mut window = Window::default();
        // The last numbers of 32 bits, of which one is even and the other odd.
        (window.to_one.front, window.to_many.front) = (u32::MAX - 9, u32::MAX - 8);
        let mut live: Vec<(Cast, Range, Vec<u8>)> = Vec::new();
        for step in 0..200_usize {
            let cast = if step % 3 == 0 { Cast::One } else { Cast::Many };
            let bytes = vec![step as u8; [10, 40_000, 70_000][step % 7 % 3]];
            let range = match step % 5 {
                0 => window.append_blob(cast, None, bytes.clone().into(), SharedCharge::default()),
                _ => window.append_joined(cast, b"", &bytes),
            };
            live.push((cast, range, bytes));
            let held: Vec<u32> = live.iter().map(|(_, range, _)| range.segment).collect();
            let is_apart = live.iter().all(|(cast, range, _)| range.segment % 2 == u32::from(*cast == Cast::Many));
            assert!(is_apart && live.iter().all(|(_, range, bytes)| bytes_of(&window, *range) == *bytes));
            if step % 11 == 0 {
                window.release_to_one();
                live.retain(|(cast, ..)| *cast == Cast::Many);
            }
            if step % 13 == 0
                && let Some((_, oldest, _)) = live.iter().filter(|(cast, ..)| *cast == Cast::Many).nth(3).cloned()
            {
                window.release_to_many_before(oldest.segment);
                let before = |range: &Range| (range.segment.wrapping_sub(oldest.segment) as i32) < 0;
                live.retain(|(cast, range, _)| *cast == Cast::One || !before(range));
            }
            for gone in held.iter().filter(|gone| live.iter().all(|(_, range, _)| range.segment != **gone)) {
                assert!(window.segment(*gone).is_none(), "{gone} is gone, and its number is no other's");
            }
            assert!(window.bytes() >= live.iter().map(|(_, range, _)| range.len()).sum());
        }
        assert!(window.to_one.front < 1_000 && window.to_many.front < 1_000, "they have gone round");
        window.release_all();
        assert_eq!((window.bytes(), window.heap_bytes()), (0, 0));
    }

    #[test]
    fn a_blob_is_named_by_reference_at_every_cut() {
        let mut window = Window::default();
        let blob = Bytes::from(vec![9; 300]);
        let header = server_header(Opcode::Binary, false, blob.len());
        let whole = [header.as_slice(), &blob].concat();
        let range = window.append_blob(Cast::Many, Some(header), blob.clone(), SharedCharge::default());
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
