//! Requests that open a stream, send a message beside one, or ask by preflight whether a page may; and the response
//! head of a stream.

use super::id::EventId;
use crate::channel::ChannelId;
use crate::http::accept::media_ranges;
use crate::http::{Date, Head, PreparedResponse};
use crate::resume::ResumeToken;
use crate::words::strict::digits;

/// The field with which a message goes up: `ID.TOKEN`, as the stream's first event has said them. A secret of the
/// client.
pub(super) const CHANNEL_FIELD: &str = "sse-channel";

/// A request that concerns streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SseAsk {
    /// It opens one.
    Stream,
    /// It sends a message up.
    Say,
    /// A browser asks whether a page of another site may do either (CORS).
    Preflight,
}

/// Which of them a request is, by its head. A path must allow it.
pub fn asked(head: &Head<'_>) -> Option<SseAsk> {
    match head.method {
        "GET" if !head.wants_websocket && wants_stream(head) => Some(SseAsk::Stream),
        "POST" if head.values(CHANNEL_FIELD).next().is_some() => Some(SseAsk::Say),
        "OPTIONS" if head.values("access-control-request-method").next().is_some() => Some(SseAsk::Preflight),
        _ => None,
    }
}

/// Returns whether `Accept` names the media type: a wildcard is every client's.
fn wants_stream(head: &Head<'_>) -> bool {
    head.values("accept").flat_map(media_ranges).any(|range| range.accepts("text/event-stream"))
}

/// The place where a client that comes back was: none, if it does not; an error, if what it says is no id of ours.
pub fn last_event(head: &Head<'_>) -> Option<Result<EventId, ()>> {
    let text = head.values("last-event-id").next().filter(|value| !value.is_empty())?;
    Some(std::str::from_utf8(text).ok().and_then(EventId::parse).ok_or(()))
}

/// Whose a message is that goes up. None: the field is no such thing.
pub fn said_by(head: &Head<'_>) -> Option<(ChannelId, ResumeToken)> {
    let (id, token) = head.text(CHANNEL_FIELD)?.split_once('.')?;
    Some((ChannelId::new(digits(id)?), ResumeToken::parse(token)?))
}

/// The fields by which a browser lets a page of a listed `origin` read the answer.
pub fn shared_with(response: PreparedResponse, origin: Option<&str>) -> PreparedResponse {
    let response = response.with("vary", "Origin");
    let Some(origin) = origin else { return response };
    match response.header("access-control-allow-origin", origin.to_owned()) {
        Ok(response) => response.with("access-control-allow-credentials", "true"),
        // It was compared with those that are listed, so it can be a field.
        Err(_) => PreparedResponse::new(400),
    }
}

/// The answer to a browser that asks in advance.
pub fn preflight(origin: &str) -> PreparedResponse {
    shared_with(PreparedResponse::new(204), Some(origin))
        .with("access-control-allow-methods", "GET, POST")
        .with("access-control-allow-headers", "authorization, content-type, last-event-id, sse-channel")
        .with("access-control-max-age", "600")
}

/// The head of a stream. It ends with its connection, for the oldest proxies know that, and `X-Accel-Buffering` keeps
/// nginx from holding events back.
pub fn start(origin: Option<&str>, date: &Date) -> Vec<u8> {
    let mut out = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store, no-transform\r\n\
        x-accel-buffering: no\r\nx-content-type-options: nosniff\r\nvary: Origin\r\nconnection: close\r\n"
        .to_vec();
    out.extend_from_slice(format!("date: {}\r\n", date.as_str()).as_bytes());
    if let Some(origin) = origin {
        let fields = format!("access-control-allow-origin: {origin}\r\naccess-control-allow-credentials: true\r\n");
        out.extend_from_slice(fields.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::HttpLimits;

    fn head(text: &str) -> Head<'_> {
        Head::parse(text.as_bytes(), &HttpLimits::default()).unwrap().unwrap().0
    }

    #[test]
    fn a_stream_is_asked_for_by_its_media_type() {
        let asks = |accept: &str| asked(&head(&format!("GET / HTTP/1.1\r\nhost: a\r\naccept: {accept}\r\n\r\n")));
        for accept in ["text/event-stream", "*/*, TEXT/EVENT-STREAM", "text/event-stream;q=0.9"] {
            assert_eq!(asks(accept), Some(SseAsk::Stream), "{accept}");
        }
        for accept in
            ["*/*", "text/html", "text/event-stream2", "", "text/event-stream;q=0", "text/event-stream; q=0.0"]
        {
            assert_eq!(asks(accept), None, "{accept}");
        }
        let upgrade = "GET / HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(asked(&head(upgrade)), None);
        assert_eq!(asked(&head("POST / HTTP/1.1\r\nhost: a\r\nsse-channel: x\r\n\r\n")), Some(SseAsk::Say));
    }

    #[test]
    fn places_and_channels_are_read_or_refused() {
        let last =
            |value: &str| last_event(&head(&format!("GET / HTTP/1.1\r\nhost: a\r\nlast-event-id: {value}\r\n\r\n")));
        assert_eq!(last("00ff.1.AAAAAAAAAAAAAAAAAAAAAA"), Some(Ok(EventId { run: 255, shard: 1, place: [0; 16] })));
        assert_eq!((last(""), last("of another server")), (None, Some(Err(()))));
        let by = |value: &str| said_by(&head(&format!("POST / HTTP/1.1\r\nhost: a\r\nsse-channel: {value}\r\n\r\n")));
        let token = crate::resume::Keys::new(&[1; 32]).mint(ChannelId::new(7), 1);
        assert_eq!(by(&format!("7.{}", token.text())), Some((ChannelId::new(7), token)));
        for broken in ["7", "7.", "+7.x", "7.short"] {
            assert_eq!(by(broken), None, "{broken}");
        }
    }
}
