//! Repeated answers: a request whose `Idempotency-Key` has been answered gets the same answer, and nothing is pushed
//! twice.
//!
//! One table serves all listeners of the API, so a request repeated at another listener is recognised.
//!
//! Invariants: the table is bounded in entries and charged to the API's process, and an entry lives ten minutes at
//! most; a full table refuses new keys (429) and nothing is pushed. A key belongs to one request: with another body it
//! is refused. What has pushed something is kept whatever became of it, so that it is never pushed again: room for the
//! shortest answer is charged before it begins. Failures are not kept, so the request may be tried again. Keys are
//! compared by their digests.

use super::answer::ApiAnswer;
use crate::admission::{Charge, HeldAs, ProcessMemory};
use crate::gateway::ContractRequest;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Entries at a time.
const ENTRIES_MAX: usize = 65_536;

/// Ages of keys that have failed are not looked for before there are so many.
const AGES_MIN: usize = 256;

/// How long an answer is kept: longer than clients try again.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// The longest key.
pub(super) const KEY_BYTES_MAX: usize = 255;

/// A place in the table, with the byte that a hash map has for each; seven of eight are taken at most.
const PLACE_BYTES: usize = size_of::<(KeyDigest, KeptAnswer)>() + 1;

/// The memory of an answer's body beside its bytes.
const BODY_BYTES: usize = 32;

/// The memory of the body with which anything can be answered that has pushed something.
const LEAST_BODY_BYTES: usize = BODY_BYTES + 32;

/// The digest of a key.
pub(super) type KeyDigest = [u8; 32];

/// See the module. Cheap to clone; locked for the look at one entry.
#[derive(Clone, Default)]
pub struct IdempotencyKeys(Arc<Mutex<Option<KeptAnswers>>>);

impl IdempotencyKeys {
    /// Calls `look` on the table, which is charged to `memory` at the first call.
    pub(super) fn look<T>(&self, memory: &ProcessMemory, look: impl FnOnce(&mut KeptAnswers) -> T) -> T {
        // No panic leaves it half changed.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        look(kept.get_or_insert_with(|| KeptAnswers::new(memory.clone())))
    }
}

/// The answers, by their keys.
pub(super) struct KeptAnswers {
    memory: ProcessMemory,
    /// The charge of table and queue.
    places: Charge,
    entries: HashMap<KeyDigest, KeptAnswer>,
    /// In the order in which they came.
    ages: VecDeque<(Instant, KeyDigest)>,
}

struct KeptAnswer {
    came: Instant,
    /// Of the request: method, fields and body.
    request: [u8; 32],
    /// None: it is being answered.
    answer: Option<ApiAnswer>,
    charge: Charge,
}

/// The state of a key.
pub(super) enum KeyStatus {
    /// Nothing: go on, and [`KeptAnswers::end`] it.
    New(KeyDigest),
    /// Answer this.
    Answer(ApiAnswer),
}

impl KeptAnswers {
    pub(super) fn new(memory: ProcessMemory) -> Self {
        let places = memory.charge_anyway(HeldAs::Content, 0);
        Self { memory, places, entries: HashMap::new(), ages: VecDeque::new() }
    }

    /// A request with this key has come.
    pub(super) fn begin(&mut self, text: &str, asked: &ContractRequest, body: &Bytes, now: Instant) -> KeyStatus {
        self.forget_old(now);
        let key: KeyDigest = Sha256::digest(text).into();
        let request = digest(asked, body);
        match self.entries.get(&key) {
            Some(entry) if entry.request != request => {
                let why = "this key was used for another request: make a new one for each";
                // RFC 9110 15.5.10: the client can resolve it, with another key.
                return KeyStatus::Answer(ApiAnswer::error(409, Some("idempotency-key"), why));
            }
            Some(KeptAnswer { answer: Some(answer), .. }) => {
                return KeyStatus::Answer(answer.clone().with("idempotency-replayed", "true"));
            }
            Some(_) => {
                let why = "the request with this key is still being answered";
                return KeyStatus::Answer(ApiAnswer::error(429, None, why).with("retry-after", "1"));
            }
            None => {}
        }
        let charge = if self.entries.len() < ENTRIES_MAX && self.has_place() {
            self.memory.charge(HeldAs::Content, LEAST_BODY_BYTES).ok()
        } else {
            None
        };
        let Some(charge) = charge else {
            let why = "too many requests with an Idempotency-Key are remembered: nothing was pushed";
            return KeyStatus::Answer(ApiAnswer::error(429, None, why).with("retry-after", "60"));
        };
        self.entries.insert(key, KeptAnswer { came: now, request, answer: None, charge });
        self.ages.push_back((now, key));
        self.count_places();
        KeyStatus::New(key)
    }

    /// Returns whether there is memory for one more.
    fn has_place(&mut self) -> bool {
        let is_full = self.entries.len() == self.entries.capacity();
        // It is about to be twice as large, and the queue grows with it.
        let more = if is_full { self.entries.len().max(4) * 8 / 7 * PLACE_BYTES } else { 0 };
        self.memory.has_room(more + PLACE_BYTES) && self.places.grow(more).is_ok()
    }

    fn count_places(&mut self) {
        let table = self.entries.capacity() * 8 / 7 * PLACE_BYTES;
        self.places.resize(table + self.ages.capacity() * size_of::<(Instant, KeyDigest)>());
    }

    /// It has been answered so.
    pub(super) fn end(&mut self, key: &KeyDigest, answer: &ApiAnswer) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let charge = &mut entry.charge;
        let kept = answer.kept(|bytes| {
            let more = (bytes + BODY_BYTES).saturating_sub(LEAST_BODY_BYTES);
            more == 0 || charge.grow(more).is_ok()
        });
        match kept {
            Some(answer) => entry.answer = Some(answer),
            None => drop(self.entries.remove(key)),
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((came, key)) = self.ages.front()
            && now.saturating_duration_since(*came) >= KEPT_FOR
        {
            // The key may have failed, and have come again since.
            if self.entries.get(key).is_some_and(|entry| entry.came == *came) {
                self.entries.remove(key);
            }
            self.ages.pop_front();
        }
        // Failed requests leave their ages behind. Each is examined once for each such entry: a constant cost.
        if self.ages.len() > 2 * self.entries.len() + AGES_MIN {
            let entries = &self.entries;
            self.ages.retain(|(came, key)| entries.get(key).is_some_and(|entry| entry.came == *came));
        }
        if self.entries.len() <= self.entries.capacity() / 8 {
            self.entries.shrink_to(2 * self.entries.len());
            self.ages.shrink_to(2 * self.ages.len());
            self.count_places();
        }
    }
}

fn digest(asked: &ContractRequest, body: &Bytes) -> [u8; 32] {
    let field = |name: &str| asked.headers.get(name).map_or("", String::as_str);
    let mut hash = Sha256::new();
    for part in [field("push-to"), field("content-type")] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(body);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Budget, Ledger};
    use crate::queue::events::{QueueLimits, process_queue};

    fn table(budget: Budget) -> KeptAnswers {
        let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::new(budget), |_| {});
        KeptAnswers::new(queue.memory_of("p:p:t.os".parse().unwrap()))
    }

    fn asked() -> ContractRequest {
        ContractRequest {
            source: ([127, 0, 0, 1], 1).into(),
            method: "POST".into(),
            url: String::new(),
            bound_path: "".into(),
            headers: Default::default(),
            url_params: Default::default(),
            query_params: Default::default(),
            repeated: Default::default(),
        }
    }

    fn status(found: KeyStatus) -> u16 {
        match found {
            KeyStatus::New(_) => 0,
            KeyStatus::Answer(answer) => answer.status,
        }
    }

    #[test]
    fn an_answer_is_given_again_and_what_failed_is_not_kept() {
        let (mut table, now) = (table(Budget::default()), Instant::now());
        let body = Bytes::from_static(b"x");
        let KeyStatus::New(key) = table.begin("a", &asked(), &body, now) else { panic!("it is new") };
        assert_eq!(status(table.begin("a", &asked(), &body, now)), 429, "it is being answered");
        table.end(&key, &ApiAnswer::error(429, None, "later"));
        let KeyStatus::New(key) = table.begin("a", &asked(), &body, now) else { panic!("it has failed") };
        let done = ApiAnswer::json(202, &serde_json::json!({"accepted": true}));
        table.end(&key, &done);
        let KeyStatus::Answer(again) = table.begin("a", &asked(), &body, now) else { panic!("it is known") };
        assert_eq!((again.status, &again.body), (202, &done.body));
        assert_eq!(status(table.begin("a", &asked(), &Bytes::from_static(b"y"), now)), 409, "another request");
        assert_eq!(status(table.begin("b", &asked(), &body, now)), 0);
        assert_eq!(status(table.begin("a", &asked(), &body, now + KEPT_FOR)), 0, "and is forgotten in time");
    }

    #[test]
    fn what_was_pushed_is_kept_however_short_memory_is() {
        let mut table = table(Budget::of(1 << 20));
        let (body, now) = (Bytes::new(), Instant::now());
        assert!(ApiAnswer::accepted().body.len() + BODY_BYTES <= LEAST_BODY_BYTES);
        let KeyStatus::New(key) = table.begin("a", &asked(), &body, now) else { panic!("it is new") };
        let long = ApiAnswer::lines(vec![b'x'; 2 << 20].into());
        table.end(&key, &long);
        let KeyStatus::Answer(again) = table.begin("a", &asked(), &body, now) else { panic!("it was pushed") };
        assert_eq!((again.status, &again.body), (202, &ApiAnswer::accepted().body));
        let KeyStatus::New(key) = table.begin("b", &asked(), &body, now) else { panic!("it is new") };
        table.end(&key, &ApiAnswer::outcome_is_unknown());
        assert_eq!(status(table.begin("b", &asked(), &body, now)), 202);
    }

    #[test]
    fn a_full_table_refuses_and_is_charged() {
        let mut table = table(Budget::of(1 << 20));
        let (body, now) = (Bytes::new(), Instant::now());
        let came = (0..100_000).take_while(|n| status(table.begin(&n.to_string(), &asked(), &body, now)) == 0).count();
        assert!((500..5000).contains(&came), "{came} entries of half a MiB");
        assert!(table.memory.tenant().total() > came * PLACE_BYTES);
        assert_eq!(status(table.begin("one more", &asked(), &body, now)), 429);
        assert_eq!(status(table.begin("one more", &asked(), &body, now + KEPT_FOR)), 0);
        assert!(table.memory.tenant().total() < 8 * PLACE_BYTES);
    }
}
