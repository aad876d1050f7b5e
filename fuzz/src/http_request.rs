//! HTTP requests: any split gives the same requests and the same refusal; limits hold; and a request that is accepted
//! is framed alike by a second reader, written apart and stricter than any proxy, so nothing can be smuggled past one.

use super::splits::{pieces, splits};
use bytes::Bytes;
use pushring::internals::http::{
    AfterResponse, BodyFraming, Date, HttpConnection, HttpLimits, HttpStep, ParsedRequest, PreparedResponse, Rejection,
};
use pushring::internals::http::{cookies, query};
use pushring::internals::proto::upgrade;
use std::collections::BTreeMap;

/// The limits are so small that ordinary requests meet them.
const TIGHT: u8 = 1;

const TIGHT_LIMITS: HttpLimits = HttpLimits {
    head_bytes_max: 256,
    header_count_max: 6,
    body_bytes_max: 64,
    chunk_extra_bytes_max: 16,
    pipelined_bytes_max: 512,
};

/// A parsed request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    method: String,
    path: String,
    query: Option<String>,
    minor_version: u8,
    framing: BodyFraming,
    keep_alive: bool,
    headers: Vec<(String, Vec<u8>)>,
    body: Bytes,
}

impl From<ParsedRequest<'_>> for Asked {
    fn from(request: ParsedRequest<'_>) -> Self {
        let head = request.head;
        Self {
            method: head.method.into(),
            path: head.target.path.into(),
            query: head.target.query.map(Into::into),
            minor_version: head.minor_version,
            framing: head.framing,
            keep_alive: head.keep_alive,
            headers: head.headers().iter().map(|field| (field.name.into(), field.value.into())).collect(),
            body: request.body,
        }
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Waits,
    Closed,
    Rejected(Rejection),
}

/// A byte of settings, then the stream.
pub fn holds(data: &[u8]) {
    let Some((&settings, stream)) = data.split_first() else { return };
    let limits = if settings & TIGHT != 0 { TIGHT_LIMITS } else { HttpLimits::default() };
    let (requests, end) = serve(stream, &[], &limits);
    for cuts in splits(stream) {
        let (again, end_again) = serve(stream, &cuts, &limits);
        assert_eq!(again, requests, "cut at {cuts:?}");
        let is_same = is_same_end(end, end_again) || is_only_later(stream, &cuts, &limits, end, end_again);
        assert!(is_same, "{end:?} and {end_again:?}, cut at {cuts:?}");
    }
    let mut rest = stream;
    for request in &requests {
        rest = strictly_the_same(rest, request);
    }
}

/// A request with two faults may be refused for either, whichever is detected first.
fn is_same_end(a: End, b: End) -> bool {
    a == b || matches!((a, b), (End::Rejected(_), End::Rejected(_)))
}

/// A head that trickles in is not parsed at every byte, so its fault may be seen only when the head ends.
fn is_only_later(stream: &[u8], cuts: &[usize], limits: &HttpLimits, a: End, b: End) -> bool {
    let ended = [stream, b"\r\n\r\n"].concat();
    let is_rejected = |cuts: &[usize]| matches!(serve(&ended, cuts, limits).1, End::Rejected(_));
    (a == End::Waits || b == End::Waits) && is_rejected(&[]) && is_rejected(cuts)
}

/// Feeds the stream in pieces and answers every request as soon as it is whole.
fn serve(stream: &[u8], cuts: &[usize], limits: &HttpLimits) -> (Vec<Asked>, End) {
    let mut connection = HttpConnection::new(*limits);
    let mut requests = Vec::new();
    for piece in pieces(stream, cuts) {
        let mut input = piece;
        loop {
            let rejection = match connection.feed(input) {
                HttpStep::Wait | HttpStep::BodyPending { .. } => break,
                HttpStep::Request(request) => {
                    look_closer(&request, limits);
                    requests.push(request.into());
                    None
                }
                HttpStep::Rejected(rejection) => Some(rejection),
            };
            if let Some(rejection) = rejection {
                ends(&mut connection, rejection);
                return (requests, End::Rejected(rejection));
            }
            respond(&mut connection, PreparedResponse::text(200, "ok"));
            match connection.response_left() {
                AfterResponse::Close => return (requests, End::Closed),
                AfterResponse::Feed => input = &[],
            }
        }
        held_is_bounded(&connection, stream, limits);
    }
    (requests, End::Waits)
}

/// After a refusal nothing is read and nothing held.
fn ends(connection: &mut HttpConnection, rejection: Rejection) {
    assert!((400..=505).contains(&rejection.status));
    respond(connection, rejection.response());
    assert_eq!(connection.response_left(), AfterResponse::Close);
    assert!(matches!(connection.feed(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), HttpStep::Wait));
    assert_eq!(connection.held_bytes(), 0);
}

fn respond(connection: &mut HttpConnection, response: PreparedResponse) {
    let mut out = Vec::new();
    connection.respond(response, &Date::at(0), &mut out);
    assert!(out.ends_with(b"\r\n\r\n"));
}

/// Held memory follows the bytes that arrived: twice of it for growing vectors, and never more than the limits allow.
fn held_is_bounded(connection: &HttpConnection, stream: &[u8], limits: &HttpLimits) {
    let held = connection.held_bytes();
    assert!(held <= 4 * stream.len() + 1024, "{held} bytes held for {} that arrived", stream.len());
    if connection.wants_read() {
        // One read may go over a mark, and here a read may be the whole stream.
        let most = limits.head_bytes_max + limits.body_bytes_max + limits.pipelined_bytes_max;
        assert!(held <= 2 * (most + stream.len()) + 1024);
    }
}

/// Everything else that reads a head.
fn look_closer(request: &ParsedRequest<'_>, limits: &HttpLimits) {
    let head = &request.head;
    assert!(head.headers().len() <= limits.header_count_max);
    assert!(request.body.len() <= limits.body_bytes_max);
    assert_eq!(head.wants_websocket, upgrade::wants_upgrade(head.headers()));
    let cookie = cookies::find(head, "a");
    if cookie == Ok(None) {
        let fields: Vec<_> = head.values("cookie").flat_map(|field| field.split(|&byte| byte == b';')).collect();
        assert!(fields.iter().all(|pair| !pair.trim_ascii().starts_with(b"a=")));
    }
    let last_of_each: BTreeMap<_, _> = query::pairs(head.target.query).collect();
    for (name, value) in &last_of_each {
        assert_eq!(query::param(head.target.query, name).as_deref(), Some(value.as_str()));
    }
    if let Some(authority) = head.authority {
        assert!(!authority.host.is_empty() && authority.text.starts_with(authority.host));
        assert!(authority.host.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\".contains(&byte)));
    }
}

/// Reads `asked` from the front of `stream` by RFC 9112 sections 2 to 7 and gives what is left.
fn strictly_the_same<'a>(stream: &'a [u8], asked: &Asked) -> &'a [u8] {
    let mut rest = stream;
    // Section 2.2: "SHOULD ignore at least one empty line (CRLF) received prior to the request-line".
    while let Some(behind) = rest.strip_prefix(b"\r\n") {
        rest = behind;
    }
    let line = take_line(&mut rest);
    let words: Vec<_> = line.split(|&byte| byte == b' ').collect();
    let [method, target, version] = words[..] else { panic!("no request line: {:?}", line.escape_ascii()) };
    assert_eq!(method, asked.method.as_bytes());
    assert!(!method.is_empty() && method.iter().all(is_token));
    let path_and_query = [&asked.path[..], asked.query.as_deref().unwrap_or_default()].join("?");
    let path_and_query = if asked.query.is_some() { &path_and_query[..] } else { &asked.path[..] };
    let target = std::str::from_utf8(target).expect("a target is ASCII");
    let is_whole = target == path_and_query
        || target.split_once("://").is_some_and(|(_, behind)| {
            behind.ends_with(path_and_query) || (asked.path == "/" && behind.ends_with(&path_and_query[1..]))
        });
    assert!(is_whole, "{target:?} became {path_and_query:?}");
    assert_eq!(version, [b"HTTP/1.", &[b'0' + asked.minor_version][..]].concat());
    let fields = fields(&mut rest);
    assert_eq!(fields, asked.headers);
    let values = |name: &str| -> Vec<_> {
        let named = fields.iter().filter(|(have, _)| have.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_slice()).collect()
    };
    assert_eq!(values("host").len().max(usize::from(asked.minor_version == 0)), 1);
    let body = match (&values("content-length")[..], &values("transfer-encoding")[..]) {
        ([], []) => &[][..],
        ([length], []) => {
            assert!(length.iter().all(u8::is_ascii_digit));
            let length = std::str::from_utf8(length).ok().and_then(|digits| digits.parse().ok()).expect("a length");
            let (body, behind) = rest.split_at(length);
            rest = behind;
            body
        }
        ([], [coding]) => {
            assert!(asked.minor_version == 1 && coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
            assert_eq!(asked.body, chunks(&mut rest));
            return rest;
        }
        both => panic!("two readers could differ about {both:?}"),
    };
    assert_eq!(asked.body, body);
    rest
}

/// Field lines up to and with the empty line, each `name ":" OWS value OWS`.
fn fields(rest: &mut &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    loop {
        let line = take_line(rest);
        if line.is_empty() {
            return fields;
        }
        let colon = line.iter().position(|&byte| byte == b':').expect("a field has a colon");
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        assert!(!name.is_empty() && name.iter().all(is_token), "{:?}", name.escape_ascii());
        assert!(value.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)));
        fields.push((String::from_utf8(name.into()).expect("a token is ASCII"), value.into()));
    }
}

fn chunks(rest: &mut &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = take_line(rest);
        let size = line.split(|&byte| byte == b';').next().map(trim).unwrap_or_default();
        let size = std::str::from_utf8(size).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.unwrap_or_else(|| panic!("no chunk size: {:?}", line.escape_ascii()));
        if size == 0 {
            fields(rest);
            return body;
        }
        body.extend_from_slice(&rest[..size]);
        *rest = rest[size..].strip_prefix(b"\r\n").expect("CRLF behind a chunk");
    }
}

/// A line without its CRLF; no other line end may be in it.
fn take_line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("a line ends in CRLF");
    let line = &rest[..end];
    assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{:?}", line.escape_ascii());
    *rest = &rest[end + 2..];
    line
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}
