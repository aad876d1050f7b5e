//! Publishing over HTTP: `POST /api/push` and what is asked and closed beside it, for backends that have no link.
//!
//! The shards' own HTTP side takes requests in and sends answers, with all its limits; what a request says is read and
//! done here, on a thread of the API's own, in the name of the process that it names. The protocol stands in
//! `docs/PUBLISHING.md` and `docs/openapi.json`.
//!
//! Invariants: nothing is done before the token has been compared; a request is answered once; a push never waits: an
//! inbox that is full is told (429). A batch of lines is worked off a part at a time, so that no client waits for
//! another's. What is kept of answers for [`Idempotency-Key`](idempotency) is bounded and charged.

mod body;
mod guard;
mod idempotency;
mod lines;
mod perform;
#[cfg(any(test, fuzzing))]
pub mod properties;

pub use guard::{ApiToken, TokenTooShort};
pub use idempotency::IdempotencyKeys;

use self::body::PublishOrder;
use self::guard::ApiGuard;
use self::idempotency::{KeyDigest, KeyStatus};
use self::lines::LineBatch;
use self::perform::{ChannelTicket, Counting, Performer, PushResult, PushTickets};
use crate::broker::RequestId;
use crate::broker::{AttachOptions, BrokerHandle, Event, HttpAsk, HttpRequest, Process, ServiceError};
use crate::gateway::{ContractRequest, HttpRule};
use crate::process_id::ProcessId;
use bytes::Bytes;
use serde_json::json;
use std::collections::VecDeque;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The process that answers; on the main listener its name is the beginning of the paths.
pub const PROCESS: &str = "push:pushring:sys";

/// The largest body that is JSON: larger payloads are sent raw.
pub const JSON_BYTES_MAX: usize = 256 << 10;

/// How long an outcome is waited for: shards tell it within a turn or two, whatever clients do.
const OUTCOME_WITHIN: Duration = Duration::from_secs(5);

/// How often it is looked whether other nodes have said what became of a push: they have 250 ms.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a wait for requests lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Whom the API acts for, and who may use it.
pub struct ApiOptions {
    /// The token that everything here needs.
    pub token: ApiToken,
    /// In whose name a request acts that names no process; none: each has to name one.
    pub process: Option<ProcessId>,
    /// What was answered to requests with an `Idempotency-Key`: shared by all that serve the same API.
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
    let process = served.process(PROCESS, AttachOptions::default())?;
    match whole {
        true => {
            process.bind_http_at("/", HttpRule::default())?;
            process.bind_http_at("/*rest", HttpRule::default())?;
        }
        false => process.bind_http("/*rest", HttpRule::default())?,
    }
    let api = Api {
        prefix: if whole { String::new() } else { format!("/{PROCESS}") },
        guard: ApiGuard::new(options.token),
        performer: Performer::new(target, options.process),
        keys: options.keys,
        waiting: Vec::new(),
        lines: VecDeque::new(),
        process,
    };
    Ok(thread::Builder::new().name("push-api".to_owned()).spawn(move || api.run())?)
}

struct Api {
    process: Process,
    /// What stands before `/api` in a path.
    prefix: String,
    guard: ApiGuard,
    performer: Performer,
    keys: IdempotencyKeys,
    /// Answers that wait for an outcome, or for other nodes.
    waiting: Vec<(RequestId, Awaited, Option<KeyDigest>)>,
    /// Batches that are not worked off.
    lines: VecDeque<(RequestId, LineBatch)>,
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

impl Api {
    fn run(mut self) {
        let mut events = Vec::new();
        loop {
            // With a batch at hand there is something to do at once.
            let patience = match (self.lines.is_empty(), self.waiting.is_empty()) {
                (false, _) => Duration::ZERO,
                (true, false) => LOOK_INTERVAL,
                (true, true) => WAIT_MAX,
            };
            if self.process.recv_batch(&mut events, patience).is_err() {
                return;
            }
            for event in events.drain(..) {
                if let Event::Http(request) = event {
                    self.request(*request);
                }
            }
            if let Some((id, lines)) = self.lines.pop_front() {
                self.work_off(id, lines);
            }
            self.settle();
        }
    }

    fn request(&mut self, request: HttpRequest) {
        let HttpRequest { id, ask: HttpAsk::Path(asked), body, .. } = request else { return };
        match self.admit(&asked) {
            Ok(path) => self.route(id, &asked, &path, body),
            Err(refused) => self.answer(id, None, refused),
        }
    }

    /// The path below `/api`, of who may ask.
    fn admit(&self, asked: &ContractRequest) -> Result<String, ApiAnswer> {
        self.guard.admit(&asked.headers)?;
        let path = asked.url.strip_prefix("http://").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
        let path = path.unwrap_or("/").strip_prefix(&*self.prefix).and_then(|path| path.strip_prefix("/api"));
        path.map(str::to_owned)
            .ok_or_else(|| ApiAnswer::error(404, None, "there is nothing at this path: see /api/push"))
    }

    fn route(&mut self, id: RequestId, asked: &ContractRequest, path: &str, body: Bytes) {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let answer = match (&*asked.method, &*parts) {
            ("POST", ["push"]) => return self.push(id, asked, body),
            ("GET" | "HEAD", ["topics"]) => self.performer.topics(&asked.query_params),
            ("GET" | "HEAD", ["topics", name])
                if asked.query_params.get("nodes").is_some_and(|nodes| nodes == "true") =>
            {
                match self.performer.topic_everywhere(name, &asked.query_params) {
                    Ok(counting) => return self.waiting.push((id, Awaited::Count(counting), None)),
                    Err(refused) => refused,
                }
            }
            ("GET" | "HEAD", ["topics", name]) => self.performer.topic(name, &asked.query_params),
            ("GET" | "HEAD", ["channels", channel]) => self.performer.channel(channel),
            ("DELETE", ["channels", channel]) => self.performer.close(channel, &asked.query_params),
            ("GET" | "HEAD" | "DELETE", ["channels", node, channel]) => {
                let closes = (&*asked.method == "DELETE").then_some(&asked.query_params);
                match self.performer.ask_of_channel(node, channel, closes) {
                    Ok(asked) => return self.waiting.push((id, Awaited::Channel(asked), None)),
                    Err(answer) => answer,
                }
            }
            (_, ["push"]) => ApiAnswer::error(405, None, "push with POST").with("allow", "POST"),
            (_, ["topics"] | ["topics", _]) => {
                ApiAnswer::error(405, None, "topics are looked at, with GET").with("allow", "GET, HEAD")
            }
            (_, ["channels", _] | ["channels", _, _]) => {
                ApiAnswer::error(405, None, "a channel is looked at or closed").with("allow", "GET, HEAD, DELETE")
            }
            _ => ApiAnswer::error(404, None, "there is nothing at this path: see /api/push"),
        };
        self.answer(id, None, answer);
    }

    fn push(&mut self, id: RequestId, asked: &ContractRequest, body: Bytes) {
        let key = match asked.headers.get("idempotency-key") {
            None => None,
            Some(text) => {
                let memory = self.process.handle().memory();
                let status = self.keys.look(memory, |kept| kept.begin(text, asked, &body, Instant::now()));
                match status {
                    KeyStatus::New(key) => Some(key),
                    KeyStatus::Answer(answer) => return self.answer(id, None, answer),
                }
            }
        };
        match self.read(asked, body) {
            Ok(Read::One(order)) => self.one(id, key, order),
            Ok(Read::Lines(lines)) => self.lines.push_back((id, lines.keyed(key))),
            Err(answer) => self.answer(id, key, answer),
        }
    }

    fn read(&self, asked: &ContractRequest, body: Bytes) -> Result<Read, ApiAnswer> {
        let mime = asked.headers.get("content-type").map_or("", |mime| mime.split(';').next().unwrap_or("").trim());
        if let Some(to) = asked.headers.get("push-to") {
            return Ok(Read::One(body::of_raw(to, mime, body)?));
        }
        match mime.to_ascii_lowercase().as_str() {
            "application/json" if body.len() > JSON_BYTES_MAX => {
                Err(ApiAnswer::error(413, None, "JSON has 256 KiB at most: send larger payloads raw, with Push-To"))
            }
            "application/json" => Ok(Read::One(body::of_json(&body)?)),
            "application/x-ndjson" => match LineBatch::new(body, self.process.handle().memory()) {
                Ok(lines) => Ok(Read::Lines(lines)),
                Err(_) => {
                    let why = "memory is short (memory_budget): nothing of the batch was pushed";
                    Err(ApiAnswer::error(429, None, why).with("retry-after", "1"))
                }
            },
            _ => Err(body::Wrong::new(
                "content-type",
                "say application/json, application/x-ndjson, or (with the field Push-To) what the payload is",
            )
            .into()),
        }
    }

    fn one(&mut self, id: RequestId, key: Option<KeyDigest>, order: PublishOrder) {
        match self.performer.push(order) {
            Ok(PushResult::Accepted) => self.answer(id, key, ApiAnswer::json(202, &json!({"accepted": true}))),
            Ok(PushResult::Asked(tickets)) => self.waiting.push((id, Awaited::Outcome(tickets), key)),
            Err(answer) => self.answer(id, key, answer),
        }
    }

    /// One part of a batch; the rest of it waits behind other requests.
    fn work_off(&mut self, id: RequestId, mut lines: LineBatch) {
        match lines.work(&mut self.performer) {
            false => self.lines.push_back((id, lines)),
            true => self.waiting.push((id, Awaited::Lines(lines), None)),
        }
    }

    /// Answers those who wait for an outcome; who waits for other nodes goes on waiting, and nobody else with it.
    fn settle(&mut self) {
        let until = Instant::now() + OUTCOME_WITHIN;
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        for (id, mut awaited, key) in waiting {
            if awaited.is_slow() {
                self.waiting.push((id, awaited, key));
                continue;
            }
            let (answer, of_batch) = awaited.answer(until.saturating_duration_since(Instant::now()));
            self.answer(id, key.or(of_batch), answer);
        }
    }

    fn answer(&mut self, id: RequestId, key: Option<KeyDigest>, answer: ApiAnswer) {
        if let Some(key) = key {
            let memory = self.process.handle().memory();
            self.keys.look(memory, |kept| kept.end(&key, answer.is_done().then(|| answer.clone())));
        }
        let fields = answer.fields.iter().map(|&(name, value)| (name.into(), value.into()));
        let fields = fields.chain([("cache-control".into(), "no-store".into())]);
        // The only error is that the broker has stopped.
        let _ = self.process.respond(id, answer.status).headers(fields).body(answer.body).send();
    }
}

/// What an answer waits for.
enum Awaited {
    Outcome(PushTickets),
    Count(Counting),
    Channel(ChannelTicket),
    Lines(LineBatch),
}

impl Awaited {
    /// Returns whether waiting for it may take as long as other nodes do.
    fn is_slow(&mut self) -> bool {
        match self {
            Self::Outcome(tickets) => tickets.is_slow(),
            Self::Count(counting) => counting.is_slow(),
            Self::Channel(asked) => asked.is_slow(),
            Self::Lines(lines) => lines.is_slow(),
        }
    }

    /// The answer, and the key of the batch that it is for.
    fn answer(self, timeout: Duration) -> (ApiAnswer, Option<KeyDigest>) {
        let told = match self {
            Self::Outcome(tickets) => tickets.wait(timeout),
            Self::Count(counting) => counting.wait(timeout),
            Self::Channel(asked) => return (asked.answer(), None),
            Self::Lines(lines) => {
                let (body, key) = lines.into_answers();
                let fields = vec![("content-type", "application/x-ndjson")];
                return (ApiAnswer { status: 200, fields, body }, key);
            }
        };
        let unknown = || {
            ApiAnswer::error(503, None, "what was asked was done, and its outcome is not known yet")
                .with("retry-after", "1")
        };
        (told.map_or_else(unknown, |told| ApiAnswer::json(200, &told)), None)
    }
}

/// What a request asks to be pushed.
enum Read {
    One(PublishOrder),
    Lines(LineBatch),
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
