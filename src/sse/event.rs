//! The encoding of events.

use super::id::EventId;
use crate::channel::ChannelId;
use crate::proto::MessageKind;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

/// A comment, sent to keep a silent stream, and the proxies on its path, from timing out. Complete.
pub const COMMENT: &[u8] = b":\n\n";

/// Reasons in close events are cut off here, so that the event is short.
const REASON_BYTES_MAX: usize = 123;

/// The event of a message. Text is its `data`, line by line; Binary is base64, in events of the name `binary`. So is
/// Text, as `text`, with a carriage return, which would end a line, or of so many short lines that it would be three
/// times as long. It may wait for long, so it takes no more memory than it is long.
pub fn message(id: EventId, kind: MessageKind, payload: &[u8]) -> Vec<u8> {
    let name = match kind {
        MessageKind::Binary => "binary",
        MessageKind::Text if payload.contains(&b'\r') || grows_by_lines(payload) => "text",
        MessageKind::Text => return lines(id, payload),
    };
    let head = format!("id: {id}\nevent: {name}\ndata: ");
    let encoded_bytes = base64::encoded_len(payload.len(), true).unwrap_or_default();
    let mut out = String::with_capacity(head.len() + encoded_bytes + END.len());
    out.push_str(&head);
    STANDARD.encode_string(payload, &mut out);
    out.push_str(END);
    out.into_bytes()
}

/// The end of the last line, and of the event.
const END: &str = "\n\n";

fn lines(id: EventId, payload: &[u8]) -> Vec<u8> {
    const DATA: &[u8] = b"data: ";
    let head = format!("id: {id}\n");
    let lines = memchr::memchr_iter(b'\n', payload).count() + 1;
    let mut out = Vec::with_capacity(head.len() + payload.len() + lines * DATA.len() + END.len());
    out.extend_from_slice(head.as_bytes());
    for line in payload.split(|&byte| byte == b'\n') {
        out.extend_from_slice(DATA);
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
    out
}

/// Whether what stands before each line would be more than twice the payload.
fn grows_by_lines(payload: &[u8]) -> bool {
    let lines = memchr::memchr_iter(b'\n', payload).count();
    lines * b"data: ".len() > 2 * payload.len() + 64
}

/// An event that is no message: an answer of the hub. JSON, on one line.
pub fn control(json: &[u8]) -> Vec<u8> {
    let lines = json.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte });
    let mut out = b"event: control\ndata: ".to_vec();
    out.extend(lines);
    out.extend_from_slice(b"\n\n");
    out
}

/// The first event: the channel, its client's token, and the position from which the stream is complete. Without an id
/// if a gap follows: a client that is cut off between the two must be told of the gap the next time.
pub fn hello(channel: ChannelId, token: &str, id: Option<EventId>, retry_ms: u64) -> Vec<u8> {
    let (data, id) = (format!(r#"{{"channel_id":{channel},"token":"{token}"}}"#), line_of(id));
    format!("retry: {retry_ms}\n{id}event: channel\ndata: {data}\n\n").into_bytes()
}

/// An unknown number of messages is missing before the next. A client that receives this has received up to `id`.
pub fn gap(reason: &str, id: EventId) -> Vec<u8> {
    format!("id: {id}\nevent: gap\ndata: {{\"missed\":null,\"reason\":\"{reason}\"}}\n\n").into_bytes()
}

fn line_of(id: Option<EventId>) -> String {
    id.map_or_else(String::new, |id| format!("id: {id}\n"))
}

/// The last event: as a close frame of this code and reason. A reason that says when to reconnect is obeyed by
/// browsers.
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    let mut text = String::new();
    let retry = reason.strip_prefix("{\"retry_ms\":").and_then(|rest| rest.strip_suffix('}'));
    if let Some(retry_ms) = retry.and_then(|text| text.parse::<u64>().ok()) {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "retry: {retry_ms}");
    }
    let end =
        reason.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|&end| end <= REASON_BYTES_MAX).last();
    let data = serde_json::json!({ "code": code, "reason": &reason[..end.unwrap_or_default()] });
    let _ = write!(text, "event: close\ndata: {data}\n\n");
    text.into_bytes()
}

/// Returns whether what is queued begins with an event rather than a frame: FIN is set in each of ours (RFC 6455 5.2),
/// and an event is text.
pub fn is_event(first_byte: u8) -> bool {
    first_byte & 0x80 == 0
}

/// The whole length of the event that starts at `bytes[0]`; none if its end is not there.
pub fn event_len(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + bytes[from..].iter().position(|&byte| byte == b'\n')?;
        if bytes.get(at + 1) == Some(&b'\n') {
            return Some(at + 2);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: EventId = EventId { run: 1, shard: 2, place: [0; 16] };
    const ID_TEXT: &str = "0001.2.AAAAAAAAAAAAAAAAAAAAAA";

    #[test]
    fn an_event_takes_no_more_memory_than_it_is_long() {
        for payload in [&b""[..], b"a", b"a\n\nb\n", b"a\rb", &[b'x'; 10_000], &[b'\n'; 1_000]] {
            for kind in [MessageKind::Text, MessageKind::Binary] {
                let event = message(ID, kind, payload);
                assert_eq!(event.capacity(), event.len(), "{kind:?} of {} bytes", payload.len());
            }
        }
    }

    /// Name, data and id of the events of a stream, as the standard has them read (9.2.6).
    pub(super) fn read(stream: &[u8]) -> Vec<(String, String, String)> {
        let text = std::str::from_utf8(stream).unwrap().replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut name, mut data, mut id) = (Vec::new(), String::new(), String::new(), String::new());
        for line in text.split_terminator('\n') {
            if line.is_empty() {
                if let Some(data) = data.strip_suffix('\n') {
                    events.push((name.clone(), data.to_owned(), id.clone()));
                }
                (name, data) = (String::new(), String::new());
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = value.to_owned(),
                "data" => data = data + value + "\n",
                "id" => id = value.to_owned(),
                _ => {}
            }
        }
        events
    }

    #[test]
    fn text_comes_line_by_line_and_what_cannot_is_base64() {
        let of = |kind, payload: &[u8]| read(&message(ID, kind, payload)).remove(0);
        for text in ["", "hello", "two\nlines", "\n", "\n\n", " led by a space", "data: x", ":", "ünï\u{1f600}"] {
            assert_eq!(of(MessageKind::Text, text.as_bytes()), (String::new(), text.into(), ID_TEXT.into()));
        }
        assert_eq!(of(MessageKind::Text, b"a\rb"), ("text".into(), "YQ1i".into(), ID_TEXT.into()));
        assert_eq!(of(MessageKind::Binary, b"\x00\n\n"), ("binary".into(), "AAoK".into(), ID_TEXT.into()));
    }

    #[test]
    fn what_is_not_a_message_is_one_event_each() {
        let hello = read(&hello(ChannelId::new(7), "T", Some(ID), 1000)).remove(0);
        assert_eq!(hello, ("channel".into(), r#"{"channel_id":7,"token":"T"}"#.into(), ID_TEXT.into()));
        assert_eq!(read(&control(b"{\"a\":\n1}")), [("control".into(), "{\"a\": 1}".into(), String::new())]);
        let gap = read(&gap("trimmed", ID)).remove(0);
        assert_eq!(gap, ("gap".into(), r#"{"missed":null,"reason":"trimmed"}"#.into(), ID_TEXT.into()));
        let drained = close(1012, "{\"retry_ms\":250}");
        assert!(drained.starts_with(b"retry: 250\n"), "{}", String::from_utf8_lossy(&drained));
        let ended = read(&close(1001, &"ü\"\n".repeat(100))).remove(0);
        let json: serde_json::Value = serde_json::from_str(&ended.1).unwrap();
        assert!(ended.0 == "close" && json["reason"].as_str().unwrap().len() <= REASON_BYTES_MAX);
        assert!(read(COMMENT).is_empty());
    }

    proptest! {
        #[test]
        fn events_are_found_one_behind_another_whatever_is_pushed(
            payloads in proptest::collection::vec((any::<bool>(), ".{0,40}|(\n|\r|data:|id: |\u{1e}){0,8}"), 0..6)
        ) {
            let mut stream = Vec::new();
            let mut lens = Vec::new();
            for (is_text, payload) in &payloads {
                let kind = if *is_text { MessageKind::Text } else { MessageKind::Binary };
                let event = message(ID, kind, payload.as_bytes());
                prop_assert!(is_event(event[0]));
                lens.push(event.len());
                stream.extend(event);
            }
            let mut at = 0;
            for len in lens {
                prop_assert_eq!(event_len(&stream[at..]), Some(len));
                at += len;
            }
            let heard = read(&stream);
            prop_assert_eq!(heard.len(), payloads.len());
            for ((name, data, _), (is_text, payload)) in heard.iter().zip(&payloads) {
                let plain = *is_text && !payload.contains('\r');
                let data = if plain { data.clone().into_bytes() } else { STANDARD.decode(data).unwrap() };
                prop_assert_eq!(name.is_empty(), plain);
                prop_assert_eq!(data, payload.as_bytes());
            }
        }
    }
}
