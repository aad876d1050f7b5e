//! The API's thread: requests whose answers wait for an outcome or for other nodes, batches, long bodies, requests
//! with an `Idempotency-Key`, and queries of topics and channels.
//!
//! Invariants: a request that other nodes have to answer holds up no other; a batch is processed a part at a time.

use super::answer::ApiAnswer;
use super::body::PublishOrder;
use super::idempotency::{IdempotencyKeys, KeyDigest, KeyStatus};
use super::lines::LineBatch;
use super::perform::{ChannelTicket, Counting, OUTCOME_WITHIN, Performer, PushResult, PushTickets};
use super::request::{self, AdmittedRequest, ApiCall, PushRequest};
use crate::broker::{RequestId, ShardProcess};
use crate::gateway::ContractRequest;
use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often it is looked whether other nodes have said what became of a push: they have 250 ms.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How long a wait for requests lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Requests that are taken up before the outcomes of any are waited for.
const REQUESTS_AT_ONCE: usize = 256;

/// See the module.
pub(super) struct ApiOnThread {
    /// It answers; dropping it ends the API.
    process: ShardProcess,
    admitted: Receiver<AdmittedRequest>,
    performer: Performer,
    keys: IdempotencyKeys,
    /// Answers that wait for an outcome, or for other nodes.
    waiting: Vec<(RequestId, Awaited, Option<KeyDigest>)>,
    /// Batches that are not worked off.
    lines: VecDeque<(RequestId, LineBatch)>,
}

impl ApiOnThread {
    pub(super) fn new(
        process: ShardProcess,
        admitted: Receiver<AdmittedRequest>,
        performer: Performer,
        keys: IdempotencyKeys,
    ) -> Self {
        Self { process, admitted, performer, keys, waiting: Vec::new(), lines: VecDeque::new() }
    }

    /// Until the shards have stopped.
    pub(super) fn run(mut self) {
        loop {
            // With a batch at hand there is something to do at once.
            let patience = match (self.lines.is_empty(), self.waiting.is_empty()) {
                (false, _) => Duration::ZERO,
                (true, false) => LOOK_INTERVAL,
                (true, true) => WAIT_MAX,
            };
            match receive(&self.admitted, patience) {
                Ok(request) => {
                    self.route(request);
                    // Later requests ask their shards for outcomes before the first outcome is waited for.
                    for request in self.admitted.clone().try_iter().take(REQUESTS_AT_ONCE) {
                        self.route(request);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some((id, lines)) = self.lines.pop_front() {
                self.work_off(id, lines);
            }
            self.settle();
        }
    }

    fn route(&mut self, request: AdmittedRequest) {
        let AdmittedRequest { id, path, asked, body, charge: _charge } = request;
        let query = &asked.query_params;
        let is_everywhere = query.get("nodes").is_some_and(|nodes| nodes == "true");
        let awaited = match ApiCall::of(&asked.method, &path) {
            Ok(ApiCall::Push) => return self.push(id, &asked, body),
            Ok(ApiCall::Topics) => Err(self.performer.topics(query)),
            Ok(ApiCall::Topic(name)) if is_everywhere => {
                self.performer.topic_everywhere(name, query).map(Awaited::Count)
            }
            Ok(ApiCall::Topic(name)) => Err(self.performer.topic(name, query)),
            Ok(ApiCall::Channel((None, channel))) => Err(self.performer.channel(channel)),
            Ok(ApiCall::Close((None, channel))) => Err(self.performer.close(channel, query)),
            Ok(ApiCall::Channel((Some(node), channel))) => {
                self.performer.ask_of_channel(node, channel, None).map(Awaited::Channel)
            }
            Ok(ApiCall::Close((Some(node), channel))) => {
                self.performer.ask_of_channel(node, channel, Some(query)).map(Awaited::Channel)
            }
            Err(refused) => Err(refused),
        };
        match awaited {
            Ok(awaited) => self.waiting.push((id, awaited, None)),
            Err(answer) => self.answer(id, None, answer),
        }
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
        match request::read(asked, body)? {
            PushRequest::One(order) => Ok(Read::One(order)),
            PushRequest::Batch(lines) => {
                let memory = self.process.handle().memory();
                LineBatch::new(lines, memory).map(Read::Lines).map_err(|_| ApiAnswer::memory_is_short())
            }
        }
    }

    fn one(&mut self, id: RequestId, key: Option<KeyDigest>, order: PublishOrder) {
        match self.performer.push(order) {
            Ok(PushResult::Accepted) => self.answer(id, key, ApiAnswer::accepted()),
            Ok(PushResult::Asked(tickets)) => self.waiting.push((id, Awaited::Outcome(tickets), key)),
            Err(answer) => self.answer(id, key, answer),
        }
    }

    /// One part of a batch; the rest of it waits behind other requests.
    fn work_off(&mut self, id: RequestId, mut lines: LineBatch) {
        let nodes = self.performer.nodes();
        match lines.work(nodes, |order| self.performer.push(order)) {
            false => self.lines.push_back((id, lines)),
            true => self.waiting.push((id, Awaited::Lines(lines), None)),
        }
    }

    /// Sends the answers whose outcome is known; those that wait for other nodes hold up no others.
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
            self.keys.look(memory, |kept| kept.end(&key, &answer));
        }
        let (status, fields, body) = answer.into_parts();
        // The only error is that the broker has stopped.
        let _ = self.process.handle().respond(id, status).headers(fields).body(body).send();
    }
}

/// The next of `from`, if there is one in time.
fn receive<T>(from: &Receiver<T>, patience: Duration) -> Result<T, RecvTimeoutError> {
    if !patience.is_zero() {
        return from.recv_timeout(patience);
    }
    // A wait of no time yields the processor all the same: on a busy machine, for a time slice behind each part.
    from.try_recv().map_err(|error| match error {
        TryRecvError::Empty => RecvTimeoutError::Timeout,
        TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
    })
}

/// The outcome that an answer waits for.
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
                return (ApiAnswer::lines(body), key);
            }
        };
        (told.map_or_else(ApiAnswer::outcome_is_unknown, |told| ApiAnswer::json(200, &told)), None)
    }
}

/// A parsed request.
enum Read {
    One(PublishOrder),
    Lines(LineBatch),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    use std::sync::atomic::{AtomicBool, Ordering};

    /// How often this thread has given its processor to another, which it had to.
    fn switches() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:")).unwrap();
        line.trim().parse().unwrap()
    }

    /// How often this thread gives a processor away, which another wants, in so many looks: whoever yields is away for
    /// as long as that likes.
    fn given_away(receiver: &Receiver<()>, looks: usize) -> u64 {
        let (is_there, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let ours = sched_getaffinity(None).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::MAX_CPU).find(|&cpu| ours.is_set(cpu)).unwrap());
        sched_setaffinity(None, &one).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It has the same processor as the thread that makes it.
                is_there.store(true, Ordering::Relaxed);
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            while !is_there.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let before = switches();
            let all_in_vain = (0..looks).all(|_| receive(receiver, Duration::ZERO) == Err(RecvTimeoutError::Timeout));
            let given = switches() - before;
            is_over.store(true, Ordering::Relaxed);
            assert!(all_in_vain);
            given
        })
    }

    #[test]
    fn a_look_without_patience_does_not_give_the_processor_away() {
        let (sender, receiver) = bounded::<()>(1);
        // On a thread of its own: other tests want all processors.
        let given = std::thread::scope(|scope| scope.spawn(|| given_away(&receiver, 200)).join().unwrap());
        assert!(given < 50, "{given} times in 200 looks");
        sender.send(()).unwrap();
        assert_eq!(receive(&receiver, Duration::ZERO), Ok(()));
        drop(sender);
        assert_eq!(receive(&receiver, Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }
}
