//! The sequence numbers of what this node sends: a count for each audience, and which counts are to be announced.
//!
//! Invariants: numbers of a stream are 1, 2, 3 …; an audience whose count was evicted for want of room begins a stream
//! of a higher number, so that receivers do not take it for the old one; the number of counts is limited at creation. A
//! count that was used is announced several times. Counts evicted before that are announced as a number of such counts.

use super::subject::AudienceKey;
use crate::admission::{table_bytes, tree_bytes_in_order};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// How often a count is announced after it was used: one announcement may be lost, and so may two.
const ANNOUNCED: u8 = 5;

/// See the module.
#[derive(Debug)]
pub(super) struct Outgoing {
    counts: HashMap<AudienceKey, Count>,
    /// The same by when they were used last.
    by_use: BTreeMap<u64, AudienceKey>,
    uses: u64,
    streams: u32,
    counts_max: usize,
    /// Those that are to be announced, by stream, each once; of those that were forgotten meanwhile too, until it is
    /// their turn.
    due: VecDeque<(AudienceKey, u32)>,
    forgotten: ForgottenCounts,
}

/// Counts that were forgotten before they were announced as often as they should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ForgottenCounts {
    /// How many.
    pub count: u64,
    /// When the last of them was.
    pub last_ms: u64,
}

#[derive(Debug)]
struct Count {
    stream: u32,
    last: u64,
    began_ms: u64,
    used: u64,
    /// How often it is still to be announced; it stands in the queue while that is not 0.
    announce: u8,
}

/// How far a count has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    /// Of which audience.
    pub line: AudienceKey,
    /// The count.
    pub stream: u32,
    /// Its last number.
    pub last: u64,
    /// How long ago it began.
    pub age_ms: u64,
}

impl Outgoing {
    /// Keeps at most so many counts.
    pub(super) fn new(counts_max: usize) -> Self {
        assert!(counts_max > 0);
        let (counts, by_use, due) = Default::default();
        Self { counts, by_use, uses: 0, streams: 0, counts_max, due, forgotten: ForgottenCounts::default() }
    }

    /// The stream and the number of the next message to an audience.
    pub(super) fn next(&mut self, line: AudienceKey, now_ms: u64) -> (u32, u64) {
        self.uses += 1;
        if !self.counts.contains_key(&line) {
            self.make_room(now_ms);
            self.streams += 1;
            let count = Count { stream: self.streams, last: 0, began_ms: now_ms, used: self.uses, announce: 0 };
            self.counts.insert(line, count);
        }
        let count = self.counts.get_mut(&line).expect("it is there or was put there");
        self.by_use.remove(&count.used);
        self.by_use.insert(self.uses, line);
        (count.used, count.last) = (self.uses, count.last + 1);
        if count.announce == 0 {
            self.due.push_back((line, count.stream));
        }
        count.announce = ANNOUNCED;
        (count.stream, count.last)
    }

    /// Forgets the count that was not used for longest, where there are as many as there may be.
    fn make_room(&mut self, now_ms: u64) {
        if self.counts.len() < self.counts_max {
            return;
        }
        let Some((_, line)) = self.by_use.pop_first() else { return };
        let count = self.counts.remove(&line).expect("both hold the same");
        if count.announce > 0 {
            self.forgotten = ForgottenCounts { count: self.forgotten.count + 1, last_ms: now_ms };
        }
        if self.due.len() > 2 * self.counts_max {
            // Each entry is looked at as often as so many were forgotten: a constant cost.
            let counts = &self.counts;
            self.due.retain(|(line, stream)| counts.get(line).is_some_and(|count| count.stream == *stream));
        }
    }

    /// At most `max` counts to announce; those that are left wait for the next call.
    pub(super) fn tails(&mut self, max: usize, now_ms: u64) -> Vec<Tail> {
        let now: Vec<_> = self.due.drain(..self.due.len().min(max)).collect();
        let mut tails = Vec::with_capacity(now.len());
        for (line, stream) in now {
            let Some(count) = self.counts.get_mut(&line).filter(|count| count.stream == stream) else { continue };
            let age_ms = now_ms.saturating_sub(count.began_ms);
            tails.push(Tail { line, stream, last: count.last, age_ms });
            count.announce -= 1;
            if count.announce > 0 {
                self.due.push_back((line, stream));
            }
        }
        tails
    }

    /// How far the count for an audience has come, if there is one.
    pub(super) fn tail(&self, line: &AudienceKey, now_ms: u64) -> Option<Tail> {
        let count = self.counts.get(line)?;
        let age_ms = now_ms.saturating_sub(count.began_ms);
        Some(Tail { line: *line, stream: count.stream, last: count.last, age_ms })
    }

    /// How many counts were begun.
    pub(super) fn streams(&self) -> u32 {
        self.streams
    }

    /// Announces all counts again: a node has not received them.
    pub(super) fn announce_all(&mut self) {
        for (line, count) in &mut self.counts {
            if count.announce == 0 {
                self.due.push_back((*line, count.stream));
            }
            count.announce = ANNOUNCED;
        }
    }

    /// Those that were forgotten too early.
    pub(super) fn forgotten(&self) -> ForgottenCounts {
        self.forgotten
    }

    /// Their heap bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        table_bytes::<AudienceKey, Count>(self.counts.capacity())
            + tree_bytes_in_order::<u64, AudienceKey>(self.by_use.len())
            + self.due.capacity() * size_of::<(AudienceKey, u32)>()
    }

    /// How many counts there are.
    pub(super) fn len(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::subject::Kind;
    use super::*;
    use proptest::prelude::*;

    fn line(n: u8) -> AudienceKey {
        AudienceKey { kind: Kind::Topic, hash: [n; 16] }
    }

    #[test]
    fn what_was_used_is_announced_until_it_was_announced_often_enough() {
        let mut outgoing = Outgoing::new(4);
        assert_eq!(
            (outgoing.next(line(1), 0), outgoing.next(line(1), 0), outgoing.next(line(2), 0)),
            ((1, 1), (1, 2), (2, 1))
        );
        for _ in 0..ANNOUNCED {
            let tails = outgoing.tails(10, 9);
            assert_eq!(tails.iter().map(|tail| (tail.stream, tail.last)).collect::<Vec<_>>(), [(1, 2), (2, 1)]);
        }
        assert!(outgoing.tails(10, 9).is_empty());
        outgoing.announce_all();
        // One at a time: each has its turn.
        assert_ne!(outgoing.tails(1, 9)[0].line, outgoing.tails(1, 9)[0].line);
        assert_eq!(outgoing.forgotten().count, 0);
    }

    /// The same, remembering everything.
    #[derive(Default)]
    struct Twin {
        uses: Vec<AudienceKey>,
        counts: Vec<(AudienceKey, u32, u64, u8)>,
        streams: u32,
        forgotten: u64,
    }

    impl Twin {
        fn next(&mut self, line: AudienceKey, max: usize) -> (u32, u64) {
            if !self.counts.iter().any(|count| count.0 == line) {
                if self.counts.len() == max {
                    let last_use = |line: AudienceKey| self.uses.iter().rposition(|used| *used == line);
                    let oldest = (0..max).min_by_key(|at| last_use(self.counts[*at].0)).unwrap();
                    self.forgotten += u64::from(self.counts.remove(oldest).3 > 0);
                }
                self.streams += 1;
                self.counts.push((line, self.streams, 0, 0));
            }
            self.uses.push(line);
            let count = self.counts.iter_mut().find(|count| count.0 == line).unwrap();
            (count.2, count.3) = (count.2 + 1, ANNOUNCED);
            (count.1, count.2)
        }
    }

    proptest! {
        #[test]
        fn it_counts_as_its_naive_twin(max in 1usize..6, steps in prop::collection::vec(0u8..12, 1..200)) {
            let (mut outgoing, mut twin) = (Outgoing::new(max), Twin::default());
            for step in steps {
                if step < 10 {
                    prop_assert_eq!(outgoing.next(line(step), 0), twin.next(line(step), max));
                } else {
                    for tail in outgoing.tails(usize::from(step - 9), 0) {
                        let count = twin.counts.iter_mut().find(|count| count.0 == tail.line).unwrap();
                        prop_assert_eq!((tail.stream, tail.last), (count.1, count.2));
                        count.3 -= 1;
                    }
                }
                prop_assert_eq!(outgoing.forgotten().count, twin.forgotten);
                prop_assert!(outgoing.len() <= max && outgoing.by_use.len() == outgoing.len());
                let due = twin.counts.iter().filter(|count| count.3 > 0).count();
                let queued = outgoing.due.iter().filter(|(line, stream)| {
                    outgoing.counts.get(line).is_some_and(|count| count.stream == *stream)
                });
                prop_assert!(queued.count() == due && outgoing.due.len() <= 2 * max + 1);
            }
        }
    }
}
