//! An answer of the API, as it is sent and, with an `Idempotency-Key`, kept.
//!
//! It must not know the broker.

use super::body;
use crate::http::PreparedResponse;
use bytes::Bytes;
use serde_json::json;

/// An answer: status, further fields, body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiAnswer {
    pub(super) status: u16,
    pub(super) fields: Vec<(&'static str, &'static str)>,
    pub(super) body: Bytes,
    /// Whether the request has done something, so that it must not do it again when it comes again.
    is_done: bool,
}

impl ApiAnswer {
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::of_type("application/json", status, body.to_string().into())
    }

    /// The answers to a batch.
    pub(super) fn lines(body: Bytes) -> Self {
        Self::of_type("application/x-ndjson", 200, body)
    }

    fn of_type(mime: &'static str, status: u16, body: Bytes) -> Self {
        Self { status, fields: vec![("content-type", mime)], body, is_done: matches!(status, 200 | 202) }
    }

    /// The request was carried out, and what became of it is not known in time.
    pub(super) fn outcome_is_unknown() -> Self {
        let why = "what was asked was done, and its outcome is not known yet";
        Self { is_done: true, ..Self::error(503, None, why).with("retry-after", "1") }
    }

    /// The request will be carried out; its outcome is unknown (RFC 9110 15.3.3).
    pub(super) fn accepted() -> Self {
        Self::json(202, &json!({"accepted": true}))
    }

    pub(super) fn memory_is_short() -> Self {
        let why = "memory is short (memory_budget): nothing was pushed";
        Self::error(429, None, why).with("retry-after", "1")
    }

    /// A refusal: what is wrong, and where.
    pub(super) fn error(status: u16, field: Option<&str>, why: &str) -> Self {
        let body = match field {
            Some(field) => json!({"error": why, "field": field}),
            None => json!({ "error": why }),
        };
        Self::json(status, &body)
    }

    pub(super) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.fields.push((name, value));
        self
    }

    fn into_fields(self) -> (u16, impl Iterator<Item = (&'static str, &'static str)>, Bytes) {
        (self.status, self.fields.into_iter().chain([("cache-control", "no-store")]), self.body)
    }

    /// Status, fields and body, as they are sent.
    pub(super) fn into_parts(self) -> (u16, impl Iterator<Item = (Box<str>, Box<str>)>, Bytes) {
        let (status, fields, body) = self.into_fields();
        (status, fields.map(|(name, value)| (name.into(), value.into())), body)
    }

    /// As the server sends it by itself.
    pub(super) fn into_response(self) -> PreparedResponse {
        let (status, fields, body) = self.into_fields();
        fields.fold(PreparedResponse::new(status), |response, (name, value)| response.with(name, value)).with_body(body)
    }

    /// The answer that is due when the request comes again, whose heap bytes `has_room` is asked for: what is not
    /// known, or cannot be kept, is not said again, but the request was accepted all the same. None: nothing was done.
    pub(super) fn kept(&self, has_room: impl FnOnce(usize) -> bool) -> Option<Self> {
        let is_said_again = matches!(self.status, 200 | 202);
        self.is_done.then(|| match is_said_again && has_room(self.body.len()) {
            true => self.clone(),
            false => Self::accepted(),
        })
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
        assert_eq!(answer.kept(|_| true), None, "it may be tried again");
    }

    #[test]
    fn what_was_done_is_answered_again_and_never_done_again() {
        let told = ApiAnswer::json(200, &json!({"sent": 7}));
        assert_eq!(told.kept(|bytes| bytes == told.body.len()), Some(told.clone()));
        assert_eq!(told.kept(|_| false), Some(ApiAnswer::accepted()), "memory is short");
        let unknown = ApiAnswer::outcome_is_unknown();
        assert_eq!((unknown.status, unknown.kept(|_| true)), (503, Some(ApiAnswer::accepted())));
    }
}
