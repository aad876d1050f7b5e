//! The promise: of any stream of whole frames we and tungstenite see the same messages, and refuse the same streams.
//!
//! Where we differ on purpose: we refuse lengths that are not minimal (RFC 6455 5.2) and accept close code 1014 (IANA's
//! registry), tungstenite the other way round; and we refuse by the header what it refuses with the payload, so the
//! streams compared here end at a frame's end.

use crate::proto_support;

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use proto_support::{Frame, Seen, any_frames, receive, wire};
use pushring::internals::proto::{MessageLimits, Violation};
use tungstenite::error::{Error, ProtocolError};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

const LIMITS: MessageLimits =
    MessageLimits { message_bytes_max: 100_000, frame_bytes_max: 70_000, fragments_max: u32::MAX };

/// Reads the stream, swallows the answers.
struct Wire(Cursor<Vec<u8>>);

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.read(out)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// tungstenite's reading of the stream: its messages, and whether it refused something.
fn tungstenite_receive(stream: &[u8]) -> (Vec<Seen>, bool) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(LIMITS.message_bytes_max))
        .max_frame_size(Some(LIMITS.frame_bytes_max));
    let mut socket = WebSocket::from_raw_socket(Wire(Cursor::new(stream.to_vec())), Role::Server, Some(config));
    let mut seen = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => seen.push(Seen::Text(text.as_bytes().to_vec())),
            Ok(Message::Binary(bytes)) => seen.push(Seen::Binary(bytes.to_vec())),
            Ok(Message::Ping(bytes)) => seen.push(Seen::Ping(bytes.to_vec())),
            Ok(Message::Pong(bytes)) => seen.push(Seen::Pong(bytes.to_vec())),
            Ok(Message::Close(Some(close))) => {
                // An invalid code becomes this, which a client could also have sent; no stream here does.
                if close.code == CloseCode::Protocol && close.reason == "Protocol violation" {
                    return (seen, true);
                }
                seen.push(Seen::Close(Some(close.code.into()), close.reason.to_string()));
                return (seen, false);
            }
            Ok(Message::Close(None)) => {
                seen.push(Seen::Close(None, String::new()));
                return (seen, false);
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::ConnectionClosed) => {
                return (seen, false);
            }
            Err(Error::Io(error)) => panic!("no I/O here: {error}"),
            Err(_) => return (seen, true),
        }
    }
}

fn has_close_code(frame: &Frame, code: u16) -> bool {
    frame.first & 0x0f == 8 && frame.payload.starts_with(&code.to_be_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn the_same_messages_and_the_same_refusals(frames in any_frames()) {
        prop_assume!(!frames.iter().any(|frame| has_close_code(frame, 1014)));
        let stream = wire(&frames);
        let (seen, violation) = receive(&stream, &[], &LIMITS, None);
        prop_assert_eq!((seen, violation.is_some()), tungstenite_receive(&stream), "{:?}", violation);
    }

    #[test]
    fn the_same_of_frames_without_a_mask(frames in any_frames(), unmasked: prop::sample::Index) {
        let unmasked = unmasked.index(frames.len());
        let mut stream = wire(&frames[..unmasked]);
        stream.extend([0x82, 3, 1, 2, 3]);
        let (seen, violation) = receive(&stream, &[], &LIMITS, None);
        prop_assume!(!frames.iter().any(|frame| has_close_code(frame, 1014)));
        prop_assert_eq!((seen, violation.is_some()), tungstenite_receive(&stream), "{:?}", violation);
    }
}

#[test]
fn we_are_stricter_about_lengths() {
    let stream = [0x82, 0xfe, 0, 1, 0, 0, 0, 0, b'a'];
    assert_eq!(receive(&stream, &[], &LIMITS, None), (Vec::new(), Some(Violation::LengthNotMinimal)));
    assert_eq!(tungstenite_receive(&stream), (vec![Seen::Binary(b"a".to_vec())], false));
}

#[test]
fn we_know_close_code_1014() {
    let stream = wire(&[Frame { first: 0x88, key: [0; 4], payload: 1014u16.to_be_bytes().to_vec() }]);
    assert_eq!(receive(&stream, &[], &LIMITS, None), (vec![Seen::Close(Some(1014), String::new())], None));
    assert_eq!(tungstenite_receive(&stream), (Vec::new(), true));
}
