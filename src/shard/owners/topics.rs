//! The topics of a process that have subscribers, and the shards on which: shared by all shards and publishing threads.
//!
//! The thread that subscribes a channel counts it here at once ([`Topics::claim`]), before the shard is told, and the
//! shard subtracts it when the channel leaves. So a later publish finds the shard on the list, and shards without
//! subscribers are neither told nor woken. A shard does the same for the topics of a client's token
//! ([`Topics::try_claim`]). A publish looks its topic up here, where names are compared, not hashed; the shards find
//! theirs by its number.
//!
//! Invariants: a topic is listed as long as its count is not zero; it is taken off the list under the lock under which
//! new subscribers are counted. A shard never waits for that lock: a topic that it cannot take off at once is removed
//! by later holders of the lock, each of which looks at a few. A topic is charged to its process.

use crate::admission::{Charge, HeapBytes, HeldAs, ProcessCount, ProcessMemory};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicIsize, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The memory of a topic in the list beside itself: its place in a node that is two thirds full.
const LISTED_BYTES: usize = (size_of::<Arc<str>>() + size_of::<Arc<Topic>>()) * 3 / 2;

/// So many topics are looked at by whoever takes the lock, as long as any is empty: a round over all of them is over
/// before there are an eighth more.
const SWEPT_AT_ONCE: usize = 8;

/// How often a shard tries to take the lock: its holders look names up, which is over in as long. A listing takes more.
const TRIES: usize = 16;

/// No place: a topic without subscribers on a shard.
const NOWHERE: u32 = u32::MAX;

/// The topics of one process. See the module.
#[derive(Debug, Default)]
pub struct Topics {
    listed: RwLock<ListedTopics>,
    /// Listed topics whose count is zero; for a moment one less.
    empty: AtomicIsize,
    /// Subscriptions of the process' channels, as they are limited.
    subscriptions: ProcessCount,
}

#[derive(Debug, Default)]
struct ListedTopics {
    named: BTreeMap<Arc<str>, Arc<Topic>>,
    /// Where the sweep goes on: behind this name.
    swept: Option<Arc<str>>,
}

impl ListedTopics {
    /// Takes the next empty topics off the list, and looks at a few for that. Returns how many they were.
    fn sweep(&mut self) -> usize {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.named.range::<Arc<str>, _>((from, Bound::Unbounded)).take(SWEPT_AT_ONCE);
        let next: SmallVec<[Arc<Topic>; SWEPT_AT_ONCE]> = next.map(|(_, topic)| topic.clone()).collect();
        // Behind the last one it begins anew.
        self.swept = next.last().filter(|_| next.len() == SWEPT_AT_ONCE).map(|topic| topic.name.clone());
        let empty = next.iter().filter(|topic| topic.subscribers() == 0);
        empty.inspect(|topic| drop(self.named.remove(&topic.name))).count()
    }
}

/// A topic that a channel is, or is about to be, subscribed to.
#[derive(Debug)]
pub struct Topic {
    name: Arc<str>,
    /// Counted on all shards together.
    total: AtomicUsize,
    shards: Box<[TopicOnShard]>,
    _charge: Charge,
}

/// A topic as one shard has it.
#[derive(Debug)]
struct TopicOnShard {
    /// Subscribers, and channels that are about to be.
    count: AtomicU32,
    /// Its place among the topics of that shard, which alone writes and reads it.
    place: AtomicU32,
}

/// A channel's place in the count of a topic, until the shard has taken it over: dropping it gives it back.
#[derive(Debug)]
pub struct TopicClaim {
    topics: Arc<Topics>,
    /// None: it has been taken over.
    topic: Option<Arc<Topic>>,
    shard: u32,
}

/// A topic at one moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TopicReport {
    /// Its name.
    pub topic: Arc<str>,
    /// Channels that are subscribed to it.
    pub subscribers: usize,
}

impl Topics {
    /// Counts a channel of `shard`, one of `shards`, into a topic, which is made if need be and charged to `memory`.
    /// None: the memory budget has no room for it.
    pub fn claim(
        self: &Arc<Self>,
        name: &Arc<str>,
        shard: u32,
        shards: usize,
        memory: &ProcessMemory,
    ) -> Option<TopicClaim> {
        let read = || Some(self.listed());
        let write = || Some(self.listed.write().unwrap_or_else(PoisonError::into_inner));
        self.claim_under((read, write), name, (shard, shards), memory)
    }

    /// The same for a shard, which does not wait for the lock. None: it is taken, too.
    pub fn try_claim(
        self: &Arc<Self>,
        name: &Arc<str>,
        shard: u32,
        shards: usize,
        memory: &ProcessMemory,
    ) -> Option<TopicClaim> {
        let read = || attempt(|| self.listed.try_read().ok());
        let write = || attempt(|| self.listed.try_write().ok());
        self.claim_under((read, write), name, (shard, shards), memory)
    }

    fn claim_under<'a>(
        self: &'a Arc<Self>,
        (read, write): (
            impl FnOnce() -> Option<RwLockReadGuard<'a, ListedTopics>>,
            impl FnOnce() -> Option<RwLockWriteGuard<'a, ListedTopics>>,
        ),
        name: &Arc<str>,
        (shard, shards): (u32, usize),
        memory: &ProcessMemory,
    ) -> Option<TopicClaim> {
        // The lock is not held where the topic is to be made.
        let entered = read().map(|listed| self.enter(&listed, name, shard))?;
        let topic = match entered {
            Some(topic) => topic,
            None => {
                let charge = memory.charge(HeldAs::Topics, Topic::held_bytes(name, shards)).ok()?;
                write().map(|mut listed| self.enter_or_make(&mut listed, name, (shard, shards), charge))?
            }
        };
        Some(TopicClaim { topics: self.clone(), topic: Some(topic), shard })
    }

    /// Counts a channel into a topic that is listed.
    fn enter(&self, listed: &ListedTopics, name: &str, shard: u32) -> Option<Arc<Topic>> {
        let topic = listed.named.get(name)?;
        self.count_in(topic, shard);
        Some(topic.clone())
    }

    /// Counts a channel into a topic that is listed already.
    fn count_in(&self, topic: &Topic, shard: u32) {
        if topic.count_up(shard) == 0 {
            self.empty.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a channel into a topic that was not listed a moment ago.
    fn enter_or_make(
        &self,
        listed: &mut ListedTopics,
        name: &Arc<str>,
        (shard, shards): (u32, usize),
        charge: Charge,
    ) -> Arc<Topic> {
        self.sweep(listed);
        if let Some(topic) = self.enter(listed, name, shard) {
            // Another thread has made it meanwhile.
            return topic;
        }
        let topic = Arc::new(Topic::new(name.clone(), shards, charge));
        topic.count_up(shard);
        listed.named.insert(name.clone(), topic.clone());
        topic
    }

    /// Takes a few topics off the list that could not be when they became empty.
    fn sweep(&self, listed: &mut ListedTopics) {
        if self.empty.load(Ordering::Relaxed) > 0 {
            self.empty.fetch_sub(listed.sweep() as isize, Ordering::Relaxed);
        }
    }

    fn listed(&self) -> RwLockReadGuard<'_, ListedTopics> {
        // No panic leaves it half changed.
        self.listed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic of this name, if it has subscribers.
    pub fn find(&self, name: &str) -> Option<Arc<Topic>> {
        self.listed().named.get(name).filter(|topic| topic.subscribers() > 0).cloned()
    }

    /// At most `limit` topics whose names begin with `prefix` and stand behind `after`, by name.
    pub fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<TopicReport> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let listed = self.listed();
        let named = listed.named.range::<str, _>((from, Bound::Unbounded));
        let named = named.take_while(|(name, _)| name.starts_with(prefix));
        let reports = named.map(|(name, topic)| TopicReport { topic: name.clone(), subscribers: topic.subscribers() });
        reports.filter(|report| report.subscribers > 0).take(limit).collect()
    }

    /// How many topics there are.
    pub fn count(&self) -> usize {
        self.listed().named.len().saturating_sub(self.empty.load(Ordering::Relaxed).max(0) as usize)
    }

    /// The subscriptions of the process' channels, to be counted against the limit of all.
    pub fn subscriptions(&self) -> &ProcessCount {
        &self.subscriptions
    }

    /// Counts one more into a topic that has a subscriber on the shard, so it is listed: without a lock.
    pub fn hold(self: &Arc<Self>, topic: &Arc<Topic>, shard: u32) -> TopicClaim {
        self.count_in(topic, shard);
        TopicClaim { topics: self.clone(), topic: Some(topic.clone()), shard }
    }

    /// Counts a channel of a shard out of a topic.
    pub(super) fn leave(&self, topic: &Arc<Topic>, shard: u32) {
        topic.on(shard).count.fetch_sub(1, Ordering::Relaxed);
        // Acquire and release: the thread that sees no subscriber left sees all that those have done.
        if topic.total.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        self.empty.fetch_add(1, Ordering::Relaxed);
        let Ok(mut listed) = self.listed.try_write() else { return };
        // Under the lock no subscriber is counted in.
        let is_listed = listed.named.get(&topic.name).is_some_and(|listed| Arc::ptr_eq(listed, topic));
        if is_listed && topic.subscribers() == 0 {
            listed.named.remove(&topic.name);
            self.empty.fetch_sub(1, Ordering::Relaxed);
        }
        self.sweep(&mut listed);
    }
}

fn attempt<T>(mut lock: impl FnMut() -> Option<T>) -> Option<T> {
    (0..TRIES).find_map(|_| {
        std::hint::spin_loop();
        lock()
    })
}

impl Topic {
    fn new(name: Arc<str>, shards: usize, charge: Charge) -> Self {
        let shard = || TopicOnShard { count: AtomicU32::new(0), place: AtomicU32::new(NOWHERE) };
        let shards = (0..shards).map(|_| shard()).collect();
        Self { name, total: AtomicUsize::new(0), shards, _charge: charge }
    }

    /// The heap bytes of a listed topic.
    fn held_bytes(name: &Arc<str>, shards: usize) -> usize {
        2 * size_of::<usize>()
            + size_of::<Self>()
            + name.heap_bytes()
            + shards * size_of::<TopicOnShard>()
            + LISTED_BYTES
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Channels that are subscribed to it, or about to be, on all shards.
    pub fn subscribers(&self) -> usize {
        self.total.load(Ordering::Acquire)
    }

    /// The shards on which there are any.
    pub fn shards(&self) -> impl Iterator<Item = usize> {
        let counts = self.shards.iter().map(|shard| shard.count.load(Ordering::Relaxed));
        counts.enumerate().filter(|(_, count)| *count > 0).map(|(shard, _)| shard)
    }

    fn on(&self, shard: u32) -> &TopicOnShard {
        &self.shards[shard as usize]
    }

    /// Returns how many there were before, on all shards.
    fn count_up(&self, shard: u32) -> usize {
        self.on(shard).count.fetch_add(1, Ordering::Relaxed);
        self.total.fetch_add(1, Ordering::AcqRel)
    }

    /// Its place among the topics of `shard`, asked on that shard's thread.
    pub(super) fn place(&self, shard: u32) -> Option<u32> {
        Some(self.on(shard).place.load(Ordering::Relaxed)).filter(|&place| place != NOWHERE)
    }

    /// Notes its place among the topics of `shard`, on that shard's thread.
    pub(super) fn set_place(&self, shard: u32, place: Option<u32>) {
        self.on(shard).place.store(place.unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    /// How many are counted on `shard`.
    pub(in crate::shard) fn counted(&self, shard: u32) -> usize {
        self.on(shard).count.load(Ordering::Relaxed) as usize
    }
}

impl TopicClaim {
    /// The topic.
    pub fn topic(&self) -> &Arc<Topic> {
        self.topic.as_ref().expect("it is there until it is taken over")
    }

    /// Returns whether it is the only one counted on its shard.
    pub fn is_last(&self) -> bool {
        self.topic().counted(self.shard) == 1
    }

    /// The shard counts the channel from now on, and out when it leaves.
    pub(super) fn take_over(mut self) -> Arc<Topic> {
        self.topic.take().expect("it is taken over once")
    }
}

impl Drop for TopicClaim {
    fn drop(&mut self) {
        if let Some(topic) = self.topic.take() {
            self.topics.leave(&topic, self.shard);
        }
    }
}

#[cfg(test)]
#[path = "topics_tests.rs"]
mod tests;
