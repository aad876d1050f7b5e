//! A request: what its head says of it, and the order that its body is.
//!
//! Invariant: whatever a head decides is decided by [`ApiCall::of`] and [`check_push`], before a body is taken in. It
//! must not know the broker.

use super::answer::ApiAnswer;
use super::body::{self, PublishOrder};
use super::idempotency::KEY_BYTES_MAX;
use crate::admission::{Charge, HeapBytes};
use crate::broker::RequestId;
use crate::gateway::ContractRequest;
use crate::words::strict::digits;
use bytes::Bytes;

/// The largest body that is JSON: larger payloads are sent raw.
pub const JSON_BYTES_MAX: usize = 256 << 10;

/// The longest body that is parsed on a shard: base64 in JSON takes some 10 µs a KiB at worst, and a handler has 250 µs
/// of a turn.
pub(super) const SHORT_BODY_BYTES_MAX: usize = 16 << 10;

/// The type of a batch.
const NDJSON: &str = "application/x-ndjson";

/// A request that showed the token, with its path below `/api`.
pub(super) struct AdmittedRequest {
    pub(super) id: RequestId,
    pub(super) path: String,
    pub(super) asked: Box<ContractRequest>,
    pub(super) body: Bytes,
    /// The memory that it takes while it waits for the thread.
    pub(super) charge: Option<Charge>,
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

/// The path of a request below `/api`, behind the beginning of all paths of the API.
pub(super) fn path_of<'a>(asked: &'a ContractRequest, prefix: &str) -> Result<&'a str, ApiAnswer> {
    let path = asked.url.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    let path = path.and_then(|path| path.strip_prefix(prefix)?.strip_prefix("/api"));
    path.ok_or_else(nothing_there)
}

fn nothing_there() -> ApiAnswer {
    ApiAnswer::error(404, None, "there is nothing at this path: see /api/push")
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApiCall<'p> {
    /// A push, or a batch of them.
    Push,
    /// A page of topics.
    Topics,
    /// One topic, as it stands in the path.
    Topic(&'p str),
    /// A look at a channel.
    Channel(ChannelName<'p>),
    /// The end of one.
    Close(ChannelName<'p>),
}

/// A channel as it stands in the path: with a node of the fleet, if there is one.
pub(super) type ChannelName<'p> = (Option<&'p str>, &'p str);

impl<'p> ApiCall<'p> {
    /// By the method and the path below `/api`.
    ///
    /// # Errors
    /// There is no such thing, or it is no method for it.
    pub(super) fn of(method: &str, path: &'p str) -> Result<Self, ApiAnswer> {
        let mut parts = path.split('/').skip(1);
        let parts = [parts.next(), parts.next(), parts.next(), parts.next()];
        let (call, closes) = match parts {
            [Some("push"), None, ..] => (Self::Push, None),
            [Some("topics"), None, ..] => (Self::Topics, None),
            [Some("topics"), Some(name), None, _] => (Self::Topic(name), None),
            [Some("channels"), Some(id), None, _] => (Self::Channel((None, id)), Some(Self::Close((None, id)))),
            [Some("channels"), Some(node), Some(id), None] => {
                (Self::Channel((Some(node), id)), Some(Self::Close((Some(node), id))))
            }
            _ => return Err(nothing_there()),
        };
        match (method, call, closes) {
            ("POST", Self::Push, _) => Ok(call),
            (_, Self::Push, _) => Err(ApiAnswer::error(405, None, "push with POST").with("allow", "POST")),
            ("GET" | "HEAD", ..) => Ok(call),
            ("DELETE", _, Some(close)) => Ok(close),
            (_, _, Some(_)) => {
                let why = "a channel is looked at or closed";
                Err(ApiAnswer::error(405, None, why).with("allow", "GET, HEAD, DELETE"))
            }
            (_, _, None) => {
                Err(ApiAnswer::error(405, None, "topics are looked at, with GET").with("allow", "GET, HEAD"))
            }
        }
    }
}

/// Header fields and query parameters that a request has once: of two, readers would take different ones. (RFC 9110
/// section 5.3 lets a field repeat only where its values are a list.)
const ONCE: [&str; 13] = [
    "after",
    "authorization",
    "code",
    "content-type",
    "idempotency-key",
    "limit",
    "nodes",
    "origin",
    "prefix",
    "process",
    "push-to",
    "reason",
    "sec-fetch-site",
];

/// Refuses a request that has more than one of a field or parameter that is read here.
pub(super) fn check_repeated(asked: &ContractRequest) -> Result<(), ApiAnswer> {
    match ONCE.into_iter().find(|name| asked.repeated.contains(*name)) {
        None => Ok(()),
        Some(name) => Err(body::Wrong::new(name, "it is there twice").into()),
    }
}

/// What the body of a request to push is, as its head says.
enum PushBody<'a> {
    /// The payload itself, with the field that says where it goes.
    Raw(&'a str),
    Lines,
    Json,
}

impl<'a> PushBody<'a> {
    fn of(asked: &'a ContractRequest) -> Result<Self, ApiAnswer> {
        let mime = mime_of(asked);
        match asked.headers.get("push-to") {
            Some(to) => Ok(Self::Raw(to)),
            None if mime.eq_ignore_ascii_case(NDJSON) => Ok(Self::Lines),
            None if mime.eq_ignore_ascii_case("application/json") => Ok(Self::Json),
            None => {
                let why = "say application/json, application/x-ndjson, or (with the field Push-To) what the payload is";
                Err(body::Wrong::new("content-type", why).into())
            }
        }
    }
}

fn json_is_long() -> ApiAnswer {
    ApiAnswer::error(413, None, "JSON has 256 KiB at most: send larger payloads raw, with Push-To")
}

/// What the head of a request to push says of it.
///
/// # Errors
/// The refusal, for which no body need be read.
pub(super) fn check_push(asked: &ContractRequest) -> Result<(), ApiAnswer> {
    if let Some(key) = asked.headers.get("idempotency-key")
        && !(1..=KEY_BYTES_MAX).contains(&key.len())
    {
        return Err(body::Wrong::new("idempotency-key", "a key has 1 to 255 bytes").into());
    }
    // In chunks nothing is announced.
    let announced = asked.headers.get("content-length").and_then(|length| digits::<u64>(length));
    match PushBody::of(asked)? {
        PushBody::Json if announced.is_some_and(|bytes| bytes > JSON_BYTES_MAX as u64) => Err(json_is_long()),
        // With a short body it is read once, on the shard.
        PushBody::Raw(to) if announced.is_none_or(|bytes| bytes > SHORT_BODY_BYTES_MAX as u64) => {
            body::of_raw(to, mime_of(asked), Bytes::new())?;
            Ok(())
        }
        PushBody::Raw(_) | PushBody::Lines | PushBody::Json => Ok(()),
    }
}

/// A request to push that was read.
pub(super) enum PushRequest {
    One(PublishOrder),
    /// Lines, to be read one after another.
    Batch(Bytes),
}

/// Reads a request to push.
pub(super) fn read(asked: &ContractRequest, body: Bytes) -> Result<PushRequest, ApiAnswer> {
    Ok(match PushBody::of(asked)? {
        PushBody::Raw(to) => PushRequest::One(body::of_raw(to, mime_of(asked), body)?),
        PushBody::Lines => PushRequest::Batch(body),
        PushBody::Json if body.len() > JSON_BYTES_MAX => return Err(json_is_long()),
        PushBody::Json => PushRequest::One(body::of_json(&body)?),
    })
}
