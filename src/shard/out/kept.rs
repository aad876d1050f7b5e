//! History: sent and unsent frames of channels that outlive their connections, in segments like those of the window,
//! retained after the window would have released them.
//!
//! A frame is written here once per push, whatever the number of channels, and such a channel's first send takes it
//! from here. The history of one owner is separate from that of others, and is counted as the owner's (each segment
//! holds a [`SharedCharge`]), so that an owner that keeps much loses its own history first. Within an owner it is
//! divided into lanes: what audiences are sent, and single channels, is in lanes beside each other, and the fullest
//! lane loses its history first, so that an audience that is sent much does not cost a quiet one what it missed. For
//! channels that outlive their connections a keyed hash says which lane is whose, for event streams the journal does.
//!
//! Invariants: bytes never move or change while a segment lives; a segment that a connection has not been offered yet
//! is not released (`needed_until`); the segments of one lane are released in the order in which they were begun. The
//! holder of a range finds out by a lookup whether its segment is gone. It must not depend on channels.

use super::range::{KEPT, Range, RangeBytes};
use crate::gateway::OwnerId;
use crate::proto::{ServerHeader, server_frame_len};
use crate::shard::memory::SharedCharge;
use bytes::Bytes;
use rustc_hash::FxHashMap;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The size of a segment. Smaller than the window's: each lane has one that is not full.
const SEGMENT_BYTES: usize = 16 * 1024;

/// A lane's first segments are so much smaller: 2 KiB, 4 KiB, 8 KiB.
const SMALLER_SEGMENTS: usize = 3;

/// Lanes of channels that outlive their connections: that of all channels, and those among which audiences are divided.
const CHANNEL_LANES: u8 = 16;

/// The largest frame that is kept: far below what a range can name, far above what waits for any client.
pub(super) const FRAME_BYTES_MAX: usize = 1 << 30;

/// Segments from the oldest to the newest, those that are gone among them.
const PLACES_MAX: usize = 1 << 18;

/// So many places are not given back.
const PLACES_MIN: usize = 64;

/// Whose history a frame is put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeptFor {
    /// The process.
    pub owner: OwnerId,
    /// Which of its lanes.
    pub lane: u8,
}

impl KeptFor {
    /// Of what all channels of a process are sent that outlive their connections.
    pub(crate) fn of_channels(owner: OwnerId) -> Self {
        Self { owner, lane: 0 }
    }

    /// Of an audience of event streams, which has this lane among those.
    pub(crate) fn of_stream(owner: OwnerId, lane: u8) -> Self {
        Self { owner, lane: CHANNEL_LANES + lane }
    }
}

enum KeptBody {
    Joined(Vec<u8>),
    Blob { header: ServerHeader, blob: Bytes },
}

struct KeptSegment {
    of: KeptFor,
    body: KeptBody,
    /// Its counted bytes, with the claim of its payload.
    bytes: usize,
    charge: SharedCharge,
    /// When the last frame came into it.
    used_ms: u64,
    begun_ms: u64,
    /// It may go when so many connections have been taken off the list of those to be offered bytes.
    needed_until: u64,
}

/// The segments of one owner.
#[derive(Default)]
struct OwnerSegments {
    lanes: Vec<KeptLane>,
    bytes: usize,
}

/// Those of one of its lanes.
#[derive(Default)]
struct KeptLane {
    numbers: VecDeque<u32>,
    /// The one that small frames are appended to.
    tail: Option<u32>,
    bytes: usize,
}

impl OwnerSegments {
    fn lane(&mut self, lane: u8) -> &mut KeptLane {
        let at = usize::from(lane);
        if at >= self.lanes.len() {
            self.lanes.resize_with(at + 1, KeptLane::default);
        }
        &mut self.lanes[at]
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct KeptFrames {
    /// By number, from `front` on; numbers wrap around. The place of one that is gone is there as long as an older one
    /// is, so it is small.
    segments: VecDeque<Option<Box<KeptSegment>>>,
    front: u32,
    owners: FxHashMap<OwnerId, OwnerSegments>,
    bytes: usize,
    /// The claim of the places, and its bytes.
    charge: SharedCharge,
    counted_bytes: usize,
    /// The part of it that may wait for its first send.
    waiting_bytes: usize,
    /// Of the hash that divides audiences: peers choose names.
    seed: u64,
}

impl KeptFrames {
    /// Divides audiences by this seed from now on.
    pub(crate) fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// The lane of what is sent to this audience, a name or a channel: with a few others, and mostly without any.
    pub(crate) fn lane_of(&self, audience: &(impl Hash + ?Sized)) -> u8 {
        let mut hasher = DefaultHasher::new();
        self.seed.hash(&mut hasher);
        audience.hash(&mut hasher);
        1 + (hasher.finish() % u64::from(CHANNEL_LANES - 1)) as u8
    }

    /// The bytes of all segments.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much was appended since every connection had been offered everything.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Every connection has been offered everything.
    pub(crate) fn all_sent(&mut self) {
        self.waiting_bytes = 0;
    }

    /// Appends a small frame for `of`; `charge` makes the claim of so many bytes.
    pub(crate) fn append_joined(
        &mut self,
        of: KeptFor,
        now_ms: u64,
        parts: [&[u8]; 3],
        charge: impl FnOnce(usize) -> SharedCharge,
    ) -> Range {
        let len = parts.iter().map(|part| part.len()).sum();
        let number = self.tail_with_room(of, now_ms, len, charge);
        let segment = self.segment_mut(number).expect("it has just been found");
        segment.used_ms = now_ms;
        let KeptBody::Joined(bytes) = &mut segment.body else { unreachable!("small frames are joined") };
        let start = bytes.len();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.waiting_bytes += len;
        range(number, start, start + len)
    }

    /// Keeps a frame whose payload is not copied; `charge` is the payload's.
    pub(crate) fn append_blob(
        &mut self,
        of: KeptFor,
        now_ms: u64,
        header: ServerHeader,
        blob: Bytes,
        charge: SharedCharge,
    ) -> Range {
        let (header_len, blob_len) = (header.as_slice().len(), blob.len());
        let number = self.push(of, now_ms, blob_len, KeptBody::Blob { header, blob }, charge);
        self.waiting_bytes += header_len + blob_len;
        range(number, 0, header_len + blob_len)
    }

    /// The bytes of a range, if they are still there.
    pub(crate) fn get(&self, range: Range) -> Option<RangeBytes<'_>> {
        let segment = self.segments.get(range.segment.wrapping_sub(self.front) as usize)?.as_ref()?;
        let (start, end) = ((range.start & !KEPT) as usize, (range.end & !KEPT) as usize);
        Some(match &segment.body {
            KeptBody::Joined(bytes) => RangeBytes::Joined(&bytes[start..end]),
            KeptBody::Blob { header, blob } => {
                let header = header.as_slice();
                let skip = start.saturating_sub(header.len());
                let len = end.saturating_sub(header.len()) - skip;
                let header = &header[start.min(header.len())..end.min(header.len())];
                RangeBytes::Blob { header, blob, skip, len, charge: &segment.charge }
            }
        })
    }

    /// The bytes of a range, if they are still there and lie side by side.
    #[inline]
    pub(crate) fn slice(&self, range: Range) -> Option<&[u8]> {
        match &self.segments.get(range.segment.wrapping_sub(self.front) as usize)?.as_ref()?.body {
            KeptBody::Joined(bytes) => bytes.get((range.start & !KEPT) as usize..(range.end & !KEPT) as usize),
            KeptBody::Blob { .. } => None,
        }
    }

    /// Returns whether the bytes of a range are still there.
    pub(crate) fn has(&self, range: Range) -> bool {
        self.segments.get(range.segment.wrapping_sub(self.front) as usize).is_some_and(Option::is_some)
    }

    /// The length of the frame with which a range begins, if it is still there.
    pub(crate) fn frame_len(&self, range: Range) -> Option<usize> {
        match self.get(range)? {
            RangeBytes::Joined(bytes) => server_frame_len(bytes),
            RangeBytes::Blob { header, len, .. } => Some(header.len() + len),
        }
    }

    /// A connection that waits to be offered bytes has this range; it has been, when so many were taken off that list.
    pub(crate) fn needed(&mut self, range: Range, until: u64) {
        if let Some(segment) = self.segment_mut(range.segment) {
            segment.needed_until = segment.needed_until.max(until);
        }
    }

    /// Removes segments that are no longer needed: their last frame came before `used_before_ms`. `offered` connections
    /// have been taken off the list of those to be offered bytes. Where there are too many places, the oldest segments
    /// go, whenever they were used.
    pub(crate) fn let_go_of_old(&mut self, used_before_ms: u64, offered: u64) {
        // In the order in which they were begun: what is younger than a segment that stays, stays a little longer.
        while let Some(first) = self.segments.front() {
            let has_places = self.segments.len() <= PLACES_MAX;
            match first {
                Some(segment) if segment.needed_until > offered => return,
                Some(segment) if segment.used_ms >= used_before_ms && has_places => return,
                Some(segment) => self.let_go_of_first(segment.of, offered),
                None => self.pop_gone(),
            };
        }
    }

    /// Later small frames do not go into segments begun before: a slow trickle of frames does not keep them for ever.
    pub(crate) fn end_tails(&mut self, begun_before_ms: u64) {
        let (segments, front) = (&self.segments, self.front);
        for lane in self.owners.values_mut().flat_map(|own| &mut own.lanes) {
            let begun_ms = lane
                .tail
                .and_then(|number| Some(segments.get(number.wrapping_sub(front) as usize)?.as_ref()?.begun_ms));
            if begun_ms.is_some_and(|begun_ms| begun_ms < begun_before_ms) {
                lane.tail = None;
            }
        }
    }

    /// Releases the oldest segment of the fullest lane of the owner that keeps most. Returns whether there was one that
    /// could go.
    pub(crate) fn shed(&mut self, offered: u64) -> bool {
        let Some((&owner, own)) = self.owners.iter().max_by_key(|(_, own)| own.bytes) else { return false };
        let fullest = (0..).zip(&own.lanes).max_by_key(|(_, lane)| lane.bytes).map(|(lane, _)| lane);
        fullest.is_some_and(|lane| self.let_go_of_first(KeptFor { owner, lane }, offered))
    }

    fn let_go_of_first(&mut self, of: KeptFor, offered: u64) -> bool {
        let Some(own) = self.owners.get_mut(&of.owner) else { return false };
        let lane = own.lane(of.lane);
        let Some(&number) = lane.numbers.front() else { return false };
        let place = number.wrapping_sub(self.front) as usize;
        let Some(segment) = self.segments[place].take_if(|segment| segment.needed_until <= offered) else {
            return false;
        };
        lane.numbers.pop_front();
        lane.bytes -= segment.bytes;
        if lane.tail == Some(number) {
            lane.tail = None;
        }
        own.bytes -= segment.bytes;
        self.bytes -= segment.bytes;
        if own.lanes.iter().all(|lane| lane.numbers.is_empty()) {
            self.owners.remove(&of.owner);
        }
        self.pop_gone();
        true
    }

    fn pop_gone(&mut self) -> bool {
        while let Some(None) = self.segments.front() {
            self.segments.pop_front();
            self.front = self.front.wrapping_add(1);
        }
        true
    }

    /// Gives back places of which most are not needed any more, and counts the others, with what each segment takes
    /// beside its frames: `charge` makes the claim of so many bytes.
    pub(crate) fn count_places(&mut self, charge: impl FnOnce(usize) -> SharedCharge) {
        let (places, room) = (self.segments.len(), self.segments.capacity());
        if room > PLACES_MIN && places < room / 4 {
            self.segments.shrink_to(places * 2);
        }
        let live: usize = self.owners.values().flat_map(|own| &own.lanes).map(|lane| lane.numbers.len()).sum();
        let bytes = self.segments.capacity() * size_of::<Option<Box<KeptSegment>>>() + live * size_of::<KeptSegment>();
        if bytes != self.counted_bytes {
            self.counted_bytes = bytes;
            self.charge = charge(bytes);
        }
    }

    fn segment_mut(&mut self, number: u32) -> Option<&mut KeptSegment> {
        self.segments.get_mut(number.wrapping_sub(self.front) as usize)?.as_deref_mut()
    }

    fn tail_with_room(
        &mut self,
        of: KeptFor,
        now_ms: u64,
        len: usize,
        charge: impl FnOnce(usize) -> SharedCharge,
    ) -> u32 {
        if let Some(number) = self.owners.get(&of.owner).and_then(|own| own.lanes.get(usize::from(of.lane))?.tail)
            && let Some(KeptSegment { body: KeptBody::Joined(bytes), .. }) = self.segment_mut(number)
            && bytes.capacity() - bytes.len() >= len
        {
            return number;
        }
        let begun = self.owners.get(&of.owner).and_then(|own| own.lanes.get(usize::from(of.lane)));
        let begun = begun.map_or(0, |lane| lane.numbers.len()).min(SMALLER_SEGMENTS);
        let smaller = if of.lane == 0 { 0 } else { SMALLER_SEGMENTS - begun };
        let bytes = Vec::with_capacity(len.max(SEGMENT_BYTES >> smaller));
        let capacity = bytes.capacity();
        let number = self.push(of, now_ms, capacity, KeptBody::Joined(bytes), charge(capacity));
        self.owners.entry(of.owner).or_default().lane(of.lane).tail = Some(number);
        number
    }

    fn push(&mut self, of: KeptFor, now_ms: u64, bytes: usize, body: KeptBody, charge: SharedCharge) -> u32 {
        let number = self.front.wrapping_add(self.segments.len() as u32);
        let segment = KeptSegment { of, body, bytes, charge, used_ms: now_ms, begun_ms: now_ms, needed_until: 0 };
        self.segments.push_back(Some(Box::new(segment)));
        let own = self.owners.entry(of.owner).or_default();
        own.bytes += bytes;
        let lane = own.lane(of.lane);
        lane.numbers.push_back(number);
        lane.bytes += bytes;
        self.bytes += bytes;
        number
    }

    /// Asserts what the module promises.
    pub(crate) fn check(&self) {
        let live = || self.segments.iter().flatten();
        assert_eq!(self.bytes, live().map(|segment| segment.bytes).sum::<usize>(), "what is kept is counted");
        assert_eq!(
            self.bytes,
            self.owners.values().map(|own| own.bytes).sum::<usize>(),
            "the total is the sum over owners"
        );
        let lanes = || self.owners.values().flat_map(|own| &own.lanes);
        assert_eq!(self.bytes, lanes().map(|lane| lane.bytes).sum::<usize>(), "in one lane");
        assert_eq!(live().count(), lanes().map(|lane| lane.numbers.len()).sum::<usize>());
        assert!(!matches!(self.segments.front(), Some(None)), "the first segment is there");
    }
}

fn range(number: u32, start: usize, end: usize) -> Range {
    let offset = |at: usize| {
        u32::try_from(at).ok().filter(|at| at & KEPT == 0).expect("payloads are bounded far below 2 GiB") | KEPT
    };
    Range { segment: number, start: offset(start), end: offset(end) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Opcode, server_header};

    const A: KeptFor = KeptFor { owner: OwnerId(1), lane: 0 };
    const B: KeptFor = KeptFor { owner: OwnerId(2), lane: 0 };

    fn frame(kept: &mut KeptFrames, of: KeptFor, now_ms: u64, payload: &[u8]) -> Range {
        let header = server_header(Opcode::Binary, false, payload.len());
        kept.append_joined(of, now_ms, [header.as_slice(), b"", payload], |_| SharedCharge::default())
    }

    fn bytes_of(kept: &KeptFrames, range: Range) -> Option<Vec<u8>> {
        kept.get(range).map(|named| match named {
            RangeBytes::Joined(bytes) => bytes.to_vec(),
            RangeBytes::Blob { header, blob, skip, len, .. } => [header, &blob[skip..skip + len]].concat(),
        })
    }

    #[test]
    fn each_owner_has_frames_of_its_own_side_by_side() {
        let mut kept = KeptFrames::default();
        let mut first = frame(&mut kept, A, 0, b"one");
        let other = frame(&mut kept, B, 0, b"else");
        let second = frame(&mut kept, A, 0, b"two");
        assert!(first.try_extend(second) && !first.try_extend(other) && first.is_kept());
        assert_eq!(bytes_of(&kept, first).unwrap(), b"\x82\x03one\x82\x03two");
        assert_eq!(kept.frame_len(first), Some(5));
        kept.check();
    }

    #[test]
    fn what_is_old_goes_but_not_before_it_was_offered() {
        let mut kept = KeptFrames::default();
        let large = vec![b'x'; SEGMENT_BYTES];
        let [old, young] = [0, 1000].map(|now_ms| frame(&mut kept, A, now_ms, &large));
        kept.needed(old, 3);
        kept.let_go_of_old(500, 2);
        assert!(kept.has(old), "a connection waits to be offered it");
        kept.let_go_of_old(500, 3);
        assert!(!kept.has(old) && kept.has(young));
        kept.check();
        kept.let_go_of_old(2000, 3);
        assert_eq!((kept.bytes(), kept.owners.len()), (0, 0));
        let next = frame(&mut kept, A, 2000, b"x");
        assert!(kept.has(next) && !kept.has(young), "numbers are not used again");
    }

    #[test]
    fn who_keeps_most_gives_first_and_a_blob_is_kept_by_reference() {
        let mut kept = KeptFrames::default();
        let small = frame(&mut kept, B, 0, b"small");
        let blob = Bytes::from(vec![7; 100_000]);
        let header = server_header(Opcode::Binary, false, blob.len());
        let large = kept.append_blob(A, 0, header, blob.clone(), SharedCharge::default());
        assert_eq!(kept.frame_len(large), Some(100_010));
        assert_eq!(bytes_of(&kept, large.split_at(10).1).unwrap(), blob);
        assert!(!blob.is_unique());
        assert!(kept.shed(0) && !kept.has(large) && kept.has(small) && blob.is_unique());
        assert!(kept.shed(0) && !kept.shed(0));
        kept.check();
    }

    #[test]
    fn places_of_what_is_gone_are_small_counted_and_limited() {
        let mut kept = KeptFrames::default();
        let quiet = frame(&mut kept, KeptFor { lane: 2, ..A }, 0, b"quiet");
        let (blob, loud) = (Bytes::from_static(&[7; 5_000]), KeptFor { lane: 1, ..A });
        for _ in 0..PLACES_MAX {
            let header = server_header(Opcode::Binary, false, blob.len());
            let range = kept.append_blob(loud, 1, header, blob.clone(), SharedCharge::default());
            assert!(kept.shed(0) && !kept.has(range));
        }
        let counted = |kept: &mut KeptFrames| {
            kept.count_places(|_| SharedCharge::default());
            kept.counted_bytes
        };
        assert!((8 * PLACES_MAX..32 * PLACES_MAX).contains(&counted(&mut kept)), "{}", kept.counted_bytes);
        // With one more there are too many.
        assert!(kept.has(quiet));
        kept.let_go_of_old(0, 0);
        assert!(!kept.has(quiet) && counted(&mut kept) < 1_000, "{}", kept.counted_bytes);
        kept.check();
    }

    #[test]
    fn a_full_lane_gives_before_a_quiet_one() {
        let mut kept = KeptFrames::default();
        let large = vec![b'x'; SEGMENT_BYTES];
        let quiet = frame(&mut kept, KeptFor { lane: 2, ..A }, 0, b"quiet");
        let full = [1, 2].map(|now_ms| frame(&mut kept, KeptFor { lane: 1, ..A }, now_ms, &large));
        assert!(kept.shed(0) && !kept.has(full[0]) && kept.has(full[1]) && kept.has(quiet));
        kept.check();
        assert!(kept.shed(0) && !kept.has(full[1]) && kept.shed(0) && !kept.has(quiet) && !kept.shed(0));
        assert!(kept.owners.is_empty());
    }

    #[test]
    fn audiences_are_divided_among_lanes_and_one_that_is_sent_much_pushes_out_its_own_lane() {
        let mut kept = KeptFrames::default();
        kept.set_seed(7);
        let lane_of = |kept: &KeptFrames, channel: u32| KeptFor { lane: kept.lane_of(&channel), ..A };
        let loud = lane_of(&kept, 0);
        let mut quiet = Vec::new();
        for channel in 1..500 {
            let of = lane_of(&kept, channel);
            quiet.push((of, frame(&mut kept, of, 0, b"quiet")));
        }
        let lanes: std::collections::BTreeSet<u8> = quiet.iter().map(|(of, _): &(KeptFor, Range)| of.lane).collect();
        assert_eq!((lanes.len(), lanes.first()), (usize::from(CHANNEL_LANES) - 1, Some(&1)));
        for _ in 0..1000 {
            frame(&mut kept, loud, 1, &[b'x'; 1000]);
            while kept.bytes() > 200_000 && kept.shed(0) {}
        }
        for (of, range) in quiet {
            assert!(kept.has(range) || of.lane == loud.lane, "{of:?}");
        }
        kept.check();
    }

    #[test]
    fn a_trickle_does_not_keep_a_segment_for_ever() {
        let mut kept = KeptFrames::default();
        let first = frame(&mut kept, A, 0, b"x");
        kept.end_tails(100);
        let second = frame(&mut kept, A, 100, b"y");
        kept.let_go_of_old(100, 0);
        assert!(!kept.has(first) && kept.has(second));
    }
}
