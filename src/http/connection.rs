//! One HTTP/1.1 connection: a stream of bytes becomes requests, one at a time.
//!
//! The caller feeds every byte it reads and gets at most one request per call. A request that arrives in one read is
//! parsed in place: nothing is copied but its body. While a request is being answered, what follows it is kept, up to
//! a limit, and parsed only when the response has left: so responses keep their order without a queue, and a client
//! that pipelines without reading slows only itself.
//!
//! Invariants: after a [`Rejection`] or a response that closes, no byte of the peer is parsed any more; the bytes
//! behind a request that upgrades are handed over untouched, and where it is refused they are not parsed either.

use super::body::Decoder;
use super::head::{BodyFraming, Head};
use super::limits::{HttpLimits, Rejection};
use super::response::{Date, PreparedResponse, RequestFacts};
use bytes::Bytes;

/// The state of one connection between reads.
#[derive(Debug)]
pub struct HttpConnection {
    limits: HttpLimits,
    state: HttpState,
    /// Bytes not parsed yet, behind `consumed` bytes that a request was made of.
    buffer: Vec<u8>,
    consumed: usize,
    /// A partial head is parsed again when it has this many bytes, to find errors early, or when it looks complete.
    parse_again_bytes: usize,
    /// How the request that is being answered wants its response.
    asked: RequestFacts,
    /// The most bytes that a refused client may still be sending.
    unread_bytes: u64,
    /// Bytes of chunk framing that were gone through, one by one, since this was last asked for.
    framing_bytes: usize,
    /// All of it comes over TLS of our own.
    over_tls: bool,
}

#[derive(Debug)]
enum HttpState {
    Head,
    Body { head: Box<[u8]>, decoder: Decoder },
    Answering,
    Closed,
}

/// The result of feeding bytes.
#[derive(Debug)]
pub enum HttpStep<'a> {
    /// Nothing to do: more bytes are needed, or the response in progress must leave first.
    Wait,
    /// A head is complete, its body is not. The caller may refuse it now with [`HttpConnection::respond`], send
    /// `http::CONTINUE` if `send_continue`, lower the limit with [`HttpConnection::limit_body`], or just go on
    /// feeding.
    BodyPending {
        /// The head.
        head: Head<'a>,
        /// The client waits for the interim response.
        send_continue: bool,
    },
    /// A whole request. It must be answered by [`HttpConnection::respond`] or become an upgrade.
    Request(ParsedRequest<'a>),
    /// The peer broke the protocol or a limit: send [`Rejection::response`] through [`HttpConnection::respond`].
    Rejected(Rejection),
}

/// A whole request.
#[derive(Debug, Clone)]
pub struct ParsedRequest<'a> {
    /// Request line and header fields.
    pub head: Head<'a>,
    /// The body without its framing; empty if there was none.
    pub body: Bytes,
}

/// The next step once a response has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterResponse {
    /// Close the connection gracefully.
    Close,
    /// Feed again, with no bytes if none have arrived: a pipelined request may be waiting.
    Feed,
}

/// The connection's wait, for the deadline that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpPhase {
    /// Between requests, with nothing of the next one here.
    Idle,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// A response, from the process or the shard that answers.
    Response,
    /// The end.
    Close,
}

/// How a request is answered whose head could not be read.
const UNKNOWN: RequestFacts = RequestFacts { minor_version: 1, head_only: false, keep_alive: false, wants_json: false };

impl HttpConnection {
    /// A connection that has read nothing.
    pub fn new(limits: HttpLimits) -> Self {
        Self {
            limits,
            state: HttpState::Head,
            buffer: Vec::new(),
            consumed: 0,
            parse_again_bytes: 0,
            asked: UNKNOWN,
            unread_bytes: 0,
            framing_bytes: 0,
            over_tls: false,
        }
    }

    /// The same, over TLS of our own: its heads say so.
    pub fn over_tls(self) -> Self {
        Self { over_tls: true, ..self }
    }

    /// Takes all of `input`, parses as far as one request, keeps the rest.
    pub fn feed<'a>(&'a mut self, input: &'a [u8]) -> HttpStep<'a> {
        // Not for each of many short requests: each byte is moved once at most.
        if self.consumed > 0 && self.consumed >= self.buffer.len() / 2 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        match self.state {
            HttpState::Head if self.buffer.is_empty() => self.read_head_in_place(input),
            HttpState::Head => self.read_buffered_head(input),
            HttpState::Body { .. } => self.read_body(input),
            HttpState::Answering => {
                self.buffer.extend_from_slice(input);
                HttpStep::Wait
            }
            HttpState::Closed => {
                self.unread_bytes = self.unread_bytes.saturating_sub(input.len() as u64);
                HttpStep::Wait
            }
        }
    }

    /// Returns whether reading more is of use now. While a request is being answered this turns false when
    /// `pipelined_bytes_max` bytes wait behind it.
    pub fn wants_read(&self) -> bool {
        match self.state {
            HttpState::Head | HttpState::Body { .. } => true,
            HttpState::Answering => self.buffer.len() - self.consumed < self.limits.pipelined_bytes_max,
            // A client that sends its whole request before it reads takes the response only then (RFC 9112 9.3).
            HttpState::Closed => self.unread_bytes > 0,
        }
    }

    /// Returns whether something has come behind the request that is being answered: the next one, or its beginning.
    pub fn has_more(&self) -> bool {
        self.buffer.len() > self.consumed
    }

    /// The most bytes that a refused client may still be sending: the rest of the announced body, or, where no end was
    /// announced or the head could not be read, as much as a body may have. To be read and dropped, since an earlier
    /// close would become a reset, which destroys the response (RFC 9112 9.6).
    pub fn unread_bytes(&self) -> u64 {
        self.unread_bytes
    }

    /// How many bytes of chunk framing were gone through since the last call: each costs more than one of a body.
    pub fn take_framing_bytes(&mut self) -> usize {
        std::mem::take(&mut self.framing_bytes)
    }

    /// Bytes that have come of the body in progress.
    pub fn body_bytes(&self) -> usize {
        if let HttpState::Body { decoder, .. } = &self.state { decoder.body_bytes() } else { 0 }
    }

    /// The heap bytes held for a request that is not complete, or that waits for its turn, for memory accounting.
    pub fn held_bytes(&self) -> usize {
        let of_body = match &self.state {
            HttpState::Body { head, decoder } => head.len() + decoder.allocated_bytes(),
            HttpState::Head | HttpState::Answering | HttpState::Closed => 0,
        };
        self.buffer.capacity() + of_body
    }

    /// The connection's current wait.
    pub fn phase(&self) -> HttpPhase {
        match self.state {
            HttpState::Head if self.buffer.len() == self.consumed => HttpPhase::Idle,
            HttpState::Head => HttpPhase::Head,
            HttpState::Body { .. } => HttpPhase::Body,
            HttpState::Answering => HttpPhase::Response,
            HttpState::Closed => HttpPhase::Close,
        }
    }

    /// Lowers the limit of the body that is being read.
    ///
    /// # Errors
    /// 413 when it is known already to be larger; the connection is then closed to further requests.
    pub fn limit_body(&mut self, body_bytes_max: usize) -> Result<(), Rejection> {
        let HttpState::Body { decoder, .. } = &mut self.state else { return Ok(()) };
        let lowered = decoder.lower_limit(body_bytes_max);
        if lowered.is_err() {
            self.reject();
        }
        lowered
    }

    /// Encodes the response to the request in progress: appends its head to `out` and returns the body to send behind
    /// it, uncopied. Answering a request whose body has not arrived, or after a rejection, closes the connection.
    pub fn respond(&mut self, response: PreparedResponse, date: &Date, out: &mut Vec<u8>) -> Bytes {
        if !matches!(self.state, HttpState::Answering) {
            self.reject();
        }
        if response.closes() {
            self.asked.keep_alive = false;
        }
        response.encode(self.asked, date, out)
    }

    /// The response has been handed to the socket as a whole.
    pub fn response_left(&mut self) -> AfterResponse {
        if self.asked.keep_alive && matches!(self.state, HttpState::Answering) {
            self.state = HttpState::Head;
            self.parse_again_bytes = 0;
            // Unknown until the next request's head is complete.
            self.asked = UNKNOWN;
            if self.buffer.len() == self.consumed {
                // A connection that waits for its next request holds nothing.
                (self.buffer, self.consumed) = (Vec::new(), 0);
            }
            AfterResponse::Feed
        } else {
            self.state = HttpState::Closed;
            self.buffer = Vec::new();
            self.consumed = 0;
            AfterResponse::Close
        }
    }

    /// Ends HTTP on this connection: the bytes that came behind the upgrade request.
    pub fn into_leftover(mut self) -> Vec<u8> {
        self.buffer.drain(..self.consumed);
        self.buffer
    }

    fn reject(&mut self) {
        match &self.state {
            HttpState::Body { decoder, .. } => self.unread_bytes = decoder.unread_bytes(),
            HttpState::Head | HttpState::Answering | HttpState::Closed => {}
        }
        self.state = HttpState::Closed;
        self.asked.keep_alive = false;
        self.buffer = Vec::new();
        self.consumed = 0;
    }

    fn rejected<'n>(&mut self, rejection: Rejection) -> HttpStep<'n> {
        self.reject();
        HttpStep::Rejected(rejection)
    }

    /// The fast path: no byte waits, so the head is parsed where it was read.
    fn read_head_in_place<'a>(&mut self, input: &'a [u8]) -> HttpStep<'a> {
        if input.is_empty() {
            return HttpStep::Wait;
        }
        let (mut head, head_bytes) = match Head::parse(input, &self.limits) {
            Ok(Some(parsed)) => parsed,
            Ok(None) => {
                self.buffer.extend_from_slice(input);
                self.parse_again_bytes = input.len() * 2;
                return HttpStep::Wait;
            }
            Err(rejection) => {
                self.unread_bytes = self.limits.body_bytes_max as u64;
                return self.rejected(rejection);
            }
        };
        head.over_tls = self.over_tls;
        self.asked = asked(&head);
        let rest = &input[head_bytes..];
        match begin_body(head.framing, rest, &self.limits) {
            Err(rejection) => {
                let unread_bytes = unread_bytes(&head, rest.len(), &self.limits);
                self.reject();
                self.unread_bytes = unread_bytes;
                HttpStep::Rejected(rejection)
            }
            Ok(BodyState::Whole(body, body_bytes)) => {
                self.framing_bytes += body_bytes - body.len();
                self.state = HttpState::Answering;
                self.buffer.extend_from_slice(&rest[body_bytes..]);
                HttpStep::Request(ParsedRequest { head, body })
            }
            Ok(BodyState::Partial(decoder)) => {
                self.framing_bytes += rest.len() - decoder.body_bytes();
                self.state = HttpState::Body { head: input[..head_bytes].into(), decoder };
                let send_continue = head.expects_continue && rest.is_empty();
                HttpStep::BodyPending { head, send_continue }
            }
        }
    }

    /// The head came in pieces, or behind another request.
    fn read_buffered_head(&mut self, input: &[u8]) -> HttpStep<'_> {
        let old_bytes = self.buffer.len();
        self.buffer.extend_from_slice(input);
        let due = self.buffer.len() - self.consumed >= self.parse_again_bytes.min(self.limits.head_bytes_max);
        if !due && !head_ends_behind(&self.buffer, old_bytes) {
            return HttpStep::Wait;
        }
        let Self {
            buffer,
            consumed,
            state,
            limits,
            parse_again_bytes,
            asked: asked_now,
            unread_bytes: unread,
            framing_bytes,
            over_tls,
        } = self;
        let from = *consumed;
        let refused = match Head::parse(&buffer[from..], limits) {
            Ok(None) => {
                *parse_again_bytes = (buffer.len() - from) * 2;
                return HttpStep::Wait;
            }
            Err(rejection) => {
                *unread = limits.body_bytes_max as u64;
                rejection
            }
            Ok(Some((mut head, head_bytes))) => {
                head.over_tls = *over_tls;
                *asked_now = asked(&head);
                let rest = &buffer[from + head_bytes..];
                match begin_body(head.framing, rest, limits) {
                    Err(rejection) => {
                        *unread = unread_bytes(&head, rest.len(), limits);
                        rejection
                    }
                    Ok(BodyState::Whole(body, body_bytes)) => {
                        *framing_bytes += body_bytes - body.len();
                        *consumed = from + head_bytes + body_bytes;
                        *state = HttpState::Answering;
                        return HttpStep::Request(ParsedRequest { head, body });
                    }
                    Ok(BodyState::Partial(decoder)) => {
                        *framing_bytes += rest.len() - decoder.body_bytes();
                        *consumed = buffer.len();
                        *state = HttpState::Body { head: buffer[from..from + head_bytes].into(), decoder };
                        let send_continue = head.expects_continue && rest.is_empty();
                        return HttpStep::BodyPending { head, send_continue };
                    }
                }
            }
        };
        *state = HttpState::Closed;
        asked_now.keep_alive = false;
        HttpStep::Rejected(refused)
    }

    fn read_body(&mut self, input: &[u8]) -> HttpStep<'_> {
        let HttpState::Body { decoder, .. } = &mut self.state else { unreachable!("only called while a body is read") };
        let before = decoder.body_bytes();
        let taken = match decoder.feed(input) {
            Ok(taken) => taken,
            Err(rejection) => return self.rejected(rejection),
        };
        self.framing_bytes += taken - (decoder.body_bytes() - before);
        if !decoder.is_done() {
            return HttpStep::Wait;
        }
        let HttpState::Body { head, decoder } = std::mem::replace(&mut self.state, HttpState::Answering) else {
            unreachable!("matched above")
        };
        debug_assert!(self.buffer.is_empty(), "a partial body took all there was");
        self.buffer = head.into_vec();
        self.consumed = self.buffer.len();
        self.buffer.extend_from_slice(&input[taken..]);
        let parsed = Head::parse(&self.buffer[..self.consumed], &self.limits);
        let Ok(Some((mut head, _))) = parsed else { unreachable!("these bytes parsed before, under the same limits") };
        head.over_tls = self.over_tls;
        HttpStep::Request(ParsedRequest { head, body: decoder.into_body() })
    }
}

enum BodyState {
    /// The body, and how many bytes of the input it took.
    Whole(Bytes, usize),
    /// All of the input was taken and more is missing.
    Partial(Decoder),
}

fn begin_body(framing: BodyFraming, input: &[u8], limits: &HttpLimits) -> Result<BodyState, Rejection> {
    if framing == BodyFraming::Length(0) {
        return Ok(BodyState::Whole(Bytes::new(), 0));
    }
    let mut decoder = Decoder::new(framing, limits)?;
    let taken = decoder.feed(input)?;
    Ok(if decoder.is_done() { BodyState::Whole(decoder.into_body(), taken) } else { BodyState::Partial(decoder) })
}

/// The bytes still to come of a body that was refused by its head, or by the `here_bytes` that came along.
fn unread_bytes(head: &Head<'_>, here_bytes: usize, limits: &HttpLimits) -> u64 {
    match head.framing {
        BodyFraming::Length(length) => length.saturating_sub(here_bytes as u64),
        BodyFraming::Chunked => limits.body_bytes_max as u64,
    }
}

fn asked(head: &Head<'_>) -> RequestFacts {
    RequestFacts {
        minor_version: head.minor_version,
        head_only: head.method == "HEAD",
        // What follows a handshake are frames: a proxy in front may believe in the upgrade, and forward them unseen.
        keep_alive: head.keep_alive && !head.wants_websocket,
        wants_json: head.wants_json(),
    }
}

/// Returns whether an empty line, which may be the end of the head, ends at or behind `from`. Linear in the new bytes,
/// so that a head that trickles in is not parsed at every byte, nor at every one of the empty lines before it.
fn head_ends_behind(bytes: &[u8], from: usize) -> bool {
    memchr::memchr_iter(b'\n', &bytes[from..]).any(|at| {
        let before = &bytes[..from + at];
        let line = before.strip_suffix(b"\n\r").or_else(|| before.strip_suffix(b"\n"));
        line.is_some_and(|line| line.last().is_some_and(|&last| last != b'\n') && !line.ends_with(b"\n\r"))
    })
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
