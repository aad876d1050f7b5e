//! What a process has pushed to clients of event streams, in order, for a client that returns and names the event that
//! it received last. There is one journal for each process on each shard that has listeners, or had them a while ago.
//!
//! Each entry has its audience: a returning client is given what its own login, path and topics entitle it to, and
//! nothing else; where that cannot be determined, a gap is reported to it. The bytes are [kept](super::kept), once.
//!
//! Invariants: counts go up by one for each entry and are never reused within a run of the broker; an audience that a
//! listener has left is recorded for as long as history reaches, and the first push to it that nobody hears after that
//! begins a hole; so a push that a returning client would have received has an entry, or the client is from before a
//! hole and a gap is reported to it. It must not depend on connections.

use super::kept::KeptFrames;
use super::range::Range;
use crate::shard::memory::SharedCharge;
use crate::shard::owners::topics::{Topic, TopicClaim};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Entries at a time.
const ENTRIES_MAX: usize = 16_384;

/// Audiences that are waited for at a time, after the last who listened has left.
const LEFT_MAX: usize = 4_096;

/// A journal that begins later counts from beyond where one before it can have ended.
const COUNTS_PER_MS: u64 = 1_000;

/// Whom a push was for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::shard) enum ListenerAudience {
    /// All channels of the process.
    Process,
    /// Those of one path.
    Path(Arc<str>),
    /// Those that are subscribed to a topic.
    Topic(Arc<str>),
    /// One channel, by whose it was.
    One {
        /// The path on which it was opened.
        path: Arc<str>,
        /// Who was logged in.
        user: Option<Arc<str>>,
    },
    /// A list of channels.
    Listed,
}

impl ListenerAudience {
    /// What an entry keeps for it alone: a path that a client has asked for, and who was logged in.
    fn name_bytes(&self) -> usize {
        match self {
            Self::One { path, user } => path.len() + user.as_ref().map_or(0, |user| user.len()),
            Self::Process | Self::Path(_) | Self::Topic(_) | Self::Listed => 0,
        }
    }
}

/// What an audience is to whoever comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Standing {
    /// It is of it.
    Of,
    /// It is not.
    Foreign,
    /// Unknown.
    Unsure,
}

struct JournalEntry {
    audience: ListenerAudience,
    /// `None`: it was not recorded.
    range: Option<Range>,
    at_ms: u64,
}

/// An audience that a listener has left.
struct DepartedAudience {
    /// Until when it is waited for.
    until_ms: u64,
    /// Keeps a topic's messages coming to this shard.
    claim: Option<TopicClaim>,
}

impl DepartedAudience {
    /// What is kept for it alone: a path whose binding may be gone. A topic is charged as such.
    fn name_bytes(audience: &ListenerAudience) -> usize {
        if let ListenerAudience::Path(path) = audience { path.len() } else { audience.name_bytes() }
    }
}

/// What was pushed to an audience and not recorded.
struct Hole {
    /// The count of the first of it: who heard this event or a later one has come since.
    begin: u64,
    /// From this count on everything is recorded again.
    end: Option<u64>,
}

/// See the module.
pub(in crate::shard) struct Journal {
    entries: VecDeque<JournalEntry>,
    /// The count of the first of them, or of the next one.
    first: u64,
    listeners: usize,
    /// Audiences that a listener has left.
    left: HashMap<ListenerAudience, DepartedAudience>,
    /// Those of them that are not waited for any more, as long as nothing was pushed to them that nobody heard.
    lapsed: HashSet<ListenerAudience>,
    /// Audiences to which something was pushed that was not recorded.
    holes: HashMap<ListenerAudience, Hole>,
    /// To who heard no event since this one, nothing can be told but that there is a gap.
    unsure_before: u64,
    /// What the paths and users of its entries take.
    name_bytes: usize,
    charge: SharedCharge,
    charged_bytes: usize,
}

/// What a returning client is given.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::shard) struct Replay {
    pub ranges: Vec<Range>,
    /// From the event behind this one on it is complete.
    pub from: u64,
    /// Whether something is missing before that, or may be.
    pub has_gap: bool,
}

impl Journal {
    pub(crate) fn new(now_ms: u64) -> Self {
        Self {
            entries: VecDeque::new(),
            first: now_ms * COUNTS_PER_MS + 1,
            listeners: 0,
            left: HashMap::new(),
            lapsed: HashSet::new(),
            holes: HashMap::new(),
            // What was pushed before, nobody knows.
            unsure_before: now_ms * COUNTS_PER_MS,
            name_bytes: 0,
            charge: SharedCharge::default(),
            charged_bytes: 0,
        }
    }

    /// The count that the next event gets.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The next event is this.
    pub(crate) fn record(&mut self, audience: ListenerAudience, range: Range, now_ms: u64) {
        let count = self.next();
        if let Some(hole) = self.holes.get_mut(&audience) {
            hole.end.get_or_insert(count);
        }
        self.append(JournalEntry { audience, range: Some(range), at_ms: now_ms });
    }

    fn append(&mut self, entry: JournalEntry) {
        self.name_bytes += entry.audience.name_bytes();
        self.entries.push_back(entry);
        if self.entries.len() > ENTRIES_MAX {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.name_bytes -= entry.audience.name_bytes();
        self.first += 1;
    }

    /// A client listens.
    pub(crate) fn enter(&mut self) {
        self.listeners += 1;
    }

    /// Somebody who was of these does no more: they are waited for until then.
    pub(crate) fn leave(&mut self, audiences: impl IntoIterator<Item = ListenerAudience>, until_ms: u64) {
        self.listeners -= 1;
        for audience in audiences {
            self.wait_for(audience, until_ms, None);
        }
    }

    /// Pushes to an audience are recorded, though it has no listener.
    pub(crate) fn wait_for(&mut self, audience: ListenerAudience, until_ms: u64, claim: Option<TopicClaim>) {
        if self.left.len() < LEFT_MAX || self.left.contains_key(&audience) {
            self.left.insert(audience, DepartedAudience { until_ms, claim });
        } else {
            self.forget_all();
        }
    }

    /// Whoever comes back from before now is told that something may be missing.
    fn forget_all(&mut self) {
        self.first = self.next() + 1;
        self.unsure_before = self.first - 1;
        self.entries.clear();
        self.lapsed.clear();
        self.holes.clear();
        self.name_bytes = 0;
    }

    /// Nobody has heard a push to this audience, or nobody is left here to whom one would come. Whoever was of it and
    /// is not waited for any more is told of a gap.
    pub(crate) fn skip(&mut self, audience: &ListenerAudience, now_ms: u64) {
        let Some(audience) = self.lapsed.take(audience) else { return };
        if self.holes.len() == LEFT_MAX {
            return self.forget_all();
        }
        self.holes.insert(audience.clone(), Hole { begin: self.next(), end: None });
        self.append(JournalEntry { audience, range: None, at_ms: now_ms });
    }

    fn lapse(&mut self, audience: ListenerAudience, claim: Option<TopicClaim>, now_ms: u64) {
        if self.lapsed.len() == LEFT_MAX {
            return self.forget_all();
        }
        self.lapsed.insert(audience.clone());
        if claim.is_some_and(|claim| claim.is_last()) {
            // What is published from now on does not come to this shard.
            self.skip(&audience, now_ms);
        }
    }

    /// Returns whether a listener that left, and may return, would have received this.
    pub(crate) fn awaits(&self, audience: &ListenerAudience, now_ms: u64) -> bool {
        self.left.get(audience).is_some_and(|left| now_ms <= left.until_ms)
    }

    /// The topic of this name, if it is waited for.
    pub(crate) fn topic(&self, name: &Arc<str>) -> Option<&Arc<Topic>> {
        Some(self.left.get(&ListenerAudience::Topic(name.clone()))?.claim.as_ref()?.topic())
    }

    /// Lets go of what came before `before_ms`, or is not kept any more, and of those who have not come back. Returns
    /// whether nobody needs it any more.
    pub(crate) fn trim(&mut self, before_ms: u64, now_ms: u64, kept: &KeptFrames) -> bool {
        while let Some(first) = self.entries.front()
            && (first.at_ms < before_ms || first.range.is_some_and(|range| !kept.has(range)))
        {
            self.forget_first();
        }
        let mut lapsed = Vec::new();
        self.left.retain(|audience, left| {
            let is_awaited = now_ms <= left.until_ms;
            if !is_awaited {
                lapsed.push((audience.clone(), left.claim.take()));
            }
            is_awaited
        });
        for (audience, claim) in lapsed {
            self.lapse(audience, claim, now_ms);
        }
        // Who comes from before one that has ended is told of a gap by the counts alone.
        self.holes.retain(|_, hole| hole.end.is_none_or(|end| end >= self.first));
        self.listeners == 0 && self.left.is_empty()
    }

    /// What whoever heard event `last` has missed of that `standing` entitles it to: the newest, at most `bytes_max`.
    pub(crate) fn since(
        &self,
        last: u64,
        bytes_max: usize,
        kept: &KeptFrames,
        standing: impl Fn(&ListenerAudience) -> Standing,
    ) -> Replay {
        let newest = self.next() - 1;
        let is_before =
            |(audience, hole): (&ListenerAudience, &Hole)| last < hole.begin && standing(audience) != Standing::Foreign;
        if last > newest || last < self.unsure_before || self.holes.iter().any(is_before) {
            return Replay { ranges: Vec::new(), from: newest, has_gap: true };
        }
        let mut has_gap = last + 1 < self.first;
        let (mut ranges, mut bytes, mut from) = (Vec::new(), 0, last);
        let missed = newest.saturating_sub(last.max(self.first - 1)) as usize;
        for (behind, entry) in self.entries.iter().rev().take(missed).enumerate() {
            let range = match standing(&entry.audience) {
                Standing::Foreign => continue,
                Standing::Unsure => None,
                Standing::Of => entry.range.filter(|&range| {
                    bytes += range.len();
                    bytes <= bytes_max && kept.has(range)
                }),
            };
            let Some(range) = range else {
                has_gap = true;
                from = newest - behind as u64;
                break;
            };
            ranges.push(range);
        }
        if has_gap && from == last {
            from = self.first - 1;
        }
        ranges.reverse();
        Replay { ranges, from, has_gap }
    }

    /// Counts what it takes of the heap now: `charge` makes the claim of so many bytes.
    pub(crate) fn count(&mut self, charge: impl FnOnce(usize) -> SharedCharge) {
        let audiences = self.left.keys().chain(&self.lapsed).chain(self.holes.keys());
        let names: usize = audiences.map(DepartedAudience::name_bytes).sum();
        let left_bytes = self.left.capacity() * size_of::<(ListenerAudience, DepartedAudience)>()
            + self.lapsed.capacity() * size_of::<ListenerAudience>()
            + self.holes.capacity() * size_of::<(ListenerAudience, Hole)>()
            + names;
        let entry_bytes = self.entries.capacity() * size_of::<JournalEntry>();
        let bytes = size_of::<Self>() + entry_bytes + left_bytes + self.name_bytes;
        if bytes != self.charged_bytes {
            (self.charge, self.charged_bytes) = (charge(bytes), bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::OwnerId;

    const OWNER: OwnerId = OwnerId(1);

    fn path(path: &str) -> ListenerAudience {
        ListenerAudience::Path(path.into())
    }

    fn event(kept: &mut KeptFrames, journal: &mut Journal, audience: ListenerAudience, now_ms: u64) -> Range {
        let range = kept.append_joined(OWNER, now_ms, [b"id: x\n\n", b"", b""], |_| SharedCharge::default());
        journal.record(audience, range, now_ms);
        range
    }

    fn of_a(audience: &ListenerAudience) -> Standing {
        match audience {
            ListenerAudience::Path(path) if &**path == "/a" => Standing::Of,
            ListenerAudience::Listed => Standing::Unsure,
            _ => Standing::Foreign,
        }
    }

    #[test]
    fn who_comes_back_hears_its_own_and_no_more() {
        let (mut kept, mut journal) = (KeptFrames::default(), Journal::new(5));
        let last = journal.next() - 1;
        let first = event(&mut kept, &mut journal, path("/a"), 5);
        event(&mut kept, &mut journal, path("/b"), 5);
        let third = event(&mut kept, &mut journal, path("/a"), 5);
        let replay = |journal: &Journal, kept: &KeptFrames, last| journal.since(last, 1 << 20, kept, of_a);
        assert_eq!(replay(&journal, &kept, last), Replay { ranges: vec![first, third], from: last, has_gap: false });
        assert_eq!(replay(&journal, &kept, last + 1).ranges, [third]);
        assert_eq!(replay(&journal, &kept, last + 3), Replay { ranges: vec![], from: last + 3, has_gap: false });
        assert!(replay(&journal, &kept, last + 4).has_gap, "it names what was not sent yet");
        assert!(replay(&journal, &kept, last - 1).has_gap, "or what was before");
        event(&mut kept, &mut journal, ListenerAudience::Listed, 5);
        let fifth = event(&mut kept, &mut journal, path("/a"), 5);
        assert_eq!(replay(&journal, &kept, last), Replay { ranges: vec![fifth], from: last + 4, has_gap: true });
        assert_eq!(journal.since(last + 4, 3, &kept, of_a), Replay { ranges: vec![], from: last + 5, has_gap: true });
    }

    #[test]
    fn history_ends_and_so_does_a_journal() {
        let (mut kept, mut journal) = (KeptFrames::default(), Journal::new(0));
        journal.enter();
        let last = journal.next() - 1;
        event(&mut kept, &mut journal, path("/a"), 10);
        let second = event(&mut kept, &mut journal, path("/a"), 20);
        assert!(!journal.trim(15, 20, &kept));
        assert_eq!(
            journal.since(last, 1 << 20, &kept, of_a),
            Replay { ranges: vec![second], from: last + 1, has_gap: true }
        );
        journal.leave([path("/a")], 50);
        assert!(journal.awaits(&path("/a"), 50) && !journal.awaits(&path("/b"), 50));
        assert!(!journal.trim(15, 50, &kept) && journal.trim(60, 51, &kept));
        assert!(Journal::new(51).next() > journal.next(), "counts are not used again");
    }

    #[test]
    fn who_is_not_waited_for_any_more_is_told_of_a_gap_once_something_was_pushed() {
        let (mut kept, mut journal) = (KeptFrames::default(), Journal::new(0));
        journal.enter();
        journal.enter();
        let last = journal.next() - 1;
        journal.leave([path("/a"), path("/b")], 50);
        assert!(!journal.trim(0, 51, &kept));
        let replay = |journal: &Journal, kept: &KeptFrames, last| journal.since(last, 1 << 20, kept, of_a);
        assert!(!replay(&journal, &kept, last).has_gap, "nothing was pushed yet");
        for _ in 0..3 {
            journal.skip(&path("/b"), 51);
        }
        assert!(!replay(&journal, &kept, last).has_gap, "what was pushed was not for it");
        journal.skip(&path("/a"), 51);
        event(&mut kept, &mut journal, path("/b"), 52);
        journal.skip(&path("/a"), 52);
        assert_eq!(replay(&journal, &kept, last), Replay { ranges: vec![], from: last + 3, has_gap: true });
        // Who came later has missed nothing.
        let behind = event(&mut kept, &mut journal, path("/a"), 53);
        assert_eq!(replay(&journal, &kept, last + 3).ranges, [behind]);
        assert!(replay(&journal, &kept, last).has_gap && !replay(&journal, &kept, last + 3).has_gap);
        // A hole that has ended is forgotten when counts say as much.
        assert!(!journal.trim(53, 53, &kept) && journal.holes.contains_key(&path("/a")));
        assert!(!journal.trim(54, 54, &kept) && !journal.holes.contains_key(&path("/a")));
        assert!(replay(&journal, &kept, last).has_gap && !replay(&journal, &kept, last + 4).has_gap);
    }

    #[test]
    fn who_cannot_be_waited_for_is_told_of_a_gap() {
        let (mut kept, mut journal) = (KeptFrames::default(), Journal::new(0));
        let last = journal.next() - 1;
        for number in 0..LEFT_MAX {
            journal.wait_for(path(&number.to_string()), 50, None);
        }
        assert!(!journal.since(last, 1 << 20, &kept, of_a).has_gap);
        for _ in 0..3 {
            event(&mut kept, &mut journal, path("/a"), 5);
        }
        let heard = journal.next() - 1;
        journal.wait_for(path("one more"), 50, None);
        assert!(journal.since(last, 1 << 20, &kept, of_a).has_gap);
        assert!(
            journal.since(heard, 1 << 20, &kept, of_a).has_gap && journal.next() > heard + 1,
            "no count comes twice"
        );
    }
}
