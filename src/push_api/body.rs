//! The body of a push request: JSON, or raw bytes with the field `Push-To`.
//!
//! Invariants: an error names the one field that is wrong; a raw payload is the request's own bytes, not a copy; a JSON
//! message is pushed exactly as it was written. It must not know the broker, only the types in `words`.

use crate::broker::{ChannelAt, Message, Policy};
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use crate::words::audience::Audience;
use crate::words::strict::digits;
use crate::words::topic;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

/// Channels that one request may name, to be reached or left out.
pub(super) const CHANNELS_MAX: usize = 65_536;

/// A message and its audience.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PublishOrder {
    pub to: PublishTo,
    /// In whose name; none: as it is configured.
    pub process: Option<ProcessId>,
    pub message: Message,
    /// Whether it was given as JSON, to stand in an envelope as it is.
    pub is_json: bool,
    pub policy: Option<Policy>,
    pub except: Vec<ChannelId>,
    /// Whether the answer waits for the outcome.
    pub outcome: OutcomeWanted,
}

/// The detail of an outcome that the answer contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum OutcomeWanted {
    /// Nothing: it was accepted.
    #[default]
    Nothing,
    /// How many channels of this broker got it.
    Here,
    /// The same, and what the other nodes of the fleet say.
    Nodes,
}

/// The channels of its process that a push reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PublishTo {
    /// An audience; channels of this node are listed apart.
    All(Audience),
    Channels(Vec<ChannelId>, OnOthers),
    /// The channels of one user of the hub.
    User(String),
}

/// Channels of other nodes of the fleet, by node.
pub(super) type OnOthers = BTreeMap<String, Vec<ChannelId>>;

/// How a channel is named: by its number, or as `NODE/ID`.
enum Named {
    Here(u32),
    At(String),
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::String(text) => Ok(Self::At(text)),
            value => number(&value).map(Self::Here).ok_or_else(|| D::Error::custom(CHANNEL_EXPECTED)),
        }
    }
}

/// The number of a channel of this node.
struct ChannelNumber(u32);

impl<'de> Deserialize<'de> for ChannelNumber {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        number(&value).map(Self).ok_or_else(|| D::Error::custom("a channel is a number up to 4294967295"))
    }
}

const CHANNEL_EXPECTED: &str = "a channel is a number up to 4294967295, or \"NODE/ID\" on another node";

/// An integer as JSON Schema has it: 7.0 is one (JSON Schema 2020-12 core, section 4.2.2).
fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    let whole = value.as_u64().or_else(|| {
        // Beyond 2^53 a float does not say which integer is meant.
        let float =
            value.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(float));
        float.map(|float| float as u64)
    });
    T::try_from(whole?).ok()
}

/// The value with integers written as such. Objects in `depth` objects have no field twice; deeper ones are no order's.
fn strict_value(json: &RawValue, depth: u8) -> serde_json::Result<Value> {
    if depth == 0 || !json.get().starts_with('{') {
        let value: Value = serde_json::from_str(json.get())?;
        return Ok(number::<u64>(&value).map_or(value, Value::from));
    }
    let fields: JsonFields = serde_json::from_str(json.get())?;
    fields.0.into_iter().map(|(name, value)| Ok((name, strict_value(&value, depth - 1)?))).collect()
}

/// The field that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub field: String,
    pub why: String,
}

impl Wrong {
    pub(super) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

/// The fields of a JSON object. Each stands there once: of two, readers would take different ones (RFC 8259 section 4).
#[derive(Default)]
struct JsonFields(BTreeMap<String, Box<RawValue>>);

/// Begins the error of a field that is there twice; the name follows.
const TWICE: &str = "it is there twice: ";

impl<'de> Deserialize<'de> for JsonFields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = JsonFields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<JsonFields, A::Error> {
        let mut fields = JsonFields::default();
        while let Some((name, value)) = from.next_entry::<String, Box<RawValue>>()? {
            match fields.0.entry(name) {
                Entry::Occupied(there) => return Err(A::Error::custom(format_args!("{TWICE}{}", there.key()))),
                Entry::Vacant(place) => drop(place.insert(value)),
            }
        }
        Ok(fields)
    }
}

/// Takes a field out and reads it. `null` counts as left out.
fn take<T: DeserializeOwned>(fields: &mut JsonFields, within: &str, name: &str) -> Result<Option<T>, Wrong> {
    let Some(value) = fields.0.remove(name) else { return Ok(None) };
    serde_json::from_str(value.get()).map_err(|error| Wrong::new(format!("{within}{name}"), error.to_string()))
}

fn nothing_left(fields: &JsonFields, within: &str) -> Result<(), Wrong> {
    match fields.0.keys().next() {
        None => Ok(()),
        Some(name) => Err(Wrong::new(format!("{within}{name}"), "there is no such field")),
    }
}

/// An order in JSON: `{"to":{"topic":"news"},"text":"hello"}`.
pub(super) fn of_json(body: &[u8]) -> Result<PublishOrder, Wrong> {
    let mut fields: JsonFields = serde_json::from_slice(body).map_err(|error| Wrong::new("body", error.to_string()))?;
    let to: Option<JsonFields> = take(&mut fields, "", "to")?;
    let (to, process) = audience(to.ok_or_else(|| Wrong::new("to", "say whom the push is for"))?)?;
    let text: Option<String> = take(&mut fields, "", "text")?;
    let data: Option<String> = take(&mut fields, "", "data")?;
    let json = fields.0.remove("json");
    let is_json = json.is_some();
    let message = match (text, json, data) {
        (Some(text), None, None) => Message::text(text),
        (None, Some(json), None) => Message::text(String::from(Box::<str>::from(json))),
        (None, None, Some(data)) => {
            let bytes = STANDARD.decode(data).map_err(|error| Wrong::new("data", format!("no base64: {error}")))?;
            Message::binary(bytes)
        }
        (None, None, None) => return Err(Wrong::new("text", "give one of text, json and data")),
        _ => return Err(Wrong::new("text", "give one of text, json and data, not several")),
    };
    let policy: Option<Box<RawValue>> = take(&mut fields, "", "policy")?;
    let policy = policy.map(|policy| serde_json::from_value(strict_value(&policy, 2)?)).transpose();
    let policy: Option<Policy> = policy.map_err(|error| Wrong::new("policy", error.to_string()))?;
    let except: Option<Vec<ChannelNumber>> = take(&mut fields, "", "except")?;
    let except = except.unwrap_or_default().into_iter().map(|number| number.0).collect();
    let outcome = match take(&mut fields, "", "outcome")? {
        None | Some(Value::Bool(false)) => OutcomeWanted::Nothing,
        Some(Value::Bool(true)) => OutcomeWanted::Here,
        Some(value) => {
            let wanted = value.as_str().and_then(wanted);
            wanted.ok_or_else(|| Wrong::new("outcome", "true, false or \"nodes\""))?
        }
    };
    nothing_left(&fields, "")?;
    let except = channels("except", except)?;
    Ok(PublishOrder { to, process, message, is_json, policy, except, outcome })
}

fn wanted(text: &str) -> Option<OutcomeWanted> {
    Some(match text {
        "" | "true" => OutcomeWanted::Here,
        "false" => OutcomeWanted::Nothing,
        "nodes" => OutcomeWanted::Nodes,
        _ => return None,
    })
}

fn audience(mut to: JsonFields) -> Result<(PublishTo, Option<ProcessId>), Wrong> {
    let is_null = |name: &&str| to.0.get(*name).is_some_and(|value| value.get() == "null");
    let null = ["topic", "path", "channels", "user"].into_iter().find(is_null);
    let topic: Option<String> = take(&mut to, "to.", "topic")?;
    let path: Option<String> = take(&mut to, "to.", "path")?;
    let ids: Option<Vec<Named>> = take(&mut to, "to.", "channels")?;
    let user: Option<String> = take(&mut to, "to.", "user")?;
    let process: Option<String> = take(&mut to, "to.", "process")?;
    nothing_left(&to, "to.")?;
    let process = process.map(|id| process_id(&id)).transpose()?;
    let to = match (topic, path, ids, user) {
        (Some(name), None, None, None) => PublishTo::All(Audience::Topic(topic_name(name)?)),
        (None, Some(path), None, None) => PublishTo::All(Audience::Path(path.into())),
        (None, None, Some(ids), None) => named("to.channels", ids)?,
        (None, None, None, Some(user)) => PublishTo::User(user),
        // A program with an unset variable means somebody, and not everybody.
        (None, None, None, None) if process.is_some() => match null {
            Some(name) => {
                let why = "it is null: leave it out to reach all channels of the process";
                return Err(Wrong::new(format!("to.{name}"), why));
            }
            None => PublishTo::All(Audience::Process),
        },
        (None, None, None, None) => {
            return Err(Wrong::new("to", "name one of topic, path, channels and user, or a process alone"));
        }
        _ => return Err(Wrong::new("to", "name one of topic, path, channels and user, not several")),
    };
    Ok((to, process))
}

fn process_id(text: &str) -> Result<ProcessId, Wrong> {
    ProcessId::named(text).map_err(|error| Wrong::new("to.process", error.to_string()))
}

fn topic_name(name: String) -> Result<Arc<str>, Wrong> {
    topic::check(&name).map_err(|error| Wrong::new("to.topic", error.to_string()))?;
    if topic::is_reserved(&name) {
        return Err(Wrong::new("to.topic", "names that begin with U+001E are the broker's own"));
    }
    Ok(name.into())
}

fn channels(field: &str, ids: Vec<u32>) -> Result<Vec<ChannelId>, Wrong> {
    if ids.len() > CHANNELS_MAX {
        return Err(Wrong::new(field, format!("at most {CHANNELS_MAX} channels in one request")));
    }
    Ok(ids.into_iter().map(ChannelId::new).collect())
}

/// Channels of this node and of others.
fn named(field: &str, ids: Vec<Named>) -> Result<PublishTo, Wrong> {
    let (mut here, mut others) = (Vec::new(), OnOthers::new());
    let all = ids.len();
    for id in ids {
        match id {
            Named::Here(id) => here.push(id),
            Named::At(text) => {
                let at: ChannelAt = text
                    .parse()
                    .map_err(|error: crate::broker::InvalidChannelAt| Wrong::new(field, error.to_string()))?;
                others.entry(at.node.to_string()).or_default().push(at.channel);
            }
        }
    }
    if all > CHANNELS_MAX {
        return Err(Wrong::new(field, format!("at most {CHANNELS_MAX} channels in one request")));
    }
    Ok(PublishTo::Channels(channels(field, here)?, others))
}

/// An order of raw bytes: `Push-To: topic=news; policy=drop_newest; except=7,8; outcome`. Values are percent-encoded
/// where they hold `;`, `%` or what a header field may not. Text, if `mime` says so or it is JSON; else Binary.
pub(super) fn of_raw(to: &str, mime: &str, body: Bytes) -> Result<PublishOrder, Wrong> {
    let wrong = |why: String| Wrong::new("push-to", why);
    let (mut audience, mut process, mut policy) = (None, None, None);
    let (mut except, mut outcome) = (Vec::new(), OutcomeWanted::Nothing);
    let mut there = Vec::new();
    for part in to.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let name = name.trim();
        let value = decoded(value.trim()).ok_or_else(|| wrong(format!("{name}: no UTF-8, or a % alone")))?;
        let ids = |value: &str| -> Result<Vec<u32>, Wrong> {
            let ids = value.split(',').map(|id| digits(id.trim()));
            ids.collect::<Option<_>>().ok_or_else(|| wrong(format!("{name}: numbers of channels, as 7,8")))
        };
        if there.contains(&name) {
            return Err(wrong(format!("{TWICE}{name}")));
        }
        let found = match name {
            "topic" => Some(PublishTo::All(Audience::Topic(topic_name(value).map_err(|error| wrong(error.why))?))),
            "path" => Some(PublishTo::All(Audience::Path(value.into()))),
            "channels" => {
                let ids = value.split(',').map(str::trim);
                let ids = ids.map(|id| digits(id).map_or_else(|| Named::At(id.to_owned()), Named::Here));
                Some(named("push-to", ids.collect())?)
            }
            "user" => Some(PublishTo::User(value)),
            "process" => {
                process = Some(process_id(&value).map_err(|error| wrong(error.why))?);
                None
            }
            "policy" => {
                policy = Some(value.parse().map_err(|_| {
                    wrong("policy: close, drop_newest, drop_oldest, or conflate:KEY with a number".to_owned())
                })?);
                None
            }
            "except" => {
                except = channels("push-to", ids(&value)?)?;
                None
            }
            "outcome" => {
                outcome = wanted(&value).ok_or_else(|| wrong("outcome: true, false or nodes".to_owned()))?;
                None
            }
            other => return Err(wrong(format!("there is no {other}"))),
        };
        there.push(name);
        if found.is_some() && std::mem::replace(&mut audience, found).is_some() {
            return Err(wrong("name one of topic, path, channels and user, not several".to_owned()));
        }
    }
    let to = match (audience, &process) {
        (Some(to), _) => to,
        (None, Some(_)) => PublishTo::All(Audience::Process),
        (None, None) => return Err(wrong("name one of topic, path, channels and user, or a process".to_owned())),
    };
    let mime = mime.to_ascii_lowercase();
    let message = match mime.starts_with("text/") || mime == "application/json" || mime.ends_with("+json") {
        true => Message::text_bytes(body)
            .map_err(|_| Wrong::new("body", "the content type is text, and this is no UTF-8"))?,
        false => Message::binary(body),
    };
    Ok(PublishOrder { to, process, message, is_json: false, policy, except, outcome })
}

/// Percent-decoded (RFC 3986 section 2.1). None: a `%` without two digits, or no UTF-8.
pub(super) fn decoded(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(others.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &others[2..];
        } else {
            bytes.push(*first);
            rest = others;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wrong(body: &str) -> String {
        of_json(body.as_bytes()).unwrap_err().field
    }

    #[test]
    fn json_says_whom_and_what() {
        let order = of_json(
            br#"{"to":{"topic":"news","process":"chat:a:b"},"text":"hi","policy":"drop_oldest","except":[7],"outcome":true}"#,
        );
        let expected = PublishOrder {
            to: PublishTo::All(Audience::Topic("news".into())),
            process: Some("chat:a:b".parse().unwrap()),
            message: Message::text("hi"),
            is_json: false,
            policy: Some(Policy::DropOldest),
            except: vec![ChannelId::new(7)],
            outcome: OutcomeWanted::Here,
        };
        assert_eq!(order, Ok(expected));
        let of = |body: &str| of_json(body.as_bytes()).unwrap();
        assert_eq!(of(r#"{"to":{"channels":[1,2]},"data":"AP8="}"#).message, Message::binary(vec![0, 255]));
        assert_eq!(of(r#"{"to":{"user":"ann"},"text":""}"#).to, PublishTo::User("ann".into()));
        assert_eq!(of(r#"{"to":{"process":"chat"},"text":""}"#).to, PublishTo::All(Audience::Process));
        assert_eq!(of(r#"{"to":{"user":"ann","topic":null},"text":""}"#).to, PublishTo::User("ann".into()));
        let others = OnOthers::from([("b".to_owned(), vec![ChannelId::new(2), ChannelId::new(3)])]);
        let to = PublishTo::Channels(vec![ChannelId::new(1)], others);
        let order = of(r#"{"to":{"channels":["b/2",1,"b/3"]},"text":"","outcome":"nodes"}"#);
        assert_eq!((&order.to, order.outcome), (&to, OutcomeWanted::Nodes));
        let raw = of_raw("channels=b/2, 1,b/3; outcome=nodes", "text/plain", Bytes::new()).unwrap();
        assert_eq!((raw.to, raw.outcome), (to, OutcomeWanted::Nodes));
        // Any way to write an integer will do.
        let written = of(r#"{"to":{"channels":[1.0,2e0]},"text":"","except":[3.0],"policy":{"conflate":{"key":7.0}}}"#);
        assert_eq!(written.to, PublishTo::Channels(vec![ChannelId::new(1), ChannelId::new(2)], OnOthers::new()));
        assert_eq!((written.except, written.policy), (vec![ChannelId::new(3)], Some(Policy::Conflate { key: 7 })));
        // As it was written: numbers, order and spaces.
        let json = of(r#"{"to":{"path":"/"},"json": {"b":1.10, "a":[1e3]} }"#);
        assert_eq!(json.message, Message::text(r#"{"b":1.10, "a":[1e3]}"#));
        assert_eq!(of(r#"{"to":{"path":"/"},"json":null}"#).message, Message::text("null"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, field) in [
            ("", "body"),
            ("[]", "body"),
            (r#"{"text":"x"}"#, "to"),
            (r#"{"to":"news","text":"x"}"#, "to"),
            (r#"{"to":{},"text":"x"}"#, "to"),
            (r#"{"to":{"topic":"a","user":"b"},"text":"x"}"#, "to"),
            (r#"{"to":{"topic":7},"text":"x"}"#, "to.topic"),
            (r#"{"to":{"topic":""},"text":"x"}"#, "to.topic"),
            (r#"{"to":{"channels":[-1]},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"channels":["1"]},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"channels":[1.5]},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"channels":[4294967296.0]},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"channels":[null]},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"process":"chat","user":null},"text":"x"}"#, "to.user"),
            (r#"{"to":{"process":"chat","channels":null},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"topic":"a"},"text":"x","policy":{"conflate":{"key":-1}}}"#, "policy"),
            (r#"{"to":{"process":""},"text":"x"}"#, "to.process"),
            (r#"{"to":{"room":"x"},"text":"x"}"#, "to.room"),
            (r#"{"to":{"topic":"a"}}"#, "text"),
            (r#"{"to":{"topic":"a"},"text":"x","json":1}"#, "text"),
            (r#"{"to":{"topic":"a"},"text":1}"#, "text"),
            (r#"{"to":{"topic":"a"},"data":"?"}"#, "data"),
            (r#"{"to":{"topic":"a"},"text":"x","policy":"never"}"#, "policy"),
            (r#"{"to":{"topic":"a"},"text":"x","except":7}"#, "except"),
            (r#"{"to":{"topic":"a"},"text":"x","outcome":"yes"}"#, "outcome"),
            (r#"{"to":{"channels":["b/x"]},"text":"x"}"#, "to.channels"),
            (r#"{"to":{"topic":"a"},"text":"x","ttl":1}"#, "ttl"),
            (r#"{"to":{"topic":"a"},"text":"x","outcome":1}"#, "outcome"),
            // Of two fields another reader would take the other one.
            (r#"{"to":{"topic":"a"},"to":{"topic":"b"},"text":"x"}"#, "body"),
            (r#"{"to":{"topic":"a"},"text":"x","\u0074ext":"y"}"#, "body"),
            (r#"{"to":{"topic":"a","topic":"b"},"text":"x"}"#, "to"),
            (r#"{"to":{"topic":"a"},"text":"x","policy":{"conflate":{"key":1,"key":2}}}"#, "policy"),
            (r#"{"to":{"topic":"a"},"text":"x","policy":{"conflate":{"key":1},"conflate":{"key":2}}}"#, "policy"),
            // The broker's own: another user's, and the messages of another topic in their envelopes.
            (r#"{"to":{"topic":"\u001euser/ann"},"text":"x"}"#, "to.topic"),
            (r#"{"to":{"topic":"\u001eenvelope/a"},"text":"x"}"#, "to.topic"),
        ] {
            assert_eq!(wrong(body), field, "{body}");
        }
    }

    #[test]
    fn raw_bytes_are_pushed_as_they_are() {
        let body = Bytes::from(vec![7; 100_000]);
        let order = of_raw("topic=a%3Bb; except=7, 8;policy=conflate:9;outcome", "image/png", body.clone()).unwrap();
        assert_eq!((&order.to, order.outcome), (&PublishTo::All(Audience::Topic("a;b".into())), OutcomeWanted::Here));
        assert_eq!((order.except.len(), order.policy), (2, Some(Policy::Conflate { key: 9 })));
        assert_eq!(order.message.payload().as_ptr(), body.as_ptr(), "without a copy");
        let text = of_raw("user=ann", "text/plain", Bytes::from_static("é".as_bytes())).unwrap();
        assert_eq!(text.message, Message::text("é"));
        assert_eq!(of_raw("user=ann", "text/plain", Bytes::from_static(b"\xff")).unwrap_err().field, "body");
        assert_eq!(of_raw("process=chat", "", Bytes::new()).unwrap().to, PublishTo::All(Audience::Process));
        for bad in [
            "",
            ";",
            "topic",
            "topic=%",
            "topic=%zz",
            "topic=%ff",
            "topic=%1euser/ann",
            "topic=a;user=b",
            "topic=a;topic=a",
            "topic=a;except=7;except=8",
            "topic=a;policy=close;policy=drop_newest",
            "topic=a;except=+7",
            "topic=a;policy=conflate:+7",
            "channels=x",
            "channels=+7",
            "policy=x",
            "a=b",
        ] {
            assert_eq!(of_raw(bad, "", Bytes::new()).unwrap_err().field, "push-to", "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".*") {
            let _ = of_json(&bytes);
            let _ = of_json(text.as_bytes());
            let _ = of_raw(&text, "text/plain", bytes.into());
            let _ = decoded(&text);
        }
    }
}
