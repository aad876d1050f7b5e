//! Orders of the hub's clients: they concern the client's own topics alone, as a second reader finds; no pattern
//! matches the broker's own names; and a published payload is in its envelope unchanged, whatever it is.

use bytes::Bytes;
use pushring::internals::gateway::TopicPattern;
use pushring::internals::hub::grammar::{self, HubOrder, PublishedPayload};
use serde_json::Value;

/// The bytes are a pattern and a name, a line each, rather than an order.
const PATTERN: u8 = 1;

/// A byte of settings, then what the client sends.
pub fn holds(data: &[u8]) {
    match data.split_first() {
        Some((settings, bytes)) if settings & PATTERN != 0 => matches(bytes),
        Some((_, bytes)) => is_read_as_json(bytes),
        None => {}
    }
}

fn is_own(name: &str) -> bool {
    (1..=255).contains(&name.len()) && !name.starts_with('\u{1e}')
}

fn is_read_as_json(bytes: &[u8]) {
    // Control texts are Text, which is UTF-8 before the hub reads it (RFC 6455 8.1). A key of serde_json's own has a
    // meaning of its own for the second reader.
    if std::str::from_utf8(bytes).map_or(true, |text| text.contains("$serde_json::private")) {
        return;
    }
    let value = match serde_json::from_slice::<Value>(bytes) {
        // JSON has numbers that this reader cannot hold (RFC 8259 section 6).
        Err(error) if error.to_string().starts_with("number out of range") => return,
        value => value.unwrap_or_default(),
    };
    let said = match grammar::read(bytes) {
        Err(refused) => {
            assert!(matches!(refused.why, "malformed" | "topic"), "{refused:?}");
            return assert!(refused.id.is_none() || refused.id == value["id"].as_u64(), "{refused:?}");
        }
        Ok(None) => {
            let orders = ["subscribe", "unsubscribe", "publish", "renew"];
            return assert!(orders.iter().all(|order| value[order].is_null()), "{value}");
        }
        Ok(Some(said)) => said,
    };
    assert_eq!(said.id, value["id"].as_u64());
    match &said.order {
        HubOrder::Subscribe { topic, envelope } => {
            assert!(is_own(topic) && value["subscribe"] == **topic);
            assert_eq!(*envelope, value["envelope"].as_bool().unwrap_or(false));
        }
        HubOrder::Unsubscribe { topic } => assert!(is_own(topic) && value["unsubscribe"] == **topic),
        HubOrder::Publish { topic, payload } => {
            assert!(is_own(topic) && value["publish"] == **topic);
            comes_as_it_was(topic, payload);
            comes_as_it_was(topic, &PublishedPayload::Binary(Bytes::copy_from_slice(bytes)));
        }
        HubOrder::Renew { token } => {
            assert_eq!(value["renew"], **token);
            assert_eq!(format!("{:?}", said.order), "Renew", "a token is not shown");
        }
    }
    let answer: Value = serde_json::from_str(&grammar::done("done", &"x".into(), said.id)).expect("answers are JSON");
    assert_eq!(answer.get("id").and_then(Value::as_u64), said.id);
}

fn comes_as_it_was(topic: &str, payload: &PublishedPayload) {
    let text = grammar::enveloped(topic, payload);
    let envelope: Value = serde_json::from_str(&text).expect("an envelope is JSON");
    assert_eq!(envelope["topic"], topic);
    match payload {
        PublishedPayload::Text(text) => assert_eq!(envelope["data"], **text),
        PublishedPayload::Json(json) => assert_eq!(Some(&envelope["data"]), serde_json::from_str(json).ok().as_ref()),
        PublishedPayload::Binary(bytes) => {
            use base64::{Engine, engine::general_purpose::STANDARD};
            assert_eq!(envelope["base64"], STANDARD.encode(bytes));
        }
    }
    if let Some(twin) = grammar::twin(topic) {
        assert_eq!(grammar::name_of(&twin), Some(topic));
    }
}

fn matches(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (pattern, name) = text.split_once('\n').unwrap_or((text, ""));
    let Some(parsed) = TopicPattern::parse(pattern) else { return };
    assert!(!pattern.starts_with('\u{1e}'), "nobody asks for the broker's own names");
    let naive = match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix) && name != prefix,
        None => name == pattern,
    };
    assert_eq!(parsed.matches(name), naive && !name.starts_with('\u{1e}'), "{pattern:?} {name:?}");
}
