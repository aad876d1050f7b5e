//! A process' pushes to clients of event streams, in order, for a client that returns and names the event that it
//! received last. There is one journal for each process on each shard that has listeners, or had them a while ago.
//!
//! Each entry has its audience: a returning client is given the entries that its own login, path and topics entitle it
//! to; where that cannot be determined, a gap is reported to it. The bytes are [kept](super::kept), once. For each
//! audience the journal knows the count from which its entries are complete. Entries to forget come from the lane that
//! has most, or from the client that has left most audiences: one audience's traffic, or one client's departures, do
//! not cost others their history.
//!
//! Invariants: counts go up by one for each entry and are never reused within a run of the broker; an audience that a
//! listener has left is recorded for as long as history reaches, and the first push to it without listeners after that
//! makes it incomplete; so a push that a returning client would have received has an entry, or a gap is reported to the
//! client. It must not depend on connections.

use super::departed::{AUDIENCES_MAX, Departed, DepartedClient, DepartedPlace};
use super::kept::{KeptFor, KeptFrames};
use super::listener_audience::ListenerAudience;
use super::range::Range;
use crate::gateway::OwnerId;
use crate::shard::memory::SharedCharge;
use crate::shard::owners::topics::{Topic, TopicClaim};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Entries at a time.
const ENTRIES_MAX: usize = 16_384;

/// Lanes among which audiences are divided: up to so many of them have a history of their own.
const LANES: usize = 32;

/// A journal that begins later counts from beyond where one before it can have ended.
const COUNTS_PER_MS: u64 = 1_000;

struct JournalEntry {
    count: u64,
    audience: ListenerAudience,
    /// `None`: it cannot be sent again.
    range: Option<Range>,
    at_ms: u64,
}

/// An audience that got a push, and that has listeners or had some.
struct JournalAudience {
    lane: u8,
    /// Everything that was pushed to it behind this count has an entry.
    complete_after: u64,
    /// The count of the last entry.
    newest: u64,
    /// Its present listeners.
    listeners: usize,
    /// A listener has left it, and is waited for.
    left: Option<Departure>,
    /// Its place among audiences without listeners.
    departed: Option<DepartedPlace>,
}

struct Departure {
    /// Until when it is waited for, and its number among those of that time.
    until: (u64, u64),
    /// Whether it is not waited for any more. It is still complete, as long as nothing is pushed to it unheard.
    is_over: bool,
    /// Keeps a topic's messages coming to this shard.
    claim: Option<TopicClaim>,
}

/// See the module.
pub(in crate::shard) struct Journal {
    /// The count of the next event.
    next: u64,
    lanes: Vec<VecDeque<JournalEntry>>,
    /// Audiences in each lane.
    audiences_in: [usize; LANES],
    entries: usize,
    audiences: HashMap<ListenerAudience, JournalAudience>,
    /// Audiences whose departed listeners are waited for, by deadline.
    waits: BTreeMap<(u64, u64), ListenerAudience>,
    departed: Departed,
    listeners: usize,
    /// A client that received no event since this one, and whose topics are not all known, may have missed some.
    unsure_before: u64,
    /// Likewise of what was for one listener alone.
    alone_before: u64,
    /// The last event that was for a list of channels, and for a topic.
    newest_listed: u64,
    newest_of_topic: u64,
    /// The bytes of the names of audiences, which their entries share.
    name_bytes: usize,
    numbers: u64,
    charge: SharedCharge,
    charged_bytes: usize,
}

/// Of what a client that returns is.
pub(in crate::shard) struct ReturningAudiences {
    /// Its audiences.
    pub to: HashSet<ListenerAudience>,
    /// Whether these are all of its topics. If not, its process subscribed it to others, which are not recorded.
    pub has_all_topics: bool,
}

/// The replay for a returning client.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::shard) struct Replay {
    pub ranges: Vec<Range>,
    /// From the event behind this one on it is complete.
    pub from: u64,
    /// Whether something is missing before that, or may be.
    pub has_gap: bool,
    /// How many entries were looked at.
    pub looked_at: usize,
}

impl Journal {
    pub(crate) fn new(now_ms: u64) -> Self {
        let first = now_ms * COUNTS_PER_MS + 1;
        Self {
            next: first,
            lanes: Vec::new(),
            audiences_in: [0; LANES],
            entries: 0,
            audiences: HashMap::new(),
            waits: BTreeMap::new(),
            departed: Departed::default(),
            listeners: 0,
            // Earlier pushes are unknown.
            unsure_before: first - 1,
            alone_before: first - 1,
            newest_listed: first - 1,
            newest_of_topic: first - 1,
            name_bytes: 0,
            numbers: 0,
            charge: SharedCharge::default(),
            charged_bytes: 0,
        }
    }

    /// The count that the next event gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Where the next event is kept, if it is for this audience.
    pub(crate) fn keeper(&mut self, owner: OwnerId, audience: &ListenerAudience) -> KeptFor {
        match audience {
            ListenerAudience::Listed => KeptFor::of_channels(owner),
            audience => KeptFor::of_stream(owner, self.audience(audience).lane),
        }
    }

    /// The next event is this.
    pub(crate) fn record(&mut self, audience: ListenerAudience, range: Range, now_ms: u64) {
        let count = self.next;
        self.next += 1;
        match &audience {
            ListenerAudience::Listed => return self.newest_listed = count,
            ListenerAudience::Topic(_) => self.newest_of_topic = count,
            _ => {}
        }
        let is_unsure = audience.is_unsure();
        let known = self.audience(&audience);
        known.newest = count;
        if is_unsure {
            known.complete_after = count;
        }
        let lane = usize::from(known.lane);
        let range = Some(range).filter(|_| !is_unsure);
        if lane >= self.lanes.len() {
            self.lanes.resize_with(lane + 1, VecDeque::new);
        }
        // Each push brings its audience's name anew; one is kept.
        let audience = self.audiences.get_key_value(&audience).map_or(audience, |(known, _)| known.clone());
        self.lanes[lane].push_back(JournalEntry { count, audience, range, at_ms: now_ms });
        self.entries += 1;
        if self.entries > ENTRIES_MAX
            && let Some(fullest) = (0..self.lanes.len()).max_by_key(|&lane| self.lanes[lane].len())
        {
            self.forget_first(fullest);
        }
    }

    /// The state of an audience; complete from now on, if there was none.
    fn audience(&mut self, audience: &ListenerAudience) -> &mut JournalAudience {
        if !self.audiences.contains_key(audience) {
            let lane = (0..LANES).min_by_key(|&lane| self.audiences_in[lane]).unwrap_or_default();
            self.audiences_in[lane] += 1;
            self.name_bytes += audience.name_bytes();
            let complete_after = match audience {
                ListenerAudience::One { .. } => self.alone_before,
                _ => self.next - 1,
            };
            let (lane, newest) = (lane as u8, complete_after);
            let known = JournalAudience { lane, complete_after, newest, listeners: 0, left: None, departed: None };
            self.audiences.insert(audience.clone(), known);
        }
        self.audiences.get_mut(audience).expect("it has just been looked for")
    }

    /// Forgets an audience: a client that returns to it from an earlier time is told of a gap.
    fn forget(&mut self, audience: &ListenerAudience) {
        let Some(known) = self.audiences.remove(audience) else { return };
        self.audiences_in[usize::from(known.lane)] -= 1;
        self.name_bytes -= audience.name_bytes();
        if let Some(place) = known.departed {
            self.departed.remove(place);
        }
        if let Some(left) = known.left {
            self.waits.remove(&left.until);
        }
        if matches!(audience, ListenerAudience::One { .. }) {
            self.alone_before = self.alone_before.max(known.newest);
        } else {
            self.unsure_before = self.next;
            self.next += 1;
        }
    }

    fn forget_first(&mut self, lane: usize) {
        let Some(JournalEntry { count, audience, .. }) = self.lanes[lane].pop_front() else { return };
        self.entries -= 1;
        let Some(known) = self.audiences.get_mut(&audience) else { return };
        known.complete_after = known.complete_after.max(count);
        if matches!(audience, ListenerAudience::One { .. }) && known.newest == count {
            self.forget(&audience);
        }
    }

    /// A client listens, and is of these.
    pub(crate) fn enter(&mut self, audiences: impl IntoIterator<Item = ListenerAudience>) {
        self.listeners += 1;
        audiences.into_iter().for_each(|audience| self.join(&audience));
    }

    /// A client that listens is of this, too.
    pub(crate) fn join(&mut self, audience: &ListenerAudience) {
        let known = self.audience(audience);
        known.listeners += 1;
        if let Some(place) = known.departed.take() {
            self.departed.remove(place);
        }
    }

    /// A client that listened and was of these does no more: it is waited for until then.
    pub(crate) fn leave(
        &mut self,
        audiences: impl IntoIterator<Item = ListenerAudience>,
        by: DepartedClient,
        until_ms: u64,
    ) {
        self.listeners -= 1;
        for audience in audiences {
            self.part(audience, by, until_ms, None);
        }
    }

    /// A listener leaves this audience. Pushes to it are recorded until then, even without listeners.
    pub(crate) fn part(
        &mut self,
        audience: ListenerAudience,
        by: DepartedClient,
        until_ms: u64,
        claim: Option<TopicClaim>,
    ) {
        let until = (until_ms, self.numbers);
        self.numbers += 1;
        let known = self.audience(&audience);
        known.listeners = known.listeners.saturating_sub(1);
        let is_departed = known.listeners == 0;
        let before = known.left.replace(Departure { until, is_over: false, claim });
        let place = known.departed;
        self.waits.insert(until, audience.clone());
        if let Some(before) = before {
            self.waits.remove(&before.until);
        }
        if is_departed {
            let place = match place {
                Some(place) => self.departed.leave_again(place, by),
                None => self.departed.insert(by, audience.clone()),
            };
            self.audience(&audience).departed = Some(place);
            while let Some(audience) = self.departed.shed() {
                // Its place is given up already.
                self.audience(&audience).departed = None;
                self.forget(&audience);
            }
        }
    }

    /// A push to this audience was not recorded, or no listener is left here to whom one would come. Former listeners
    /// that are no longer waited for are told of a gap.
    pub(crate) fn skip(&mut self, audience: &ListenerAudience) {
        let Some(known) = self.audiences.get_mut(audience) else { return };
        if known.left.take_if(|left| left.is_over).is_none() {
            return;
        }
        if known.listeners == 0 {
            return self.forget(audience);
        }
        known.complete_after = self.next;
        self.next += 1;
    }

    /// Returns whether a listener that left, and may return, would have received this.
    pub(crate) fn awaits(&self, audience: &ListenerAudience, now_ms: u64) -> bool {
        let left = self.audiences.get(audience).and_then(|known| known.left.as_ref());
        left.is_some_and(|left| now_ms <= left.until.0)
    }

    /// The topic of this name, if it is waited for.
    pub(crate) fn topic(&self, name: &Arc<str>) -> Option<&Arc<Topic>> {
        let known = self.audiences.get(&ListenerAudience::Topic(name.clone()))?;
        Some(known.left.as_ref()?.claim.as_ref()?.topic())
    }

    /// Removes entries from before `before_ms` and those no longer kept, and departed listeners that have not returned.
    /// Returns whether the journal is no longer needed.
    pub(crate) fn trim(&mut self, before_ms: u64, now_ms: u64, kept: &KeptFrames) -> bool {
        for lane in 0..self.lanes.len() {
            while let Some(first) = self.lanes[lane].front()
                && (first.at_ms < before_ms || first.range.is_some_and(|range| !kept.has(range)))
            {
                self.forget_first(lane);
            }
            let lane = &mut self.lanes[lane];
            if lane.len() < lane.capacity() / 8 {
                lane.shrink_to(lane.len() * 2);
            }
        }
        if self.audiences.len() < self.audiences.capacity() / 8 {
            self.audiences.shrink_to(self.audiences.len() * 2);
        }
        while let Some(first) = self.waits.first_entry()
            && first.key().0 < now_ms
        {
            let audience = first.remove();
            self.wait_no_longer(&audience);
        }
        self.listeners == 0 && self.waits.is_empty()
    }

    fn wait_no_longer(&mut self, audience: &ListenerAudience) {
        let Some(left) = self.audiences.get_mut(audience).and_then(|known| known.left.as_mut()) else { return };
        left.is_over = true;
        if left.claim.take().is_some_and(|claim| claim.is_last()) {
            // Later publications do not come to this shard.
            self.skip(audience);
        }
    }

    /// The newest events, at most `bytes_max`, that a client which received event `last` has missed of the audiences it
    /// `belongs` to.
    pub(crate) fn since(&self, last: u64, bytes_max: usize, kept: &KeptFrames, belongs: &ReturningAudiences) -> Replay {
        let newest = self.next - 1;
        let nothing = |has_gap| Replay { ranges: Vec::new(), from: newest, has_gap, looked_at: 0 };
        let Some(mut from) = self.complete_from(last, belongs).filter(|_| last <= newest) else { return nothing(true) };
        let lanes: HashSet<usize> =
            belongs.to.iter().filter_map(|audience| Some(usize::from(self.audiences.get(audience)?.lane))).collect();
        let (mut missed, mut looked_at) = (Vec::new(), 0);
        for lane in lanes.into_iter().filter_map(|lane| self.lanes.get(lane)) {
            let behind = lane.iter().rev().take_while(|entry| entry.count > from).inspect(|_| looked_at += 1);
            missed.extend(behind.filter(|entry| belongs.to.contains(&entry.audience)));
        }
        missed.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.count));
        let (mut ranges, mut bytes) = (Vec::new(), 0);
        for entry in missed {
            let range = entry.range.filter(|&range| {
                bytes += range.len();
                bytes <= bytes_max && kept.has(range)
            });
            let Some(range) = range else {
                from = entry.count;
                break;
            };
            ranges.push(range);
        }
        ranges.reverse();
        Replay { ranges, from, has_gap: from > last, looked_at }
    }

    /// From which count on, `last` or later, whatever was pushed to such a client has an entry. None: from now on.
    fn complete_from(&self, last: u64, belongs: &ReturningAudiences) -> Option<u64> {
        let mut from = last.max(self.newest_listed);
        if !belongs.has_all_topics {
            from = from.max(self.newest_of_topic);
        }
        let mut is_unsure = !belongs.has_all_topics && last < self.unsure_before;
        for audience in &belongs.to {
            match (self.audiences.get(audience), audience) {
                (Some(known), _) => from = from.max(known.complete_after),
                (None, ListenerAudience::One { .. }) => from = from.max(self.alone_before),
                // It did not listen to it when it was sent that event, or that is forgotten.
                (None, _) => is_unsure = true,
            }
        }
        (!is_unsure).then_some(from)
    }

    /// Counts what it takes of the heap now: `charge` makes the claim of so many bytes.
    pub(crate) fn count(&mut self, charge: impl FnOnce(usize) -> SharedCharge) {
        let table = |capacity: usize, size: usize| capacity * 8 / 7 * (size + 1);
        let entries: usize = self.lanes.iter().map(VecDeque::capacity).sum();
        let bytes = size_of::<Self>()
            + self.lanes.capacity() * size_of::<VecDeque<JournalEntry>>()
            + entries * size_of::<JournalEntry>()
            + table(self.audiences.capacity(), size_of::<(ListenerAudience, JournalAudience)>())
            + self.waits.len() * size_of::<((u64, u64), ListenerAudience)>() * 3 / 2
            + self.departed.heap_bytes()
            + self.name_bytes;
        if bytes != self.charged_bytes {
            (self.charge, self.charged_bytes) = (charge(bytes), bytes);
        }
    }

    /// Asserts what the module promises.
    pub(crate) fn check(&self) {
        assert_eq!(self.entries, self.lanes.iter().map(VecDeque::len).sum::<usize>());
        assert_eq!(self.audiences.len(), self.audiences_in.iter().sum::<usize>(), "each is in a lane");
        assert!(self.entries <= ENTRIES_MAX && self.departed.len() <= AUDIENCES_MAX);
        let departed = self.audiences.values().filter(|known| known.departed.is_some());
        assert_eq!(departed.count(), self.departed.len(), "departed audiences are listed");
    }
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
