//! Responses: built from a status, header fields and a body; encoded with `content-length`, `date` and, where it
//! matters, `connection`.
//!
//! Invariants: a field name is a token and a value holds no CR, LF, NUL or other control character, so no maker of a
//! response can end its head early or add a field by accident; framing fields are ours alone; no body follows where
//! RFC 9110 forbids one. The clock is the caller's.

use super::body::{is_text, is_token};
use super::limits::Rejection;
use bytes::Bytes;
use std::{
    borrow::Cow,
    collections::HashSet,
    time::{Duration, UNIX_EPOCH},
};

/// The most bytes of a process' header fields: what browsers take of a response's head.
pub const FIELDS_BYTES_MAX: usize = 256 * 1024;

/// The most header fields of a process' response: many times the usual number, and a fraction of a millisecond to
/// encode.
pub const FIELDS_MAX: usize = 4096;

/// Names and values of header fields, in order.
pub type HeaderFields = Vec<(Box<str>, Box<str>)>;

/// A response that is ready to be encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedResponse {
    status: u16,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    body: Bytes,
    /// The length to name in answer to HEAD, where it is not the body's.
    head_length: Option<u64>,
    /// The protocol that a 426 asks the client to upgrade to.
    upgrade: Option<Cow<'static, str>>,
    /// The body is a sentence, whose type depends on what the request asks for.
    is_sentence: bool,
    close: bool,
}

/// A header field that no response may carry: the fault of the code that made the response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseHeaderError {
    /// The name is empty or not a token (RFC 9110 section 5.1).
    #[error("a header name is not a token")]
    Name,
    /// The value holds a control character (RFC 9110 section 5.5).
    #[error("the value of the header {0} holds a control character")]
    Value(String),
}

/// A process' response with a head that no client would take: the fault of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a response has {count} header fields of {bytes} bytes, and may have {FIELDS_MAX} of {FIELDS_BYTES_MAX} together"
)]
pub struct TooManyFields {
    /// How many fields there are.
    pub count: usize,
    /// Their names and values, in bytes.
    pub bytes: usize,
}

impl PreparedResponse {
    /// A response without header fields and body. A status that is not final and known to HTTP (200 to 599) becomes
    /// 500, as nodes do.
    pub fn new(status: u16) -> Self {
        let status = if (200..=599).contains(&status) { status } else { 500 };
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { status, headers, body, head_length: None, upgrade: None, is_sentence: false, close: false }
    }

    /// A response of one sentence: plain text, or JSON `{"error":…}` where the request asks for JSON. What is refused
    /// without a word, and without a type, makes a browser start a download.
    pub fn text(status: u16, sentence: impl Into<Cow<'static, str>>) -> Self {
        let body = match sentence.into() {
            Cow::Borrowed(sentence) => Bytes::from_static(sentence.as_bytes()),
            Cow::Owned(sentence) => Bytes::from(sentence),
        };
        Self { is_sentence: true, ..Self::new(status).with_body(body) }
    }

    /// Adds a field of the server's own, with a valid name and value.
    ///
    /// # Panics
    /// They are not valid: a programmer error.
    #[must_use]
    pub fn with(self, name: &'static str, value: &'static str) -> Self {
        self.header(name, value).expect("a field written in this source is valid")
    }

    /// Adds a field. The name is sent in lower case. Fields that frame the message or manage the connection are
    /// dropped, because they are ours: `content-length` (kept for HEAD without a body), `transfer-encoding`,
    /// `connection`, `keep-alive`, `upgrade` (kept for 426), `trailer`, `te`, `date`.
    ///
    /// # Errors
    /// When the name is no token or the value holds a control character.
    pub fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Result<Self, ResponseHeaderError> {
        self.add(name.into(), value.into())?;
        Ok(self)
    }

    fn add(&mut self, mut name: Cow<'static, str>, value: Cow<'static, str>) -> Result<(), ResponseHeaderError> {
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(ResponseHeaderError::Name);
        }
        if !value.bytes().all(is_text) {
            return Err(ResponseHeaderError::Value(name.into_owned()));
        }
        if name.bytes().any(|c| c.is_ascii_uppercase()) {
            name.to_mut().make_ascii_lowercase();
        }
        match &*name {
            "content-length" => self.head_length = value.parse().ok(),
            "upgrade" if self.status == 426 => self.upgrade = Some(value),
            "transfer-encoding" | "connection" | "keep-alive" | "upgrade" | "trailer" | "te" | "date" => {}
            _ => self.headers.push((name, value)),
        }
        Ok(())
    }

    /// Adds the fields that a process gave, as nodes do: one that no response may carry is left out (it could split the
    /// response in two), and of equal names the last counts. Only `set-cookie` may be there more than once.
    ///
    /// # Errors
    /// More fields, or more bytes of them, than a response may have.
    pub fn merge(mut self, fields: HeaderFields) -> Result<Self, TooManyFields> {
        let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
        if fields.len() > FIELDS_MAX || bytes > FIELDS_BYTES_MAX {
            return Err(TooManyFields { count: fields.len(), bytes });
        }
        for (name, value) in fields {
            if let Err(error) = self.add(String::from(name).into(), String::from(value).into()) {
                tracing::debug!(%error, "a process' header field was left out");
            }
        }
        let mut named = HashSet::with_capacity(self.headers.len());
        let newest_first = self.headers.iter().rev();
        let counts: Vec<bool> = newest_first.map(|(name, _)| name == "set-cookie" || named.insert(&**name)).collect();
        let mut counts = counts.into_iter().rev();
        self.headers.retain(|_| counts.next() == Some(true));
        Ok(self)
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: Bytes) -> Self {
        self.body = body;
        self
    }

    /// The connection closes after this response.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Status, headers in order, body.
    pub fn into_parts(mut self) -> (u16, HeaderFields, Bytes) {
        if self.is_sentence {
            self.write_sentence(false);
        }
        let headers = self.headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        (self.status, headers, self.body)
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body, whether or not it will be sent.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The value of the first field called `name` (lower case).
    pub fn find(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| &**value)
    }

    /// How many header fields it has, without those that are added when it is encoded.
    pub fn field_count(&self) -> usize {
        self.headers.len()
    }

    /// The heap bytes that it keeps allocated, its body included.
    pub fn heap_bytes(&self) -> usize {
        let owned = |text: &Cow<'static, str>| if let Cow::Owned(text) = text { text.capacity() } else { 0 };
        let fields: usize = self.headers.iter().map(|(name, value)| owned(name) + owned(value)).sum();
        self.headers.capacity() * size_of::<(Cow<'static, str>, Cow<'static, str>)>() + fields + self.body.len()
    }

    /// Returns whether the maker of the response wants the connection closed.
    pub fn closes(&self) -> bool {
        self.close
    }

    /// Appends the head to `out` and returns the body to send behind it: empty in answer to HEAD and for statuses
    /// that have none.
    pub fn encode(mut self, asked: RequestFacts, date: &Date, out: &mut Vec<u8>) -> Bytes {
        if self.is_sentence {
            self.write_sentence(asked.wants_json);
        }
        if self.status == 205 {
            // RFC 9110 15.3.6: no content in a 205, and a length that says so.
            (self.body, self.head_length) = (Bytes::new(), None);
        }
        put_status_line(self.status, out);
        for (name, value) in &self.headers {
            put_header(name, value, out);
        }
        let without_body = matches!(self.status, 204 | 304);
        if !without_body {
            let body_length = self.body.len() as u64;
            let length = match self.head_length {
                Some(length) if asked.head_only && self.body.is_empty() => length,
                _ => body_length,
            };
            out.extend_from_slice(b"content-length: ");
            put_number(length, out);
            out.extend_from_slice(b"\r\n");
        }
        put_header("date", date.as_str(), out);
        self.put_connection(asked, out);
        out.extend_from_slice(b"\r\n");
        if without_body || asked.head_only { Bytes::new() } else { self.body }
    }

    /// RFC 9110 15.5.22: "The server MUST send an Upgrade header field in a 426 response", which 7.8 has named in
    /// Connection. There is one protocol to upgrade to here.
    fn put_connection(&self, asked: RequestFacts, out: &mut Vec<u8>) {
        let is_upgrade = self.status == 426;
        if is_upgrade {
            put_header("upgrade", self.upgrade.as_deref().unwrap_or("websocket"), out);
        }
        let keep_alive = asked.keep_alive && !self.close;
        let options = match (keep_alive, asked.minor_version, is_upgrade) {
            (false, _, true) => "close, upgrade",
            (false, _, false) => "close",
            (true, 0, true) => "keep-alive, upgrade",
            (true, 0, false) => "keep-alive",
            (true, _, true) => "upgrade",
            (true, _, false) => return,
        };
        put_header("connection", options, out);
    }

    fn write_sentence(&mut self, as_json: bool) {
        self.is_sentence = false;
        let mime = if as_json {
            let sentence = String::from_utf8_lossy(&self.body);
            self.body = serde_json::json!({ "error": sentence }).to_string().into();
            "application/json"
        } else {
            "text/plain; charset=utf-8"
        };
        self.headers.push((Cow::Borrowed("content-type"), Cow::Borrowed(mime)));
    }
}

/// The facts about a request that encoding its response requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestFacts {
    /// The x of HTTP/1.x.
    pub minor_version: u8,
    /// The method was HEAD.
    pub head_only: bool,
    /// The connection may live on.
    pub keep_alive: bool,
    /// It names JSON, and no page, in Accept.
    pub wants_json: bool,
}

/// The value of a `date` field (RFC 9110 section 5.6.7, IMF-fixdate), formatted once and used for a whole second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Date {
    unix_s: u64,
    text: String,
}

impl Date {
    /// The date at `unix_s` seconds after 1970. Years after 9999 show as the last second of 9999.
    pub fn at(unix_s: u64) -> Self {
        const LAST_UNIX_S: u64 = 253_402_300_799;
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_s.min(LAST_UNIX_S)));
        Self { unix_s, text }
    }

    /// Moves to `unix_s`; free when the second has not changed.
    pub fn advance(&mut self, unix_s: u64) {
        if self.unix_s != unix_s {
            *self = Self::at(unix_s);
        }
    }

    /// Such as `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn put_status_line(status: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    put_number(u64::from(status), out);
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn put_header(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn put_number(number: u64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    write!(out, "{number}").expect("a Vec takes every write");
}

/// The reason phrase that RFC 9110 section 15 gives a status; empty for those it does not know.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Entity",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}

impl Rejection {
    /// The response to send; it closes the connection.
    pub fn response(self) -> PreparedResponse {
        PreparedResponse::text(self.status, self.reason).closing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: RequestFacts =
        RequestFacts { minor_version: 1, head_only: false, keep_alive: true, wants_json: false };

    fn encode(response: PreparedResponse, asked: RequestFacts) -> (String, Bytes) {
        let mut out = Vec::new();
        let body = response.encode(asked, &Date::at(784_111_777), &mut out);
        (String::from_utf8(out).unwrap(), body)
    }

    #[test]
    fn fields_come_before_length_and_date() {
        let response =
            PreparedResponse::new(201).with("Content-Type", "text/css").with_body(Bytes::from_static(b"body{}"));
        let (head, body) = encode(response, ASKED);
        let expected = "HTTP/1.1 201 Created\r\ncontent-type: text/css\r\ncontent-length: 6\r\n\
                        date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";
        assert_eq!((&*head, &*body), (expected, &b"body{}"[..]));
    }

    #[test]
    fn connection_is_named_where_it_is_not_the_default() {
        let head = |response, asked| encode(response, asked).0;
        assert!(
            head(PreparedResponse::new(200), RequestFacts { keep_alive: false, ..ASKED })
                .contains("\r\nconnection: close\r\n")
        );
        assert!(head(PreparedResponse::new(200).closing(), ASKED).contains("\r\nconnection: close\r\n"));
        assert!(
            head(PreparedResponse::new(200), RequestFacts { minor_version: 0, ..ASKED })
                .contains("connection: keep-alive\r\n")
        );
        assert!(!head(PreparedResponse::new(200), ASKED).contains("connection"));
    }

    #[test]
    fn a_426_names_what_to_upgrade_to() {
        for (response, asked, fields) in [
            (PreparedResponse::new(426), ASKED, "upgrade: websocket\r\nconnection: upgrade\r\n"),
            (PreparedResponse::new(426).closing(), ASKED, "upgrade: websocket\r\nconnection: close, upgrade\r\n"),
            (
                PreparedResponse::new(426).header("Upgrade", "h2c").unwrap(),
                RequestFacts { minor_version: 0, ..ASKED },
                "upgrade: h2c\r\nconnection: keep-alive, upgrade\r\n",
            ),
        ] {
            let head = encode(response, asked).0;
            assert!(head.contains(fields), "{head}");
        }
    }

    #[test]
    fn a_sentence_comes_in_the_form_that_was_asked_for() {
        let (head, body) = encode(PreparedResponse::text(404, "nothing is \"here\""), ASKED);
        assert!(head.contains("content-type: text/plain; charset=utf-8\r\ncontent-length: 17\r\n"), "{head}");
        assert_eq!(body, "nothing is \"here\"");
        let asked = RequestFacts { wants_json: true, ..ASKED };
        let (head, body) = encode(PreparedResponse::text(404, "nothing is \"here\""), asked);
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        assert_eq!(body, r#"{"error":"nothing is \"here\""}"#);
        let (head, body) = encode(PreparedResponse::text(404, "nothing"), RequestFacts { head_only: true, ..ASKED });
        assert!(head.contains("content-length: 7\r\n") && body.is_empty(), "{head}");
        let (_, headers, _) = PreparedResponse::text(404, "nothing").into_parts();
        assert_eq!(headers, [("content-type".into(), "text/plain; charset=utf-8".into())]);
        let answered = encode(PreparedResponse::new(404), asked);
        assert!(
            answered.1.is_empty() && !answered.0.contains("content-type"),
            "a process' own answer stays: {answered:?}"
        );
    }

    #[test]
    fn no_body_where_there_is_none() {
        let full = || PreparedResponse::new(200).with_body(Bytes::from_static(b"12345"));
        let (head, body) = encode(full(), RequestFacts { head_only: true, ..ASKED });
        assert!(head.contains("content-length: 5\r\n") && body.is_empty());
        for status in [204, 304] {
            let (head, body) = encode(PreparedResponse::new(status).with_body(Bytes::from_static(b"x")), ASKED);
            assert!(!head.contains("content-length") && body.is_empty(), "{head}");
        }
        let reset = PreparedResponse::new(205).header("content-length", "5").unwrap();
        for (response, head_only) in [(reset.clone().with_body(Bytes::from_static(b"12345")), false), (reset, true)] {
            let (head, body) = encode(response, RequestFacts { head_only, ..ASKED });
            assert!(head.contains("content-length: 0\r\n") && body.is_empty(), "{head}");
        }
        let named = PreparedResponse::new(200).header("Content-Length", "77").unwrap();
        assert!(encode(named.clone(), RequestFacts { head_only: true, ..ASKED }).0.contains("content-length: 77\r\n"));
        assert!(encode(named, ASKED).0.contains("content-length: 0\r\n"));
    }

    #[test]
    fn a_field_cannot_end_the_head() {
        for name in ["", "a b", "a:", "a\r\nb", "é", "a\0"] {
            assert_eq!(PreparedResponse::new(200).header(name, "x"), Err(ResponseHeaderError::Name), "{name:?}");
        }
        for value in ["x\r\ny: z", "x\ny", "x\ry", "x\0y", "\x07", "\x7f"] {
            assert_eq!(
                PreparedResponse::new(200).header("A", value),
                Err(ResponseHeaderError::Value("A".into())),
                "{value:?}"
            );
        }
        assert_eq!(PreparedResponse::new(200).header("X-A", "b\tc é").unwrap().find("x-a"), Some("b\tc é"));
        let ours = ["Transfer-Encoding", "Connection", "Upgrade", "Keep-Alive", "Trailer", "TE", "Date"];
        for name in ours {
            let response = PreparedResponse::new(200).header(name, "chunked").unwrap();
            assert_eq!(encode(response, ASKED).0.matches("chunked").count(), 0, "{name}");
        }
    }

    #[test]
    fn fields_of_a_process_are_merged_and_bad_ones_left_out() {
        let fields = |fields: &[(&str, &str)]| fields.iter().map(|&(n, v)| (n.into(), v.into())).collect();
        let response = PreparedResponse::new(200).with("content-type", "a/b").merge(fields(&[
            ("Content-Type", "c/d"),
            ("content-type", "e/f"),
            ("X", "1\r\nY: 2"),
            ("Y\r\nZ", "1"),
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
        ]));
        let response = response.unwrap();
        let fields = response.into_parts().1;
        let fields: Vec<_> = fields.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(fields, [("content-type", "e/f"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]);
    }

    #[test]
    fn fields_that_no_client_takes_are_an_error() {
        let named = |count: usize| (0..count).map(|n| (format!("x-{n}").into(), "".into())).collect::<HeaderFields>();
        assert_eq!(PreparedResponse::new(200).merge(named(FIELDS_MAX)).unwrap().into_parts().1.len(), FIELDS_MAX);
        assert!(PreparedResponse::new(200).merge(named(FIELDS_MAX + 1)).is_err());
        let long = |bytes: usize| vec![("x".into(), "y".repeat(bytes).into())];
        assert!(PreparedResponse::new(200).merge(long(FIELDS_BYTES_MAX - 1)).is_ok());
        assert!(PreparedResponse::new(200).merge(long(FIELDS_BYTES_MAX)).is_err());
    }

    #[test]
    fn a_status_that_is_none_becomes_500() {
        for status in [0, 42, 100, 101, 199, 600, 65535] {
            assert_eq!(PreparedResponse::new(status).status(), 500);
        }
        assert!(encode(PreparedResponse::new(599), ASKED).0.starts_with("HTTP/1.1 599 \r\n"));
    }

    #[test]
    fn dates() {
        let mut date = Date::at(0);
        assert_eq!(date.as_str(), "Thu, 01 Jan 1970 00:00:00 GMT");
        date.advance(1_795_418_693);
        assert_eq!(date.as_str(), "Mon, 23 Nov 2026 07:24:53 GMT");
        assert_eq!(Date::at(u64::MAX).as_str(), "Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
