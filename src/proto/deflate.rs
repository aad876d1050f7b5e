//! permessage-deflate (RFC 7692): what is agreed, inflating what clients send, compressing what they get.
//!
//! Clients never take context over, and we do so only where our terms allow it: then no connection holds a window. One
//! [`Inflater`] and one [`Deflater`] serve all connections of a shard, and a message compressed once is the same for all
//! who agreed on the same window.
//!
//! Invariants: the size limit holds while inflating, so a bomb costs at most the limit; what is inflated as text is
//! checked as it comes out; no message leaves anything behind for the next.

mod agreement;

pub use agreement::{Agreed, Terms, WINDOW_BITS_MAX, WINDOW_BITS_MIN, negotiate};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::connection::Payload;
use super::frame::MessageKind;
use super::utf8::Utf8Stream;
use super::violation::Violation;

/// What the sender of a compressed message cut off its end (7.2.1), to be put back before inflating (7.2.2).
const CUT_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// An empty last block. Put behind everything, it ends the stream if and only if the message ended with a block, so
/// a message that was cut short does not pass for a whole one.
const LAST_BLOCK: [u8; 5] = [0x01, 0x00, 0x00, 0xff, 0xff];
/// Inflated messages up to this size are lent, larger ones are given away with their memory.
const LENT_BYTES_MAX: usize = 64 * 1024;
/// A sender may end each flush with a last block (7.2.3.4); more of them than this in a message are only there to
/// make us start over.
const STREAMS_MAX: usize = 1024;

/// Inflates messages, one at a time, for all connections of a shard.
#[derive(Debug, Default)]
pub struct Inflater {
    /// About 40 KiB, once the first compressed message came.
    stream: Option<Box<Decompress>>,
    /// At most [`LENT_BYTES_MAX`] of capacity between messages.
    out: Vec<u8>,
}

impl Inflater {
    /// One that has not allocated yet.
    pub const fn new() -> Self {
        Self { stream: None, out: Vec::new() }
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
        self.out.clear();
        let result = self.run(kind, compressed, message_bytes_max);
        if result.is_err() || self.out.len() > LENT_BYTES_MAX {
            let inflated = std::mem::take(&mut self.out);
            return result.map(|()| Payload::Owned(inflated));
        }
        Ok(Payload::Borrowed(&self.out))
    }

    fn run(&mut self, kind: MessageKind, compressed: &[u8], message_bytes_max: usize) -> Result<(), Violation> {
        let stream = self.stream.get_or_insert_with(|| Box::new(Decompress::new(false)));
        stream.reset(false);
        let mut message =
            Inflating { stream, out: &mut self.out, kind, utf8: Utf8Stream::default(), message_bytes_max };
        let mut input = compressed;
        let mut streams = 1;
        while message.push(&mut input)? == Status::StreamEnd {
            if input.is_empty() {
                // The sender ended with a last block and left out the empty one that 7.2.3.4 wants behind it.
                return message.finish();
            }
            if streams == STREAMS_MAX {
                return Err(Violation::NotDeflate);
            }
            streams += 1;
            message.stream.reset(false);
        }
        message.push(&mut CUT_TAIL.as_slice())?;
        match message.push(&mut LAST_BLOCK.as_slice())? {
            Status::StreamEnd => message.finish(),
            Status::Ok | Status::BufError => Err(Violation::NotDeflate),
        }
    }
}

/// One message on its way out of the inflater.
struct Inflating<'a> {
    stream: &'a mut Decompress,
    out: &'a mut Vec<u8>,
    kind: MessageKind,
    utf8: Utf8Stream,
    message_bytes_max: usize,
}

impl Inflating<'_> {
    /// Inflates from the front of `input` until it is used up and all output is there, or the stream has ended.
    fn push(&mut self, input: &mut &[u8]) -> Result<Status, Violation> {
        loop {
            self.make_room();
            let (in_before, out_before) = (self.stream.total_in(), self.out.len());
            let status = self.stream.decompress_vec(input, self.out, FlushDecompress::Sync);
            let status = status.map_err(|_| Violation::NotDeflate)?;
            // The difference is at most the length of the slice that was given.
            let consumed = (self.stream.total_in() - in_before) as usize;
            *input = &input[consumed..];
            if self.out.len() > self.message_bytes_max {
                return Err(Violation::MessageTooBig);
            }
            if self.kind == MessageKind::Text {
                self.utf8.push(&self.out[out_before..]).map_err(|_| Violation::TextNotUtf8)?;
            }
            let is_stuck = consumed == 0 && self.out.len() == out_before;
            let has_room = self.out.len() < self.out.capacity();
            if status == Status::StreamEnd || (has_room && (input.is_empty() || is_stuck)) {
                return Ok(status);
            }
        }
    }

    /// Room for at least one byte, so that inflating goes on or shows that the message is too big; what is reserved
    /// doubles with what came out and ends one byte above the limit.
    fn make_room(&mut self) {
        if self.out.len() == self.out.capacity() {
            let wanted = self.out.len().max(4096);
            let left = self.message_bytes_max.saturating_add(1).saturating_sub(self.out.len());
            self.out.reserve_exact(wanted.min(left).max(1));
        }
    }

    fn finish(&self) -> Result<(), Violation> {
        if self.utf8.is_complete() { Ok(()) } else { Err(Violation::TextNotUtf8) }
    }
}

/// What a client's inflater remembers of the messages before, where our messages may refer to them: the last bytes of
/// all that travelled compressed, at most a window of them. This is all the state that context takeover costs a
/// connection; the compressor itself is shared.
#[derive(Debug)]
pub struct Context {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Context {
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
    pub fn compress_in(&mut self, window_bits: u8, context: &Context, message: &[u8]) -> Option<&[u8]> {
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
