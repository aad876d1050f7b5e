//! Event streams: what a request says of one is understood as a second reader has it, and nothing that it makes up is
//! an id or a token; and whatever is pushed, a reader of the standard (HTML 9.2.6) gets one event, and the same bytes
//! out of it.

use base64::{Engine, engine::general_purpose::STANDARD};
use pushring::internals::channel::ChannelId;
use pushring::internals::http::{Head, HttpLimits};
use pushring::internals::proto::MessageKind;
use pushring::internals::sse::{EventId, SseAsk, asked, event_len, is_event, last_event, message, said_by};

/// The bytes are a payload, rather than the fields of a request.
const PAYLOAD: u8 = 1;
/// Of a Binary message.
const BINARY: u8 = 2;
/// The request is a POST.
const POST: u8 = 4;

/// A byte of settings, then fields of a request or a payload.
pub fn holds(data: &[u8]) {
    let Some((&settings, bytes)) = data.split_first() else { return };
    if settings & PAYLOAD != 0 {
        return is_one_event(settings, bytes);
    }
    let method = if settings & POST != 0 { "POST" } else { "GET" };
    let request = [format!("{method} / HTTP/1.1\r\nHost: a\r\n").as_bytes(), bytes, b"\r\n\r\n"].concat();
    let Ok(Some((head, _))) = Head::parse(&request, &HttpLimits::default()) else { return };
    let values = |name: &str| -> Vec<&[u8]> {
        let fields = head.headers().iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value).collect()
    };
    let accepts = values("accept").concat().to_ascii_lowercase();
    match asked(&head) {
        Some(SseAsk::Stream) => {
            assert!(method == "GET" && accepts.windows(17).any(|part| part == b"text/event-stream"));
        }
        Some(SseAsk::Say) => assert!(method == "POST" && !values("sse-channel").is_empty()),
        Some(SseAsk::Preflight) => panic!("neither is an OPTIONS"),
        None => {}
    }
    if let Some(Ok(id)) = last_event(&head) {
        assert_eq!(EventId::parse(&id.to_string()), Some(id));
        let text = std::str::from_utf8(values("last-event-id")[0]).unwrap();
        let parts: Vec<&str> = text.split('.').collect();
        assert_eq!(u16::from_str_radix(parts[0], 16), Ok(id.run));
        assert_eq!((parts[1].parse(), parts[2].len(), parts.len()), (Ok(id.shard), 22, 3));
    }
    if let Some((channel, token)) = said_by(&head) {
        let text = std::str::from_utf8(values("sse-channel")[0]).unwrap();
        let (id, said) = text.split_once('.').unwrap();
        assert_eq!((id.parse().map(ChannelId::new), said), (Ok(channel), &*token.text()));
    }
}

/// One event, of which the payload is read as the standard has it.
fn is_one_event(settings: u8, payload: &[u8]) {
    let is_binary = settings & BINARY != 0;
    if !is_binary && std::str::from_utf8(payload).is_err() {
        return;
    }
    let kind = if is_binary { MessageKind::Binary } else { MessageKind::Text };
    let id = EventId { run: u16::from(settings), shard: u32::from(settings), place: [settings; 16] };
    let event = message(id, kind, payload);
    assert!(is_event(event[0]), "it is taken for a frame");
    assert_eq!(event_len(&event), Some(event.len()), "its end is where a queue finds it");
    assert!(event.len() <= 3 * payload.len() + 128, "it grows without a bound");
    let text = std::str::from_utf8(&event).unwrap().replace("\r\n", "\n").replace('\r', "\n");
    let (mut name, mut data, mut said, mut ends) = ("message", Vec::new(), None, 0);
    for line in text.split_terminator('\n') {
        match line.split_once(": ") {
            _ if line.is_empty() => ends += 1,
            Some(("event", value)) => name = value,
            Some(("data", value)) => data.push(value),
            Some(("id", value)) => said = EventId::parse(value),
            other => panic!("{other:?} of {line:?}"),
        }
    }
    assert_eq!((ends, said), (1, Some(id)));
    let data = data.join("\n");
    let heard = match name {
        "message" => data.into_bytes(),
        "text" | "binary" => STANDARD.decode(data).unwrap(),
        other => panic!("an event {other}"),
    };
    assert_eq!((name == "binary", &*heard), (is_binary, payload));
}
