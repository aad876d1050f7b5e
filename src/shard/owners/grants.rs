//! Guests: addresses on other nodes that a channel's owner allows to push to it.
//!
//! Invariants: a grant is given by the owner of the channel and ends with the channel, or is given for all channels of
//! an owner and stands in the directory; there are at most [`PER_CHANNEL_MAX`] of the one and [`PER_OWNER_MAX`] of the
//! other, each charged to the owner. A guest may push and nothing else, and a channel without a grant for it does not
//! exist for it. Owners pay nothing for this: only guests are looked up, at the same cost however many there are.

use crate::admission::{Charge, HeldAs, ProcessMemory};
use crate::channel::ChannelId;
use rpds::HashTrieMapSync;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// The most guests of one channel: a channel is one client, whose guests are the nodes that it deals with at a time.
pub const PER_CHANNEL_MAX: usize = 64;

/// The most guests of all channels of one owner: the nodes that an app deals with.
pub const PER_OWNER_MAX: usize = 1024;

/// The memory of a guest beside its name: its place in a map, and its charge.
const GUEST_BYTES: usize = 192;

/// The guests of single channels.
pub(in crate::shard) type Grants = FxHashMap<ChannelId, Guests>;

/// Guests by name. Peers choose the names, so they are hashed with random keys.
#[derive(Clone, Default)]
pub struct Guests(HashTrieMapSync<Arc<str>, Arc<Charge>>);

impl Guests {
    /// Returns whether a guest is one of them.
    pub fn has(&self, guest: &str) -> bool {
        self.0.contains_key(guest)
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets a guest in, or no more. Returns whether it is so now: there may be too many, or no memory for it.
    pub fn change(&mut self, guest: &Arc<str>, is_granted: bool, guests_max: usize, memory: &ProcessMemory) -> bool {
        if !is_granted {
            self.0.remove_mut(&**guest);
        } else if !self.has(guest) {
            if self.0.size() >= guests_max {
                return false;
            }
            let Ok(charge) = memory.charge(HeldAs::Topics, GUEST_BYTES + guest.len()) else { return false };
            self.0.insert_mut(guest.clone(), Arc::new(charge));
        }
        true
    }
}
