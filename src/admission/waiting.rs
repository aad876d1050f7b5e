//! Channels without a connection that count as one: those that wait for their clients to resume, of all shards, in the
//! order in which they began to wait.
//!
//! When a limit is reached, the first channel concerned is given up, whichever shard has it: the shard that needs its
//! place uncounts it at once, and the channel's own shard is told.
//!
//! Invariants: a waiting channel has one entry, and is counted as long as it has it: the thread that takes the entry
//! out uncounts the channel, or takes over its count. It must not know the channel, except by a number that its shard
//! gave it.

use super::counter::ProcessCount;
use super::prefix::Prefix;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whose place is needed.
#[derive(Debug, Clone, Copy)]
pub enum EvictFrom<'a> {
    /// Any client's.
    Anyone,
    /// One of this client.
    Client(Prefix),
    /// One of this process.
    Process(&'a Arc<ProcessCount>),
}

/// A channel that was given up, and is no longer counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictedChannel {
    /// The number that its shard gave it.
    pub id: u32,
    /// Of its entry: a channel that waits again has another.
    pub entry: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<WaitingEntries>);

#[derive(Debug, Default)]
struct WaitingEntries {
    count: u64,
    by_age: BTreeMap<u64, WaitingEntry>,
    by_client: BTreeSet<(Prefix, u64)>,
    /// Processes are told by where their counts are, which an entry keeps alive.
    by_process: BTreeSet<(usize, u64)>,
}

#[derive(Debug)]
pub(super) struct WaitingEntry {
    pub id: u32,
    pub client: Option<Prefix>,
    pub process: Arc<ProcessCount>,
}

impl Waiting {
    /// Begins to wait. Returns the number of the entry.
    pub(super) fn enter(&self, entry: WaitingEntry) -> u64 {
        let mut entries = self.entries();
        entries.count += 1;
        let number = entries.count;
        if let Some(client) = entry.client {
            entries.by_client.insert((client, number));
        }
        entries.by_process.insert((place_of(&entry.process), number));
        entries.by_age.insert(number, entry);
        number
    }

    /// Waits no more. None: it has been let go of.
    pub(super) fn leave(&self, number: u64) -> Option<WaitingEntry> {
        self.entries().remove(number)
    }

    /// The first whose place is of use, which waits no more.
    pub(super) fn take(&self, whose: EvictFrom<'_>) -> Option<(u64, WaitingEntry)> {
        let mut entries = self.entries();
        let number = match whose {
            EvictFrom::Anyone => *entries.by_age.first_key_value()?.0,
            EvictFrom::Client(client) => entries.by_client.range((client, 0)..=(client, u64::MAX)).next()?.1,
            EvictFrom::Process(process) => {
                let place = place_of(process);
                entries.by_process.range((place, 0)..=(place, u64::MAX)).next()?.1
            }
        };
        entries.remove(number).map(|entry| (number, entry))
    }

    fn entries(&self) -> MutexGuard<'_, WaitingEntries> {
        // A panic leaves at worst an entry in one of the two maps; the broker ends anyway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WaitingEntries {
    fn remove(&mut self, number: u64) -> Option<WaitingEntry> {
        let entry = self.by_age.remove(&number)?;
        if let Some(client) = entry.client {
            self.by_client.remove(&(client, number));
        }
        self.by_process.remove(&(place_of(&entry.process), number));
        Some(entry)
    }
}

fn place_of(process: &Arc<ProcessCount>) -> usize {
    Arc::as_ptr(process).addr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn client(n: u8) -> Prefix {
        IpAddr::from([10, 0, 0, n]).into()
    }

    proptest! {
        /// As a plain list in the order of coming.
        #[test]
        fn the_first_of_those_concerned_goes_first(steps in prop::collection::vec((0u8..5, 0u8..3, 0u8..3), 1..200)) {
            let processes: Vec<Arc<ProcessCount>> = (0..3).map(|_| Arc::default()).collect();
            let (waiting, mut twin) = (Waiting::default(), Vec::<(u64, u32, u8, u8)>::new());
            for (id, (step, of, process)) in steps.into_iter().enumerate() {
                let shared = &processes[usize::from(process)];
                let (whose, at) = match step {
                    0 | 1 => {
                        let id = id as u32;
                        let entry = WaitingEntry { id, client: Some(client(of)), process: shared.clone() };
                        twin.push((waiting.enter(entry), id, of, process));
                        continue;
                    }
                    2 => (EvictFrom::Anyone, (!twin.is_empty()).then_some(0)),
                    3 => (EvictFrom::Client(client(of)), twin.iter().position(|entry| entry.2 == of)),
                    _ => (EvictFrom::Process(shared), twin.iter().position(|entry| entry.3 == process)),
                };
                let expected = at.map(|at| twin.remove(at));
                let taken = waiting.take(whose).map(|(number, entry)| (number, entry.id));
                prop_assert_eq!(taken, expected.map(|entry| (entry.0, entry.1)));
                prop_assert!(taken.is_none_or(|(number, _)| waiting.leave(number).is_none()));
            }
            for (number, id, ..) in twin {
                prop_assert_eq!(waiting.leave(number).map(|entry| entry.id), Some(id));
            }
            let entries = waiting.entries();
            prop_assert!(entries.by_age.is_empty() && entries.by_client.is_empty() && entries.by_process.is_empty());
        }
    }
}
