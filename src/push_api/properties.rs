//! Properties of any bytes that a client sends as an order, for the fuzz target of this name and for the files below
//! `fuzz/seeds/push_api`.
//!
//! Compiled for tests and fuzzing only, where the orders are visible.

use super::body::{self, OutcomeWanted, PublishOrder, PublishTo};
use crate::broker::Message;
use crate::words::audience::Audience;
use crate::words::topic;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

/// Fields that an error may name of JSON.
const FIELDS: [&str; 12] = [
    "body",
    "to",
    "to.topic",
    "to.path",
    "to.channels",
    "to.user",
    "to.process",
    "text",
    "data",
    "policy",
    "except",
    "outcome",
];

/// A byte of settings, then JSON; or the field `Push-To`, a line end, and the payload.
///
/// # Panics
/// When something does not hold.
pub fn holds(data: &[u8]) {
    let Some((&settings, bytes)) = data.split_first() else { return };
    if settings & 1 == 0 {
        return json_holds(bytes);
    }
    let end = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    let (field, payload) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    if let Ok(field) = std::str::from_utf8(field) {
        raw_holds(field, settings & 2 != 0, Bytes::copy_from_slice(payload));
    }
}

/// As a reader of JSON has it that takes whatever is well-formed.
fn json_holds(text: &[u8]) {
    let order = match body::of_json(text) {
        Ok(order) => order,
        Err(wrong) => {
            // Another field is named as it was written.
            let is_unknown = wrong.why == "there is no such field" && !FIELDS.contains(&&*wrong.field);
            return assert!(is_unknown || FIELDS.contains(&&*wrong.field), "{wrong:?}");
        }
    };
    let value: Value = match serde_json::from_slice(text) {
        // JSON has numbers that this reader cannot hold (RFC 8259 section 6).
        Err(error) if error.to_string().starts_with("number out of range") => return,
        value => value.expect("what is carried out is JSON"),
    };
    let pushed = order.message.payload();
    if order.is_json {
        assert_eq!(serde_json::from_slice::<Value>(pushed).ok().as_ref(), value.get("json"));
    } else if let Some(text) = value["text"].as_str() {
        assert_eq!(order.message, Message::text(text));
    } else {
        let data = value["data"].as_str().expect("it has one of the three");
        assert_eq!(STANDARD.decode(data).ok().as_deref(), Some(&pushed[..]));
    }
    let (to, process) = (&value["to"], &value["to"]["process"]);
    match &order.to {
        PublishTo::All(Audience::Topic(name)) => assert_eq!(to["topic"].as_str(), Some(&**name)),
        PublishTo::All(Audience::Path(path)) => assert_eq!(to["path"].as_str(), Some(&**path)),
        PublishTo::Channels(ids, others) => {
            let count = ids.len() + others.values().map(Vec::len).sum::<usize>();
            assert_eq!(to["channels"].as_array().map(Vec::len), Some(count));
        }
        PublishTo::User(user) => assert_eq!(to["user"].as_str(), Some(&**user)),
        PublishTo::All(Audience::Channels(_)) => panic!("channels are listed apart"),
        PublishTo::All(Audience::Process) => assert!(process.is_string()),
    }
    assert_eq!(order.process.is_some(), process.is_string());
    let wanted = match &value["outcome"] {
        Value::Bool(true) => OutcomeWanted::Here,
        Value::String(text) if text == "nodes" => OutcomeWanted::Nodes,
        Value::String(text) if text != "false" => OutcomeWanted::Here,
        _ => OutcomeWanted::Nothing,
    };
    assert_eq!(order.outcome, wanted);
    is_bounded(&order);
}

fn raw_holds(field: &str, is_text: bool, payload: Bytes) {
    let mime = if is_text { "text/plain" } else { "application/octet-stream" };
    match body::of_raw(field, mime, payload.clone()) {
        Ok(order) => {
            assert_eq!(order.message.payload().as_ptr(), payload.as_ptr(), "no payload is copied");
            assert_eq!(order.message.is_text(), is_text);
            assert!(!is_text || std::str::from_utf8(&payload).is_ok());
            is_bounded(&order);
        }
        Err(wrong) => assert!(matches!(&*wrong.field, "push-to" | "body"), "{wrong:?}"),
    }
}

fn is_bounded(order: &PublishOrder) {
    if let PublishTo::All(Audience::Topic(name)) = &order.to {
        assert!(topic::check(name).is_ok() && !topic::is_reserved(name));
    }
    assert!(order.except.len() <= body::CHANNELS_MAX);
}

#[cfg(test)]
mod tests {
    /// The promise: what the fuzz target asserts holds of every input that was kept.
    #[test]
    fn every_kept_input_keeps_its_property() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/push_api");
        let mut count = 0;
        for entry in std::fs::read_dir(seeds).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display()); // Shown when it fails.
            super::holds(&std::fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 5, "{count} seeds");
    }
}
