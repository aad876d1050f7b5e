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
}

impl ApiAnswer {
    pub(super) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self { status, fields: vec![("content-type", "application/json")], body: body.to_string().into() }
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

    /// Returns whether the request has done something, so that the same answer is due when it comes again.
    pub(super) fn is_done(&self) -> bool {
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
