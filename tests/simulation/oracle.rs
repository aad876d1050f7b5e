//! The truth about one channel: a plain list of the pushes to it, and the receipts of its client and its process.

use super::payload;
use pushring::internals::shard::command::{Policy, WhenFull};
use pushring::internals::shard::event::ClosedBy;
use std::collections::{BTreeSet, HashMap};

/// The state of a push to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Unknown,
    /// Its outcome says that it was sent or queued.
    Taken,
    /// Its outcome says that it will never come.
    Refused,
}

/// A push to one channel, in the order in which its shard was told.
#[derive(Debug, Clone)]
pub struct Pushed {
    pub id: u64,
    pub opcode: u8,
    pub len: usize,
    pub policy: Policy,
    pub fate: Fate,
    /// It cannot be known whether the channel was open already, or whether the guest was let in.
    pub is_unsure: bool,
    /// Another process pushed it: order holds for the pushes of one.
    pub is_guests: bool,
}

impl Pushed {
    fn key(&self) -> Option<u64> {
        self.policy.key()
    }
}

/// How a channel ended, as its process was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub code: u16,
    pub by: ClosedBy,
    pub lost_bytes: usize,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    pub id: u32,
    pub client: usize,
    /// Which process, by its place among all that ever were.
    pub owner: usize,
    pub is_registered: bool,
    has_reply: bool,
    pub pushed: Vec<Pushed>,
    /// By id: the place in `pushed`.
    places: HashMap<u64, usize>,
    received: Vec<bool>,
    /// All before it have come, or may be missing.
    next: usize,
    /// The newest value of each key that came.
    newest: HashMap<u64, usize>,
    /// Its socket was full once: before that no policy may be applied.
    pub was_full: bool,
    /// Memory may run short: then the policy of the newest frame is applied to older ones.
    pub meets_pressure: bool,
    /// Some push may drop older ones: what is missing says nothing.
    is_lossy: bool,
    /// How many pushes stood before the process' close.
    pub closed_at: Option<usize>,
    pub has_guests: bool,
    /// Its subscriptions, in the order in which its shard was told.
    pub topics: BTreeSet<&'static str>,
    pub messages: u64,
    pub ended: Option<Ended>,
}

impl Channel {
    pub fn new(id: u32, client: usize, owner: usize, is_registered: bool, meets_pressure: bool) -> Self {
        Self {
            id,
            client,
            owner,
            is_registered,
            has_reply: false,
            pushed: Vec::new(),
            places: HashMap::new(),
            received: Vec::new(),
            next: 0,
            newest: HashMap::new(),
            was_full: false,
            meets_pressure,
            is_lossy: false,
            closed_at: None,
            has_guests: false,
            topics: BTreeSet::new(),
            messages: 0,
            ended: None,
        }
    }

    pub fn push(&mut self, push: Pushed) {
        self.is_lossy |= match push.policy.when_full() {
            WhenFull::Close => false,
            WhenFull::DropNewest => self.meets_pressure,
            WhenFull::DropOldest => true,
        };
        self.places.insert(push.id, self.pushed.len());
        self.pushed.push(push);
        self.received.push(false);
    }

    /// The fate of push `id`, if it was for this channel.
    pub fn settle(&mut self, id: u64, fate: Fate) -> Result<(), String> {
        let Some(&place) = self.places.get(&id) else { return Ok(()) };
        self.pushed[place].fate = fate;
        if fate == Fate::Refused && self.received[place] {
            return Err(self.complain(&format!("push {id} came although its outcome says that it will not")));
        }
        Ok(())
    }

    /// The client has received a frame that is not the close frame.
    pub fn heard(&mut self, opcode: u8, bytes: &[u8]) -> Result<(), String> {
        match (opcode, bytes) {
            // A ping of the broker carries its time, in milliseconds.
            (9, [_, _, _, _]) => return Ok(()),
            (10, bytes) if bytes.starts_with(b"c-") => return Ok(()),
            _ => {}
        }
        if self.is_registered && !self.has_reply {
            self.has_reply = true;
            let expected = format!("{{\"channel_id\":{}}}", self.id);
            let is_reply = bytes == expected.as_bytes();
            return if is_reply { Ok(()) } else { Err(self.complain("no reply to the registration")) };
        }
        let Some(id) = payload::push_id(bytes) else { return Err(self.complain("a frame that nobody pushed")) };
        let Some(&place) = self.places.get(&id) else {
            return Err(self.complain(&format!("push {id} was for another channel")));
        };
        let pushed = &self.pushed[place];
        if pushed.opcode != opcode || bytes != payload::of_push(id, pushed.len) {
            return Err(self.complain(&format!("push {id} came with other bytes")));
        }
        if std::mem::replace(&mut self.received[place], true) {
            return Err(self.complain(&format!("push {id} came twice")));
        }
        if self.pushed[place].fate == Fate::Refused {
            return Err(self.complain(&format!("push {id} came although its outcome says that it will not")));
        }
        self.judge_order(place)
    }

    fn judge_order(&mut self, place: usize) -> Result<(), String> {
        if self.pushed[place].is_guests {
            return Ok(());
        }
        let Some(key) = self.pushed[place].key() else {
            if place < self.next {
                return Err(self.complain(&format!("push {} came behind a newer one", self.pushed[place].id)));
            }
            self.all_have_come(self.next, place)?;
            self.next = place + 1;
            return Ok(());
        };
        if self.newest.insert(key, place).is_some_and(|newest| newest > place) {
            return Err(self.complain(&format!("push {} came behind a newer one of its key", self.pushed[place].id)));
        }
        // It may stand where an older value of its key stood, but not before or behind a frame without a key.
        let mut overtook = self.next.min(place)..self.next.max(place);
        let crossed = overtook.find(|&at| {
            let pushed = &self.pushed[at];
            let is_in_order = pushed.key().is_none() && !pushed.is_guests;
            is_in_order && (place < self.next || (!self.received[at] && !self.may_be_missing(at)))
        });
        match crossed {
            Some(at) => {
                Err(self
                    .complain(&format!("pushes {} and {} are out of order", self.pushed[at].id, self.pushed[place].id)))
            }
            None => Ok(()),
        }
    }

    fn may_be_missing(&self, place: usize) -> bool {
        let pushed = &self.pushed[place];
        let is_dropped = pushed.policy.when_full() == WhenFull::DropNewest && pushed.fate != Fate::Taken;
        pushed.is_unsure || pushed.fate == Fate::Refused || (self.was_full && (self.is_lossy || is_dropped))
    }

    /// Whether all from `from` up to `to` have come, but what may be missing.
    pub fn all_have_come(&self, from: usize, to: usize) -> Result<(), String> {
        for place in from..to {
            let is_replaced =
                |key| self.was_full && self.pushed[place + 1..].iter().any(|later| later.key() == Some(key));
            let excused =
                self.received[place] || self.may_be_missing(place) || self.pushed[place].key().is_some_and(is_replaced);
            if !excused {
                return Err(self.complain(&format!("push {} is missing", self.pushed[place].id)));
            }
        }
        Ok(())
    }

    /// The process has received a message.
    pub fn message(&mut self, bytes: &[u8]) -> Result<(), String> {
        let len = bytes.len().saturating_sub(16);
        if bytes != payload::of_client(self.client, self.messages, len) {
            return Err(self.complain(&format!("message {} is not what the client sent next", self.messages)));
        }
        self.messages += 1;
        Ok(())
    }

    pub fn complain(&self, what: &str) -> String {
        format!("channel {} of client {} and process {}: {what}", self.id, self.client, self.owner)
    }
}
