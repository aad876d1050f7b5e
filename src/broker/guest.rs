//! Orders of guests, and about them: processes on other nodes that push to channels whose owners have granted it.

use super::delivery::DeliveryOptions;
use super::message::Message;
use super::order::{Commands, Order};
use super::pusher::{Audience, Pusher};
use crate::channel::ChannelId;
#[cfg(feature = "node")]
use crate::shard::command::GrantCommand;
use crate::shard::command::{Command, GuestPushCommand, ShardAudience};
#[cfg(feature = "node")]
use smallvec::smallvec;
use std::sync::Arc;

/// A push in the name of a guest.
pub(crate) struct GuestPushOrder<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) guest: Arc<str>,
    pub(super) channels: Vec<ChannelId>,
    pub(super) message: Message,
    pub(super) delivery: DeliveryOptions,
}

impl<'p> Order<'p> for GuestPushOrder<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, guest, channels, message, delivery } = self;
        let targets = pusher.split(Audience::Channels(channels));
        let mut parts = pusher.parts(delivery.ask, targets.len().max(1)).into_iter();
        let commands = targets.into_iter().map(|(shard, audience)| {
            let ShardAudience::Channels(channels) = audience else { unreachable!("lists are split into lists") };
            let (guest, part) = (guest.clone(), parts.next().flatten());
            let push = GuestPushCommand { channels, guest, frame: message.0.clone(), part };
            (shard, Command::PushAsGuest(Box::new(push)))
        });
        commands.collect()
    }
}

/// A change of a channel's guest: let in, or removed.
#[cfg(feature = "node")]
pub(crate) struct GrantOrder<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) channel: ChannelId,
    pub(super) guest: Arc<str>,
    pub(super) is_granted: bool,
    pub(super) delivery: DeliveryOptions,
}

#[cfg(feature = "node")]
impl<'p> Order<'p> for GrantOrder<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, channel, guest, is_granted, delivery } = self;
        let Some(owner) = pusher.owner else { unreachable!("operators have no channels") };
        let grant = GrantCommand { channel, owner, guest, is_granted, asked: pusher.asked(delivery.ask) };
        smallvec![(pusher.shard_of(channel), Command::Grant(Box::new(grant)))]
    }
}
