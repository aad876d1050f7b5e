//! Which messages came: every one exactly once, in order, whole, and to the right client, or it is counted here.
//!
//! Invariants: a message is delivered once, and a second copy is a duplicate, never a second delivery; a gap is a loss
//! until the message comes after all, then it is a reordering. It knows no sockets.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::client::{Message, Opcode};
use crate::payload::{STAMP_BYTES, Stamp};

/// What became of the messages of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accounting {
    /// Messages that had to arrive.
    pub expected: u64,
    /// Messages that arrived for the first time, whole.
    pub delivered: u64,
    /// Messages that never arrived.
    pub lost: u64,
    /// Copies of a message that had arrived before.
    pub duplicated: u64,
    /// Messages that arrived behind a later one.
    pub reordered: u64,
    /// Messages of the wrong length or content.
    pub corrupted: u64,
    /// Messages that arrived at a client they were not meant for.
    pub misdelivered: u64,
    /// Messages that this run did not send.
    pub foreign: u64,
    /// Connections that the server ended or refused.
    pub closed: u64,
    /// Why, for the first few of them.
    pub closures: Vec<String>,
}

/// How many closures are kept in words.
const CLOSURES_MAX: usize = 5;

impl Accounting {
    /// Nothing lost, doubled, moved, changed or cut off.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.reordered == 0
            && self.corrupted == 0
            && self.misdelivered == 0
            && self.closed == 0
    }

    /// Adds what another worker counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.expected += other.expected;
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
        self.misdelivered += other.misdelivered;
        self.foreign += other.foreign;
        self.closed += other.closed;
        let room = CLOSURES_MAX.saturating_sub(self.closures.len());
        self.closures.extend(other.closures.iter().take(room).cloned());
    }

    /// Notes a connection that ended against our will.
    pub(crate) fn note_closure(&mut self, client: usize, reason: &str) {
        self.closed += 1;
        if self.closures.len() < CLOSURES_MAX {
            self.closures.push(format!("client {client}: {reason}"));
        }
    }
}

/// The sequence numbers one receiver got.
#[derive(Debug, Clone, Default)]
pub(crate) struct Receipts {
    next: u64,
    missing: BTreeSet<u64>,
}

/// The kind of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// The next one in order, or one after a gap.
    Fresh,
    /// One that was missing and came late.
    Late,
    /// One that came before.
    Duplicate,
}

impl Receipts {
    /// Takes note of `sequence`.
    pub(crate) fn take(&mut self, sequence: u64) -> Receipt {
        if sequence >= self.next {
            self.missing.extend(self.next..sequence);
            self.next = sequence + 1;
            return Receipt::Fresh;
        }
        if self.missing.remove(&sequence) { Receipt::Late } else { Receipt::Duplicate }
    }

    /// How many of the messages `0..published` have not come.
    pub(crate) fn missing(&self, published: u64) -> u64 {
        self.missing.len() as u64 + published.saturating_sub(self.next)
    }
}

/// The receipts of many clients that each should get every message of a run.
#[derive(Debug)]
pub(crate) struct Ledger {
    run: u32,
    size: usize,
    receipts: Vec<Receipts>,
    /// The counts so far; `expected` and `lost` are set by [`Ledger::finish`].
    pub accounting: Accounting,
}

impl Ledger {
    /// A ledger for `clients` receivers of messages of `size` bytes.
    pub(crate) fn new(run: u32, size: usize, clients: usize) -> Self {
        Self { run, size, receipts: vec![Receipts::default(); clients], accounting: Accounting::default() }
    }

    /// Checks a message of `client` and counts it; returns its stamp if this is its first, whole arrival.
    pub(crate) fn take(&mut self, client: usize, message: &Message<'_>) -> Option<Stamp> {
        let stamp = check(message, self.run, self.size, &mut self.accounting)?;
        match self.receipts[client].take(stamp.sequence) {
            Receipt::Duplicate => {
                self.accounting.duplicated += 1;
                return None;
            }
            Receipt::Late => self.accounting.reordered += 1,
            Receipt::Fresh => {}
        }
        self.accounting.delivered += 1;
        Some(stamp)
    }

    /// How many of the messages `0..published` are still to come, over all clients.
    pub(crate) fn outstanding(&self, published: u64) -> u64 {
        (published * self.receipts.len() as u64).saturating_sub(self.accounting.delivered)
    }

    /// The final account of a run of `published` messages.
    pub(crate) fn finish(mut self, published: u64) -> Accounting {
        self.accounting.expected = published * self.receipts.len() as u64;
        self.accounting.lost = self.receipts.iter().map(|receipts| receipts.missing(published)).sum();
        self.accounting
    }
}

/// Reads the stamp of a message of this run and checks its length and body; counts what is wrong.
pub(crate) fn check(message: &Message<'_>, run: u32, size: usize, accounting: &mut Accounting) -> Option<Stamp> {
    let Some(stamp) = Stamp::read(message.head).filter(|stamp| stamp.run == run) else {
        accounting.foreign += 1;
        return None;
    };
    let body_right = message.head.get(STAMP_BYTES).is_none_or(|&byte| byte == stamp.body_byte());
    if message.opcode != Opcode::Binary || message.length != size as u64 || !message.uniform || !body_right {
        accounting.corrupted += 1;
        return None;
    }
    Some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(ledger: &mut Ledger, sequence: u64) -> bool {
        let mut payload = Vec::new();
        Stamp { run: 1, client: 0, sequence, time_ns: 0 }.write(32, &mut payload);
        ledger.take(0, &Message { opcode: Opcode::Binary, head: &payload, length: 32, uniform: true }).is_some()
    }

    #[test]
    fn loss_duplicates_and_reordering_are_told_apart() {
        let mut ledger = Ledger::new(1, 32, 1);
        for sequence in [0, 1, 3, 2, 3, 6] {
            arrive(&mut ledger, sequence);
        }
        assert_eq!(ledger.outstanding(8), 3);
        let accounting = ledger.finish(8);
        assert_eq!((accounting.expected, accounting.delivered, accounting.lost), (8, 5, 3));
        assert_eq!((accounting.duplicated, accounting.reordered), (1, 1));
        assert!(!accounting.is_clean());
    }

    #[test]
    fn wrong_bytes_are_not_deliveries() {
        let mut ledger = Ledger::new(1, 32, 1);
        let mut payload = Vec::new();
        Stamp { run: 1, client: 0, sequence: 0, time_ns: 0 }.write(32, &mut payload);
        let good = Message { opcode: Opcode::Binary, head: &payload, length: 32, uniform: true };
        for wrong in [
            Message { length: 33, ..good },
            Message { uniform: false, ..good },
            Message { opcode: Opcode::Text, ..good },
        ] {
            assert!(ledger.take(0, &wrong).is_none());
        }
        let mut altered = payload.clone();
        altered[24..].fill(1);
        assert!(ledger.take(0, &Message { head: &altered, ..good }).is_none());
        altered[0] = 9;
        assert!(ledger.take(0, &Message { head: &altered, ..good }).is_none());
        let accounting = ledger.finish(1);
        assert_eq!((accounting.corrupted, accounting.foreign, accounting.lost), (4, 1, 1));
    }
}
