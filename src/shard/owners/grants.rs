//! Guests: addresses on other nodes that a channel's owner lets push to it.
//!
//! Invariants: a grant is given by the owner of the channel and ends with the channel, or is given for all channels of
//! an owner and stands in the directory; there are at most [`PER_CHANNEL_MAX`] of the one and [`PER_OWNER_MAX`] of the
//! other. A guest may push and nothing else, and a channel that it was not let in to does not exist for it. Owners pay
//! nothing for this: only guests are looked up.

use crate::channel::ChannelId;
use crate::shard::command::{Asked, Grant, GuestPush};
use crate::shard::core::Shard;
use crate::shard::outcome::Outcome;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// The most guests of one channel: a channel is one client, whose guests are the nodes that it deals with at a time.
pub const PER_CHANNEL_MAX: usize = 64;

/// The most guests of all channels of one owner: the nodes that an app deals with.
pub const PER_OWNER_MAX: usize = 1024;

/// The guests of single channels.
pub(in crate::shard) type Grants = FxHashMap<ChannelId, Vec<Arc<str>>>;

/// Whether `guests` changed as asked: it has room, or nothing was to be added.
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

impl Shard {
    /// Lets a guest in to one channel, or no more.
    pub(in crate::shard) fn grant(&mut self, grant: Grant) {
        let Grant { channel, owner, guest, is_granted, asked } = grant;
        if let Err(why) = self.pushable(channel, Some(owner)) {
            return self.answer_failed(Some(owner), asked, why);
        }
        let guests = self.grants.entry(channel).or_default();
        let is_done = change(guests, &guest, is_granted, PER_CHANNEL_MAX);
        if guests.is_empty() {
            self.grants.remove(&channel);
        }
        let counts = if is_done {
            Outcome { sent: 1, ..Outcome::default() }
        } else {
            Outcome { dropped: 1, ..Outcome::default() }
        };
        if let Asked::Outcome(mut part) = asked {
            part.counts.add(&counts);
        }
    }

    /// A guest pushes: to channels that it was let in to.
    pub(in crate::shard) fn push_as_guest(&mut self, push: GuestPush) {
        let GuestPush { channels, guest, frame, part } = push;
        let part = part.map(|part| Rc::new(RefCell::new(part)));
        for channel in channels {
            if let Some(slot) =
                self.channels.get(&channel).copied().filter(|&slot| self.is_guest(channel, slot, &guest))
            {
                let mut encoding = self.encode_for(slot, frame.clone());
                self.offer_counted(slot, &mut encoding, None, part.as_ref(), None);
            } else {
                self.stats.pushes_unknown += 1;
                if let Some(part) = &part {
                    part.borrow_mut().counts.not_found += 1;
                }
            }
        }
    }

    fn is_guest(&self, channel: ChannelId, slot: u32, guest: &Arc<str>) -> bool {
        let of_owner = || self.directory.grants.get(&self.owner_of(slot)?);
        self.grants.get(&channel).is_some_and(|guests| guests.contains(guest))
            || of_owner().is_some_and(|guests| guests.contains(guest))
    }
}
