use super::*;
use crate::proto::client::{FIN, append_frame, append_message};
use crate::proto::deflate;

const KEY: MaskingKey = [0x11, 0xa2, 0x33, 0xc4];

/// A frame with the given first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_frame(&mut out, first, KEY, payload);
    out
}

fn fin(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    frame(FIN | opcode as u8, payload)
}

/// An event that owns its bytes.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
}

impl From<Received<'_>> for Seen {
    fn from(event: Received<'_>) -> Self {
        match event {
            Received::Message { kind: MessageKind::Text, payload } => {
                Self::Text(String::from_utf8(payload.into_vec()).expect("checked"))
            }
            Received::Message { kind: MessageKind::Binary, payload } => Self::Binary(payload.into_vec()),
            Received::Unfinished => unreachable!("it is not looked at"),
            Received::Ping(payload) => Self::Ping(payload.to_vec()),
            Received::Pong(payload) => Self::Pong(payload.to_vec()),
            Received::Close(close) => Self::Close(close.code, close.reason.to_owned()),
        }
    }
}

struct Peer {
    connection: WebSocketConnection,
    limits: MessageLimits,
    scratch: Scratch,
}

impl Peer {
    fn new() -> Self {
        Self::limited(MessageLimits::default())
    }

    fn limited(limits: MessageLimits) -> Self {
        Self { connection: WebSocketConnection::new(None), limits, scratch: Scratch::new() }
    }

    /// Feeds one read and gives all its events, and the violation that ended it.
    fn feed(&mut self, bytes: &[u8]) -> (Vec<Seen>, Option<Violation>) {
        let mut read = bytes.to_vec();
        let mut at = 0;
        let mut seen = Vec::new();
        loop {
            match self.connection.receive(&mut read[at..], &self.limits, &mut self.scratch) {
                Ok((consumed, Some(Received::Unfinished))) => {
                    at += consumed;
                    assert!(self.connection.is_inflating() && self.connection.held_bytes() > 0);
                }
                Ok((consumed, Some(event))) => {
                    seen.push(event.into());
                    at += consumed;
                }
                Ok((consumed, None)) => {
                    assert_eq!(at + consumed, read.len(), "without an event everything is consumed");
                    return (seen, None);
                }
                Err(violation) => return (seen, Some(violation)),
            }
        }
    }

    fn violation(&mut self, bytes: &[u8]) -> Option<Violation> {
        self.feed(bytes).1
    }
}

#[test]
fn an_idle_connection_is_small_and_owns_no_heap() {
    assert!(size_of::<WebSocketConnection>() <= 32, "{}", size_of::<WebSocketConnection>());
    assert!(size_of::<Received<'_>>() <= 40, "{}", size_of::<Received<'_>>());
    let mut peer = Peer::new();
    assert_eq!(peer.connection.held_bytes(), 0);
    peer.feed(&fin(Opcode::Text, b"hi")[..3]);
    assert_eq!(peer.connection.held_bytes(), 0, "a cut header is kept inline");
    peer.feed(&fin(Opcode::Text, b"hi")[3..7]);
    assert!(peer.connection.held_bytes() > 0);
    peer.feed(&fin(Opcode::Text, b"hi")[7..]);
    assert_eq!(peer.connection.held_bytes(), 0);
    assert!(peer.connection.is_between_messages());
}

#[test]
fn a_whole_message_is_handed_on_where_it_lies() {
    for payload in [&b""[..], b"x", &[b'y'; 125], &[b'z'; 126], &[b'z'; 70_000]] {
        for kind in [MessageKind::Text, MessageKind::Binary] {
            let mut read = Vec::new();
            append_message(&mut read, kind, KEY, payload);
            append_message(&mut read, kind, KEY, b"next");
            let (start, header) = (read.as_ptr() as usize, read.len() - payload.len() - 10);
            let mut connection = WebSocketConnection::new(None);
            let mut scratch = Scratch::new();
            let (consumed, event) = connection.receive(&mut read, &MessageLimits::default(), &mut scratch).unwrap();
            let Some(Received::Message { kind: seen, payload: Payload::Borrowed(bytes) }) = event else {
                panic!("not a borrowed message: {event:?}");
            };
            assert_eq!((seen, bytes), (kind, payload));
            assert_eq!(bytes.as_ptr() as usize - start, header);
            assert_eq!(consumed, header + payload.len());
        }
    }
}

#[test]
fn many_frames_in_one_read_come_one_by_one_in_order() {
    let mut read = Vec::new();
    for number in 0..16u8 {
        append_message(&mut read, MessageKind::Binary, [number, 1, 2, 3], &[number; 32]);
    }
    let (seen, violation) = Peer::new().feed(&read);
    assert_eq!(seen, (0..16u8).map(|number| Seen::Binary(vec![number; 32])).collect::<Vec<_>>());
    assert_eq!(violation, None);
}

#[test]
fn control_frames_come_between_fragments() {
    let read = [
        frame(Opcode::Text as u8, "caf\u{e9}".as_bytes().split_last().unwrap().1),
        fin(Opcode::Ping, b"are you there"),
        frame(Opcode::Continuation as u8, &"\u{e9}".as_bytes()[1..]),
        fin(Opcode::Pong, b""),
        fin(Opcode::Continuation, b"!"),
        fin(Opcode::Close, b"\x03\xe8bye"),
        fin(Opcode::Text, b"never read"),
    ]
    .concat();
    let expected = [
        Seen::Ping(b"are you there".to_vec()),
        Seen::Pong(Vec::new()),
        Seen::Text("caf\u{e9}!".into()),
        Seen::Close(Some(1000), "bye".into()),
    ];
    assert_eq!(Peer::new().feed(&read), (expected.into_iter().collect(), None));
    for cut in 0..read.len() {
        let mut peer = Peer::new();
        let (mut seen, _) = peer.feed(&read[..cut]);
        seen.extend(peer.feed(&read[cut..]).0);
        assert_eq!(seen.len(), 4, "cut at {cut}");
        assert_eq!(peer.connection.held_bytes(), 0, "cut at {cut}");
    }
}

#[test]
fn after_the_close_everything_is_discarded() {
    let mut peer = Peer::new();
    assert_eq!(peer.feed(&fin(Opcode::Close, b"")).0, [Seen::Close(None, String::new())]);
    assert_eq!(peer.feed(&[0xff; 100]), (Vec::new(), None));
    let mut peer = Peer::new();
    assert_eq!(peer.violation(&[0xf1]), Some(Violation::ReservedBits));
    assert_eq!(peer.feed(&fin(Opcode::Text, b"too late")), (Vec::new(), None));
}

#[test]
fn faults_of_order_are_refused_by_the_first_byte() {
    assert_eq!(Peer::new().violation(&[0x00]), Some(Violation::LoneContinuation));
    assert_eq!(Peer::new().violation(&[0x80]), Some(Violation::LoneContinuation));
    for first in [0x01, 0x82] {
        let mut peer = Peer::new();
        assert_eq!(peer.violation(&frame(0x01, b"a")), None);
        assert_eq!(peer.violation(&[first]), Some(Violation::MessageInsideMessage));
    }
    let mut peer = Peer::new();
    peer.feed(&[frame(0x01, b"a"), fin(Opcode::Continuation, b"b")].concat());
    assert_eq!(peer.violation(&[0x80]), Some(Violation::LoneContinuation), "the message had ended");
}

#[test]
fn sizes_are_refused_by_the_header_and_nothing_is_allocated() {
    let limits = MessageLimits { message_bytes_max: 100, frame_bytes_max: 60, fragments_max: 4 };
    let header = |first: u8, payload: usize| frame(first, &vec![0; payload])[..6].to_vec();
    assert_eq!(Peer::limited(limits).violation(&header(0x82, 60)), None);
    let mut peer = Peer::limited(limits);
    assert_eq!(peer.violation(&header(0x82, 61)), Some(Violation::FrameTooBig));
    assert_eq!(peer.connection.held_bytes(), 0);
    let mut peer = Peer::limited(limits);
    assert_eq!(peer.violation(&frame(0x02, &[0; 60])), None);
    assert_eq!(peer.violation(&header(0x80, 41)), Some(Violation::MessageTooBig));
    let mut peer = Peer::limited(limits);
    peer.feed(&frame(0x02, b""));
    assert_eq!(peer.feed(&frame(0x00, b"").repeat(3)), (Vec::new(), None));
    assert_eq!(peer.violation(&header(0x80, 0)), Some(Violation::TooManyFragments));
    let two_gib = [0x82, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0, 1, 2, 3, 4];
    assert_eq!(Peer::new().violation(&two_gib), Some(Violation::FrameTooBig));
    let mut peer = Peer::limited(MessageLimits { message_bytes_max: 1, frame_bytes_max: 1, fragments_max: 1 });
    assert_eq!(peer.feed(&fin(Opcode::Ping, &[7; 125])).0, [Seen::Ping(vec![7; 125])], "limits are for messages");
}

#[test]
fn text_fails_at_its_first_bad_byte() {
    let payload = b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80edited";
    let bad_at = payload.iter().position(|&byte| byte == 0x90).unwrap();
    let read = fin(Opcode::Text, payload);
    let mut peer = Peer::new();
    for (at, byte) in read.iter().enumerate() {
        let violation = peer.violation(&[*byte]);
        if at == 6 + bad_at {
            assert_eq!(violation, Some(Violation::TextNotUtf8));
            return;
        }
        assert_eq!(violation, None);
    }
    panic!("never refused");
}

#[test]
fn text_must_not_end_inside_a_character() {
    for read in [fin(Opcode::Text, b"\xe2\x82"), [frame(0x01, b"\xe2\x82"), fin(Opcode::Continuation, b"")].concat()] {
        assert_eq!(Peer::new().violation(&read), Some(Violation::TextNotUtf8));
        let mut peer = Peer::new();
        let (last, start) = read.split_last().unwrap();
        assert_eq!(peer.violation(start).or_else(|| peer.violation(&[*last])), Some(Violation::TextNotUtf8));
    }
    assert_eq!(Peer::new().feed(&fin(Opcode::Binary, b"\xe2\x82")).0, [Seen::Binary(b"\xe2\x82".to_vec())]);
}

#[test]
fn close_frames_are_judged() {
    for (payload, violation) in [
        (&b"\x03"[..], Violation::CloseTooShort),
        (b"\x03\xe7", Violation::CloseCodeInvalid(999)),
        (b"\x03\xed", Violation::CloseCodeInvalid(1005)),
        (b"\x13\x88", Violation::CloseCodeInvalid(5000)),
        (b"\x03\xe8\xff", Violation::CloseReasonNotUtf8),
    ] {
        assert_eq!(Peer::new().violation(&fin(Opcode::Close, payload)), Some(violation));
    }
}

#[test]
fn compression_that_was_not_agreed_is_a_reserved_bit() {
    assert_eq!(Peer::new().violation(&[0xc1]), Some(Violation::ReservedBits));
}

#[test]
fn compressed_messages_come_inflated_whole_or_in_fragments() {
    let text = "push ring ".repeat(50);
    let payload = deflate::Deflater::new(6).compress(15, text.as_bytes()).unwrap().to_vec();
    let (start, end) = payload.split_at(7);
    let read = [
        frame(0xc1, &payload),
        frame(0x41, start),
        fin(Opcode::Ping, b""),
        fin(Opcode::Continuation, end),
        fin(Opcode::Text, b"plain"),
        frame(0xc2, b"\x00"),
    ]
    .concat();
    let expected = [
        Seen::Text(text.clone()),
        Seen::Ping(Vec::new()),
        Seen::Text(text),
        Seen::Text("plain".into()),
        Seen::Binary(Vec::new()),
    ];
    let mut peer = Peer::new();
    peer.connection = WebSocketConnection::new(Some(Agreed::DEFAULT));
    let (seen, violation) = peer.feed(&read);
    assert_eq!((&seen[..], violation), (&expected[..], None));
    // In the smallest of steps, and each byte by itself.
    for chunk in [read.len(), 1] {
        let mut peer = Peer::new();
        peer.connection = WebSocketConnection::new(Some(Agreed::DEFAULT));
        peer.scratch = Scratch::in_steps(1);
        let seen: Vec<Seen> = read.chunks(chunk).flat_map(|piece| peer.feed(piece).0).collect();
        assert_eq!(&seen[..], &expected[..]);
        assert!(peer.connection.is_between_messages() && peer.connection.held_bytes() == 0);
    }
}

#[test]
fn only_the_first_frame_of_a_message_says_that_it_is_compressed() {
    for unlawful in [&[0xc9][..], &[0xc8], &[0xe1], &[0x91]] {
        let mut peer = Peer::new();
        peer.connection = WebSocketConnection::new(Some(Agreed::DEFAULT));
        assert_eq!(peer.violation(unlawful), Some(Violation::ReservedBits), "{unlawful:x?}");
    }
    let mut peer = Peer::new();
    peer.connection = WebSocketConnection::new(Some(Agreed::DEFAULT));
    assert_eq!(peer.violation(&frame(0x41, b"\x00")), None);
    assert_eq!(peer.violation(&[0xc0]), Some(Violation::ReservedBits));
}

#[test]
fn a_compressed_message_keeps_both_limits() {
    let limits = MessageLimits { message_bytes_max: 1000, frame_bytes_max: 1000, fragments_max: 10 };
    let payload = deflate::Deflater::new(6).compress(15, &[b'a'; 1001]).unwrap().to_vec();
    let mut peer = Peer::limited(limits);
    peer.connection = WebSocketConnection::new(Some(Agreed::DEFAULT));
    assert_eq!(peer.violation(&frame(0xc2, &payload)), Some(Violation::MessageTooBig));
    let mut peer = Peer::limited(limits);
    peer.connection = WebSocketConnection::new(Some(Agreed::DEFAULT));
    assert_eq!(peer.violation(&frame(0x42, &[0; 600])), None);
    assert_eq!(peer.violation(&frame(0x00, &[0; 401])[..8]), Some(Violation::MessageTooBig));
}
