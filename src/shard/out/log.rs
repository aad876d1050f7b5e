//! Pushes to one channel that outlives its connection, by position: messages that its client may have missed, and
//! messages that it was not offered yet. Ranges of [kept](super::kept) frames, merged where they touch: a broadcast
//! extends an entry.
//!
//! A position is a count of messages accepted for the channel, sent or not. A message that a policy dropped, a newer
//! value replaced, or memory pressure removed is missing between entries: a gap, which is reported in its place.
//!
//! Invariants: `sent` stands before `told`, `unsent` behind it, both in order of position; the totals are the sums over
//! the entries. It must not depend on connections, policies or texts.

use super::conflation::KEYS_MAX;
use super::kept::KeptFrames;
use super::range::Range;
use crate::admission::table_bytes;
use std::collections::{HashMap, VecDeque};

/// Messages one behind the other.
#[derive(Debug, Clone, Copy)]
struct LogEntry {
    /// The position of the first.
    first: u64,
    frames: u32,
    /// Empty where it was taken out.
    range: Range,
}

impl LogEntry {
    fn end(&self) -> u64 {
        self.first + u64::from(self.frames)
    }
}

/// The next item for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextFrames {
    /// So many messages are missing before it.
    pub missing: u64,
    /// Whole frames, if any are left.
    pub range: Option<Range>,
}

/// Where so many entries are remembered, a whole one is forgotten at a time.
const WHOLE_ENTRIES_MIN: usize = 16;

/// Entries without bytes that are let be, before they are swept out.
const REMOVED_MAX: usize = 32;

/// So many places are not given back.
const PLACES_MIN: usize = 64;

/// See the module.
#[derive(Default)]
pub(crate) struct Log {
    sent: VecDeque<LogEntry>,
    sent_bytes: usize,
    unsent: VecDeque<LogEntry>,
    unsent_bytes: usize,
    /// The bytes sent once and sent again, up to `again_until`: they were admitted already.
    again_bytes: usize,
    again_until: u64,
    /// Whether what the connection has was all sent before.
    gives_again: bool,
    /// How many messages were accepted.
    position: u64,
    /// How many of them were given to a connection, or told to be missing.
    told: u64,
    /// Earlier messages are no longer in `sent`: they were received, or there was no room.
    reaches_to: u64,
    /// The newest unsent value of each key: its position.
    keys: HashMap<u64, u64>,
    /// Where the last value with a key lies.
    keyed: Option<u64>,
    removed: usize,
    /// Of what waits for the first time, all before this position was dropped, or taken out.
    dropped_to: u64,
}

impl Log {
    /// How many messages were accepted.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// How many of them the client has received, or was told of.
    pub(crate) fn told(&self) -> u64 {
        self.told
    }

    /// Returns whether anything waits that the connection was not given.
    pub(crate) fn lags(&self) -> bool {
        self.told < self.position
    }

    /// The waiting bytes that count against the channel's budget: without those sent again.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.unsent_bytes - self.again_bytes
    }

    /// Returns whether what waits for the first time has fewer entries than there are in so much memory: tiny frames
    /// that do not touch take more by their entries than by their bytes.
    pub(crate) fn has_places(&self, bytes: usize) -> bool {
        self.unsent.len() - self.first_counted() - self.removed < places_in(bytes)
    }

    /// The place of the first entry that waits for the first time.
    fn first_counted(&self) -> usize {
        self.unsent.partition_point(|entry| entry.first < self.again_until)
    }

    /// Returns whether what the connection has was all sent before: then it does not count against the budget.
    pub(crate) fn gives_again(&self) -> bool {
        self.gives_again
    }

    /// Returns whether all that is sent again was given to the connection, and what is next counts.
    pub(crate) fn has_given_again(&self) -> bool {
        self.gives_again && self.told >= self.again_until
    }

    /// It has left.
    pub(crate) fn end_again(&mut self) {
        self.gives_again = false;
    }

    /// All that was not given to the connection.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// All that was given to the connection, and may be asked for again.
    pub(crate) fn sent_bytes(&self) -> usize {
        self.sent_bytes
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> usize {
        self.sent.len() + self.unsent.len()
    }

    /// The heap bytes of the entries.
    pub(crate) fn heap_bytes(&self) -> usize {
        (self.sent.capacity() + self.unsent.capacity()) * size_of::<LogEntry>()
            + table_bytes::<u64, u64>(self.keys.capacity())
    }

    /// One more message, which the connection is given now. At most `bytes_max` of what was sent are remembered.
    /// Returns whether it has an entry of its own, for which the log may have grown: mostly it extends the last one.
    #[inline]
    pub(crate) fn append_sent(&mut self, range: Range, kept: &KeptFrames, bytes_max: usize) -> bool {
        debug_assert!(!self.lags());
        let entry = LogEntry { first: self.position, frames: 1, range };
        self.position += 1;
        self.told = self.position;
        self.remember(entry, kept, bytes_max)
    }

    #[inline]
    fn remember(&mut self, entry: LogEntry, kept: &KeptFrames, bytes_max: usize) -> bool {
        self.sent_bytes += entry.range.len();
        let is_apart = !self.sent.back_mut().is_some_and(|last| joins(last, &entry));
        if is_apart {
            self.sent.push_back(entry);
        }
        if self.sent_bytes > bytes_max || (is_apart && self.sent.len() > places_in(bytes_max)) {
            self.forget_sent(kept, bytes_max);
        }
        is_apart
    }

    #[cold]
    fn forget_sent(&mut self, kept: &KeptFrames, bytes_max: usize) {
        while (self.sent_bytes > bytes_max || self.sent.len() > places_in(bytes_max))
            && let Some(first) = self.sent.front_mut()
        {
            // One message at a time where an entry is much of what is remembered.
            if first.frames > 1 && first.range.len() > bytes_max / WHOLE_ENTRIES_MIN {
                let next = first.first + 1;
                let skipped = skip(first, next, kept);
                if skipped > 0 {
                    self.sent_bytes -= skipped;
                    self.reaches_to = next;
                    continue;
                }
            }
            self.sent_bytes -= first.range.len();
            self.reaches_to = first.end();
            self.sent.pop_front();
        }
    }

    /// One more message, which waits; under a key it may be replaced.
    pub(crate) fn append_unsent(&mut self, range: Range, key: Option<u64>) {
        let entry = LogEntry { first: self.position, frames: 1, range };
        self.unsent_bytes += range.len();
        // Counted and uncounted parts are apart, and so are removable ones.
        let is_apart =
            key.is_some() || entry.first == self.again_until || self.keyed.is_some_and(|at| at + 1 == entry.first);
        if is_apart || !self.unsent.back_mut().is_some_and(|last| joins(last, &entry)) {
            self.unsent.push_back(entry);
        }
        if let Some(key) = key {
            self.bound_keys();
            self.keys.insert(key, entry.first);
            self.keyed = Some(entry.first);
        }
        self.position += 1;
    }

    /// Keys whose values do not wait any more are forgotten and, if there are too many even so, those whose values have
    /// waited longest: these are not replaced any more. Not before there are twice as many, so that each costs little.
    fn bound_keys(&mut self) {
        if self.keys.len() < 2 * KEYS_MAX {
            return;
        }
        let mut from = self.told.max(self.again_until);
        let mut waiting: Vec<u64> = self.keys.values().copied().filter(|&at| at >= from).collect();
        if waiting.len() > KEYS_MAX {
            let excess = waiting.len() - KEYS_MAX;
            from = *waiting.select_nth_unstable(excess).1;
        }
        self.keys.retain(|_, at| *at >= from);
    }

    /// So many more messages, which are dropped, or were lost before they came.
    pub(crate) fn append_missing(&mut self, count: u32) {
        self.position += u64::from(count);
    }

    /// How much the unsent value of `key` counts; 0 if there is none.
    pub(crate) fn queued_len_of(&self, key: u64) -> usize {
        self.place_of(key).map_or(0, |place| self.unsent[place].range.len())
    }

    fn place_of(&self, key: u64) -> Option<usize> {
        // One that was given to a connection before is not replaced: it may have come.
        let position = self.keys.get(&key).filter(|&&at| at >= self.told.max(self.again_until))?;
        self.unsent.binary_search_by_key(position, |entry| entry.first).ok()
    }

    /// A newer value takes the place of the unsent one of `key`. Returns whether there was one.
    pub(crate) fn take_out(&mut self, key: u64) -> bool {
        let Some(place) = self.place_of(key).filter(|&place| !self.unsent[place].range.is_empty()) else {
            return false;
        };
        self.empty(place);
        self.sweep();
        true
    }

    fn empty(&mut self, place: usize) {
        let entry = &mut self.unsent[place];
        let range = std::mem::take(&mut entry.range);
        self.unsent_bytes -= range.len();
        if entry.first < self.again_until {
            self.again_bytes -= range.len();
        }
        self.removed += 1;
    }

    fn sweep(&mut self) {
        if self.removed > REMOVED_MAX.max(self.unsent.len() / 2) {
            self.unsent.retain(|entry| !entry.range.is_empty());
            self.removed = 0;
        }
    }

    /// Drops unsent messages, the oldest first, until `bytes` are gone; none of those that are sent again. Returns how
    /// many messages and bytes went.
    pub(crate) fn drop_oldest(&mut self, bytes: usize, kept: &KeptFrames) -> (usize, usize) {
        let (mut messages, mut dropped) = (0, 0);
        let mut place = self.first_droppable();
        while dropped < bytes && place < self.unsent.len() {
            let entry = &mut self.unsent[place];
            // The missing part is dropped with the rest of its entry.
            let len = kept.frame_len(entry.range).unwrap_or(entry.range.len());
            if len < entry.range.len() {
                entry.range = entry.range.split_at(len).1;
                (entry.first, entry.frames) = (entry.first + 1, entry.frames - 1);
                self.unsent_bytes -= len;
                (messages, dropped) = (messages + 1, dropped + len);
                continue;
            }
            if len > 0 {
                (messages, dropped) = (messages + entry.frames as usize, dropped + len);
                self.empty(place);
            }
            self.dropped_to = self.unsent[place].end();
            place += 1;
        }
        self.sweep();
        (messages, dropped)
    }

    /// The place of the oldest entry that may be dropped: those that were are not gone through again.
    fn first_droppable(&self) -> usize {
        let from = self.again_until.max(self.dropped_to);
        self.unsent.partition_point(|entry| entry.first < from)
    }

    /// Takes the next frames out of what waits, for the connection; they are remembered as sent. `None`: nothing waits.
    pub(crate) fn next(&mut self, kept: &KeptFrames, bytes_max: usize) -> Option<NextFrames> {
        while let Some(entry) = self.unsent.pop_front() {
            let len = entry.range.len();
            self.unsent_bytes -= len;
            if entry.first < self.again_until {
                self.again_bytes -= len;
            }
            if len == 0 {
                self.removed = self.removed.saturating_sub(1);
            }
            if len > 0 && kept.has(entry.range) {
                let missing = entry.first - self.told;
                self.told = entry.end();
                self.remember(entry, kept, bytes_max);
                return Some(NextFrames { missing, range: Some(entry.range) });
            }
        }
        (self.again_bytes, self.removed, self.keyed) = (0, 0, None);
        self.keys.clear();
        self.give_back();
        let missing = self.position - std::mem::replace(&mut self.told, self.position);
        (missing > 0).then_some(NextFrames { missing, range: None })
    }

    /// Forgets what waits; returns how many bytes that were. They count as told.
    pub(crate) fn forget_unsent(&mut self) -> usize {
        self.unsent.clear();
        self.keys.clear();
        (self.again_bytes, self.removed, self.keyed) = (0, 0, None);
        self.told = self.position;
        std::mem::take(&mut self.unsent_bytes)
    }

    /// The client has received so many messages: what came before them is forgotten. Returns whether it can have.
    pub(crate) fn acknowledged(&mut self, received: u64) -> bool {
        if received > self.told {
            return false;
        }
        while let Some(first) = self.sent.front()
            && first.end() <= received
        {
            self.sent_bytes -= first.range.len();
            self.reaches_to = first.end();
            self.sent.pop_front();
        }
        true
    }

    /// The client comes back, and has received so many messages: what it has missed waits again. Returns how many of
    /// those are lost because history does not reach back so far; `None` if it cannot have received so many.
    pub(crate) fn rewind(&mut self, received: u64, kept: &KeptFrames) -> Option<u64> {
        if received > self.told {
            return None;
        }
        let mut was_cut = received < self.reaches_to;
        while let Some(first) = self.sent.front_mut() {
            let is_gone = !kept.has(first.range);
            was_cut |= is_gone && first.end() > received;
            if is_gone || first.end() <= received {
                self.sent_bytes -= first.range.len();
                self.sent.pop_front();
                continue;
            }
            if first.first < received {
                let skipped = skip(first, received, kept);
                self.sent_bytes -= skipped;
            }
            break;
        }
        let told = std::mem::replace(&mut self.told, received);
        self.again_until = self.again_until.max(told);
        self.again_bytes += self.sent_bytes;
        self.unsent_bytes += std::mem::take(&mut self.sent_bytes);
        while let Some(last) = self.sent.pop_back() {
            self.unsent.push_front(last);
        }
        let first = if was_cut { self.first_left(kept) } else { received };
        (self.told, self.reaches_to) = (first, first);
        self.gives_again = self.again_bytes > 0;
        Some(first - received)
    }

    /// Forgets the oldest entries that history has let go of: the positions of the others tell of them. Returns how
    /// many they were.
    pub(crate) fn forget_gone(&mut self, kept: &KeptFrames) -> usize {
        let before = self.entries();
        while let Some(first) = self.sent.front()
            && !kept.has(first.range)
        {
            self.sent_bytes -= first.range.len();
            self.reaches_to = first.end();
            self.sent.pop_front();
        }
        self.first_left(kept);
        let gone = before - self.entries();
        self.give_back();
        gone
    }

    /// Gives back places of which most are not needed: there may have been many for a while.
    fn give_back(&mut self) {
        for entries in [&mut self.sent, &mut self.unsent] {
            if entries.capacity() > PLACES_MIN && entries.len() < entries.capacity() / 4 {
                entries.shrink_to(entries.len() * 2);
            }
        }
        if self.keys.capacity() > PLACES_MIN && self.keys.len() < self.keys.capacity() / 4 {
            self.keys.shrink_to(self.keys.len() * 2);
        }
    }

    /// The position of the first message that waits and is there.
    fn first_left(&mut self, kept: &KeptFrames) -> u64 {
        while let Some(first) = self.unsent.front() {
            if !first.range.is_empty() && kept.has(first.range) {
                return first.first;
            }
            let (len, is_again) = (first.range.len(), first.first < self.again_until);
            self.unsent_bytes -= len;
            self.again_bytes -= if is_again { len } else { 0 };
            self.removed = self.removed.saturating_sub(usize::from(len == 0));
            self.unsent.pop_front();
        }
        self.position
    }

    /// Asserts what the module promises.
    pub(crate) fn check(&self) {
        let sum = |entries: &VecDeque<LogEntry>| entries.iter().map(|entry| entry.range.len()).sum::<usize>();
        assert_eq!((self.sent_bytes, self.unsent_bytes), (sum(&self.sent), sum(&self.unsent)), "sums are sums");
        let again = self.unsent.iter().filter(|entry| entry.first < self.again_until).map(|entry| entry.range.len());
        assert_eq!(self.again_bytes, again.sum::<usize>());
        let mut last = 0;
        for entry in self.sent.iter().chain(&self.unsent) {
            assert!(entry.first >= last && entry.frames > 0, "entries are in order");
            last = entry.end();
        }
        assert!(last <= self.position && self.told <= self.position);
        assert!(self.sent.back().is_none_or(|entry| entry.end() <= self.told));
        assert!(self.unsent.front().is_none_or(|entry| entry.first >= self.told));
    }
}

/// How many entries take so much memory, and one at least: where so many bytes are remembered, or may wait, there are
/// no more.
fn places_in(bytes: usize) -> usize {
    (bytes / size_of::<LogEntry>()).max(1)
}

/// Appends `next` to `last` if it goes on from there.
#[inline]
fn joins(last: &mut LogEntry, next: &LogEntry) -> bool {
    let goes_on = last.end() == next.first && last.range.try_extend(next.range);
    if goes_on {
        last.frames += next.frames;
    }
    goes_on
}

/// Leaves the messages before `position` out of an entry that is there. Returns how many bytes they have.
fn skip(entry: &mut LogEntry, position: u64, kept: &KeptFrames) -> usize {
    let before = entry.range.len();
    while entry.first < position
        && let Some(len) = kept.frame_len(entry.range)
    {
        entry.range = entry.range.split_at(len).1;
        (entry.first, entry.frames) = (entry.first + 1, entry.frames - 1);
    }
    before - entry.range.len()
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
