//! Publishing over HTTP: `POST /api/push`, queries and closes, for backends that have no link.
//!
//! The shards' own HTTP side takes requests in and sends answers, with all its limits. What a request says is read and
//! done on the shard that it came to ([`on_shard`]), if it is short and its answer waits for nothing, and otherwise on
//! a thread of the API's own ([`on_thread`]), in the name of the process that it names. The protocol stands in
//! `docs/PUBLISHING.md` and `docs/openapi.json`.
//!
//! Invariants: nothing is done before the token has been compared; a request is answered once; a push never waits: a
//! full inbox is reported (429). A batch of lines is processed a part at a time, so that no client waits for another's.
//! The answers kept for [`Idempotency-Key`](idempotency) are bounded and charged.

mod body;
mod guard;
mod idempotency;
mod lines;
mod on_shard;
mod on_thread;
mod perform;
#[cfg(any(test, fuzzing))]
pub mod properties;

pub use guard::{ApiToken, TokenTooShort};
pub use idempotency::IdempotencyKeys;
pub use lines::answers_of;

use self::body::PublishOrder;
use self::guard::ApiGuard;
use self::on_shard::ApiOnShard;
use self::on_thread::ApiOnThread;
use self::perform::Performer;
use crate::admission::{Charge, HeapBytes};
use crate::broker::{BrokerHandle, RequestId, ServiceError};
use crate::gateway::{ContractRequest, HttpRule};
use crate::process_id::ProcessId;
use bytes::Bytes;
use crossbeam_channel::bounded;
use serde_json::json;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The process that answers; on the main listener its name is the beginning of the paths.
pub const PROCESS: &str = "push:pushring:sys";

/// The largest body that is JSON: larger payloads are sent raw.
pub const JSON_BYTES_MAX: usize = 256 << 10;

/// The type of a batch.
const NDJSON: &str = "application/x-ndjson";

/// Requests that may wait for the API's thread: one of each connection that `api_listen` may have. All of them are
/// charged; one with a long body waits only where the memory budget has room for it.
const WAITING_MAX: usize = 1024;

/// The API's process, and the clients that may use it.
pub struct ApiOptions {
    /// The token that everything here needs.
    pub token: ApiToken,
    /// In whose name a request acts that names no process; none: each has to name one.
    pub process: Option<ProcessId>,
    /// Answers to requests with an `Idempotency-Key`, shared by all listeners of the same API.
    pub keys: IdempotencyKeys,
}

/// Serves the API to clients of `served`, at `/api/…` where that is a broker for nothing else, at
/// `/push:pushring:sys/api/…` otherwise, and acts on `target`, which may be the same. Ends when `served` stops.
///
/// # Errors
/// See [`ServiceError`].
pub fn start(
    served: &BrokerHandle,
    whole: bool,
    target: BrokerHandle,
    options: ApiOptions,
) -> Result<JoinHandle<()>, ServiceError> {
    let ApiOptions { token, process: acting, keys } = options;
    let prefix: Arc<str> = if whole { String::new() } else { format!("/{PROCESS}") }.into();
    let (to_thread, admitted) = bounded(WAITING_MAX);
    let performer = Performer::new(target, acting);
    let on_thread = performer.clone();
    let process = served.on_shards(PROCESS, move |_shard| ApiOnShard {
        prefix: prefix.clone(),
        guard: ApiGuard::new(token.clone()),
        performer: performer.clone(),
        thread: to_thread.clone(),
    })?;
    match whole {
        true => {
            process.handle().bind_http_at("/", HttpRule::default())?;
            process.handle().bind_http_at("/*rest", HttpRule::default())?;
        }
        false => process.handle().bind_http("/*rest", HttpRule::default())?,
    }
    let api = ApiOnThread::new(process, admitted, on_thread, keys);
    Ok(thread::Builder::new().name("push-api".to_owned()).spawn(move || api.run())?)
}

/// A request that showed the token, with its path below `/api`.
struct AdmittedRequest {
    id: RequestId,
    path: String,
    asked: Box<ContractRequest>,
    body: Bytes,
    /// The memory that it takes while it waits for the thread.
    charge: Option<Charge>,
}

impl HeapBytes for AdmittedRequest {
    fn heap_bytes(&self) -> usize {
        self.path.heap_bytes() + self.asked.heap_bytes() + self.body.heap_bytes()
    }
}

/// The type of a request's body, without parameters.
fn mime_of(asked: &ContractRequest) -> &str {
    asked.headers.get("content-type").map_or("", |mime| mime.split(';').next().unwrap_or("").trim())
}

/// Returns whether a request to push is a batch of lines, and no raw payload of that type.
fn is_batch(asked: &ContractRequest) -> bool {
    !asked.headers.contains_key("push-to") && mime_of(asked).eq_ignore_ascii_case(NDJSON)
}

/// The order of a request that is no batch.
fn read(asked: &ContractRequest, body: Bytes) -> Result<PublishOrder, ApiAnswer> {
    let mime = mime_of(asked);
    if let Some(to) = asked.headers.get("push-to") {
        return Ok(body::of_raw(to, mime, body)?);
    }
    if !mime.eq_ignore_ascii_case("application/json") {
        let why = "say application/json, application/x-ndjson, or (with the field Push-To) what the payload is";
        return Err(body::Wrong::new("content-type", why).into());
    }
    if body.len() > JSON_BYTES_MAX {
        let why = "JSON has 256 KiB at most: send larger payloads raw, with Push-To";
        return Err(ApiAnswer::error(413, None, why));
    }
    Ok(body::of_json(&body)?)
}

/// An answer: status, further fields, body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ApiAnswer {
    status: u16,
    fields: Vec<(&'static str, &'static str)>,
    body: Bytes,
}

impl ApiAnswer {
    fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, fields: vec![("content-type", "application/json")], body: body.to_string().into() }
    }

    /// The request will be carried out; its outcome is unknown (RFC 9110 15.3.3).
    fn accepted() -> Self {
        Self::json(202, &json!({"accepted": true}))
    }

    fn memory_is_short() -> Self {
        let why = "memory is short (memory_budget): nothing was pushed";
        Self::error(429, None, why).with("retry-after", "1")
    }

    /// A refusal: what is wrong, and where.
    fn error(status: u16, field: Option<&str>, why: &str) -> Self {
        let body = match field {
            Some(field) => json!({"error": why, "field": field}),
            None => json!({ "error": why }),
        };
        Self::json(status, &body)
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    /// Status, fields and body, as they are sent.
    fn into_parts(self) -> (u16, impl Iterator<Item = (Box<str>, Box<str>)>, Bytes) {
        let fields = self.fields.into_iter().chain([("cache-control", "no-store")]);
        (self.status, fields.map(|(name, value)| (name.into(), value.into())), self.body)
    }

    /// Returns whether the request has done something, so that the same answer is due when it comes again.
    fn is_done(&self) -> bool {
        matches!(self.status, 200 | 202)
    }
}

impl From<body::Wrong> for ApiAnswer {
    fn from(wrong: body::Wrong) -> Self {
        Self::error(400, Some(&wrong.field), &wrong.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_is_wrong() {
        let answer: ApiAnswer = body::Wrong::new("to.topic", "empty").into();
        assert_eq!((answer.status, &answer.body[..]), (400, &br#"{"error":"empty","field":"to.topic"}"#[..]));
        assert!(!answer.is_done() && ApiAnswer::json(202, &json!({})).is_done());
    }
}
