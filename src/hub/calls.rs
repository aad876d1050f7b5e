//! Events of the hub's clients for a backend: a queue between the hub, which never waits, and the sender of the
//! webhooks.
//!
//! Invariants: what waits is bounded in events and bytes, and charged to the hub; events that find no room are counted,
//! and the receiver of the event behind them learns how many are missing before it; events are taken in the order in
//! which they happened.

use super::grammar;
use crate::admission::{Charge, HeldAs, ProcessMemory};
use crate::channel::ChannelId;
use crate::gateway::Grant;
use crate::shard::event::Closed;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The least memory of an event beside its text.
const EVENT_BYTES: usize = size_of::<WaitingEvent>();

/// The kinds of events for webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookEvent {
    /// A channel was opened.
    Opened,
    /// One has ended.
    Closed,
    /// One has subscribed to a topic, or out of it.
    Subscribed,
    /// A client has said something.
    Message,
}

impl WebhookEvent {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "opened" => Self::Opened,
            "closed" => Self::Closed,
            "subscribed" => Self::Subscribed,
            "message" => Self::Message,
            _ => return None,
        })
    }
}

/// The limits of the queue, and the kinds of events it takes.
#[derive(Debug, Clone)]
pub struct CallLimits {
    /// The kinds of events delivered.
    pub told: Vec<WebhookEvent>,
    /// Events.
    pub events_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct WebhookQueue(Arc<Shared>);

struct Shared {
    limits: CallLimits,
    queue: Mutex<Queue>,
    /// Something has come, or nothing comes any more.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<WaitingEvent>,
    /// The memory charge of the queue itself, without texts.
    places: Option<Charge>,
    /// Of texts and the events that they are of.
    bytes: usize,
    /// Events that were lost, and those of them that are behind all that wait.
    lost: u64,
    lost_last: u64,
    /// Since when nothing happens any more.
    closed: Option<Instant>,
}

impl Queue {
    /// The claim of one more text, if there is memory for it and for its place.
    fn charge(&mut self, memory: &ProcessMemory, text_bytes: usize) -> Option<Charge> {
        let places = self.places.get_or_insert_with(|| memory.charge_anyway(HeldAs::Content, 0));
        if self.events.len() == self.events.capacity() {
            // It is about to be twice as long.
            places.grow(self.events.len().max(4) * EVENT_BYTES).ok()?;
        }
        memory.charge(HeldAs::Content, text_bytes).ok()
    }

    fn count_places(&mut self) {
        let bytes = self.events.capacity() * EVENT_BYTES;
        self.places.iter_mut().for_each(|places| places.resize(bytes));
    }
}

struct WaitingEvent {
    text: Box<str>,
    /// How many are missing before it.
    lost: u64,
    charge: Charge,
}

/// Events taken for delivery, charged until this is dropped.
#[derive(Debug)]
pub struct TakenEvents {
    /// In JSON, in order: `{"lost":N,"events":[…]}`.
    pub body: Bytes,
    /// How many they are.
    pub events: u64,
    /// How many are missing before them.
    pub lost: u64,
    _charges: Vec<Charge>,
}

impl TakenEvents {
    fn new(events: Vec<WaitingEvent>, lost: u64) -> Self {
        let mut charges = Vec::with_capacity(events.len());
        let mut body = format!(r#"{{"lost":{lost},"events":["#).into_bytes();
        body.reserve_exact(events.iter().map(|event| event.text.len() + 1).sum::<usize>() + 1);
        for WaitingEvent { text, charge, lost: _ } in events {
            if !charges.is_empty() {
                body.push(b',');
            }
            body.extend_from_slice(text.as_bytes());
            charges.push(charge);
        }
        body.extend_from_slice(b"]}");
        Self { body: body.into(), events: charges.len() as u64, lost, _charges: charges }
    }
}

/// The words of a client in an event: `text`, or `base64` of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said<'p> {
    pub payload: &'p [u8],
    pub is_text: bool,
}

impl Said<'_> {
    fn field_bytes(self) -> usize {
        let mut bytes = Measure(0);
        self.write_field(&mut bytes).expect("it only counts");
        bytes.0
    }

    fn write_field(self, mut to: impl io::Write) -> io::Result<()> {
        match std::str::from_utf8(self.payload) {
            Ok(text) if self.is_text => {
                to.write_all(br#","text":"#)?;
                Ok(serde_json::to_writer(to, text)?)
            }
            _ => write!(to, r#","base64":"{}""#, Base64Display::new(self.payload, &STANDARD)),
        }
    }
}

impl WebhookQueue {
    /// Nothing has happened yet.
    pub fn new(limits: CallLimits) -> Self {
        Self(Arc::new(Shared { limits, queue: Mutex::default(), changed: Condvar::new() }))
    }

    /// Returns whether it is told.
    pub fn tells(&self, what: WebhookEvent) -> bool {
        self.0.limits.told.contains(&what)
    }

    /// Something has happened. Returns whether it will be told.
    pub(super) fn tell(&self, memory: &ProcessMemory, event: &Value, said: Option<Said<'_>>) -> bool {
        let is_told = self.queue_up(memory, event, said).is_some();
        if !is_told {
            let mut queue = self.queue();
            queue.lost += 1;
            queue.lost_last += 1;
        }
        is_told
    }

    fn queue_up(&self, memory: &ProcessMemory, event: &Value, said: Option<Said<'_>>) -> Option<()> {
        let event = event.to_string();
        // Before it is written, which takes as much memory.
        let bytes = event.len() + said.map_or(0, |said| said.field_bytes());
        let mut queue = self.queue();
        let limits = &self.0.limits;
        let has_room = queue.events.len() < limits.events_max && queue.bytes + bytes + EVENT_BYTES <= limits.bytes_max;
        let charge = has_room.then(|| queue.charge(memory, bytes))??;
        drop(queue);
        let text = text_of(event, said, bytes);
        let mut queue = self.queue();
        queue.bytes += text.len() + EVENT_BYTES;
        let lost = std::mem::take(&mut queue.lost_last);
        queue.events.push_back(WaitingEvent { text, charge, lost });
        queue.count_places();
        self.0.changed.notify_all();
        Some(())
    }

    /// Waits for events, and takes the first of them, one at least, up to where some are missing. None: there are none,
    /// and there will be none.
    pub fn take(&self, events_max: usize, bytes_max: usize) -> Option<TakenEvents> {
        let mut queue = self.queue();
        while queue.events.is_empty() {
            if queue.closed.is_some() {
                return None;
            }
            queue = self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut taken, mut bytes) = (Vec::<WaitingEvent>::new(), 0);
        while let Some(first) = queue.events.front()
            && taken.len() < events_max
            && (taken.is_empty() || (first.lost == 0 && bytes + first.text.len() <= bytes_max))
            && let Some(event) = queue.events.pop_front()
        {
            bytes += event.text.len();
            queue.bytes -= event.text.len() + EVENT_BYTES;
            taken.push(event);
        }
        if queue.events.len() <= queue.events.capacity() / 8 {
            let room = 2 * queue.events.len();
            queue.events.shrink_to(room);
        }
        queue.count_places();
        drop(queue);
        let lost = taken.first().map_or(0, |first| first.lost);
        Some(TakenEvents::new(taken, lost))
    }

    /// What was taken is lost after all: so many events, and those before them of which nobody has heard.
    pub fn lose(&self, taken: TakenEvents) {
        let mut queue = self.queue();
        queue.lost += taken.events;
        let missing = taken.events + taken.lost;
        match queue.events.front_mut() {
            Some(first) => first.lost += missing,
            None => queue.lost_last += missing,
        }
    }

    /// Events that were lost.
    pub fn lost(&self) -> u64 {
        self.queue().lost
    }

    /// Events that wait.
    pub fn waiting(&self) -> usize {
        self.queue().events.len()
    }

    /// Nothing will happen any more.
    pub(super) fn close(&self) {
        self.queue().closed.get_or_insert_with(Instant::now);
        self.0.changed.notify_all();
    }

    /// Returns whether nothing will.
    pub fn is_closed(&self) -> bool {
        self.closed_since().is_some()
    }

    /// Since when nothing happens any more.
    pub fn closed_since(&self) -> Option<Instant> {
        self.queue().closed
    }

    /// Waits so long, or until nothing happens any more.
    pub fn wait_closed(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut queue = self.queue();
        while queue.closed.is_none()
            && let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
        {
            queue = self.0.changed.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // No panic leaves it half changed.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that was opened.
pub(super) fn opened(channel: ChannelId, grant: &Grant, at_ms: u64) -> Value {
    // Those of an event stream may be the twins of what its client has named.
    let topics: Vec<&str> = grant.topics.iter().filter_map(|topic| grammar::name_of(topic)).collect();
    json!({"event": "opened", "at_ms": at_ms, "channel": channel, "user": grant.user, "topics": topics})
}

/// One that has ended.
pub(super) fn closed(closed: &Closed, user: Option<&str>, at_ms: u64) -> Value {
    json!({
        "event": "closed", "at_ms": at_ms, "channel": closed.channel, "user": user, "code": closed.code,
        "by": closed.by.name(),
    })
}

/// One that has subscribed to a topic, or out of it.
pub(super) fn subscribed(channel: ChannelId, user: Option<&str>, topic: &str, is_in: bool, at_ms: u64) -> Value {
    let event = if is_in { "subscribed" } else { "unsubscribed" };
    json!({"event": event, "at_ms": at_ms, "channel": channel, "user": user, "topic": topic})
}

/// A client's message, without what it said.
pub(super) fn message(channel: ChannelId, user: Option<&str>, at_ms: u64) -> Value {
    json!({"event": "message", "at_ms": at_ms, "channel": channel, "user": user})
}

/// An event in JSON, of so many bytes. What a client said is written behind the other fields: it may be long, and is
/// copied once.
fn text_of(event: String, said: Option<Said<'_>>, bytes: usize) -> Box<str> {
    let Some(said) = said else { return event.into() };
    let mut text = Vec::with_capacity(bytes);
    text.extend_from_slice(event.strip_suffix('}').unwrap_or(&event).as_bytes());
    said.write_field(&mut text).expect("a vector takes every write");
    text.push(b'}');
    debug_assert_eq!(text.len(), bytes, "it was measured");
    String::from_utf8(text).expect("JSON is UTF-8").into()
}

/// Counts what is written.
struct Measure(usize);

impl io::Write for Measure {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{Budget, Ledger};
    use crate::queue::events::{QueueLimits, process_queue};

    fn memory(budget: Budget) -> ProcessMemory {
        let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::new(budget), |_| {});
        queue.memory_of("hub:pushring:sys".parse().unwrap())
    }

    fn calls(events_max: usize, bytes_max: usize) -> WebhookQueue {
        WebhookQueue::new(CallLimits { told: vec![WebhookEvent::Opened], events_max, bytes_max })
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_its_place() {
        let (calls, memory) = (calls(2, 1 << 20), memory(Budget::default()));
        let told: Vec<bool> = (0..5).map(|n| calls.tell(&memory, &json!({"n": n}), None)).collect();
        assert_eq!((told, calls.waiting(), calls.lost()), (vec![true, true, false, false, false], 2, 3));
        let taken = calls.take(1, 100).unwrap();
        assert_eq!((&taken.body[..], taken.events, taken.lost), (&br#"{"lost":0,"events":[{"n":0}]}"#[..], 1, 0));
        assert!(memory.tenant().total() > 7, "it is charged until it is delivered");
        drop(taken);
        let tell = |n: u32| calls.tell(&memory, &json!({ "n": n }), None);
        // They are missing behind what waits, and before what comes then.
        assert!(tell(5) && !tell(6));
        let taken = [calls.take(9, 100).unwrap(), calls.take(9, 100).unwrap()];
        let bodies = taken.each_ref().map(|taken| std::str::from_utf8(&taken.body).unwrap().to_owned());
        assert_eq!(bodies, [r#"{"lost":0,"events":[{"n":1}]}"#, r#"{"lost":3,"events":[{"n":5}]}"#]);
        assert!(tell(7));
        // What is given up is missing before what waits, with what was missing before it.
        let [delivered, given_up] = taken;
        drop(delivered);
        calls.lose(given_up);
        calls.close();
        let taken = calls.take(9, 100).unwrap();
        assert_eq!((&taken.body[..], taken.events), (&br#"{"lost":5,"events":[{"n":7}]}"#[..], 1));
        drop(taken);
        assert_eq!(memory.tenant().total(), 0, "nothing waits");
        assert!(calls.lost() == 5 && calls.take(9, 100).is_none() && calls.is_closed());
        calls.wait_closed(Duration::from_secs(3600));
    }

    #[test]
    fn bytes_are_bounded_and_charged() {
        let (text, said) = (json!({}), Some(Said { payload: &[b'x'; 1000], is_text: true }));
        let bytes = 2 + said.unwrap().field_bytes();
        let (few, purse_of_few) = (calls(100, 3 * (bytes + EVENT_BYTES)), memory(Budget::default()));
        assert_eq!((0..9).filter(|_| few.tell(&purse_of_few, &text, said)).count(), 3);
        assert_eq!(purse_of_few.tenant().total(), 3 * bytes + 4 * EVENT_BYTES, "there are places for four");
        assert_eq!(few.take(9, 2500).unwrap().events, 2, "as many as fit");
        assert_eq!(few.take(9, 1).unwrap().events, 1, "and one at least");
        let (many, short) = (calls(usize::MAX, usize::MAX), memory(Budget::of(1 << 20)));
        let fit = (0..2000).filter(|_| many.tell(&short, &text, said)).count();
        assert!((100..1000).contains(&fit), "{fit} in half of a MiB");
    }

    #[test]
    fn topics_are_told_by_the_names_that_clients_give_them() {
        let topics = ["news".into(), grammar::twin("room.7").unwrap().into()].into();
        let told = opened(ChannelId::new(7), &Grant { topics, ..Grant::default() }, 1);
        assert_eq!(told["topics"], json!(["news", "room.7"]));
    }

    #[test]
    fn a_message_is_told_as_what_it_is() {
        let told = |payload: &[u8], is_text| -> Value {
            let (event, said) = (message(ChannelId::new(7), Some("ann"), 1).to_string(), Said { payload, is_text });
            let bytes = event.len() + said.field_bytes();
            let text = text_of(event, Some(said), bytes);
            let told: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&told["channel"], &told["user"]), (&json!(7), &json!("ann")));
            told
        };
        assert_eq!(told("\"\n\u{0}é".as_bytes(), true)["text"], "\"\n\u{0}é");
        assert_eq!(told(b"hi", true)["text"], "hi");
        assert_eq!(told(b"hi", false)["base64"], "aGk=");
        assert_eq!(told(b"\xff", false)["base64"], "/w==");
        assert_eq!(WebhookEvent::named("opened"), Some(WebhookEvent::Opened));
        assert_eq!(WebhookEvent::named("Opened"), None);
    }
}
