//! Support for property tests of the protocol: streams of frames, valid and hostile, and their meaning.
#![allow(dead_code)] // Each test file uses its own part.

use proptest::prelude::*;
use pushring::internals::proto::client::append_frame;
use pushring::internals::proto::deflate::Deflater;

pub use crate::properties::received::*;

/// One frame of a stream.
#[derive(Debug, Clone)]
pub struct Frame {
    pub first: u8,
    pub key: [u8; 4],
    pub payload: Vec<u8>,
}

/// Text whose characters are long enough to be cut, and sometimes no text at all.
pub fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-zκ☃🦀]{0,40}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..60),
        1 => (120usize..140, any::<u8>()).prop_map(|(len, byte)| vec![byte & 0x7f; len]),
        1 => prop_oneof![Just(65_534usize), Just(65_535), Just(65_536)].prop_map(|len| vec![b'x'; len]),
    ]
}

fn any_close_payload() -> impl Strategy<Value = Vec<u8>> {
    (prop_oneof![3 => 999u16..1016, 1 => any::<u16>()], "[a-z☃]{0,20}", 0usize..40).prop_map(|(code, reason, cut)| {
        let mut payload = code.to_be_bytes().to_vec();
        payload.extend(reason.as_bytes());
        payload.truncate(cut);
        payload
    })
}

/// Mostly lawful sequences of frames: whole messages, fragments, control frames, and now and then any first byte.
pub fn any_frames() -> impl Strategy<Value = Vec<Frame>> {
    let frames = prop_oneof![
        6 => (0x81u8..=0x82, any_payload()).prop_map(|frame| vec![frame]),
        3 => (0x01u8..=0x02, prop::collection::vec(any_payload(), 1..4), any_payload()).prop_map(fragments),
        3 => (0x89u8..=0x8a, prop::collection::vec(any::<u8>(), 0..126)).prop_map(|frame| vec![frame]),
        1 => any_close_payload().prop_map(|payload| vec![(0x88, payload)]),
        1 => (any::<u8>(), any_payload()).prop_map(|frame| vec![frame]),
    ];
    prop::collection::vec((frames, any::<[u8; 4]>()), 1..8).prop_map(|groups| {
        let keyed = groups.into_iter().flat_map(|(frames, key)| frames.into_iter().map(move |frame| (frame, key)));
        keyed.map(|((first, payload), key)| Frame { first, key, payload }).collect()
    })
}

/// As [`any_frames`], with compressed messages among them, whole and in fragments.
pub fn any_frames_with_compression() -> impl Strategy<Value = Vec<Frame>> {
    let compressed = ("[a-dκ]{60,600}", 0x41u8..=0x42, any::<prop::sample::Index>(), any::<[u8; 4]>());
    let compressed = compressed.prop_map(|(text, first, cut, key)| {
        let payload = Deflater::new(6).compress(15, text.as_bytes()).unwrap_or(b"\x00").to_vec();
        let (start, end) = payload.split_at(cut.index(payload.len() + 1));
        let frames = [(first, start), (0x89, &b"in between"[..]), (0x80, end)];
        let whole = (first | 0x80, &payload[..]);
        let frames = if cut.index(3) == 0 { &[whole][..] } else { &frames[..] };
        frames.iter().map(|&(first, payload)| Frame { first, key, payload: payload.to_vec() }).collect::<Vec<_>>()
    });
    prop::collection::vec(prop_oneof![any_frames(), compressed], 1..4).prop_map(|groups| groups.concat())
}

/// A message in fragments, with a ping after the first.
fn fragments((first, pieces, last): (u8, Vec<Vec<u8>>, Vec<u8>)) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    for (index, piece) in pieces.into_iter().enumerate() {
        frames.push((if index == 0 { first } else { 0x00 }, piece));
        if index == 0 {
            frames.push((0x89, b"in between".to_vec()));
        }
    }
    frames.push((0x80, last));
    frames
}

/// The frames as they travel.
pub fn wire(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        append_frame(&mut out, frame.first, frame.key, &frame.payload);
    }
    out
}
