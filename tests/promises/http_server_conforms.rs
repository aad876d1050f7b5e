//! A server that reads and answers HTTP/1.1 as RFC 9110 and RFC 9112 demand, seen through a socket: a valid request is
//! answered and echoed, an invalid one is refused in one response and the connection ends, an incomplete one waits. The
//! cases of reading are in `tests/promises/http_strictness.rs`; here are those that need an answer, and the attacks
//! that need two requests on one connection.

use crate::support;

use pushring::Broker;
use pushring::internals::demo;
use pushring::internals::gateway::HostPolicy;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use support::{PATIENCE, broker, on_each_driver};

/// One shard, so that what was sent first is read first; any host, as on a public address.
fn server(driver: support::DriverKind) -> Broker {
    let broker = broker(driver, |config| {
        config.shards = 1;
        config.settings.hosts = HostPolicy::Any;
    });
    demo::page::start(&broker.handle(), demo::page::PageOptions { shards: 1, window_ms: 30_000, login: None }).unwrap();
    broker
}

fn connect(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
}

/// The next response; none when the server has closed.
fn read_response(stream: &mut TcpStream) -> Option<Response> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(0) => {
                assert!(head.is_empty(), "torn: {}", head.escape_ascii());
                return None;
            }
            Ok(_) => head.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error} behind {}", head.escape_ascii()),
        }
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok()).expect("a status line");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    Some(Response { status, head, body })
}

/// Every response until the server closes or waits for more. What is sent ends with a request that asks for the close,
/// so that only a server that misread something waits.
fn responses(broker: &Broker, sent: &[u8]) -> Vec<Response> {
    let mut stream = connect(broker);
    // The server may refuse, and close, before it has read all.
    let _ = stream.write_all(sent);
    std::iter::from_fn(|| read_response(&mut stream)).collect()
}

const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";

const LAST: &str = "GET /demo/page.css HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

#[test]
fn lawful_requests_are_answered_and_bodies_come_back() {
    on_each_driver(|driver| {
        let broker = server(driver);
        for (request, body) in [
            ("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", None),
            ("GET / HTTP/1.1\r\nhOST:\texample.com\t\r\nX-Empty:\r\nX-Blank: \r\n\r\n", None),
            ("GET / HTTP/1.1\r\nHost: example.com\r\nExpect: 100-continue\r\n\r\n", None),
            ("GET http://example.com/?a=b HTTP/1.1\r\nHost: other.example\r\n\r\n", None),
            ("\r\nGET / HTTP/1.1\r\nHost: example.com\r\n\r\n", None),
            ("POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\nhello", Some("hello")),
            ("POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 0\r\n\r\n", Some("")),
            (
                "PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
                Some("abcde"),
            ),
            ("DELETE / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok", Some("ok")),
            ("MADE-UP / HTTP/1.1\r\nHost: h\r\n\r\n", Some("")),
            ("GET /demo/page.js HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nfat!", None),
        ] {
            let responses = responses(&broker, format!("{request}{LAST}").as_bytes());
            let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
            assert_eq!(statuses, [200, 200], "{request:?}");
            if let Some(body) = body {
                assert_eq!(responses[0].body, body.as_bytes(), "{request:?}");
            }
            // RFC 9110 section 6.6.1, RFC 9112 section 9.6.
            assert!(responses.iter().all(|response| response.head.contains("\r\ndate: ")), "{request:?}");
            assert!(responses[1].head.contains("\r\nconnection: close\r\n"), "{request:?}");
        }
    });
}

#[test]
fn unlawful_requests_are_refused_once_and_for_all() {
    on_each_driver(|driver| {
        let broker = server(driver);
        for (request, status) in [
            ("GET / \r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET / HTTP/9.9\r\nHost: h\r\n\r\n", 505),
            ("some more GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nX[]: y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nX: a\x07\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\n\rX: y\r\n\r\n", 400),
            ("GET / HTTP/1.1\nHost: h\n\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: abc\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -123456789123456789123456789\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
            ("GET / HTTP/1.1\r\nHost: h\r\nExpect: y 100-continue\r\n\r\n", 417),
            ("TRACE / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 405),
        ] {
            let responses = responses(&broker, format!("{request}{LAST}").as_bytes());
            let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
            assert_eq!(statuses, [status], "{request:?}: one refusal, and nothing behind it is read");
            assert!(responses[0].head.contains("\r\nconnection: close\r\n"), "{request:?}");
        }
    });
}

/// Each is one request to one reader and two to another, or hides the second in the body of the first. `/smuggled` is
/// not bound, so a 404 would show that it was read as a request.
#[test]
fn nothing_is_smuggled() {
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    let post = |fields: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}");
    let length = hidden.len();
    let chunk = format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n");
    let whole = [
        post(&format!("Content-Length: {length}\r\n"), hidden),
        post(&format!("Content-Length: {length}\r\nX-Transfer-Encoding: chunked\r\n"), hidden),
        post(&format!("Content-Length: {length}\r\nTransfer_Encoding: chunked\r\n"), hidden),
        post(&format!("Connection: content-length\r\nContent-Length: {length}\r\n"), hidden),
        post("Transfer-Encoding: chunked\r\n", &chunk),
        post("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", &chunk),
        post("Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: 90\r\nTransfer-Encoding: x\r\n\r\n"),
        // A body where none is expected is a body all the same.
        format!("GET / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        format!("GET / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
        format!("GET /demo/page.css HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{hidden}"),
        format!("OPTIONS * HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{hidden}"),
    ];
    let torn = [
        post(&format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &format!("0\r\n\r\n{hidden}")),
        post(&format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &format!("0\r\n\r\n{hidden}")),
        post(&format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), hidden),
        post(&format!("Content-Length: {length}, 0\r\n"), hidden),
        post(&format!("Content-Length : {length}\r\n"), hidden),
        post(&format!("Content-Length:\r\n {length}\r\n"), hidden),
        post(&format!("Content-Length: 0{length}x\r\n"), hidden),
        post("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", &chunk),
        post("Transfer-Encoding : chunked\r\n", &chunk),
        post("Transfer-Encoding\n: chunked\r\n", &chunk),
        post("Transfer-Encoding:\x0bchunked\r\n", &chunk),
        post("Transfer-Encoding: \"chunked\"\r\n", &chunk),
        post("X: y\nTransfer-Encoding: chunked\r\n", &chunk),
        post("X: y\rTransfer-Encoding: chunked\r\n", &chunk),
        post("X: y\r\n Transfer-Encoding: chunked\r\n", &chunk),
        post("\tTransfer-Encoding: chunked\r\n", &chunk),
        post("Transfer-Encoding: chunked\r\n", &format!("1;\nx\r\n0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("1;\rx\r\n0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("1\nx\r\n0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("1\r\nxx0\r\n\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("100000000000000000\r\n{hidden}")),
        post("Transfer-Encoding: chunked\r\n", &format!("0\r\n\n{hidden}")),
        format!("POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"),
        format!("GET / HTTP/1.1\r\nHost: h\r\n\r{hidden}"),
        format!("GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\n{hidden}"),
        format!("GET / HTTP/1.1\r\nHost: h\r\nHost: {hidden}"),
        // A handshake that is refused: a proxy may believe in the upgrade and forward all that follows unseen.
        format!("{HANDSHAKE}Sec-WebSocket-Version: 13\r\n\r\n{hidden}").replace("GET / ", "GET /unbound "),
        format!("{HANDSHAKE}Sec-WebSocket-Version: 777\r\n\r\n{hidden}"),
        format!("{HANDSHAKE}Sec-WebSocket-Version: 13\r\nContent-Length: {length}\r\n\r\n{hidden}"),
    ];
    on_each_driver(|driver| {
        let broker = server(driver);
        for request in &whole {
            let responses = responses(&broker, format!("{request}{LAST}").as_bytes());
            let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
            assert!(matches!(statuses[..], [200 | 204, 200]), "{statuses:?} {request:?}");
        }
        for request in &torn {
            let responses = responses(&broker, format!("{request}{LAST}").as_bytes());
            let statuses: Vec<u16> = responses.iter().map(|response| response.status).collect();
            assert!(matches!(statuses[..], [400 | 404 | 413 | 426 | 501]), "{statuses:?} {request:?}");
        }
    });
}

#[test]
fn a_request_that_is_not_complete_waits() {
    let request = "GET /demo/page.css HTTP/1.1\r\nHost: localhost\r\n\r\n";
    on_each_driver(|driver| {
        let broker = server(driver);
        for end in 1..request.len() {
            let mut waiting = connect(&broker);
            waiting.write_all(&request.as_bytes()[..end]).unwrap();
            // The shard reads sockets in the order in which they became readable: by this answer it has seen the piece.
            assert_eq!(responses(&broker, LAST.as_bytes()).len(), 1);
            waiting.set_nonblocking(true).unwrap();
            let early = waiting.read(&mut [0; 100]);
            assert_eq!(early.unwrap_err().kind(), ErrorKind::WouldBlock, "answered {:?}", &request[..end]);
            waiting.set_nonblocking(false).unwrap();
            waiting.write_all(&request.as_bytes()[end..]).unwrap();
            assert_eq!(read_response(&mut waiting).unwrap().status, 200, "{:?}", &request[..end]);
        }
    });
}

/// RFC 9110 section 10.1.1, and 7.8 where an upgrade is asked for as well.
#[test]
fn who_waits_for_100_is_told_to_go_on() {
    on_each_driver(|driver| {
        let broker = server(driver);
        let mut stream = connect(&broker);
        stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
        assert_eq!(read_response(&mut stream).unwrap().status, 100);
        stream.write_all(b"ab").unwrap();
        let answer = read_response(&mut stream).unwrap();
        assert_eq!((answer.status, &*answer.body), (200, &b"ab"[..]));

        let mut stream = connect(&broker);
        write!(stream, "{HANDSHAKE}Sec-WebSocket-Version: 13\r\nExpect: 100-continue\r\n\r\n").unwrap();
        let statuses = [read_response(&mut stream).unwrap().status, read_response(&mut stream).unwrap().status];
        assert_eq!(statuses, [100, 101]);
        // An HTTP/1.0 client would not understand it.
        let mut stream = connect(&broker);
        stream.write_all(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab").unwrap();
        assert_eq!(read_response(&mut stream).unwrap().status, 200);
    });
}
