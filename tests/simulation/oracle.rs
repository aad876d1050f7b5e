//! What must be true: one plain list of pushes for each channel, and what each client and each process saw.

use super::client::message;
use std::collections::HashMap;

/// A push to one channel, in the order in which its shard was told.
#[derive(Debug, Clone)]
pub struct Pushed {
    pub id: u64,
    pub opcode: u8,
    pub filler: usize,
    pub key: Option<u64>,
    /// Its outcome or its policy allows that it never comes.
    pub may_be_dropped: bool,
    /// Its outcome says that it was not taken.
    pub refused: bool,
}

/// The payload of a push.
pub fn payload(id: u64, filler: usize) -> Vec<u8> {
    let mut payload = format!("{id:016x}").into_bytes();
    payload.extend((0..filler).map(|at| b'A' + ((at as u64 + id) % 26) as u8));
    payload
}

/// How a channel ended, as its process was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub code: u16,
    pub by: pushring::shard::event::ClosedBy,
}

/// One channel.
#[derive(Debug)]
pub struct Channel {
    pub id: u32,
    pub client: usize,
    pub owner: usize,
    pub registered: bool,
    replied: bool,
    pub pushed: Vec<Pushed>,
    /// By id: the place in `pushed`.
    places: HashMap<u64, usize>,
    received: Vec<bool>,
    /// All before it have come, or may be missing.
    next: usize,
    /// The newest value of each key that came.
    newest: HashMap<u64, usize>,
    /// Some push may drop older ones: what is missing says nothing.
    pub lossy: bool,
    /// How many pushes stood before the process' close.
    pub closed_at: Option<usize>,
    pub messages: u64,
    pub ended: Option<Ended>,
}

impl Channel {
    pub fn new(id: u32, client: usize, owner: usize, registered: bool) -> Self {
        Self {
            id,
            client,
            owner,
            registered,
            replied: false,
            pushed: Vec::new(),
            places: HashMap::new(),
            received: Vec::new(),
            next: 0,
            newest: HashMap::new(),
            lossy: false,
            closed_at: None,
            messages: 0,
            ended: None,
        }
    }

    pub fn push(&mut self, push: Pushed) {
        self.places.insert(push.id, self.pushed.len());
        self.pushed.push(push);
        self.received.push(false);
    }

    pub fn find(&mut self, id: u64) -> Option<&mut Pushed> {
        let place = *self.places.get(&id)?;
        Some(&mut self.pushed[place])
    }

    /// The client has received a frame that is not the close frame.
    pub fn heard(&mut self, opcode: u8, bytes: &[u8]) -> Result<(), String> {
        match (opcode, bytes) {
            // A ping of the broker carries its time, in milliseconds.
            (9, [_, _, _, _]) => return Ok(()),
            (10, bytes) if bytes.starts_with(b"c-") => return Ok(()),
            _ => {}
        }
        if self.registered && !self.replied {
            self.replied = true;
            let expected = format!("{{\"channel_id\":{}}}", self.id);
            return if bytes == expected.as_bytes() {
                Ok(())
            } else {
                Err(self.complain("no reply to the registration"))
            };
        }
        let id = bytes.get(..16).and_then(|hex| std::str::from_utf8(hex).ok());
        let id = id.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let Some(id) = id else { return Err(self.complain("a frame that nobody pushed")) };
        let Some(&place) = self.places.get(&id) else {
            return Err(self.complain(&format!("push {id} was for another channel")));
        };
        let pushed = &self.pushed[place];
        if pushed.opcode != opcode || bytes != payload(id, pushed.filler) {
            return Err(self.complain(&format!("push {id} came with other bytes")));
        }
        if std::mem::replace(&mut self.received[place], true) {
            return Err(self.complain(&format!("push {id} came twice")));
        }
        if self.pushed[place].refused {
            return Err(self.complain(&format!("push {id} came although its outcome says that it was dropped")));
        }
        self.judge_order(place)
    }

    fn judge_order(&mut self, place: usize) -> Result<(), String> {
        if let Some(key) = self.pushed[place].key {
            if self.newest.insert(key, place).is_some_and(|newest| newest > place) {
                return Err(
                    self.complain(&format!("push {} came behind a newer one of its key", self.pushed[place].id))
                );
            }
            // It may stand where an older value of its key stood, but not before or behind a frame without a key.
            let overtook = self.next.min(place)..self.next.max(place);
            let crossed = overtook.clone().find(|&at| {
                let crosses = self.pushed[at].key.is_none();
                crosses && (place < self.next || (!self.received[at] && !self.may_be_missing(at)))
            });
            if let Some(at) = crossed {
                return Err(self.complain(&format!("pushes {} and {place} are out of order", self.pushed[at].id)));
            }
            return Ok(());
        }
        if place < self.next {
            return Err(self.complain(&format!("push {} came behind a newer one", self.pushed[place].id)));
        }
        self.all_have_come(self.next, place)?;
        self.next = place + 1;
        Ok(())
    }

    fn may_be_missing(&self, place: usize) -> bool {
        let pushed = &self.pushed[place];
        self.lossy || pushed.may_be_dropped || pushed.refused
    }

    /// Whether all from `from` up to `to` have come, but what may be missing.
    pub fn all_have_come(&self, from: usize, to: usize) -> Result<(), String> {
        for place in from..to {
            let replaced = |key: u64| self.pushed[place + 1..].iter().any(|later| later.key == Some(key));
            let excused =
                self.received[place] || self.may_be_missing(place) || self.pushed[place].key.is_some_and(replaced);
            if !excused {
                return Err(self.complain(&format!("push {} is missing", self.pushed[place].id)));
            }
        }
        Ok(())
    }

    /// The process has received a message.
    pub fn message(&mut self, bytes: &[u8]) -> Result<(), String> {
        let filler = bytes.len().saturating_sub(16);
        if bytes != message(self.client, self.messages, filler) {
            return Err(self.complain(&format!("message {} is not what the client sent next", self.messages)));
        }
        self.messages += 1;
        Ok(())
    }

    pub fn complain(&self, what: &str) -> String {
        format!("channel {} of client {} and process {}: {what}", self.id, self.client, self.owner)
    }
}
