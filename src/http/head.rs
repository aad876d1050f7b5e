//! The request head: request line and header fields, parsed by httparse, then held to the letter of RFC 9112.
//!
//! Parsing borrows from the read buffer and allocates nothing for a head of up to 24 fields. Whatever two readers
//! could frame differently (RFC 9112 section 11.2) is refused here: both lengths, repeated lengths, folded lines, bare
//! CR or LF, a space before the colon, transfer codings that we do not undo.

use super::accept::media_ranges;
use super::limits::{HEADERS_MAX, HttpLimits, Rejection};
use super::target::{Authority, RequestTarget};
use smallvec::SmallVec;
use std::mem::MaybeUninit;

/// One header field, as sent: the name a token in any case, the value without surrounding white space and without
/// control characters but tab. The parser's own type, so that no array is made twice.
pub use httparse::Header;

/// How the end of the body is found (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// So many bytes; 0 where the request names no length.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// A request head that passed every check of RFC 9112.
#[derive(Debug, Clone)]
pub struct Head<'a> {
    /// The method, a token; methods are case-sensitive.
    pub method: &'a str,
    /// The target.
    pub target: RequestTarget<'a>,
    /// 0 or 1: the x of HTTP/1.x.
    pub minor_version: u8,
    /// The authority asked for: of the target if that is absolute, else of the Host field. `None` only in HTTP/1.0.
    pub authority: Option<Authority<'a>>,
    /// How the body is framed.
    pub framing: BodyFraming,
    /// Whether the client would send another request on this connection (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the client means to open a WebSocket: it names the protocol in Upgrade, or sends a field that only that
    /// handshake has. Whether the handshake is lawful (RFC 6455 section 4.2.1) is not checked here.
    pub wants_websocket: bool,
    /// Whether it came over TLS of our own, as the caller knows.
    pub over_tls: bool,
    headers: SmallVec<[Header<'a>; 24]>,
}

impl<'a> Head<'a> {
    /// Parses the head at the start of `bytes`; `Ok(None)` when it is not complete yet, else the head and its length
    /// in bytes, the empty line included. Empty lines before the request line are skipped (RFC 9112 section 2.2).
    ///
    /// # Errors
    /// When what is there cannot become an acceptable request, as soon as that can be seen.
    pub fn parse(bytes: &'a [u8], limits: &HttpLimits) -> Result<Option<(Self, usize)>, Rejection> {
        let mut slots = [const { MaybeUninit::<httparse::Header<'a>>::uninit() }; HEADERS_MAX];
        let header_count_max = limits.header_count_max.min(HEADERS_MAX);
        let mut request = httparse::Request::new(&mut []);
        match request.parse_with_uninit_headers(bytes, &mut slots[..header_count_max]) {
            Ok(httparse::Status::Complete(length)) if length > limits.head_bytes_max => Err(too_large(bytes, limits)),
            Ok(httparse::Status::Complete(length)) => {
                if !line_endings_are_crlf(&bytes[..length]) {
                    return Err(Rejection::new(400, "a line of the head does not end in CRLF"));
                }
                Ok(Some((Self::from_parsed(&request)?, length)))
            }
            Ok(httparse::Status::Partial) if bytes.len() >= limits.head_bytes_max => Err(too_large(bytes, limits)),
            Ok(httparse::Status::Partial) if !line_endings_are_crlf(bytes) => {
                Err(Rejection::new(400, "a line of the head does not end in CRLF"))
            }
            Ok(httparse::Status::Partial) => Ok(None),
            Err(error) => Err(rejection(error, bytes)),
        }
    }

    fn from_parsed(request: &httparse::Request<'_, 'a>) -> Result<Self, Rejection> {
        let incomplete = Rejection::new(400, "the request line is not complete");
        let method = request.method.ok_or(incomplete)?;
        let target = RequestTarget::parse(method, request.path.ok_or(incomplete)?)?;
        let minor_version = request.version.ok_or(incomplete)?;
        let mut headers = SmallVec::new();
        let mut fields = ConnectionFields::default();
        for field in request.headers.iter() {
            fields.note(field.name, field.value)?;
            headers.push(*field);
        }
        if fields.host.is_none() && minor_version == 1 {
            return Err(Rejection::new(400, "the Host field is missing"));
        }
        let one_one = minor_version == 1;
        Ok(Self {
            method,
            target,
            minor_version,
            authority: target.authority.or(fields.host),
            framing: fields.framing(minor_version)?,
            keep_alive: if one_one { !fields.close } else { fields.keep_alive && !fields.close },
            expects_continue: fields.expects_continue && one_one,
            wants_websocket: fields.wants_websocket,
            over_tls: false,
            headers,
        })
    }

    /// The header fields in the order they came.
    pub fn headers(&self) -> &[Header<'a>] {
        &self.headers
    }

    /// The values of every field called `name` (any case), in order.
    pub fn values<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'h> {
        self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The first field called `name` (any case), where it is text.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.values(name).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Returns whether a field called `name` (any case) is there.
    pub fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Returns whether the request only reads (RFC 9110 section 9.2.1), so that it may be answered to any site.
    pub fn is_safe(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS")
    }

    /// Returns whether the client asks for JSON rather than for something to show: Accept names it, and names no HTML
    /// (RFC 9110 section 12.5.1; weights are not compared, for a client that can do with either is served with words).
    pub fn wants_json(&self) -> bool {
        let mut wants = false;
        for range in self.values("accept").flat_map(media_ranges) {
            if range.accepts("text/html") {
                return false;
            }
            let suffix = range.mime.len().checked_sub(5).filter(|at| *at > 0).map(|at| &range.mime[at..]);
            let is_json = suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case(b"+json"));
            wants |= range.accepts("application/json") || is_json && range.weight > 0;
        }
        wants
    }

    /// Returns whether a body is announced.
    pub fn has_body(&self) -> bool {
        self.framing != BodyFraming::Length(0)
    }
}

/// RFC 9112 section 3: a target that is too long by itself is 414.
fn too_large(bytes: &[u8], limits: &HttpLimits) -> Rejection {
    let start = bytes.iter().position(|c| !matches!(c, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = bytes[start..].split(|&c| c == b'\n').next().unwrap_or_default();
    match line.len() >= limits.head_bytes_max.saturating_sub(start) && line.contains(&b' ') {
        true => Rejection::new(414, "the request target is too long"),
        false => Rejection::new(431, "the head is too large"),
    }
}

/// In every pair of neighbours a CR stands before an LF and nowhere else: no bare CR, no bare LF. The last byte may be
/// a CR whose LF has not arrived.
fn line_endings_are_crlf(bytes: &[u8]) -> bool {
    let Some((&first, rest)) = bytes.split_first() else { return true };
    let torn = bytes.iter().zip(rest).fold(false, |torn, (&a, &b)| torn | ((a == b'\r') != (b == b'\n')));
    first != b'\n' && !torn
}

fn rejection(error: httparse::Error, bytes: &[u8]) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => Rejection::new(431, "too many header fields"),
        httparse::Error::Version if names_other_version(bytes) => {
            Rejection::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        }
        httparse::Error::Version => Rejection::new(400, "the request line does not end in a version"),
        httparse::Error::HeaderName => {
            Rejection::new(400, "a header line is not `name: value`, is folded, or has a space before the colon")
        }
        httparse::Error::HeaderValue => Rejection::new(400, "a header value holds a control character"),
        httparse::Error::NewLine => Rejection::new(400, "a line of the head does not end in CRLF"),
        // A ClientHello: a record of type 22 (RFC 8446 5.1). TLS clients show none of this, but traces do.
        _ if bytes.starts_with(&[22, 3]) => Rejection::new(
            400,
            "this port speaks plain HTTP, and the client TLS: use http:// or ws://, or the TLS port",
        ),
        httparse::Error::Token | httparse::Error::Status => Rejection::new(400, "the request line is malformed"),
    }
}

/// Returns whether the request line ends in a well-formed version, just not one of ours.
fn names_other_version(bytes: &[u8]) -> bool {
    let start = bytes.iter().position(|c| !matches!(c, b'\r' | b'\n')).unwrap_or(0);
    let line = bytes[start..].split(|&c| c == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&c| c == b' ');
    let version = words.nth(2).unwrap_or_default();
    words.next().is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The fields that control the connection, gathered in one pass.
#[derive(Default)]
struct ConnectionFields<'a> {
    host: Option<Authority<'a>>,
    length: Option<u64>,
    transfer_encoding: Option<TransferEncoding>,
    close: bool,
    keep_alive: bool,
    wants_websocket: bool,
    expects_continue: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TransferEncoding {
    /// Chunked alone.
    Chunked,
    /// Chunked, over codings that we do not undo.
    ChunkedOverUnknown,
    /// Chunked is not the last coding, so the body's end cannot be determined.
    Endless,
}

impl<'a> ConnectionFields<'a> {
    fn note(&mut self, name: &str, value: &'a [u8]) -> Result<(), Rejection> {
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => self.note_host(value),
            6 if name.eq_ignore_ascii_case("expect") => self.note_expect(value),
            7 if name.eq_ignore_ascii_case("upgrade") => {
                self.wants_websocket |= list(value).any(|token| token.eq_ignore_ascii_case(b"websocket"));
                Ok(())
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for token in list(value) {
                    self.close |= token.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
                Ok(())
            }
            14 if name.eq_ignore_ascii_case("content-length") => self.note_length(value),
            17 if name.eq_ignore_ascii_case("transfer-encoding") => self.note_transfer_encoding(value),
            17 | 21 => {
                let handshake = ["sec-websocket-key", "sec-websocket-version"];
                self.wants_websocket |= handshake.iter().any(|field| name.eq_ignore_ascii_case(field));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// RFC 9112 section 3.2: exactly one Host field with a valid value, else 400.
    fn note_host(&mut self, value: &'a [u8]) -> Result<(), Rejection> {
        let host = std::str::from_utf8(value).ok().and_then(Authority::parse);
        let host = host.ok_or(Rejection::new(400, "the Host field is not `host[:port]`"))?;
        match self.host.replace(host) {
            None => Ok(()),
            Some(_) => Err(Rejection::new(400, "there is more than one Host field")),
        }
    }

    /// RFC 9110 section 8.6 would let equal repeated values pass; refusing them needs no agreement with any other
    /// reader.
    fn note_length(&mut self, value: &[u8]) -> Result<(), Rejection> {
        let malformed = Rejection::new(400, "Content-Length is not one number");
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(malformed);
        }
        let digits = std::str::from_utf8(value).map_err(|_| malformed)?;
        let length = digits.parse().map_err(|_| malformed)?;
        match self.length.replace(length) {
            None => Ok(()),
            Some(_) => Err(Rejection::new(400, "there is more than one Content-Length field")),
        }
    }

    /// RFC 9112 section 6.1: chunked comes last, and only once.
    fn note_transfer_encoding(&mut self, value: &[u8]) -> Result<(), Rejection> {
        use TransferEncoding::{Chunked, ChunkedOverUnknown, Endless};
        let mut empty = true;
        for coding in list(value) {
            empty = false;
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.transfer_encoding = match self.transfer_encoding {
                Some(Chunked | ChunkedOverUnknown) => {
                    return Err(Rejection::new(400, "chunked is not the last transfer coding"));
                }
                None if chunked => Some(Chunked),
                Some(Endless) if chunked => Some(ChunkedOverUnknown),
                None | Some(Endless) => Some(Endless),
            };
        }
        if empty { Err(Rejection::new(400, "Transfer-Encoding is empty")) } else { Ok(()) }
    }

    /// RFC 9110 section 10.1.1: the only expectation there is; 417 to any other.
    fn note_expect(&mut self, value: &[u8]) -> Result<(), Rejection> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(Rejection::new(417, "the only expectation known is 100-continue"));
        }
        self.expects_continue = true;
        Ok(())
    }

    /// RFC 9112 section 6.3. Both lengths, and a transfer coding in HTTP/1.0 (section 6.1), are marks of smuggling.
    fn framing(&self, minor_version: u8) -> Result<BodyFraming, Rejection> {
        match (self.transfer_encoding, self.length) {
            (Some(_), Some(_)) => {
                Err(Rejection::new(400, "the body has both a Transfer-Encoding and a Content-Length"))
            }
            (Some(_), None) if minor_version == 0 => Err(Rejection::new(400, "HTTP/1.0 has no Transfer-Encoding")),
            (Some(TransferEncoding::Endless), None) => {
                Err(Rejection::new(400, "chunked is not the last transfer coding"))
            }
            (Some(TransferEncoding::ChunkedOverUnknown), None) => {
                Err(Rejection::new(501, "the only transfer coding known is chunked"))
            }
            (Some(TransferEncoding::Chunked), None) => Ok(BodyFraming::Chunked),
            (None, length) => Ok(BodyFraming::Length(length.unwrap_or(0))),
        }
    }
}

/// The elements of a comma-separated list (RFC 9110 section 5.6.1), empty ones left out.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&c| c == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}
