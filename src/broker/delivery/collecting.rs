//! Orders of many processes of one kernel, collected by who never waits: what a batch is beyond that of one process.

use super::{Audience, Batch, Delivery, Message, PushError, Pusher};
use crate::broker::OwnerHandle;
use crate::channel::ChannelId;
use crate::shard::command::{Command, GuestPush, Respond, ShardAudience};
use crate::shard::event::RequestId;
use bytes::Bytes;
use std::sync::Arc;

impl Batch {
    /// As [`send_wait`](Self::send_wait), for async code. Dropping the future gives up what it has not handed over.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) async fn send(&mut self) -> Result<(), PushError> {
        self.is_full = false;
        for shard in 0..self.shards.len() {
            let Some((command, bytes)) = self.take_shard(shard) else { continue };
            let (inbox, account) = (&self.pusher.shared.inboxes[shard], &self.pusher.accounts[shard]);
            inbox.send(command, bytes, account).await.map_err(|_| PushError::Stopped)?;
        }
        Ok(())
    }

    /// Whether it should be sent before more is collected.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// A push in the name of `owner`, which must have its events from the same queue. Like all that is collected it is
    /// sent by [`send`](Self::send) or [`send_wait`](Self::send_wait) alone.
    pub(crate) fn collect_push(&mut self, owner: &Pusher, channel: ChannelId, message: Message, delivery: Delivery) {
        let asked = owner.asked(delivery.ask);
        let command = owner.command(channel, message, delivery.policy, asked);
        self.collect(owner, owner.shared.shard_of(channel), command);
    }

    /// A push to many.
    pub(crate) fn collect_push_many(
        &mut self,
        owner: &Pusher,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) {
        for (shard, command) in owner.commands_to_many(audience, except, message, delivery) {
            self.collect(owner, shard, command);
        }
    }

    /// A push in the name of a guest.
    pub(crate) fn collect_guest_push(
        &mut self,
        guest: &Arc<str>,
        channels: Vec<ChannelId>,
        message: &Message,
        delivery: Delivery,
    ) {
        for (shard, command) in self.pusher.commands_of_guest(guest, channels, message, delivery) {
            self.put(shard, command);
        }
    }

    /// An end of a channel.
    pub(crate) fn collect_close(
        &mut self,
        owner: &Pusher,
        channel: ChannelId,
        code: u16,
        reason: &str,
        delivery: Delivery,
    ) {
        let command = owner.close_command(channel, code, reason, delivery);
        self.collect(owner, owner.shared.shard_of(channel), command);
    }

    /// A guest of one channel, who is let in or no more.
    pub(crate) fn collect_grant(
        &mut self,
        owner: &Pusher,
        channel: ChannelId,
        guest: Arc<str>,
        is_granted: bool,
        delivery: Delivery,
    ) {
        let command = owner.grant_command(channel, guest, is_granted, delivery);
        self.collect(owner, owner.shared.shard_of(channel), command);
    }

    /// The answer to an HTTP request.
    pub(crate) fn collect_respond(
        &mut self,
        owner: &OwnerHandle,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) {
        let respond = Respond { request, owner: owner.owner, status, headers, body };
        if let Some(shard) = owner.shard_of_request(&respond) {
            self.collect(owner, shard, Command::Respond(Box::new(respond)));
        }
    }

    fn collect(&mut self, owner: &Pusher, shard: usize, command: Command) {
        assert!(Arc::ptr_eq(&owner.accounts, &self.pusher.accounts), "a batch is charged to one account");
        self.put(shard, command);
    }
}

impl Pusher {
    /// Pushes in the name of a guest. Channels that it was not let in to are counted as `not_found`.
    fn commands_of_guest(
        &self,
        guest: &Arc<str>,
        channels: Vec<ChannelId>,
        message: &Message,
        delivery: Delivery,
    ) -> Vec<(usize, Command)> {
        let targets = self.split(Audience::Channels(channels));
        let mut parts = self.parts(delivery.ask, targets.len().max(1)).into_iter();
        let commands = targets.into_iter().map(|(shard, audience)| {
            let ShardAudience::Channels(channels) = audience else { unreachable!("lists are split into lists") };
            let (guest, part) = (guest.clone(), parts.next().flatten());
            let push = GuestPush { channels, guest, frame: message.0.clone(), part };
            (shard, Command::PushAsGuest(Box::new(push)))
        });
        commands.collect()
    }
}
