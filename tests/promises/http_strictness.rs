//! The rules of RFC 9110 and RFC 9112 for a server's reading of requests, case by case, and the payloads by which
//! requests are smuggled: each is accepted with exactly one meaning, or refused. A refusal is also final: nothing after
//! it is read as a request.

use pushring::internals::http::{
    AfterResponse, Date, Head, HttpConnection, HttpLimits, HttpStep, PreparedResponse, Rejection,
};

/// The result of a stream of bytes.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// So many requests, then silence.
    Requests(usize),
    /// So many requests, then a refusal.
    Refused(usize, u16),
}
use Outcome::{Refused, Requests};

fn outcome(bytes: &[u8], piece_bytes: usize) -> Outcome {
    let mut connection = HttpConnection::new(HttpLimits::default());
    let mut requests = 0;
    for piece in bytes.chunks(piece_bytes) {
        let mut piece = piece;
        loop {
            let rejection = match connection.feed(piece) {
                HttpStep::Wait | HttpStep::BodyPending { .. } => break,
                HttpStep::Rejected(rejection) => Some(rejection),
                HttpStep::Request(_) => None,
            };
            if let Some(rejection) = rejection {
                refuse(&mut connection, rejection);
                return Refused(requests, rejection.status);
            }
            requests += 1;
            connection.respond(PreparedResponse::new(200), &Date::at(0), &mut Vec::new());
            if connection.response_left() == AfterResponse::Close {
                return Requests(requests);
            }
            piece = &[];
        }
    }
    Requests(requests)
}

/// Sends the refusal and sees that it is final.
fn refuse(connection: &mut HttpConnection, rejection: Rejection) {
    let mut out = Vec::new();
    connection.respond(rejection.response(), &Date::at(0), &mut out);
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with(&format!("HTTP/1.1 {} ", rejection.status)), "{text}");
    assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    assert_eq!(connection.response_left(), AfterResponse::Close);
    let good = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    assert!(matches!(connection.feed(good), HttpStep::Wait), "a refusal is final");
}

#[track_caller]
fn check(bytes: &str, expected: Outcome) {
    // One char is one byte here, so that any byte can be written.
    let bytes: Vec<u8> = bytes.chars().map(|c| u8::try_from(c as u32).expect("a byte")).collect();
    assert_eq!(outcome(&bytes, bytes.len().max(1)), expected, "{}", bytes.escape_ascii());
    let torn = outcome(&bytes, 1);
    match (&expected, &torn) {
        // In pieces an error may show earlier, under another name; never later, never not.
        (Refused(n, _), Refused(m, _)) => assert_eq!(n, m, "{}", bytes.escape_ascii()),
        _ => assert_eq!(torn, expected, "in pieces: {}", bytes.escape_ascii()),
    }
}

/// A head of the request line and fields given, with a Host.
fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n{body}")
}

#[test]
fn request_lines() {
    for good in
        ["GET / HTTP/1.1", "get / HTTP/1.1", "M-SEARCH! /a HTTP/1.1", "OPTIONS * HTTP/1.1", "\r\nGET / HTTP/1.1"]
    {
        check(&format!("{good}\r\nHost: h\r\n\r\n"), Requests(1));
    }
    for (bad, status) in [
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET\t/ HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET / HTTP/1.1 x", 400),
        ("GET /", 400),
        ("GET / ", 400),
        ("GET", 400),
        ("G\u{e9}T / HTTP/1.1", 400),
        ("G(T / HTTP/1.1", 400),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1", 400),
        ("GET / HTTP/1.10", 400),
        ("GET / HTTP/1.2", 505),
        ("GET / HTTP/2.0", 505),
        ("GET / HTTP/0.9", 505),
        ("GET / HTTP/9.9", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("GET /a#b HTTP/1.1", 400),
        ("GET /\u{7f} HTTP/1.1", 400),
        ("GET /\u{e9} HTTP/1.1", 400),
        ("GET /\0 HTTP/1.1", 400),
        ("GET http:// HTTP/1.1", 400),
        ("GET http://u:p@h/ HTTP/1.1", 400),
        ("GET ftp://h/ HTTP/1.1", 400),
        ("CONNECT h:443 HTTP/1.1", 501),
        ("Extra lineGET / HTTP/1.1", 400),
    ] {
        check(&format!("{bad}\r\nHost: h\r\n\r\n"), Refused(0, status));
    }
}

#[test]
fn hosts() {
    check("GET / HTTP/1.0\r\n\r\n", Requests(1));
    check("GET http://h/ HTTP/1.1\r\nHost: other\r\n\r\n", Requests(1));
    for good in ["h", "h:80", "h:", "127.0.0.1", "[::1]:80", "a.b-c_d"] {
        check(&format!("GET / HTTP/1.1\r\nhOsT:\t{good} \r\n\r\n"), Requests(1));
    }
    for bad in ["", "a b", "h:x", "h:99999", "u@h", "h/p", "h?q", "h#f", "[::1", "a,b", "h h", "\u{e9}", "a\\b"] {
        check(&format!("GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n"), Refused(0, 400));
    }
    check("GET / HTTP/1.1\r\n\r\n", Refused(0, 400));
    check("GET http://h/ HTTP/1.1\r\n\r\n", Refused(0, 400));
    check(&get("Host: h\r\n"), Refused(0, 400));
    check(&get("host: g\r\n"), Refused(0, 400));
    check("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Refused(0, 400));
}

#[test]
fn header_lines() {
    for good in ["X:\r\n", "X: \r\n", "X:y\r\n", "X: \t y \t\r\n", "!#$%&'*+-.^_`|~9aZ: y\r\n", "X: \u{e9}\u{ff}\r\n"] {
        check(&get(good), Requests(1));
    }
    for bad in [
        "X : y\r\n",
        "X\t: y\r\n",
        ": y\r\n",
        "X\r\n",
        "X[]: y\r\n",
        "X\u{e9}: y\r\n",
        " X: y\r\n",
        "\tX: y\r\n",
        "X: y\r\n folded\r\n",
        "X: y\r\n\tfolded\r\n",
        "X: y\r\n \r\n",
        "X: \0\r\n",
        "X: \u{7}\r\n",
        "X: \u{7f}\r\n",
        "X: a\rb\r\n",
        "X: a\nb\r\n",
        "X: a\n",
        "X\n: a\r\n",
        "X: a\r\r\n",
        "\rX: a\r\n",
    ] {
        check(&get(bad), Refused(0, 400));
    }
    check("GET / HTTP/1.1\nHost: h\n\n", Refused(0, 400));
    check("GET / HTTP/1.1\r\nHost: h\r\n\n", Refused(0, 400));
    check("\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", Refused(0, 400));
    check("GET / HTTP/1.1\r\n Host: h\r\n\r\n", Refused(0, 400));
    check("GET / HTTP/1.1\r\nHost: h\r\n\rSome-Header: Test\r\n\r\n", Refused(0, 400));
}

#[test]
fn content_lengths() {
    check(&post("Content-Length: 5\r\n", "hello"), Requests(1));
    check(&post("Content-Length: 005\r\n", "helloGET / HTTP/1.1\r\nHost: h\r\n\r\n"), Requests(2));
    check(&post("Content-Length: 0\r\n", ""), Requests(1));
    for bad in [
        "",
        "+5",
        "-5",
        "-0",
        "5 5",
        "5,5",
        "5, 6",
        "0x5",
        "5.0",
        "5e0",
        "abc",
        "\u{b5}",
        "5;",
        "18446744073709551616",
        "-123456789123456789123456789",
    ] {
        check(&post(&format!("Content-Length: {bad}\r\n"), "hello"), Refused(0, 400));
    }
    check(&post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), Refused(0, 400));
    check(&post("Content-Length: 5\r\ncontent-length: 0\r\n", "hello"), Refused(0, 400));
    check(&post("Content-Length : 5\r\n", "hello"), Refused(0, 400));
    check(&post("Content-Length: 18446744073709551615\r\n", "hello"), Refused(0, 413));
    check(&post("Content-Length: 16777217\r\n", ""), Refused(0, 413));
}

#[test]
fn transfer_codings() {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    for good in ["chunked", "Chunked", "CHUNKED", "chunked,", ", chunked", "\tchunked \t"] {
        check(&post(&format!("Transfer-Encoding: {good}\r\n"), chunks), Requests(1));
    }
    for (bad, status) in [
        ("", 400),
        (",", 400),
        ("chunked, chunked", 400),
        ("chunked, identity", 400),
        ("chunked, gzip", 400),
        ("gzip, chunked", 501),
        ("x, y, chunked", 501),
        // RFC 9112 section 6.3: if chunked is not last, the body's end cannot be determined.
        ("identity", 400),
        ("gzip", 400),
        ("gzip, chunked, gzip", 400),
        ("xchunked", 400),
        ("chunkedx", 400),
        ("x-chunked", 400),
        ("chunke", 400),
        ("\"chunked\"", 400),
        ("'chunked'", 400),
        ("chunked;q=1", 400),
        ("chunked; x", 400),
        ("chunked chunked", 400),
        ("chunked\u{a0}", 400),
        ("\u{0b}chunked", 400),
        ("chun\0ked", 400),
    ] {
        check(&post(&format!("Transfer-Encoding: {bad}\r\n"), chunks), Refused(0, status));
    }
    check(&post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunks), Refused(0, 400));
    check(&post("Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", chunks), Refused(0, 501));
    check(&post("Transfer-Encoding : chunked\r\n", chunks), Refused(0, 400));
    check(&post(" Transfer-Encoding: chunked\r\n", chunks), Refused(0, 400));
    check(&post("X: y\r\n Transfer-Encoding: chunked\r\n", chunks), Refused(0, 400));
    check(&post("Transfer-Encoding:\r\n chunked\r\n", chunks), Refused(0, 400));
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Refused(0, 400));
}

#[test]
fn both_lengths_are_a_smuggler() {
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: h\r\n\r\n";
    for (cl, te) in [
        ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"),
        ("Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"),
        ("Content-Length: 5\r\n", "Transfer-Encoding: identity\r\n"),
        ("Content-Length: 5\r\n", "Transfer-Encoding: xchunked\r\n"),
    ] {
        check(&post(&format!("{cl}{te}"), smuggled), Refused(0, 400));
        check(&post(&format!("{te}{cl}"), smuggled), Refused(0, 400));
    }
    // A header that only looks like one is no second length, and the body is not read twice.
    check(&post("Content-Length: 5\r\nX-Transfer-Encoding: chunked\r\n", "0\r\n\r\n"), Requests(1));
    check(&post("Content_Length: 5\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"), Requests(2));
}

#[test]
fn chunks_smuggle_nothing() {
    let chunked = |chunks: &str| post("Transfer-Encoding: chunked\r\n", chunks);
    let next = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    check(&chunked(&format!("0\r\n\r\n{next}")), Requests(2));
    check(&chunked(&format!("1;x=\"y\"\r\na\r\n0\r\nTrailer: 1\r\n\r\n{next}")), Requests(2));
    // A trailer cannot become a header, a length or a request.
    check(&chunked(&format!("0\r\nContent-Length: 30\r\nHost: x\r\n\r\n{next}")), Requests(2));
    for bad in [
        "1\na\r\n0\r\n\r\n",
        "1\r\na\n0\r\n\r\n",
        "1\r\na0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1;\nxx\r\na\r\n0\r\n\r\n",
        "1;a\rb\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1_0\r\na\r\n0\r\n\r\n",
        " 1\r\na\r\n0\r\n\r\n",
        "1 \r\na\r\n0\r\n\r\n",
        "\r\n1\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "00000000000000000\r\n\r\n",
        "0\r\n\n",
        "0\n\n",
        "0\r\nX\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\n X: y\r\n\r\n",
    ] {
        check(&chunked(&format!("{bad}{next}")), Refused(0, 400));
    }
    check(&chunked("fffffffffffffffe\r\n"), Refused(0, 413));
    check(&chunked("10000000000000000\r\n"), Refused(0, 413));
    check(&chunked("00000000000000001\r\n"), Refused(0, 400));
    check(&chunked("1000001\r\n"), Refused(0, 413));
    check(&chunked(&format!("1;{}\r\n", "x".repeat(5000))), Refused(0, 400));
    check(&chunked(&format!("0\r\n{}", "A: b\r\n".repeat(2000))), Refused(0, 431));
}

#[test]
fn expectations() {
    check(&get("Expect: 100-continue\r\n"), Requests(1));
    check(&post("Expect: 100-Continue\r\nContent-Length: 2\r\n", "ab"), Requests(1));
    check(&get("Expect: 200-ok\r\n"), Refused(0, 417));
    check(&get("Expect: 100-continue, x\r\n"), Refused(0, 417));
}

/// RFC 9112 section 9.3: an HTTP/1.0 client has to ask for more, an HTTP/1.1 client for an end; and what stands behind
/// the last request of a connection is none.
#[test]
fn connections_that_go_on_and_that_end() {
    let next = get("");
    let old = |fields: &str| format!("GET / HTTP/1.0\r\n{fields}\r\n{next}");
    check(&old(""), Requests(1));
    check(&old("Connection: keep-alive\r\n"), Requests(2));
    check(&old("Connection: Keep-Alive, x\r\n"), Requests(2));
    check(&old("Connection: keep-alive, close\r\n"), Requests(1));
    check(&old("Keep-Alive: timeout=5\r\n"), Requests(1));
    let new = |fields: &str| format!("{}{next}", get(fields));
    check(&new(""), Requests(2));
    check(&new("Connection: close\r\n"), Requests(1));
    check(&new("Connection: x, CLOSE\r\n"), Requests(1));
    check(&new("Connection: x\r\nConnection: close\r\n"), Requests(1));
    check(&new("Connection: closed\r\n"), Requests(2));
    check(&new("Proxy-Connection: close\r\n"), Requests(2));
    check(&format!("{}garbage\0", get("Connection: close\r\n")), Requests(1));
}

/// A body belongs to its request whatever the method; what a request offers to upgrade to and we do not speak is no
/// reason to read it otherwise (RFC 9110 section 7.8).
#[test]
fn methods_and_offers_change_no_framing() {
    let hidden = get("");
    let length = hidden.len();
    for method in ["HEAD", "GET", "DELETE", "OPTIONS", "TRACE", "MADE-UP"] {
        let head = format!("{method} / HTTP/1.1\r\nHost: h\r\n");
        check(&format!("{head}Content-Length: {length}\r\n\r\n{hidden}{hidden}"), Requests(2));
        let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n");
        check(&format!("{head}{chunked}{hidden}"), Requests(2));
    }
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    check(&format!("{}{hidden}", get(offer)), Requests(2));
    check(&format!("{}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", get(offer)), Refused(1, 505));
    check(&format!("{}{hidden}", get("Upgrade: TLS/1.0\r\nConnection: upgrade\r\n")), Requests(2));
}

#[test]
fn heads_have_limits() {
    check(&get(&format!("X: {}\r\n", "x".repeat(16 << 10))), Refused(0, 431));
    // RFC 9112 section 3: it is the target that is too long.
    check(&format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(16 << 10)), Refused(0, 414));
    check(&format!("\r\nGET /{}", "x".repeat(17 << 10)), Refused(0, 414));
    check(&format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(16 << 10)), Refused(0, 431));
    check(&get(&"X: y\r\n".repeat(99)), Requests(1));
    check(&get(&"X: y\r\n".repeat(100)), Refused(0, 431));
    check(&"\r\n".repeat(9 << 10), Refused(0, 431));
    check(&"A".repeat(17 << 10), Refused(0, 431));
}

#[test]
fn pieces_of_a_lawful_head_wait() {
    let whole = get("");
    for end in 0..whole.len() {
        check(&whole[..end], Requests(0));
    }
}

#[test]
fn other_protocols_are_told_so_at_once() {
    check("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}", Refused(0, 400));
    let refused = Head::parse(b"\x16\x03\x01\x02\0\x01", &HttpLimits::default()).unwrap_err();
    assert!(refused.reason.contains("speaks plain HTTP"), "{}", refused.reason);
    check("SSH-2.0-OpenSSH_9.6\r\n\r\n", Refused(0, 400));
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused(0, 505));
}
