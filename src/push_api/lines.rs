//! A batch: an order in JSON on each line, answered line by line.
//!
//! Invariants: each part of it is bounded, so that other requests are answered between two parts, and while it waits
//! for other nodes; its waiting data, answers included, is charged, and where no more can be charged no further line is
//! pushed: an answer is many times as long as the shortest line.

use super::answer::ApiAnswer;
use super::body::{self, PublishOrder};
use super::idempotency::KeyDigest;
use super::perform::{OUTCOME_WITHIN, PushResult, PushTickets};
use super::request::JSON_BYTES_MAX;
use crate::admission::{Charge, HeldAs, OverBudget, ProcessMemory};
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Lines in a part, and their bytes: under a millisecond of work.
const PART_LINES: usize = 128;
const PART_BYTES: usize = 64 << 10;

/// The assumed bytes of a part's answers before they are known.
const PART_ANSWERS_BYTES: usize = PART_LINES * 256;

/// See the module.
pub(super) struct LineBatch {
    rest: Bytes,
    /// In the order of the lines, up to the first that waits for other nodes.
    answers: Vec<u8>,
    /// From that one on.
    waiting: VecDeque<LineAnswer>,
    /// The heap bytes of those, with what other nodes will say.
    waiting_bytes: usize,
    key: Option<KeyDigest>,
    body_bytes: usize,
    charge: Charge,
}

/// The answers to a batch of which every push is accepted and none is given to a broker: what a measurement needs of
/// the rest. None: memory is short.
pub fn answers_of(body: Bytes, memory: &ProcessMemory) -> Option<Bytes> {
    let mut batch = LineBatch::new(body, memory).ok()?;
    while !batch.work(0, |_| Ok(PushResult::Accepted)) {}
    Some(batch.into_answers().0)
}

/// The answer to a line.
enum LineAnswer {
    Known(Box<str>),
    /// Other nodes are asked. With the heap bytes that it was counted as.
    Asked(PushTickets, usize),
}

impl LineBatch {
    /// A batch that waits to be worked off.
    ///
    /// # Errors
    /// Memory is short.
    pub(super) fn new(body: Bytes, memory: &ProcessMemory) -> Result<Self, OverBudget> {
        let body_bytes = body.len();
        let charge = memory.charge(HeldAs::Content, body_bytes)?;
        let (answers, waiting) = Default::default();
        Ok(Self { rest: body, answers, waiting, waiting_bytes: 0, key: None, body_bytes, charge })
    }

    pub(super) fn keyed(self, key: Option<KeyDigest>) -> Self {
        Self { key, ..self }
    }

    /// One part, each line given to `push`, where there are so many other `nodes`. Returns whether all lines were
    /// pushed.
    pub(super) fn work(
        &mut self,
        nodes: usize,
        mut push: impl FnMut(PublishOrder) -> Result<PushResult, ApiAnswer>,
    ) -> bool {
        if self.charge.grow(PART_ANSWERS_BYTES).is_err() && !self.rest.is_empty() {
            self.rest = Bytes::new();
            let why = "memory is short (memory_budget): this line and those behind it were not pushed";
            self.answer(LineAnswer::known(&json!({"status": 429, "error": why})));
            return true;
        }
        let before = self.rest.len();
        for _ in 0..PART_LINES {
            if self.rest.is_empty() {
                return true;
            }
            if before - self.rest.len() >= PART_BYTES {
                break;
            }
            let end = memchr::memchr(b'\n', &self.rest).unwrap_or(self.rest.len());
            let line = self.rest.split_to(end);
            let _ = self.rest.split_to(1.min(self.rest.len()));
            if !line.trim_ascii().is_empty() {
                let answer = one(&line, nodes, &mut push);
                self.answer(answer);
            }
        }
        // Lines that were pushed are answered, however short memory is.
        let waiting_bytes = self.waiting.capacity() * size_of::<LineAnswer>() + self.waiting_bytes;
        self.charge.resize(self.body_bytes + self.answers.capacity() + waiting_bytes);
        false
    }

    fn answer(&mut self, answer: LineAnswer) {
        self.waiting_bytes += answer.heap_bytes();
        self.waiting.push_back(answer);
        self.settle();
    }

    /// Returns whether an answer waits for other nodes.
    pub(super) fn is_slow(&mut self) -> bool {
        self.settle();
        !self.waiting.is_empty()
    }

    /// All answers.
    pub(super) fn into_answers(mut self) -> (Bytes, Option<KeyDigest>) {
        self.settle();
        (std::mem::take(&mut self.answers).into(), self.key.take())
    }

    /// Writes the answers that are known, up to the first that is not.
    fn settle(&mut self) {
        let is_known = |answer: &LineAnswer| match answer {
            LineAnswer::Known(_) => true,
            LineAnswer::Asked(tickets, _) => !tickets.is_slow(),
        };
        while self.waiting.front().is_some_and(is_known)
            && let Some(answer) = self.waiting.pop_front()
        {
            self.waiting_bytes -= answer.heap_bytes();
            let answer = match answer {
                LineAnswer::Known(answer) => answer,
                LineAnswer::Asked(tickets, _) => outcome_of(&tickets).to_string().into(),
            };
            self.answers.extend_from_slice(answer.as_bytes());
            self.answers.push(b'\n');
        }
    }
}

impl LineAnswer {
    fn known(answer: &Value) -> Self {
        Self::Known(answer.to_string().into())
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Known(answer) => answer.len(),
            Self::Asked(_, bytes) => *bytes,
        }
    }
}

/// One line, where there are so many other `nodes`.
fn one(line: &[u8], nodes: usize, push: impl FnOnce(PublishOrder) -> Result<PushResult, ApiAnswer>) -> LineAnswer {
    if line.len() > JSON_BYTES_MAX {
        return LineAnswer::known(&json!({"status": 413, "error": "a line has 256 KiB at most"}));
    }
    match body::of_json(line).map_err(ApiAnswer::from).and_then(push) {
        Ok(PushResult::Accepted) => LineAnswer::known(&json!({"status": 202})),
        Ok(PushResult::Asked(tickets)) => {
            let bytes = tickets.heap_bytes(nodes);
            LineAnswer::Asked(tickets, bytes)
        }
        Err(answer) => {
            let mut told: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            told["status"] = answer.status.into();
            LineAnswer::known(&told)
        }
    }
}

fn outcome_of(tickets: &PushTickets) -> Value {
    match tickets.wait(OUTCOME_WITHIN) {
        Some(outcome) => json!({"status": 200, "outcome": outcome}),
        None => json!({"status": 503, "error": "the push was accepted, and its outcome is not known yet"}),
    }
}
