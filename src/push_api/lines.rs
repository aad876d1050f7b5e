//! A batch: an order in JSON on each line, answered line by line.
//!
//! Invariants: a part of it is bounded, so that other requests are answered between two parts; what waits of it,
//! answers included, is charged.

use super::body::{self, OutcomeWanted, Wrong};
use super::idempotency::KeyDigest;
use super::perform::{Performer, PushResult};
use super::{ApiAnswer, JSON_BYTES_MAX, OUTCOME_WITHIN};
use crate::admission::{Charge, HeldAs, OverBudget, ProcessMemory};
use bytes::Bytes;
use serde_json::{Value, json};

/// Lines in a part: under a millisecond of work.
const PART_LINES: usize = 128;

/// See the module.
pub(super) struct LineBatch {
    rest: Bytes,
    answers: Vec<u8>,
    key: Option<KeyDigest>,
    body_bytes: usize,
    charge: Charge,
}

impl LineBatch {
    /// A batch that waits to be worked off.
    ///
    /// # Errors
    /// Memory is short.
    pub fn new(body: Bytes, memory: &ProcessMemory) -> Result<Self, OverBudget> {
        let body_bytes = body.len();
        let charge = memory.charge(HeldAs::Content, body_bytes)?;
        Ok(Self { rest: body, answers: Vec::new(), key: None, body_bytes, charge })
    }

    pub fn keyed(self, key: Option<KeyDigest>) -> Self {
        Self { key, ..self }
    }

    pub fn into_key(self) -> Option<KeyDigest> {
        self.key
    }

    /// One part. The answers, once all is done.
    pub fn work(&mut self, performer: &mut Performer) -> Option<Bytes> {
        for _ in 0..PART_LINES {
            if self.rest.is_empty() {
                return Some(std::mem::take(&mut self.answers).into());
            }
            let end = memchr::memchr(b'\n', &self.rest).unwrap_or(self.rest.len());
            let line = self.rest.split_to(end);
            let _ = self.rest.split_to(1.min(self.rest.len()));
            if !line.trim_ascii().is_empty() {
                let answer = one(&line, performer);
                self.answers.extend_from_slice(answer.to_string().as_bytes());
                self.answers.push(b'\n');
            }
        }
        // Lines that were pushed are answered, however short memory is.
        self.charge.resize(self.body_bytes + self.answers.capacity());
        None
    }
}

fn one(line: &[u8], performer: &mut Performer) -> Value {
    if line.len() > JSON_BYTES_MAX {
        return json!({"status": 413, "error": "a line has 256 KiB at most"});
    }
    let order = body::of_json(line).and_then(|order| match order.outcome {
        // Nobody waits for other nodes line by line.
        OutcomeWanted::Nodes => Err(Wrong::new("outcome", "what other nodes say is asked with a request of its own")),
        OutcomeWanted::Nothing | OutcomeWanted::Here => Ok(order),
    });
    let done = order.map_err(ApiAnswer::from).and_then(|order| performer.push(order));
    match done {
        Ok(PushResult::Accepted) => json!({"status": 202}),
        Ok(PushResult::Asked(ticket)) => match ticket.wait(OUTCOME_WITHIN) {
            Some(outcome) => json!({"status": 200, "outcome": outcome}),
            None => json!({"status": 503, "error": "the push was accepted, and its outcome is not known yet"}),
        },
        Err(answer) => {
            let mut told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            told["status"] = answer.status.into();
            told
        }
    }
}
