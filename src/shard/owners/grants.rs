//! Guests: addresses on other nodes that a channel's owner allows to push to it.
//!
//! Invariants: a grant is given by the owner of the channel and ends with the channel, or is given for all channels of
//! an owner and stands in the directory; there are at most [`PER_CHANNEL_MAX`] of the one and [`PER_OWNER_MAX`] of the
//! other. A guest may push and nothing else, and a channel without a grant for it does not exist for it. Owners pay
//! nothing for this: only guests are looked up.

use crate::channel::ChannelId;
use rustc_hash::FxHashMap;
use std::sync::Arc;

/// The most guests of one channel: a channel is one client, whose guests are the nodes that it deals with at a time.
pub const PER_CHANNEL_MAX: usize = 64;

/// The most guests of all channels of one owner: the nodes that an app deals with.
pub const PER_OWNER_MAX: usize = 1024;

/// The guests of single channels.
pub(in crate::shard) type Grants = FxHashMap<ChannelId, Vec<Arc<str>>>;

/// Returns whether `guests` changed as asked: it has room, or nothing was to be added.
pub fn change(guests: &mut Vec<Arc<str>>, guest: &Arc<str>, is_granted: bool, guests_max: usize) -> bool {
    if !is_granted {
        guests.retain(|other| other != guest);
    } else if !guests.contains(guest) {
        if guests.len() >= guests_max {
            return false;
        }
        guests.push(guest.clone());
    }
    true
}
