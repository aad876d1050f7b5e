//! Orders of guests: pushes to the channels that they have grants for ([`grants`](super::grants)).

use crate::channel::ChannelId;
use crate::shard::command::{GrantCommand, GuestPushCommand, ReportTo};
use crate::shard::core::Shard;
use crate::shard::out::broadcast::GuestPush;
use crate::shard::outcome::Outcome;
use crate::shard::owners::grants::{PER_CHANNEL_MAX, change};
use crate::shard::table::slot::Slot;
use crate::shard::unfinished::LongOrder;
use crate::shard::work::{self, copy_ns};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

impl Shard {
    /// Lets a guest in to one channel, or no more.
    pub(in crate::shard) fn grant(&mut self, grant: GrantCommand) {
        let GrantCommand { channel, owner, guest, is_granted, asked } = grant;
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
        if let ReportTo::Outcome(mut part) = asked {
            part.counts.add(&counts);
        }
    }

    /// A guest pushes: to channels that it was let in to.
    pub(in crate::shard) fn push_as_guest(&mut self, push: GuestPushCommand) -> Option<LongOrder> {
        let GuestPushCommand { channels, guest, frame, part } = push;
        let part = part.map(|part| Rc::new(RefCell::new(part)));
        self.go_on_pushing_as_guest(Box::new(GuestPush { channels: channels.into_iter(), guest, frame, part }))
    }

    /// Goes on with a guest's push, for one slice.
    pub(in crate::shard) fn go_on_pushing_as_guest(&mut self, mut push: Box<GuestPush>) -> Option<LongOrder> {
        let GuestPush { channels, guest, frame, part } = &mut *push;
        // For each channel a copy: only a broadcast is encoded once.
        let cost_ns = work::OFFER_NS + copy_ns(frame.payload.len().min(self.config.copy_bytes_max));
        for channel in channels.by_ref() {
            if let Some(slot) = self.table.slot_of(channel).filter(|&slot| self.is_guest(channel, slot, guest)) {
                let mut encoding = self.encode_for(slot, frame.clone(), None);
                self.offer_counted(slot, &mut encoding, None, part.as_ref(), None);
            } else {
                self.stats.pushes_unknown += 1;
                if let Some(part) = part {
                    part.borrow_mut().counts.not_found += 1;
                }
            }
            self.work.spend(cost_ns);
            if self.work.is_slice_over() || self.out.is_window_full() {
                break;
            }
        }
        (push.channels.len() > 0).then_some(LongOrder::GuestPush(push))
    }

    fn is_guest(&self, channel: ChannelId, slot: Slot, guest: &Arc<str>) -> bool {
        let of_owner = || self.owners.directory().grants.get(&self.owner_of(slot)?);
        self.owners.grants.get(&channel).is_some_and(|guests| guests.contains(guest))
            || of_owner().is_some_and(|guests| guests.contains(guest))
    }
}
