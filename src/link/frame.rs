//! Frames on a byte stream: 4 bytes length of the head, 4 bytes length of the blob (big-endian), the head, the blob.
//!
//! A blob is read into an allocation of its own, which is the one that is later sent. Reading ahead saves system calls
//! where frames are small; behind a large blob nothing is read ahead, so a run of them is not copied at all. Invariant:
//! nothing is allocated that the limits do not allow, and nothing is read before it is needed. Does not depend on the
//! contents of heads.

use crate::admission::{Charge, HeapBytes};
use crate::driver::peer_socket::PeerStream;
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

/// Two lengths.
pub(super) const PREFIX_BYTES: usize = 8;

/// The largest head: a push to 200,000 channels by their ids, of 5 bytes each.
pub(super) const HEAD_BYTES_MAX: usize = 1 << 20;

/// The bytes read ahead: some 200 small pushes for each system call. Copying more would cost more than it saves.
const AHEAD_BYTES: usize = 16 << 10;

/// Enough for the heads of pushes and messages.
const HEAD_BYTES_USUAL: usize = 64;

/// Blobs up to here are copied behind their head, to leave in one piece; the call that this saves costs more.
const JOINED_BYTES_MAX: usize = 4 << 10;

/// How long a frame may wait for memory before its connection is given up: the other side comes back and sends it
/// again.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// How often it is tried meanwhile.
const ROOM_AGAIN: Duration = Duration::from_millis(5);

/// Where a thread that must not wait may write.
pub(super) trait WriteNow: Send + Sync {
    /// Writes as many of `bytes`, which are some, as go without waiting, and returns how many.
    ///
    /// # Errors
    /// The stream's; where nothing goes without waiting, 0 is no error.
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl WriteNow for PeerStream {
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        PeerStream::write_now(self, bytes)
    }
}

/// A frame to be written: the head with its prefix, and the blob.
#[derive(Debug, Clone)]
pub(super) struct LinkFrame {
    head: Vec<u8>,
    blob: Bytes,
}

impl LinkFrame {
    /// A frame without blob.
    pub(super) fn bare(head: &impl Serialize) -> Self {
        let mut bytes = Vec::with_capacity(HEAD_BYTES_USUAL);
        bytes.extend_from_slice(&[0; PREFIX_BYTES]);
        rmp_serde::encode::write_named(&mut bytes, head).expect("heads have known shapes and the writer is memory");
        let head_bytes = u32::try_from(bytes.len() - PREFIX_BYTES).expect("heads are bounded where they are made");
        bytes[..4].copy_from_slice(&head_bytes.to_be_bytes());
        if bytes.capacity() > bytes.len() + bytes.len() / 8 + HEAD_BYTES_USUAL {
            bytes.shrink_to_fit();
        }
        Self { head: bytes, blob: Bytes::new() }
    }

    /// The same with a blob.
    pub(super) fn with(mut self, blob: Bytes) -> Self {
        let blob_bytes = u32::try_from(blob.len()).expect("blobs are bounded where they are made");
        self.head[4..PREFIX_BYTES].copy_from_slice(&blob_bytes.to_be_bytes());
        Self { blob, ..self }
    }

    /// Returns whether its head and blob are no larger.
    pub(super) fn fits(&self, head_bytes_max: usize, blob_bytes_max: usize) -> bool {
        self.head.len() - PREFIX_BYTES <= head_bytes_max && self.blob.len() <= blob_bytes_max
    }

    /// Its bytes on the stream.
    pub(super) fn bytes(&self) -> usize {
        self.head.len() + self.blob.len()
    }
}

impl HeapBytes for LinkFrame {
    fn heap_bytes(&self) -> usize {
        self.head.capacity() + self.blob.len()
    }
}

/// Behind what is left already, nothing is tried.
fn write_now(mut bytes: &[u8], rest: &mut Vec<u8>, out: &dyn WriteNow) {
    while rest.is_empty() && !bytes.is_empty() {
        match out.write_now(bytes) {
            Ok(count @ 1..) => bytes = &bytes[count..],
            Ok(0) | Err(_) => break,
        }
    }
    rest.extend_from_slice(bytes);
}

/// Frames to be written together.
#[derive(Default)]
pub(super) struct GatheredFrames {
    joined: Vec<u8>,
    /// Where in `joined` a large blob belongs, in order.
    large: Vec<(usize, Bytes)>,
    bytes: usize,
}

impl GatheredFrames {
    /// Adds a frame at the end. Large blobs are shared, not copied.
    pub(super) fn push(&mut self, frame: &LinkFrame) {
        self.bytes += frame.bytes();
        self.joined.extend_from_slice(&frame.head);
        match frame.blob.len() {
            0..=JOINED_BYTES_MAX => self.joined.extend_from_slice(&frame.blob),
            _ => self.large.push((self.joined.len(), frame.blob.clone())),
        }
    }

    /// The bytes of all that was added.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins with what is left of frames that were written in part; takes it.
    pub(super) fn begin_with(&mut self, rest: &mut Vec<u8>) {
        debug_assert!(self.bytes == 0, "it stands before everything");
        self.bytes += rest.len();
        self.joined.append(rest);
    }

    /// Writes as much as goes without waiting. Returns the rest; after an error, all from there on: the thread that
    /// writes it next meets the same error.
    pub(super) fn write_now(self, out: &dyn WriteNow) -> Vec<u8> {
        let mut rest = Vec::new();
        let mut at = 0;
        for (end, blob) in self.large {
            write_now(&self.joined[at..end], &mut rest, out);
            write_now(&blob, &mut rest, out);
            at = end;
        }
        write_now(&self.joined[at..], &mut rest, out);
        rest
    }

    /// Writes everything, and is empty.
    pub(super) fn write(&mut self, out: &mut impl Write) -> io::Result<()> {
        let mut at = 0;
        for (end, blob) in self.large.drain(..) {
            out.write_all(&self.joined[at..end])?;
            out.write_all(&blob)?;
            at = end;
        }
        out.write_all(&self.joined[at..])?;
        self.joined.clear();
        self.bytes = 0;
        Ok(())
    }
}

/// Why no frame was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream failed, ended, or was silent for too long.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other side's fault.
    #[error("a head of {0} bytes is over the session's head_bytes_max")]
    HeadTooLarge(usize),
    /// The other side's fault.
    #[error("a blob of {0} bytes is over the session's blob_bytes_max")]
    BlobTooLarge(usize),
    /// The other side's fault.
    #[error("a head is malformed: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
}

/// Reads frames.
pub(super) struct FrameReader<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    head_bytes_max: usize,
    blob_bytes_max: usize,
    ahead: bool,
    /// Of the frame that was read last, where frames are charged.
    charge: Option<Charge>,
}

impl<R: Read> FrameReader<R> {
    /// A reader that takes heads and blobs up to these sizes.
    pub(super) fn new(source: R, head_bytes_max: usize, blob_bytes_max: usize) -> Self {
        let buffer = vec![0; AHEAD_BYTES].into_boxed_slice();
        Self { source, buffer, start: 0, end: 0, head_bytes_max, blob_bytes_max, ahead: true, charge: None }
    }

    /// The stream, to change how it reads.
    pub(super) fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    /// Takes heads and blobs up to these sizes from now on.
    pub(super) fn set_limits(&mut self, head_bytes_max: usize, blob_bytes_max: usize) {
        (self.head_bytes_max, self.blob_bytes_max) = (head_bytes_max, blob_bytes_max);
    }

    /// Charges what is read from now on, frame by frame, until the next is asked for.
    pub(super) fn charge_to(&mut self, charge: Charge) {
        self.charge = Some(charge);
    }

    /// Waits until a frame of so many bytes can be charged; what waits meanwhile is the other side.
    fn make_room(&mut self, bytes: usize) -> io::Result<()> {
        let Some(charge) = &mut self.charge else { return Ok(()) };
        charge.resize(0);
        if bytes <= AHEAD_BYTES {
            return Ok(());
        }
        let until = Instant::now() + ROOM_WITHIN;
        while charge.grow(bytes).is_err() {
            if Instant::now() >= until {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "the memory budget has no room for a frame"));
            }
            thread::sleep(ROOM_AGAIN);
        }
        Ok(())
    }

    /// Returns whether the next frame is here as a whole already, so that reading it does not wait.
    pub(super) fn is_ready(&self) -> bool {
        let here = &self.buffer[self.start..self.end];
        here.first_chunk().is_some_and(|prefix| {
            let (head_bytes, blob_bytes) = lengths(prefix);
            here.len() >= PREFIX_BYTES + head_bytes + blob_bytes
        })
    }

    /// The next frame.
    ///
    /// # Errors
    /// See [`ReadError`]. The stream cannot be read any further then.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<(T, Bytes), ReadError> {
        let (head, blob) = self.next_owned()?;
        Ok((head, blob.into()))
    }

    /// The same, with an owned blob.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub(super) fn next_owned<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<u8>), ReadError> {
        self.need(PREFIX_BYTES)?;
        let prefix = self.buffer[self.start..].first_chunk().expect("as many bytes were asked for");
        let (head_bytes, blob_bytes) = lengths(prefix);
        if head_bytes > self.head_bytes_max {
            return Err(ReadError::HeadTooLarge(head_bytes));
        }
        if blob_bytes > self.blob_bytes_max {
            return Err(ReadError::BlobTooLarge(blob_bytes));
        }
        self.make_room(head_bytes + blob_bytes)?;
        self.start += PREFIX_BYTES;
        let head = if head_bytes <= AHEAD_BYTES {
            self.need(head_bytes)?;
            let head = rmp_serde::from_slice(&self.buffer[self.start..self.start + head_bytes])?;
            self.start += head_bytes;
            head
        } else {
            rmp_serde::from_slice(&self.take(head_bytes)?)?
        };
        let blob = self.take(blob_bytes)?;
        self.ahead = blob_bytes < AHEAD_BYTES;
        Ok((head, blob))
    }

    /// Waits until `count` bytes, at most [`AHEAD_BYTES`], are in the buffer.
    fn need(&mut self, count: usize) -> io::Result<()> {
        if self.end - self.start >= count {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < count {
            let until = if self.ahead { AHEAD_BYTES } else { count };
            self.end += read(&mut self.source, &mut self.buffer[self.end..until])?;
        }
        Ok(())
    }

    /// The next `count` bytes: what was read ahead, and the rest straight from the stream.
    fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let here = count.min(self.end - self.start);
        // Zeroed by the system where it is large, so that its pages are touched once only.
        let mut bytes = vec![0; count];
        bytes[..here].copy_from_slice(&self.buffer[self.start..self.start + here]);
        self.start += here;
        let mut at = here;
        while at < count {
            at += read(&mut self.source, &mut bytes[at..])?;
        }
        Ok(bytes)
    }
}

fn lengths(prefix: &[u8; PREFIX_BYTES]) -> (usize, usize) {
    let lengths = u64::from_be_bytes(*prefix);
    ((lengths >> 32) as usize, lengths as u32 as usize)
}

/// At least one byte.
fn read(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    /// Gives at most `step` bytes a time, and remembers where to.
    struct Source {
        bytes: Vec<u8>,
        at: usize,
        step: usize,
        read_to: Vec<Range<usize>>,
    }

    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(self.step).min(self.bytes.len() - self.at);
            buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            let to = buffer.as_ptr() as usize;
            self.read_to.push(to..to + count);
            Ok(count)
        }
    }

    fn reader(frames: &[(u64, Vec<u8>)], step: usize) -> FrameReader<Source> {
        let mut bytes = Vec::new();
        let mut gather = GatheredFrames::default();
        for (head, blob) in frames {
            gather.push(&LinkFrame::bare(head).with(blob.clone().into()));
        }
        let expected = gather.bytes();
        gather.write(&mut bytes).unwrap();
        assert_eq!((bytes.len(), gather.bytes()), (expected, 0));
        FrameReader::new(Source { bytes, at: 0, step, read_to: Vec::new() }, 64, 1 << 20)
    }

    #[test]
    fn any_split_of_the_bytes_gives_the_same_frames() {
        let sizes = [0, 1, 7, JOINED_BYTES_MAX, JOINED_BYTES_MAX + 1, 0, AHEAD_BYTES - 9, AHEAD_BYTES, 70_000, 3];
        let frames: Vec<_> = (1..).zip(sizes.map(|size| vec![size as u8; size])).collect();
        for step in [1, 2, 3, 8, 1000, AHEAD_BYTES, usize::MAX] {
            let mut reader = reader(&frames, step);
            for (head, blob) in &frames {
                let (read_head, read_blob): (u64, Bytes) = reader.next().unwrap();
                assert_eq!((read_head, &read_blob), (*head, &Bytes::from(blob.clone())));
            }
            assert!(!reader.is_ready());
            assert!(matches!(reader.next::<u64>(), Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof));
        }
    }

    #[test]
    fn large_blobs_are_read_to_where_they_stay() {
        const BLOB_BYTES: usize = 100_000;
        let frames: Vec<_> = (0..4).map(|head| (head, vec![7; BLOB_BYTES])).collect();
        let mut reader = reader(&frames, usize::MAX);
        for (count, _) in frames.iter().enumerate() {
            let before = reader.source.read_to.len();
            let (_, blob): (u64, Bytes) = reader.next().unwrap();
            let stays = blob.as_ptr() as usize..blob.as_ptr() as usize + blob.len();
            let reads = reader.source.read_to[before..].iter();
            let straight: usize =
                reads.filter(|to| stays.contains(&to.start)).map(|to| to.end.min(stays.end) - to.start).sum();
            // The first comes unannounced, and its beginning with its head.
            let copied = BLOB_BYTES - straight;
            assert!(copied <= if count == 0 { AHEAD_BYTES } else { 0 }, "frame {count}: {copied} bytes were copied");
        }
    }

    #[test]
    fn small_frames_share_a_read() {
        let frames: Vec<_> = (0..100).map(|head| (head, vec![1; 20])).collect();
        let mut reader = reader(&frames, usize::MAX);
        reader.next::<u64>().unwrap();
        assert!(reader.is_ready());
        for _ in 1..100 {
            reader.next::<u64>().unwrap();
        }
        assert_eq!(reader.source.read_to.len(), 1);
    }

    #[test]
    fn what_is_too_large_is_refused_before_it_is_read() {
        let refused = |prefix: [u32; 2]| {
            let bytes = prefix.map(u32::to_be_bytes).concat();
            let source = Source { bytes, at: 0, step: usize::MAX, read_to: Vec::new() };
            FrameReader::new(source, 64, 1000).next::<u64>().unwrap_err()
        };
        assert!(matches!(refused([65, 0]), ReadError::HeadTooLarge(65)));
        assert!(matches!(refused([64, 1001]), ReadError::BlobTooLarge(1001)));
        assert!(matches!(refused([64, 1000]), ReadError::Io(_)));
        assert!(matches!(refused([u32::MAX, u32::MAX]), ReadError::HeadTooLarge(_)));
    }

    #[test]
    fn heads_of_any_bytes_never_panic() {
        for first in 0..=255_u8 {
            for rest in [&[][..], &[0xff; 8], &[0; 8], &[0x81, 0xa4, b'p', b'u', b's', b'h', 0xdf, 0xff]] {
                let head = [&[first], rest].concat();
                let mut bytes = (head.len() as u32).to_be_bytes().to_vec();
                bytes.extend_from_slice(&[0; 4]);
                bytes.extend_from_slice(&head);
                let source = Source { bytes, at: 0, step: usize::MAX, read_to: Vec::new() };
                let _ = FrameReader::new(source, 64, 0).next::<super::super::wire::FromPeer>();
            }
        }
    }
}
