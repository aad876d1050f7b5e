//! What guests may do: push to the channels that they were let in to ([`grants`](super::grants)).

use crate::channel::ChannelId;
use crate::shard::command::{Asked, Grant, GuestPush};
use crate::shard::core::Shard;
use crate::shard::outcome::Outcome;
use crate::shard::owners::grants::{PER_CHANNEL_MAX, change};
use crate::shard::table::slot::Slot;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

impl Shard {
    /// Lets a guest in to one channel, or no more.
    pub(in crate::shard) fn grant(&mut self, grant: Grant) {
        let Grant { channel, owner, guest, is_granted, asked } = grant;
        if let Err(why) = self.pushable(channel, Some(owner)) {
            return self.answer_failed(Some(owner), asked, why);
        }
        let guests = self.owners.grants.entry(channel).or_default();
        let is_done = change(guests, &guest, is_granted, PER_CHANNEL_MAX);
        if guests.is_empty() {
            self.owners.grants.remove(&channel);
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
            if let Some(slot) = self.table.slot_of(channel).filter(|&slot| self.is_guest(channel, slot, &guest)) {
                let mut encoding = self.encode_for(slot, frame.clone(), None);
                self.offer_counted(slot, &mut encoding, None, part.as_ref(), None);
            } else {
                self.stats.pushes_unknown += 1;
                if let Some(part) = &part {
                    part.borrow_mut().counts.not_found += 1;
                }
            }
        }
    }

    fn is_guest(&self, channel: ChannelId, slot: Slot, guest: &Arc<str>) -> bool {
        let of_owner = || self.owners.directory().grants.get(&self.owner_of(slot)?);
        self.owners.grants.get(&channel).is_some_and(|guests| guests.contains(guest))
            || of_owner().is_some_and(|guests| guests.contains(guest))
    }
}
