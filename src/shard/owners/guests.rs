//! Orders of guests: pushes to the channels that they have grants for ([`grants`](super::grants)).

use crate::channel::ChannelId;
use crate::shard::command::{GrantCommand, GuestPushCommand, ReportTo};
use crate::shard::core::Shard;
use crate::shard::out::broadcast::GuestPush;
use crate::shard::outcome::Outcome;
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
        self.work.spend(guest.len() as u64);
        let place = match self.pushable(channel, Some(owner)) {
            Ok(slot) => self.table[slot].channel().map(|channel| channel.owner),
            Err(why) => return self.answer_failed(Some(owner), asked, why),
        };
        let is_done = place.is_some_and(|place| self.owners.change_guests(place, channel, &guest, is_granted));
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
        // For each channel a copy, for only a broadcast is encoded once, and a look for the name.
        let copied = frame.payload.len().min(self.config.copy_bytes_max);
        let cost_ns = work::OFFER_NS + copy_ns(copied) + guest.len() as u64;
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
        self.owners.grants.get(&channel).is_some_and(|guests| guests.has(guest))
            || of_owner().is_some_and(|guests| guests.has(guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Budget;
    use crate::queue::fair::OrderOrRest;
    use crate::shard::SocketEnd;
    use crate::shard::command::{Command, PushFrame};
    use crate::shard::config::ShardConfig;
    use crate::shard::owners::grants::PER_CHANNEL_MAX;
    use crate::shard::stage::{BINARY, Client, OWNER, Stage, ask};
    use bytes::Bytes;

    const NAME_BYTES: usize = 1000;

    /// All of one length, and alike but for their ends.
    fn guest(number: usize) -> Arc<str> {
        format!("{number:>NAME_BYTES$}").into()
    }

    fn grant(stage: &mut Stage, to: Client, number: usize, is_granted: bool) -> Outcome {
        let (part, outcome) = ask();
        let asked = part.map_or(ReportTo::Nobody, ReportTo::Outcome);
        let (channel, guest) = (to.channel, guest(number));
        let grant = GrantCommand { channel, owner: OWNER, guest, is_granted, asked };
        stage.shard.handle_command(Command::Grant(Box::new(grant)), 0);
        outcome.try_recv().unwrap()
    }

    /// What is held of topics, and of guests: there are no topics.
    fn held(stage: &Stage) -> usize {
        stage.shard.owners.iter().map(|local| local.owner.memory.tenant().held().topics).sum()
    }

    #[test]
    fn guests_are_charged_to_their_owner_and_what_finding_them_takes_to_the_turn() {
        let mut stage = Stage::new(ShardConfig::default(), Budget::default());
        let clients: Vec<_> = (0..8).map(|_| stage.open(usize::MAX)).collect();
        for number in 0..PER_CHANNEL_MAX {
            assert_eq!(grant(&mut stage, clients[0], number, true).sent, 1);
        }
        assert_eq!(grant(&mut stage, clients[0], PER_CHANNEL_MAX, true).dropped, 1);
        assert_eq!(grant(&mut stage, clients[0], 0, true).sent, 1, "it is one already");
        let all = held(&stage);
        assert!((PER_CHANNEL_MAX * NAME_BYTES..PER_CHANNEL_MAX * NAME_BYTES * 5 / 4).contains(&all), "{all}");

        let (part, outcome) = ask();
        let frame = PushFrame { kind: BINARY, payload: Bytes::from_static(b"hello") };
        let channels = clients.iter().map(|client| client.channel).collect();
        let push = GuestPushCommand { channels, guest: guest(7), frame, part };
        stage.shard.begin_turn(0);
        assert!(stage.shard.execute(OrderOrRest::New(Command::PushAsGuest(Box::new(push))), u64::MAX).is_none());
        let spent_ns = stage.shard.spent_ns();
        assert!(spent_ns >= (clients.len() * NAME_BYTES) as u64, "{spent_ns}");
        stage.settle();
        let outcome = outcome.try_recv().unwrap();
        assert_eq!((outcome.sent, outcome.not_found), (1, clients.len() - 1));

        assert_eq!(grant(&mut stage, clients[0], 7, false).sent, 1);
        assert!(held(&stage) < all);
        stage.shard.handle_end(clients[0].token, SocketEnd::Broken, 0);
        assert_eq!(held(&stage), 0);
    }
}
