//! Events of the hub's clients for a backend: a queue between the hub, which never waits, and the sender of the
//! webhooks.
//!
//! Invariants: what waits is bounded in events and bytes, and charged to the hub; events that find no room are counted,
//! and the receiver learns of them with the event behind them; events are taken in the order in which they happened.
//! Where there is no room, the client of whom most waits gives its newest event for that of one of whom less waits, so
//! no client fills the queue of all.

use super::grammar;
use crate::admission::{Charge, HeldAs, ProcessMemory};
use crate::channel::ChannelId;
use crate::gateway::Grant;
use crate::shard::event::Closed;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The memory of an event beside its text: its place in a tree that is filled in order, and among its client's.
const EVENT_BYTES: usize = size_of::<(u64, WaitingEvent)>() * 11 / 6 + 2 * size_of::<u64>();

/// The memory of a client of whom events wait: its places in a table and in a tree.
const CLIENT_BYTES: usize = 2 * size_of::<(Teller, TellersEvents)>() + 2 * size_of::<(usize, Teller)>();

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

impl CallLimits {
    /// The part of the queue that an event of so many bytes takes, in events.
    fn units(&self, bytes: usize) -> usize {
        1 + bytes / (self.bytes_max / self.events_max.max(1)).max(1)
    }
}

/// Whose events are weighed against those of others: a user's, from however many channels they come, or those of the
/// channel of an anonymous client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Teller {
    User(Arc<str>),
    Channel(ChannelId),
}

/// What came of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Whether it will be told.
    pub is_queued: bool,
    /// The channels of messages that gave way to it.
    pub displaced: Vec<ChannelId>,
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
    /// By number, in the order in which they happened.
    events: BTreeMap<u64, WaitingEvent>,
    of: HashMap<Teller, TellersEvents>,
    /// Those of whom most waits are the last.
    by_units: BTreeSet<(usize, Teller)>,
    next: u64,
    /// Of texts and the events that they are of.
    bytes: usize,
    /// Events that were lost, and those of them that are behind all that wait.
    lost: u64,
    lost_last: u64,
    /// Since when nothing happens any more.
    closed: Option<Instant>,
}

/// The events of one client that wait.
#[derive(Default)]
struct TellersEvents {
    numbers: VecDeque<u64>,
    units: usize,
}

struct WaitingEvent {
    by: Teller,
    /// The channel of a message.
    message_of: Option<ChannelId>,
    units: usize,
    text: Box<str>,
    /// How many are missing before it.
    lost: u64,
    charge: Charge,
}

impl Queue {
    /// The claim of one more text, if there is room for it.
    fn charge(&self, limits: &CallLimits, by: &Teller, text_bytes: usize, memory: &ProcessMemory) -> Option<Charge> {
        let has_room =
            self.events.len() < limits.events_max && self.bytes + text_bytes + EVENT_BYTES <= limits.bytes_max;
        let client_bytes = if self.of.contains_key(by) { 0 } else { CLIENT_BYTES };
        has_room.then(|| memory.charge(HeldAs::Content, text_bytes + EVENT_BYTES + client_bytes).ok()).flatten()
    }

    fn push(&mut self, mut event: WaitingEvent) {
        let number = self.next;
        self.next += 1;
        event.lost = std::mem::take(&mut self.lost_last);
        self.bytes += event.text.len() + EVENT_BYTES;
        self.change(&event.by, |of| {
            of.numbers.push_back(number);
            of.units += event.units;
        });
        self.events.insert(number, event);
    }

    fn pop_first(&mut self) -> Option<WaitingEvent> {
        let (_, event) = self.events.pop_first()?;
        self.forget(&event, VecDeque::pop_front);
        Some(event)
    }

    /// Takes out the newest event of the client of whom most waits, for one of `by` that takes so much: if less waits
    /// of that one even so.
    fn displace(&mut self, by: &Teller, units: usize) -> Option<WaitingEvent> {
        let own = self.of.get(by).map_or(0, |of| of.units);
        let (_, fullest) = self.by_units.last().filter(|(most, _)| *most > own + units)?;
        let newest = *self.of.get(fullest)?.numbers.back()?;
        let event = self.events.remove(&newest)?;
        self.forget(&event, VecDeque::pop_back);
        self.lost += 1;
        self.miss(newest, 1 + event.lost);
        Some(event)
    }

    /// An event does not wait any more, which was the first or the last of its client.
    fn forget(&mut self, event: &WaitingEvent, pop: fn(&mut VecDeque<u64>) -> Option<u64>) {
        self.bytes -= event.text.len() + EVENT_BYTES;
        self.change(&event.by, |of| {
            pop(&mut of.numbers);
            of.units -= event.units;
        });
        if self.of.len() < self.of.capacity() / 8 {
            self.of.shrink_to(2 * self.of.len());
        }
    }

    fn change(&mut self, by: &Teller, change: impl FnOnce(&mut TellersEvents)) {
        let of = self.of.entry(by.clone()).or_default();
        let before = of.units;
        change(of);
        let (after, is_empty) = (of.units, of.numbers.is_empty());
        if is_empty {
            self.of.remove(by);
        }
        self.by_units.remove(&(before, by.clone()));
        if !is_empty {
            self.by_units.insert((after, by.clone()));
        }
    }

    /// So many are missing before the first event that waits and has this number or a higher one.
    fn miss(&mut self, number: u64, events: u64) {
        match self.events.range_mut(number..).next() {
            Some((_, event)) => event.lost += events,
            None => self.lost_last += events,
        }
    }
}

/// Events taken for delivery, charged until this is dropped.
#[derive(Debug)]
pub struct TakenEvents {
    /// In JSON, in order: `{"lost":N,"events":[…]}`.
    pub body: Bytes,
    /// How many they are.
    pub events: u64,
    /// How many are missing before them, or between them.
    pub lost: u64,
    _charges: Vec<Charge>,
}

impl TakenEvents {
    fn new(events: Vec<WaitingEvent>, lost: u64) -> Self {
        let mut charges = Vec::with_capacity(events.len());
        let mut body = format!(r#"{{"lost":{lost},"events":["#).into_bytes();
        body.reserve_exact(events.iter().map(|event| event.text.len() + 1).sum::<usize>() + 1);
        for WaitingEvent { text, charge, .. } in events {
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

    /// Something has happened to a channel, or its client has said this.
    pub(super) fn tell(
        &self,
        (channel, user): (ChannelId, Option<&str>),
        memory: &ProcessMemory,
        event: &Value,
        said: Option<Said<'_>>,
    ) -> Told {
        let by = user.map_or(Teller::Channel(channel), |user| Teller::User(user.into()));
        let event = event.to_string();
        // Before it is written, which takes as much memory.
        let bytes = event.len() + said.map_or(0, |said| said.field_bytes());
        let (limits, mut displaced) = (&self.0.limits, Vec::new());
        let units = limits.units(bytes);
        let mut queue = self.queue();
        let charge = loop {
            if let Some(charge) = queue.charge(limits, &by, bytes, memory) {
                break charge;
            }
            let Some(gone) = queue.displace(&by, units) else {
                queue.lost += 1;
                queue.lost_last += 1;
                return Told { is_queued: false, displaced };
            };
            displaced.extend(gone.message_of);
        };
        drop(queue);
        let text = text_of(event, said, bytes);
        let message_of = said.map(|_| channel);
        self.queue().push(WaitingEvent { by, message_of, units, text, lost: 0, charge });
        self.0.changed.notify_all();
        Told { is_queued: true, displaced }
    }

    /// Waits for events, and takes the first of them: one at least. None: there are none, and there will be none.
    pub fn take(&self, events_max: usize, bytes_max: usize) -> Option<TakenEvents> {
        let mut queue = self.queue();
        while queue.events.is_empty() {
            if queue.closed.is_some() {
                return None;
            }
            queue = self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let (mut taken, mut bytes) = (Vec::<WaitingEvent>::new(), 0);
        while let Some((_, first)) = queue.events.first_key_value()
            && taken.len() < events_max
            && (taken.is_empty() || bytes + first.text.len() <= bytes_max)
            && let Some(event) = queue.pop_first()
        {
            bytes += event.text.len();
            taken.push(event);
        }
        drop(queue);
        let lost = taken.iter().map(|event| event.lost).sum();
        Some(TakenEvents::new(taken, lost))
    }

    /// What was taken is lost after all: so many events, and those before them of which nobody has heard.
    pub fn lose(&self, taken: TakenEvents) {
        let mut queue = self.queue();
        queue.lost += taken.events;
        queue.miss(0, taken.events + taken.lost);
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

    /// An anonymous client.
    fn who(channel: u32) -> (ChannelId, Option<&'static str>) {
        (ChannelId::new(channel), None)
    }

    fn calls(events_max: usize, bytes_max: usize) -> WebhookQueue {
        WebhookQueue::new(CallLimits { told: vec![WebhookEvent::Opened], events_max, bytes_max })
    }

    #[test]
    fn what_finds_no_room_is_counted_and_told_in_its_place() {
        let (calls, memory) = (calls(2, 1 << 20), memory(Budget::default()));
        let told: Vec<bool> = (0..5).map(|n| calls.tell(who(1), &memory, &json!({"n": n}), None).is_queued).collect();
        assert_eq!((told, calls.waiting(), calls.lost()), (vec![true, true, false, false, false], 2, 3));
        let taken = calls.take(1, 100).unwrap();
        assert_eq!((&taken.body[..], taken.events, taken.lost), (&br#"{"lost":0,"events":[{"n":0}]}"#[..], 1, 0));
        assert!(memory.tenant().total() > 7, "it is charged until it is delivered");
        drop(taken);
        let tell = |n: u32| calls.tell(who(1), &memory, &json!({ "n": n }), None).is_queued;
        // They are missing behind what waits, and before what comes then.
        assert!(tell(5) && !tell(6));
        let taken = [calls.take(1, 100).unwrap(), calls.take(1, 100).unwrap()];
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
        assert_eq!((0..9).filter(|_| few.tell(who(1), &purse_of_few, &text, said).is_queued).count(), 3);
        assert_eq!(purse_of_few.tenant().total(), 3 * (bytes + EVENT_BYTES) + CLIENT_BYTES);
        assert_eq!(few.take(9, 2500).unwrap().events, 2, "as many as fit");
        assert_eq!(few.take(9, 1).unwrap().events, 1, "and one at least");
        let (many, short) = (calls(usize::MAX, usize::MAX), memory(Budget::of(1 << 20)));
        let fit = (0..2000).filter(|_| many.tell(who(1), &short, &text, said).is_queued).count();
        assert!((100..1000).contains(&fit), "{fit} in half of a MiB");
    }

    #[test]
    fn who_has_most_gives_its_newest_to_whoever_has_less() {
        const PLACES: usize = 100;
        let (calls, memory) = (calls(PLACES, 1 << 20), memory(Budget::default()));
        let (text, said) = (json!({}), Said { payload: b"hello", is_text: true });
        let say = |who| calls.tell(who, &memory, &text, Some(said));
        (0..PLACES).for_each(|_| assert!(say(who(1)).is_queued));
        assert_eq!(say(who(1)), Told { is_queued: false, displaced: Vec::new() }, "of itself it displaces nothing");
        for stranger in 2..12 {
            assert_eq!(say(who(stranger)), Told { is_queued: true, displaced: vec![ChannelId::new(1)] });
        }
        assert_eq!((calls.waiting(), calls.lost()), (PLACES, 11));
        // A user is one, whatever the number of its channels.
        let user = |channel| say((ChannelId::new(channel), Some("ann")));
        let queued = (20..1_000).filter(|&channel| user(channel).is_queued).count();
        assert!((PLACES / 2 - 11..=PLACES / 2).contains(&queued), "{queued}");
        // Many that have one each take no place from others that have one each.
        let queued = (2_000..3_000).filter(|&channel| say(who(channel)).is_queued).count();
        assert!((PLACES - 22..PLACES).contains(&queued), "{queued}");
        assert!(!say(who(5_000)).is_queued);
        let taken = calls.take(PLACES, 1 << 20).unwrap();
        assert_eq!((taken.events, calls.waiting()), (PLACES as u64, 0));
        let told_later = calls.queue().lost_last;
        assert_eq!(taken.lost + told_later, calls.lost(), "each is told once");
        drop(taken);
        assert_eq!(memory.tenant().total(), 0);
        let queue = calls.queue();
        assert!(queue.of.is_empty() && queue.by_units.is_empty() && queue.bytes == 0 && queue.of.capacity() < 64);
    }

    #[test]
    fn where_memory_is_short_who_has_most_gives_too() {
        let (calls, memory) = (calls(usize::MAX, usize::MAX), memory(Budget::of(1 << 20)));
        let (text, said) = (json!({}), Some(Said { payload: &[b'x'; 1000], is_text: true }));
        while calls.tell(who(1), &memory, &text, said).is_queued {}
        let told = calls.tell(who(2), &memory, &text, said);
        assert_eq!((told.is_queued, told.displaced.first()), (true, Some(&ChannelId::new(1))));
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
