//! The control texts of clients of the hub, and the answers to them.
//!
//! Pure functions over bytes, without the mark that control texts begin with. Invariants: a text has one order; nothing
//! here panics, whatever a client sends; no answer contains a token that a client sent.

use crate::words::{strict, topic};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A client's order, and the number that its answer repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedOrder {
    /// The order itself.
    pub order: HubOrder,
    /// Its number.
    pub id: Option<u64>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub enum HubOrder {
    /// Into a topic.
    Subscribe {
        /// The topic to subscribe to.
        topic: String,
        /// Whether messages are to come as `{"topic":…,"data":…}`.
        envelope: bool,
    },
    /// Out of it.
    Unsubscribe {
        /// The topic to leave.
        topic: String,
    },
    /// A message to a topic.
    Publish {
        /// The topic to publish to.
        topic: String,
        /// The message.
        payload: PublishedPayload,
    },
    /// Another token takes the place of the one before.
    Renew {
        /// The new token.
        token: String,
    },
}

/// It may carry a secret.
impl std::fmt::Debug for HubOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Subscribe { .. } => "Subscribe",
            Self::Unsubscribe { .. } => "Unsubscribe",
            Self::Publish { .. } => "Publish",
            Self::Renew { .. } => "Renew",
        })
    }
}

/// A published payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishedPayload {
    /// Text.
    Text(String),
    /// JSON as it was written.
    Json(String),
    /// Bytes.
    Binary(Bytes),
}

/// Fields of a control text; unknown ones are ignored.
#[derive(Deserialize)]
struct HubFields<'a> {
    subscribe: Option<String>,
    #[serde(default)]
    envelope: bool,
    unsubscribe: Option<String>,
    publish: Option<String>,
    text: Option<String>,
    #[serde(borrow, default, deserialize_with = "there")]
    json: Option<&'a RawValue>,
    renew: Option<String>,
    id: Option<u64>,
}

/// JSON that is there: `null` is a value of it (RFC 8259 section 3), and none that was left out.
fn there<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// A control text that was refused: why, in one word, and the number that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedOrder {
    /// Why.
    pub why: &'static str,
    /// Its number.
    pub id: Option<u64>,
}

/// All that is read of a text whose other fields are wrong.
#[derive(Deserialize)]
struct NumberField {
    id: Option<u64>,
}

/// Reads a control text, which is UTF-8. None: it orders nothing of the hub.
///
/// # Errors
/// Why it was refused.
pub fn read(text: &[u8]) -> Result<Option<NumberedOrder>, RefusedOrder> {
    let Some(written) = strict::object::<HubFields<'_>>(text) else {
        let number = strict::object::<NumberField>(text);
        return Err(RefusedOrder { why: "malformed", id: number.and_then(|number| number.id) });
    };
    let id = written.id;
    let order = order_of(written).map_err(|why| RefusedOrder { why, id })?;
    Ok(order.map(|order| NumberedOrder { order, id }))
}

fn order_of(written: HubFields<'_>) -> Result<Option<HubOrder>, &'static str> {
    let HubFields { subscribe, envelope, unsubscribe, publish, text, json, renew, id: _ } = written;
    let name = |name: String| {
        let is_lawful = topic::check(&name).is_ok() && !topic::is_reserved(&name);
        if is_lawful { Ok(name) } else { Err("topic") }
    };
    let order = match (subscribe, unsubscribe, publish, renew) {
        (None, None, None, None) => return Ok(None),
        (Some(topic), None, None, None) => HubOrder::Subscribe { topic: name(topic)?, envelope },
        (None, Some(topic), None, None) => HubOrder::Unsubscribe { topic: name(topic)? },
        (None, None, Some(topic), None) => {
            let payload = match (text, json) {
                (Some(text), None) => PublishedPayload::Text(text),
                (None, Some(json)) => PublishedPayload::Json(json.get().to_owned()),
                _ => return Err("malformed"),
            };
            HubOrder::Publish { topic: name(topic)?, payload }
        }
        (None, None, None, Some(token)) => HubOrder::Renew { token },
        _ => return Err("malformed"),
    };
    Ok(Some(order))
}

/// The answer to an order that was executed.
pub fn done(done: &str, what: &Value, id: Option<u64>) -> String {
    answer(json!({ done: what }), id)
}

/// The answer to one that was not.
pub fn error(why: &str, id: Option<u64>) -> String {
    answer(json!({ "error": why }), id)
}

fn answer(mut answer: Value, id: Option<u64>) -> String {
    if let Some(id) = id {
        answer["id"] = id.into();
    }
    answer.to_string()
}

/// The prefix of a topic's name for subscribers with an envelope.
const ENVELOPE: &str = "\u{1e}envelope/";

/// The name under which a topic is subscribed to with an envelope. None: it would be too long.
pub fn twin(name: &str) -> Option<String> {
    topic::enveloped(name)
}

/// The beginning of the twins of all names that begin so; the twins of names behind this one stand behind it.
pub fn before_twin(beginning: &str) -> String {
    format!("{ENVELOPE}{beginning}")
}

/// The public name of a topic that a channel is subscribed to, in either form. None: it is the broker's own.
pub fn name_of(subscribed: &str) -> Option<&str> {
    let name = subscribed.strip_prefix(ENVELOPE).unwrap_or(subscribed);
    (!topic::is_reserved(name)).then_some(name)
}

/// The line that precedes the repeated last answers, with their number.
pub fn again(answers: usize) -> String {
    json!({ "again": answers }).to_string()
}

/// A message with its envelope: `{"topic":NAME,"data":…}`, of bytes `{"topic":NAME,"base64":…}`.
pub fn enveloped(name: &str, payload: &PublishedPayload) -> String {
    let name = Value::from(name);
    match payload {
        PublishedPayload::Text(text) => format!(r#"{{"topic":{name},"data":{}}}"#, Value::from(text.as_str())),
        PublishedPayload::Json(json) => format!(r#"{{"topic":{name},"data":{json}}}"#),
        PublishedPayload::Binary(bytes) => format!(r#"{{"topic":{name},"base64":"{}"}}"#, STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_order_is_what_the_page_says() {
        let order = |text: &str| read(text.as_bytes()).map(|said| said.map(|said| said.order));
        let topic = || "a".to_owned();
        assert_eq!(
            order(r#"{"subscribe":"a","envelope":true}"#),
            Ok(Some(HubOrder::Subscribe { topic: topic(), envelope: true }))
        );
        assert_eq!(order(r#"{"unsubscribe":"a"}"#), Ok(Some(HubOrder::Unsubscribe { topic: topic() })));
        let publish = |payload| Ok(Some(HubOrder::Publish { topic: topic(), payload }));
        assert_eq!(order(r#"{"publish":"a","text":"x"}"#), publish(PublishedPayload::Text("x".into())));
        assert_eq!(
            order(r#"{"publish":"a","json":{"b": 1.0}}"#),
            publish(PublishedPayload::Json(r#"{"b": 1.0}"#.into()))
        );
        assert_eq!(order(r#"{"publish":"a","json":null}"#), publish(PublishedPayload::Json("null".into())));
        assert_eq!(order(r#"{"publish":"a","text":null,"json":7}"#), publish(PublishedPayload::Json("7".into())));
        assert_eq!(order(r#"{"renew":"t"}"#), Ok(Some(HubOrder::Renew { token: "t".into() })));
        assert_eq!(order(r#"{"ack":7}"#), Ok(None));
        assert_eq!(read(br#"{"subscribe":"a","id":9}"#).unwrap().unwrap().id, Some(9));
        for (text, why) in [
            ("", "malformed"),
            ("[]", "malformed"),
            (r#"{"subscribe":7}"#, "malformed"),
            (r#"{"subscribe":"a","publish":"a","text":"x"}"#, "malformed"),
            (r#"{"publish":"a"}"#, "malformed"),
            (r#"{"publish":"a","text":"x","json":1}"#, "malformed"),
            (r#"{"publish":"a","text":"x","json":null}"#, "malformed"),
            (r#"{"subscribe":""}"#, "topic"),
            (r#"{"subscribe":"\u001euser/bob"}"#, "topic"),
            (r#"{"subscribe":"\u001eenvelope/a"}"#, "topic"),
            (r#"{"publish":"\u001euser/bob","text":"x"}"#, "topic"),
        ] {
            assert_eq!(order(text), Err(RefusedOrder { why, id: None }), "{text}");
        }
        // Whatever is wrong, who waits for the answer to its order hears it.
        for (text, why, id) in [
            (r#"{"subscribe":"","id":7}"#, "topic", Some(7)),
            (r#"{"publish":"a","id":8}"#, "malformed", Some(8)),
            (r#"{"subscribe":7,"id":9}"#, "malformed", Some(9)),
            (r#"{"subscribe":"a","envelope":"yes","id":10}"#, "malformed", Some(10)),
            (r#"{"subscribe":"a","id":-1}"#, "malformed", None),
            (r#"{"subscribe":"a","id":1,"id":2}"#, "malformed", None),
            (r#"["a",false,null,null,null,null,null,1]"#, "malformed", None),
        ] {
            assert_eq!(order(text), Err(RefusedOrder { why, id }), "{text}");
        }
        let renew = read(br#"{"renew":"a secret"}"#).unwrap().unwrap();
        assert!(!format!("{renew:?}").contains("secret"), "{renew:?}");
    }

    #[test]
    fn envelopes_name_their_topic() {
        assert_eq!(enveloped("a\"b", &PublishedPayload::Text("x\n".into())), r#"{"topic":"a\"b","data":"x\n"}"#);
        assert_eq!(enveloped("a", &PublishedPayload::Json("[1.0]".into())), r#"{"topic":"a","data":[1.0]}"#);
        assert_eq!(
            enveloped("a", &PublishedPayload::Binary(Bytes::from_static(&[0, 255]))),
            r#"{"topic":"a","base64":"AP8="}"#
        );
        assert_eq!(
            (name_of("a"), name_of(&twin("a").unwrap()), name_of("\u{1e}user/bob")),
            (Some("a"), Some("a"), None)
        );
        assert_eq!(again(3), r#"{"again":3}"#);
        assert!(topic::is_reserved(&twin("a").unwrap()) && twin(&"x".repeat(250)).is_none());
        assert_eq!(done("subscribed", &"a".into(), Some(7)), r#"{"id":7,"subscribed":"a"}"#);
        assert_eq!(error("forbidden", None), r#"{"error":"forbidden"}"#);
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in ".{0,100}") {
            let _ = read(&bytes);
            let _ = read(text.as_bytes());
        }
    }
}
