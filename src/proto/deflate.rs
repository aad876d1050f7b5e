//! permessage-deflate (RFC 7692): agreement, inflating clients' messages, compressing the server's.
//!
//! Clients never take context over, and the server does only where its terms allow it; otherwise no connection holds a
//! window. One [`Inflater`] and one [`Deflater`] serve all connections of a shard, and a message compressed once is the
//! same for all clients with the same agreed window.
//!
//! Invariants: the size limit holds while inflating, so a decompression bomb costs at most the limit; inflated text is
//! checked as it comes out; no message leaves state behind for the next; a step exceeds its allowance by one call at
//! most, whatever the message is.

mod agreement;

pub use agreement::{Agreed, Terms, WINDOW_BITS_MAX, WINDOW_BITS_MIN, negotiate};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::MessageKind;
use super::message::Payload;
use super::utf8::Utf8Stream;
use super::violation::Violation;

/// The tail that senders of compressed messages remove (7.2.1), restored before inflating (7.2.2).
const CUT_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// An empty last block. Put behind everything, it ends the stream if and only if the message ended with a block, so
/// a message that was cut short does not pass for a whole one.
const LAST_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];
/// Inflated messages up to this size are lent, larger ones are given away with their memory.
const LENT_BYTES_MAX: usize = 64 * 1024;
/// A sender may end each flush with a last block (7.2.3.4); more of them than this in a message are only there to
/// make us start over.
const STREAMS_MAX: usize = 1024;
/// Compressed bytes that are looked at between two looks at what that has cost.
const FED_BYTES_MAX: usize = 8 * 1024;
/// A compressed byte may cost as much as so many that come out: of blocks with nothing in them, say.
const FED_BYTE_COST: usize = 4;
/// Starting over costs as much as so many bytes that come out.
const STREAM_COST: usize = 1024;
/// The approximate memory of the stream and its window.
const STREAM_BYTES: usize = 44 * 1024;

/// Inflates messages for all connections of a shard: small ones at once, large ones in steps.
#[derive(Debug, Default)]
pub struct Inflater {
    /// About 40 KiB, once the first compressed message came.
    stream: Option<Box<Decompress>>,
    /// Output not yet moved on: at most [`LENT_BYTES_MAX`].
    out: Vec<u8>,
    spent_bytes: usize,
}

/// The result of inflating.
#[derive(Debug)]
pub(super) enum Inflated<'a> {
    /// The message.
    Whole(MessageKind, Payload<'a>),
    /// A part of it, and how to go on.
    Part(Box<Inflating>),
}

/// A message that is not wholly inflated: put down after a step, for others to have their turn.
#[derive(Debug)]
pub(super) struct Inflating {
    stream: Box<Decompress>,
    compressed: Vec<u8>,
    progress: InflateProgress,
    /// Output of earlier steps.
    gathered: Vec<u8>,
}

#[derive(Debug)]
struct InflateProgress {
    kind: MessageKind,
    message_bytes_max: usize,
    utf8: Utf8Stream,
    source: InflateSource,
    /// How much of the source has been looked at.
    at: usize,
    streams: usize,
    out_bytes: usize,
}

/// Input to inflate, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InflateSource {
    Message,
    CutTail,
    LastBlock,
}

impl Inflater {
    /// One that has not allocated yet.
    pub const fn new() -> Self {
        Self { stream: None, out: Vec::new(), spent_bytes: 0 }
    }

    /// Inflates one whole message, joined from its frames. Text is UTF-8 when it comes out.
    ///
    /// # Errors
    /// [`Violation::NotDeflate`], [`Violation::MessageTooBig`] as soon as more than `message_bytes_max` came out, or
    /// [`Violation::TextNotUtf8`].
    pub fn inflate<'a>(
        &'a mut self,
        kind: MessageKind,
        compressed: &[u8],
        message_bytes_max: usize,
    ) -> Result<Payload<'a>, Violation> {
        match self.begin(kind, Payload::Borrowed(compressed), message_bytes_max, usize::MAX)? {
            Inflated::Whole(_, payload) => Ok(payload),
            Inflated::Part(_) => unreachable!("a step without end is the whole way"),
        }
    }

    /// The same, for one step of about so many bytes.
    pub(super) fn begin<'a>(
        &'a mut self,
        kind: MessageKind,
        compressed: Payload<'_>,
        message_bytes_max: usize,
        step_bytes: usize,
    ) -> Result<Inflated<'a>, Violation> {
        let mut stream = self.stream.take().unwrap_or_else(|| Box::new(Decompress::new(false)));
        stream.reset(false);
        let mut progress = InflateProgress::new(kind, message_bytes_max);
        let mut gathered = Vec::new();
        let run = self.run(&mut stream, &mut progress, &compressed, &mut gathered, step_bytes);
        match run {
            Ok(false) => {
                let compressed = compressed.into_vec();
                Ok(Inflated::Part(Box::new(Inflating { stream, compressed, progress, gathered })))
            }
            Ok(true) => Ok(self.whole(stream, kind, gathered)),
            Err(violation) => {
                self.stream = Some(stream);
                Err(violation)
            }
        }
    }

    /// Goes on for one step.
    ///
    /// # Errors
    /// As [`inflate`](Self::inflate).
    pub(super) fn go_on(
        &mut self,
        mut inflating: Box<Inflating>,
        step_bytes: usize,
    ) -> Result<Inflated<'_>, Violation> {
        let Inflating { stream, compressed, progress, gathered } = &mut *inflating;
        if !self.run(stream, progress, compressed, gathered, step_bytes)? {
            return Ok(Inflated::Part(inflating));
        }
        let Inflating { stream, progress, gathered, .. } = *inflating;
        Ok(self.whole(stream, progress.kind, gathered))
    }

    fn whole(&mut self, stream: Box<Decompress>, kind: MessageKind, mut gathered: Vec<u8>) -> Inflated<'_> {
        self.stream = Some(stream);
        if gathered.is_empty() {
            return Inflated::Whole(kind, Payload::Borrowed(&self.out));
        }
        self.gather(&mut gathered, 0);
        Inflated::Whole(kind, Payload::Owned(gathered))
    }

    /// The cost of inflating since the last call of this, in bytes that came out.
    pub(super) fn take_spent_bytes(&mut self) -> usize {
        std::mem::take(&mut self.spent_bytes)
    }

    /// Inflates until all is there, or it has cost `step_bytes`. Returns whether all is there.
    fn run(
        &mut self,
        stream: &mut Decompress,
        progress: &mut InflateProgress,
        compressed: &[u8],
        gathered: &mut Vec<u8>,
        step_bytes: usize,
    ) -> Result<bool, Violation> {
        self.out.clear();
        let mut cost = 0;
        loop {
            self.make_room(progress, gathered);
            let step = progress.step(stream, compressed, &mut self.out);
            let step = step?;
            self.spent_bytes += step.cost;
            cost += step.cost;
            if step.is_last {
                return Ok(true);
            }
            if cost >= step_bytes {
                self.gather(gathered, progress.left_bytes());
                return Ok(false);
            }
        }
    }

    /// Room for at least one byte, so that inflating goes on or shows that the message is too big; what is reserved
    /// doubles with what came out and ends one byte above the limit.
    fn make_room(&mut self, progress: &InflateProgress, gathered: &mut Vec<u8>) {
        if self.out.len() >= LENT_BYTES_MAX {
            self.gather(gathered, progress.left_bytes());
        }
        if self.out.len() == self.out.capacity() {
            let wanted = self.out.len().max(4096).min(LENT_BYTES_MAX - self.out.len());
            self.out.reserve_exact(wanted.min(progress.left_bytes()).max(1));
        }
    }

    /// Appends the output to that of earlier steps; `left_bytes` more are allowed.
    fn gather(&mut self, gathered: &mut Vec<u8>, left_bytes: usize) {
        let needed = gathered.len() + self.out.len();
        if needed > gathered.capacity() {
            gathered.reserve_exact(self.out.len() + needed.min(left_bytes));
        }
        gathered.append(&mut self.out);
    }
}

impl Inflating {
    /// The heap bytes that it keeps allocated, itself included.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + STREAM_BYTES + self.compressed.capacity() + self.gathered.capacity()
    }
}

/// The result of one call of the inflater.
struct InflateStep {
    cost: usize,
    /// The message is whole.
    is_last: bool,
}

impl InflateProgress {
    fn new(kind: MessageKind, message_bytes_max: usize) -> Self {
        Self {
            kind,
            message_bytes_max,
            utf8: Utf8Stream::default(),
            source: InflateSource::Message,
            at: 0,
            streams: 1,
            out_bytes: 0,
        }
    }

    /// The bytes that may still come out, and one more, which reveals an excess.
    fn left_bytes(&self) -> usize {
        self.message_bytes_max.saturating_add(1).saturating_sub(self.out_bytes)
    }

    fn step(
        &mut self,
        stream: &mut Decompress,
        compressed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<InflateStep, Violation> {
        let input = match self.source {
            InflateSource::Message => &compressed[self.at..],
            InflateSource::CutTail => &CUT_TAIL[self.at..],
            InflateSource::LastBlock => &LAST_BLOCK[self.at..],
        };
        let fed = &input[..input.len().min(FED_BYTES_MAX)];
        let (in_before, out_before) = (stream.total_in(), out.len());
        let status = stream.decompress_vec(fed, out, FlushDecompress::Sync).map_err(|_| Violation::NotDeflate)?;
        // The difference is at most the length of the slice that was given.
        let consumed = (stream.total_in() - in_before) as usize;
        let came = &out[out_before..];
        self.at += consumed;
        self.out_bytes += came.len();
        if self.out_bytes > self.message_bytes_max {
            return Err(Violation::MessageTooBig);
        }
        if self.kind == MessageKind::Text {
            self.utf8.push(came).map_err(|_| Violation::TextNotUtf8)?;
        }
        let mut step = InflateStep { cost: came.len() + FED_BYTE_COST * consumed, is_last: false };
        let is_stuck = consumed == 0 && came.is_empty();
        let is_drained = out.len() < out.capacity() && (consumed == input.len() || is_stuck);
        match (self.source, status) {
            // The sender ended with a last block and left out the empty one that 7.2.3.4 wants behind it.
            (InflateSource::Message, Status::StreamEnd) if consumed == input.len() => step.is_last = self.finish()?,
            (InflateSource::Message, Status::StreamEnd) => {
                if self.streams == STREAMS_MAX {
                    return Err(Violation::NotDeflate);
                }
                self.streams += 1;
                step.cost += STREAM_COST;
                stream.reset(false);
            }
            (InflateSource::LastBlock, Status::StreamEnd) => step.is_last = self.finish()?,
            (InflateSource::LastBlock, _) if is_drained => return Err(Violation::NotDeflate),
            (InflateSource::Message, _) if is_drained => (self.source, self.at) = (InflateSource::CutTail, 0),
            (InflateSource::CutTail, status) if is_drained || status == Status::StreamEnd => {
                (self.source, self.at) = (InflateSource::LastBlock, 0);
            }
            _ => {}
        }
        Ok(step)
    }

    /// Returns true.
    fn finish(&self) -> Result<bool, Violation> {
        if self.utf8.is_complete() { Ok(true) } else { Err(Violation::TextNotUtf8) }
    }
}

/// The history that a client's inflater keeps, to which later messages may refer: the last bytes of all that was sent
/// compressed, at most a window of them. This is all the state that context takeover costs a connection; the compressor
/// itself is shared.
#[derive(Debug)]
pub struct DeflateContext {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl DeflateContext {
    /// The most memory that the context of a connection with this window takes.
    pub const fn bytes_max(window_bits: u8) -> usize {
        size_of::<Self>() + (1 << window_bits)
    }

    /// The context before the first message.
    pub const fn new(window_bits: u8) -> Self {
        Self { bytes: Vec::new(), bytes_max: 1 << window_bits }
    }

    /// The most memory that this one takes.
    pub fn charged_bytes(&self) -> usize {
        size_of::<Self>() + self.bytes_max
    }

    /// A message has been sent compressed.
    pub fn append(&mut self, message: &[u8]) {
        let kept = &message[message.len().saturating_sub(self.bytes_max)..];
        let gone = (self.bytes.len() + kept.len()).saturating_sub(self.bytes_max);
        self.bytes.drain(..gone);
        if self.bytes.capacity() < self.bytes.len() + kept.len() {
            let doubled = (2 * self.bytes.len()).min(self.bytes_max);
            self.bytes.reserve_exact(doubled.max(self.bytes.len() + kept.len()) - self.bytes.len());
        }
        self.bytes.extend_from_slice(kept);
    }

    /// It is no longer known what the client remembers: refer to nothing that was sent until now.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
    }
}

/// Compresses messages, one at a time, for all connections of a shard: a broadcast once for all that agreed on the same
/// window.
#[derive(Debug)]
pub struct Deflater {
    level: Compression,
    /// By window bits from [`WINDOW_BITS_MIN`]; about 260 KiB each, once needed.
    streams: [Option<Box<Compress>>; (WINDOW_BITS_MAX - WINDOW_BITS_MIN + 1) as usize],
    out: Vec<u8>,
}

impl Deflater {
    /// A level of 1 (fast) to 9 (small), as zlib counts.
    ///
    /// # Panics
    /// When `level` is not within 1 to 9.
    pub fn new(level: u32) -> Self {
        assert!((1..=9).contains(&level), "compression level {level}");
        Self { level: Compression::new(level), streams: Default::default(), out: Vec::new() }
    }

    /// The compressed payload of one message, to be sent with RSV1 set; `None` when it would not be smaller than the
    /// message, which then goes as it is. `window_bits` is [`Agreed::server_window_bits`].
    ///
    /// # Panics
    /// When `window_bits` is not within 9 to 15.
    pub fn compress(&mut self, window_bits: u8, message: &[u8]) -> Option<&[u8]> {
        self.compress_behind(window_bits, &[], message)
    }

    /// As [`compress`](Self::compress), for a client that remembers `context`. If it is sent, the context must be told.
    ///
    /// # Panics
    /// As [`compress`](Self::compress).
    pub fn compress_in(&mut self, window_bits: u8, context: &DeflateContext, message: &[u8]) -> Option<&[u8]> {
        self.compress_behind(window_bits, &context.bytes, message)
    }

    fn compress_behind(&mut self, window_bits: u8, before: &[u8], message: &[u8]) -> Option<&[u8]> {
        let index = window_bits.checked_sub(WINDOW_BITS_MIN).expect("windows begin at 9 bits");
        let stream = self.streams[usize::from(index)]
            .get_or_insert_with(|| Box::new(Compress::new_with_window_bits(self.level, false, window_bits)));
        stream.reset();
        if !before.is_empty() {
            // Only fails in the middle of a stream.
            stream.set_dictionary(before).ok()?;
        }
        self.out.clear();
        if self.out.capacity() > 2 * LENT_BYTES_MAX {
            self.out = Vec::new();
        }
        // More than any block type needs for bytes that do not compress, so that one call does it.
        self.out.reserve(message.len() + message.len() / 8 + 64);
        let status = stream.compress_vec(message, &mut self.out, FlushCompress::Sync);
        let is_whole = matches!(status, Ok(Status::Ok)) && stream.total_in() == message.len() as u64;
        debug_assert!(is_whole && self.out.ends_with(&CUT_TAIL), "{status:?}");
        let payload = self.out.strip_suffix(&CUT_TAIL)?;
        (is_whole && payload.len() < message.len()).then_some(payload)
    }
}

#[cfg(test)]
mod tests;
