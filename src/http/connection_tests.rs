use super::*;
use proptest::prelude::*;

/// The result of a peer's bytes, for comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Request { method: String, path: String, query: Option<String>, body: Vec<u8>, keep_alive: bool, headers: usize },
    Rejected(u16),
    Closed,
}

/// Feeds `pieces`, answering each request at once.
fn run(limits: HttpLimits, pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Vec<Seen> {
    let mut connection = HttpConnection::new(limits);
    let mut seen = Vec::new();
    let date = Date::at(0);
    for piece in pieces {
        let mut piece: &[u8] = piece.as_ref();
        loop {
            let rejection = match connection.feed(piece) {
                HttpStep::Wait | HttpStep::BodyPending { .. } => break,
                HttpStep::Request(ParsedRequest { head, body }) => {
                    seen.push(Seen::Request {
                        method: head.method.into(),
                        path: head.target.path.into(),
                        query: head.target.query.map(Into::into),
                        body: body.to_vec(),
                        keep_alive: head.keep_alive,
                        headers: head.headers().len(),
                    });
                    None
                }
                HttpStep::Rejected(rejection) => {
                    seen.push(Seen::Rejected(rejection.status));
                    Some(rejection)
                }
            };
            let response = rejection.map_or(PreparedResponse::new(200), Rejection::response);
            connection.respond(response, &date, &mut Vec::new());
            if connection.response_left() == AfterResponse::Close {
                seen.push(Seen::Closed);
            }
            piece = &[];
        }
    }
    seen
}

fn get(path: &str) -> Seen {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query.into())),
        None => (path, None),
    };
    Seen::Request { method: "GET".into(), path: path.into(), query, body: vec![], keep_alive: true, headers: 1 }
}

fn post(body: &str) -> Seen {
    let body = body.as_bytes().to_vec();
    Seen::Request { method: "POST".into(), path: "/p".into(), query: None, body, keep_alive: true, headers: 2 }
}

const STREAM: &str = "GET /a?x HTTP/1.1\r\nHost: h\r\n\r\n\
    POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello\r\n\
    POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;e\r\nabc\r\n2\r\nde\r\n0\r\nT: t\r\n\r\n\
    GET /b HTTP/1.1\r\nHost: h\r\n\r\n";

fn stream_seen() -> Vec<Seen> {
    vec![get("/a?x"), post("hello"), post("abcde"), get("/b")]
}

/// RFC 9112 2.2 has empty lines before a request skipped; none of them is its end.
#[test]
fn empty_lines_that_trickle_in_are_not_gone_through_at_each() {
    for (piece, is_whole) in [(2, false), (1, false), (3, true)] {
        let lines = b"\r\n".repeat(HttpLimits::default().head_bytes_max / 2 - 100);
        let (mut connection, mut looks, mut next) = (HttpConnection::new(HttpLimits::default()), 0, 0);
        for bytes in lines.chunks(piece) {
            assert!(matches!(connection.feed(bytes), HttpStep::Wait));
            looks += usize::from(std::mem::replace(&mut next, connection.parse_again_bytes) != next);
        }
        assert!(looks <= 15, "looked at {looks} times");
        let request = if is_whole { &b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"[..] } else { b"GET / HTTP/1.1\nHost" };
        let heard = request.chunks(1).find_map(|byte| match connection.feed(byte) {
            HttpStep::Wait => None,
            HttpStep::Request(_) => Some(true),
            _ => Some(false),
        });
        assert!(heard == Some(true) || !is_whole, "the request behind them is heard");
    }
}

#[test]
fn pipelined_requests_come_one_after_the_other() {
    assert_eq!(run(HttpLimits::default(), [STREAM]), stream_seen());
}

#[test]
fn any_two_pieces_give_the_same_requests() {
    for at in 0..STREAM.len() {
        let (a, b) = STREAM.split_at(at);
        assert_eq!(run(HttpLimits::default(), [a, b]), stream_seen(), "split at {at}");
    }
    assert_eq!(run(HttpLimits::default(), STREAM.as_bytes().chunks(1)), stream_seen());
}

/// Requests, well and badly made, from which streams are put together.
const PARTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "\r\nGET /?q HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "HEAD http://other:8/x HTTP/1.1\r\nHost: h\r\nX: \u{e9}\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
    "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabX",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\nabc",
    "GET / HTTP/1.1\r\nHost: h\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\nHost: h\n\n",
    "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "garbage\r\n\r\n",
    "\0",
];

fn final_state(seen: &[Seen]) -> Vec<Seen> {
    // Which clause a refusal names may depend on how much was here; that it is a refusal may not.
    seen.iter().map(|s| if matches!(s, Seen::Rejected(_)) { Seen::Rejected(0) } else { s.clone() }).collect()
}

proptest! {
    #[test]
    fn how_bytes_are_split_changes_nothing(
        parts in prop::collection::vec(prop::sample::select(PARTS), 1..5),
        cuts in prop::collection::vec(1usize..40, 1..60),
        noise in prop::option::of((0usize..200, any::<u8>())),
    ) {
        let mut bytes = parts.concat().into_bytes();
        if let Some((at, byte)) = noise {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        // An end at which no head is undecided: an error in a partial head may show early or late, but it must show.
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes.extend(std::iter::repeat_n(b'x', 200));
        let limits = HttpLimits { head_bytes_max: 120, body_bytes_max: 64, ..HttpLimits::default() };
        let whole = final_state(&run(limits, [&bytes]));
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        prop_assert_eq!(final_state(&run(limits, pieces)), whole);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
        let (a, b) = bytes.split_at(cut.min(bytes.len()));
        run(HttpLimits::default(), [a, b]);
    }
}

#[test]
fn the_head_of_a_pending_body_is_shown_once() {
    let mut connection = HttpConnection::new(HttpLimits::default());
    let head = b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    match connection.feed(head) {
        HttpStep::BodyPending { head, send_continue } => assert!(send_continue && head.target.path == "/up"),
        other => panic!("{other:?}"),
    }
    assert_eq!(connection.phase(), HttpPhase::Body);
    assert!(matches!(connection.feed(b"ab"), HttpStep::Wait));
    match connection.feed(b"cd") {
        HttpStep::Request(request) => assert_eq!((request.head.target.path, &request.body[..]), ("/up", &b"abcd"[..])),
        other => panic!("{other:?}"),
    }
    assert_eq!(connection.phase(), HttpPhase::Response);
}

#[test]
fn no_continue_for_a_body_that_comes_anyway() {
    let mut connection = HttpConnection::new(HttpLimits::default());
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nab";
    assert!(matches!(connection.feed(head), HttpStep::BodyPending { send_continue: false, .. }));
    let mut old = HttpConnection::new(HttpLimits::default());
    let head = b"POST / HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    assert!(matches!(old.feed(head), HttpStep::BodyPending { send_continue: false, .. }), "HTTP/1.0 knows no 100");
}

#[test]
fn a_body_refused_early_closes() {
    let mut connection = HttpConnection::new(HttpLimits::default());
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n";
    assert!(matches!(connection.feed(head), HttpStep::BodyPending { .. }));
    let mut out = Vec::new();
    connection.respond(PreparedResponse::new(404), &Date::at(0), &mut out);
    assert!(String::from_utf8(out).unwrap().contains("connection: close"));
    assert!(
        matches!(connection.feed(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"), HttpStep::Wait),
        "the body is not a request"
    );
    assert_eq!(connection.response_left(), AfterResponse::Close);
    assert_eq!(connection.phase(), HttpPhase::Close);
}

#[test]
fn a_body_limit_can_be_lowered() {
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 40\r\n\r\nabc";
    let mut connection = HttpConnection::new(HttpLimits::default());
    connection.feed(head);
    assert_eq!(connection.limit_body(40), Ok(()));
    assert_eq!(connection.limit_body(39).unwrap_err().status, 413);
    assert_eq!(connection.phase(), HttpPhase::Close);
}

#[test]
fn what_is_pipelined_waits_and_is_bounded() {
    let mut connection = HttpConnection::new(HttpLimits { pipelined_bytes_max: 8, ..HttpLimits::default() });
    assert_eq!(connection.phase(), HttpPhase::Idle);
    connection.feed(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(connection.wants_read());
    assert!(matches!(connection.feed(b"GET /2 HTTP/1.1\r\nHost: h\r\n\r\n"), HttpStep::Wait));
    assert!(!connection.wants_read());
    connection.respond(PreparedResponse::new(200), &Date::at(0), &mut Vec::new());
    assert!(matches!(connection.feed(b""), HttpStep::Wait), "the response has not left");
    assert_eq!(connection.response_left(), AfterResponse::Feed);
    match connection.feed(b"") {
        HttpStep::Request(request) => assert_eq!(request.head.target.path, "/2"),
        other => panic!("{other:?}"),
    };
}

#[test]
fn keep_alive_follows_version_and_connection_field() {
    let keeps = |head: &str| {
        let mut connection = HttpConnection::new(HttpLimits::default());
        assert!(matches!(connection.feed(head.as_bytes()), HttpStep::Request(_)), "{head:?}");
        connection.respond(PreparedResponse::new(200), &Date::at(0), &mut Vec::new());
        connection.response_left() == AfterResponse::Feed
    };
    assert!(keeps("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.1\r\nHost: h\r\nConnection: Close\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.1\r\nHost: h\r\nConnection: x, close\r\nConnection: keep-alive\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.0\r\n\r\n"));
    assert!(keeps("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"));
    assert!(keeps("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"));
    assert!(!keeps("GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"));
}

#[test]
fn nothing_is_parsed_behind_a_rejection_or_a_close() {
    let good = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let seen = run(HttpLimits::default(), [format!("bad\r\n\r\n{good}"), good.into()]);
    assert_eq!(seen, [Seen::Rejected(400), Seen::Closed]);
    let close = "GET /c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let seen = run(HttpLimits::default(), [format!("{close}{good}"), good.into()]);
    assert!(matches!(&seen[..], [Seen::Request { keep_alive: false, .. }, Seen::Closed]), "{seen:?}");
}

#[test]
fn leftover_bytes_survive_an_upgrade() {
    let head = "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\r\n";
    for split in [0, 10, head.len() - 1, head.len()] {
        let mut connection = HttpConnection::new(HttpLimits::default());
        let text = format!("{head}\u{1}\u{2}frame");
        let (a, b) = text.as_bytes().split_at(split);
        let first = matches!(connection.feed(a), HttpStep::Request(ParsedRequest { head, .. }) if head.wants_websocket);
        let second =
            matches!(connection.feed(b), HttpStep::Request(ParsedRequest { head, .. }) if head.wants_websocket);
        assert!(first ^ second, "split at {split}");
        assert_eq!(connection.into_leftover(), b"\x01\x02frame", "split at {split}");
    }
}

#[test]
fn heads_above_the_limit_are_refused_however_they_come() {
    let limits = HttpLimits { head_bytes_max: 64, header_count_max: 3, ..HttpLimits::default() };
    let fits = format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}\r\n\r\n", "x".repeat(64 - 32));
    assert_eq!(fits.len(), 64);
    let over = fits.replace("A: ", "A: x");
    for step in [1, 7, 64, 100] {
        let seen = run(limits, fits.as_bytes().chunks(step));
        assert!(matches!(seen[..], [Seen::Request { .. }]), "{seen:?}");
        assert_eq!(run(limits, over.as_bytes().chunks(step)), [Seen::Rejected(431), Seen::Closed], "{step}");
    }
    let many = "GET / HTTP/1.1\r\nHost: h\r\na:\r\nb:\r\nc:\r\n\r\n";
    assert_eq!(run(limits, [many]), [Seen::Rejected(431), Seen::Closed]);
    let endless = "GET /".bytes().chain(std::iter::repeat_n(b'a', 1000)).collect::<Vec<_>>();
    assert_eq!(run(limits, endless.chunks(1)), [Seen::Rejected(414), Seen::Closed]);
}

#[test]
fn errors_show_before_the_head_is_complete() {
    for bad in ["\x16\x03\x01\x02\0\x01", "GET / HTTP/1.1\nHost", "GET / HTTP/1.1\r\nHo st: h\r\n", "GET /\0"] {
        assert_eq!(run(HttpLimits::default(), [bad]), [Seen::Rejected(400), Seen::Closed], "{bad:?}");
    }
}

#[test]
fn framing_is_counted_however_it_comes() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "1;e=f\r\nx\r\n".repeat(50) + "0\r\nt: u\r\n\r\n";
    let all = format!("{head}{body}");
    for size in [1, 3, 64, 10_000] {
        let mut connection = HttpConnection::new(HttpLimits::default());
        let mut framing = 0;
        for part in all.as_bytes().chunks(size) {
            assert!(!matches!(connection.feed(part), HttpStep::Rejected(_)));
            framing += connection.take_framing_bytes();
        }
        assert_eq!(framing, body.len() - 50, "in pieces of {size}");
    }
    let mut connection = HttpConnection::new(HttpLimits::default());
    connection.feed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(connection.take_framing_bytes(), 0);
}
