//! Properties that hold for any bytes on a link, for the fuzz target of this name and for the files below
//! `fuzz/seeds/link`.
//!
//! Compiled for tests and fuzzing only: frames are private to the module.

use super::convert;
use super::frame::{FrameReader, GatheredFrames, LinkFrame, ReadError};
use super::wire::{FromPeer, ToPeer};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::io::Read;

const HEAD_BYTES_MAX: usize = 2 << 10;
const BLOB_BYTES_MAX: usize = 64 << 10;

/// Frames read from one stream before it is given up; a frame has at least one byte of head.
const FRAMES_MAX: usize = 4096;

/// A byte of settings (whether the broker or a peer reads), then the stream.
///
/// # Panics
/// When something does not hold.
pub fn holds(data: &[u8]) {
    match data.split_first() {
        Some((settings, stream)) if settings & 1 == 0 => reads_alike::<FromPeer>(stream, |_, _| {}),
        Some((_, stream)) => reads_alike::<ToPeer>(stream, is_event),
        None => {}
    }
}

/// A stream that gives at most `step` bytes a time.
struct ChunkedReader<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for ChunkedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let (now, later) = self.bytes.split_at(buffer.len().min(self.step).min(self.bytes.len()));
        buffer[..now.len()].copy_from_slice(now);
        self.bytes = later;
        Ok(now.len())
    }
}

/// The frames of a stream, and why there are no more.
fn frames<T: DeserializeOwned>(stream: &[u8], step: usize) -> (Vec<(T, Bytes)>, String) {
    let mut reader = FrameReader::new(ChunkedReader { bytes: stream, step }, HEAD_BYTES_MAX, BLOB_BYTES_MAX);
    let mut frames = Vec::new();
    while frames.len() < FRAMES_MAX {
        let is_ready = reader.is_ready();
        match reader.next() {
            Ok((head, blob)) => frames.push((head, blob)),
            Err(error) => {
                assert!(!is_ready || !matches!(error, ReadError::Io(_)), "a frame that is here is read");
                return (frames, error.to_string());
            }
        }
    }
    (frames, String::new())
}

fn reads_alike<T>(stream: &[u8], closer: impl Fn(T, &Bytes))
where
    T: DeserializeOwned + Serialize + PartialEq + Debug + Clone,
{
    let (seen, end) = frames::<T>(stream, usize::MAX);
    for step in [1, 3, 1000] {
        let (again, end_again) = frames::<T>(stream, step);
        assert!(again == seen && end_again == end, "{step} bytes a time: {end_again}, at once: {end}");
    }
    for (head, blob) in seen {
        assert!(blob.len() <= BLOB_BYTES_MAX);
        let mut written = Vec::new();
        let mut gather = GatheredFrames::default();
        gather.push(&LinkFrame::bare(&head).with(blob.clone()));
        gather.write(&mut written).expect("memory takes every write");
        // Written out, a head names all its fields and so may be longer than it came.
        let mut reader = FrameReader::new(written.as_slice(), written.len(), BLOB_BYTES_MAX);
        let (head_again, blob_again) = reader.next::<T>().expect("what was written is read");
        assert!(head_again == head && blob_again == blob, "{head_again:?} was {head:?}");
        closer(head, &blob);
    }
}

/// A frame that becomes an event becomes the same event again when the broker writes it.
fn is_event(head: ToPeer, blob: &Bytes) {
    let Some(event) = convert::event_in(head, blob.clone()) else { return };
    let (head, blob) = convert::event_out(event).expect("what came over a link goes over one");
    let event = convert::event_in(head.clone(), blob.clone()).expect("what is written is an event");
    let again = convert::event_out(event);
    assert!(again == Some((head, blob)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_of_every_seed() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/link");
        let mut count = 0;
        for entry in std::fs::read_dir(seeds).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display()); // Shown when it fails.
            holds(&std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 5, "{count} seeds");
    }
}
