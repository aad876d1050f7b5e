//! A request that has shown the token, and the order that it is.
//!
//! It must not know the broker.

use super::answer::ApiAnswer;
use super::body::{self, PublishOrder};
use crate::admission::{Charge, HeapBytes};
use crate::broker::RequestId;
use crate::gateway::ContractRequest;
use bytes::Bytes;

/// The largest body that is JSON: larger payloads are sent raw.
pub const JSON_BYTES_MAX: usize = 256 << 10;

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

/// Returns whether a request to push is a batch of lines, and no raw payload of that type.
pub(super) fn is_batch(asked: &ContractRequest) -> bool {
    !asked.headers.contains_key("push-to") && mime_of(asked).eq_ignore_ascii_case(NDJSON)
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

/// The order of a request that is no batch.
pub(super) fn read(asked: &ContractRequest, body: Bytes) -> Result<PublishOrder, ApiAnswer> {
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
