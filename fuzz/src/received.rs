//! The events of a stream of WebSocket bytes, however it is cut into reads.

use pushring::internals::proto::deflate::Agreed;
use pushring::internals::proto::{MessageKind, MessageLimits, Received, Scratch, Violation, WebSocketConnection};

/// An event that owns its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Received<'_>> for Seen {
    fn from(event: Received<'_>) -> Self {
        match event {
            Received::Message { kind: MessageKind::Text, payload } => Self::Text(payload.into_vec()),
            Received::Message { kind: MessageKind::Binary, payload } => Self::Binary(payload.into_vec()),
            Received::Unfinished => unreachable!("only where it is asked to inflate in steps"),
            Received::Ping(payload) => Self::Ping(payload.to_vec()),
            Received::Pong(payload) => Self::Pong(payload.to_vec()),
            Received::Close(close) => Self::Close(close.code, close.reason.to_owned()),
        }
    }
}

/// All that `stream` comes to when it arrives in reads that end at `cuts` (in order, within the stream).
///
/// # Panics
/// When the connection breaks a promise that holds for any stream.
pub fn receive(
    stream: &[u8],
    cuts: &[usize],
    limits: &MessageLimits,
    deflate: Option<Agreed>,
) -> (Vec<Seen>, Option<Violation>) {
    let mut connection = WebSocketConnection::new(deflate);
    let mut scratch = Scratch::new();
    let mut seen = Vec::new();
    let mut start = 0;
    for &end in cuts.iter().chain([&stream.len()]) {
        let mut read = stream[start..end].to_vec();
        start = end;
        let mut at = 0;
        loop {
            match connection.receive(&mut read[at..], limits, &mut scratch) {
                Ok((consumed, Some(event))) => {
                    assert!(consumed > 0 || !matches!(event, Received::Message { .. }), "an event without a byte");
                    seen.push(event.into());
                    at += consumed;
                }
                Ok((consumed, None)) => {
                    assert_eq!(at + consumed, read.len(), "without an event everything is consumed");
                    break;
                }
                Err(violation) => {
                    assert_eq!(connection.held_bytes(), 0, "a failed connection holds nothing");
                    return (seen, Some(violation));
                }
            }
        }
        assert!(connection.held_bytes() <= 2 * limits.message_bytes_max + 32 * 1024);
    }
    (seen, None)
}
