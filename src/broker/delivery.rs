//! Pushing: what is pushed, to whom, and what is known of it at once and later.

#[cfg(feature = "node")]
mod collecting;

use super::Shared;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::proto::{MessageKind, close};
use crate::queue::events::{self, ProcessQueue};
use crate::queue::orders::{Account, Refused};
use crate::shard::Owner;
use crate::shard::command::{
    Asked, Close, CloseFrame, Command, Grant, Policy, Push, PushFrame, PushKind, PushMany, Respond, ShardAudience,
};
use crate::shard::deflate::Windows;
use crate::shard::event::Event;
use crate::shard::outcome::{Outcome, Part, Ticket as Parts};
use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use std::sync::Arc;
use std::time::Duration;

/// The longest payload of a control frame (RFC 6455 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// A message to push, checked when it is made. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(PushFrame);

/// Why bytes cannot be pushed as what they were meant to be: the caller's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    /// Text must be UTF-8 (RFC 6455 5.6).
    #[error("text must be UTF-8")]
    NotUtf8,
    /// Control frames carry at most 125 bytes (RFC 6455 5.5).
    #[error("a control frame carries at most 125 bytes")]
    ControlTooLong,
}

impl Message {
    /// A Text message.
    pub fn text(text: impl Into<String>) -> Self {
        Self(PushFrame { kind: PushKind::Message(MessageKind::Text), payload: text.into().into_bytes().into() })
    }

    /// A Text message of bytes that are checked.
    ///
    /// # Errors
    /// They are not UTF-8.
    pub fn text_bytes(bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        let payload = bytes.into();
        simdutf8::basic::from_utf8(&payload).map_err(|_| InvalidMessage::NotUtf8)?;
        Ok(Self(PushFrame { kind: PushKind::Message(MessageKind::Text), payload }))
    }

    /// A Binary message.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self(PushFrame { kind: PushKind::Message(MessageKind::Binary), payload: bytes.into() })
    }

    /// A message of the same kind as one that was received.
    ///
    /// # Errors
    /// The kind is Text and the bytes are not UTF-8.
    pub fn of_kind(kind: MessageKind, bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        match kind {
            MessageKind::Text => Self::text_bytes(bytes),
            MessageKind::Binary => Ok(Self::binary(bytes)),
        }
    }

    /// A ping of the process' own; it keeps its place behind queued data.
    ///
    /// # Errors
    /// Over 125 bytes.
    pub fn ping(bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        Self::control(PushKind::Ping, bytes.into())
    }

    /// An unsolicited pong (RFC 6455 5.5.3).
    ///
    /// # Errors
    /// Over 125 bytes.
    pub fn pong(bytes: impl Into<Bytes>) -> Result<Self, InvalidMessage> {
        Self::control(PushKind::Pong, bytes.into())
    }

    /// Its bytes.
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// What it carries.
    #[cfg(feature = "link")]
    pub(crate) fn into_frame(self) -> PushFrame {
        self.0
    }

    fn control(kind: PushKind, payload: Bytes) -> Result<Self, InvalidMessage> {
        match payload.len() {
            0..=CONTROL_BYTES_MAX => Ok(Self(PushFrame { kind, payload })),
            _ => Err(InvalidMessage::ControlTooLong),
        }
    }
}

/// Whom a broadcast reaches.
#[derive(Debug, Clone)]
pub enum Audience {
    /// These channels.
    Channels(Vec<ChannelId>),
    /// The process' channels on this bound path (as it was bound, `/` for the process' own).
    Path(Arc<str>),
    /// All channels of the process.
    Process,
}

/// Why a push was not accepted. What was not accepted has reached nobody, except as [`PushError::Partly`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The shard has as much to do as it may hold, or this process as much of that as one may. Try again soon, or
    /// use a call that waits.
    #[error("the shard's inbox is full")]
    InboxFull,
    /// As `InboxFull`, but some shards had accepted their part of the audience.
    #[error("some shards' inboxes are full; the others have accepted the push")]
    Partly,
    /// The process has as many outcomes to read as it may have messages: read events, then push again. Calls that wait
    /// for room do not say this, so that they wait for nobody but shards: who uses them reads as fast as it asks.
    #[error("too many outcomes of earlier pushes are unread")]
    OutcomesUnread,
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// How one push is to be delivered, beyond the message itself.
#[derive(Debug, Default)]
pub struct Delivery {
    /// What to do where a channel is over its budget; `None` leaves it to the process' setting.
    pub policy: Option<Policy>,
    ask: Option<Ask>,
}

/// Where an outcome goes.
#[derive(Debug)]
enum Ask {
    Ticket(crossbeam_channel::Sender<Outcome>),
    Event(u64),
    /// As an event, but only if it failed.
    Failure(u64),
}

impl Delivery {
    /// With this policy.
    #[must_use]
    pub fn with_policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Asks for the outcome.
    #[must_use]
    pub fn asking(mut self) -> (Self, Ticket) {
        let (sender, receiver) = bounded(1);
        self.ask = Some(Ask::Ticket(sender));
        (self, Ticket(receiver))
    }

    /// The policy, and the number of an outcome that was asked for as an event.
    ///
    /// # Panics
    /// When it was asked for otherwise: only the broker itself can answer that.
    #[cfg(feature = "link")]
    pub(crate) fn into_parts(self) -> (Option<Policy>, Option<u64>) {
        match self.ask {
            None => (self.policy, None),
            Some(Ask::Event(ticket)) => (self.policy, Some(ticket)),
            Some(Ask::Ticket(_) | Ask::Failure(..)) => panic!("this outcome cannot be asked for over a link"),
        }
    }

    /// Asks for the outcome as an [`Event::Outcome`] with this number, among the process' other
    /// events.
    #[must_use]
    pub fn asking_event(mut self, ticket: u64) -> Self {
        self.ask = Some(Ask::Event(ticket));
        self
    }

    /// Asks for an [`Event::Failed`] with this number if the channel is gone, closing or another process': for one
    /// push or close, at no cost where it succeeds. For a close, a channel that is gone is a success. A push to many
    /// is told of its outcome alone.
    #[must_use]
    pub fn asking_failure(mut self, ticket: u64) -> Self {
        self.ask = Some(Ask::Failure(ticket));
        self
    }
}

/// The claim to the outcome of one push.
#[derive(Debug)]
pub struct Ticket(Receiver<Outcome>);

impl Ticket {
    /// Waits for the outcome: until every shard has offered the frame to its sockets. `None` when the time is up, or
    /// the push was not accepted.
    pub fn wait(self, timeout: Duration) -> Option<Outcome> {
        self.0.recv_timeout(timeout).ok()
    }
}

/// The pushing half of a process: cheap to clone, usable from any thread. Order holds for the calls of one thread.
#[derive(Clone)]
pub struct Pusher {
    shared: Arc<Shared>,
    owner: Option<OwnerId>,
    /// Whose queue its events go to: its own, or the system's of its kernel.
    queue_of: Option<OwnerId>,
    /// What the channels of its owner have agreed on compression.
    windows: Arc<Windows>,
    accounts: Arc<[Account]>,
}

/// What to do when an inbox is full.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Full {
    Refuse,
    Wait,
}

impl Pusher {
    pub(super) fn of_process(shared: Arc<Shared>, owner: &Owner) -> Self {
        let accounts = shared.inboxes.iter().map(|inbox| inbox.account()).collect();
        let windows = owner.windows.clone();
        Self { shared, owner: Some(owner.id), queue_of: Some(owner.id), windows, accounts }
    }

    /// The same for another owner of the same kernel.
    pub(super) fn in_name_of(&self, owner: &Owner) -> Self {
        Self { owner: Some(owner.id), windows: owner.windows.clone(), ..self.clone() }
    }

    pub(super) fn of_operator(shared: Arc<Shared>) -> Self {
        let accounts = shared.accounts.clone().into();
        Self { shared, owner: None, queue_of: None, windows: Arc::default(), accounts }
    }

    /// Pushes a message to a channel of this process.
    ///
    /// # Errors
    /// It was not accepted; it never waits. A channel that is gone, unknown or another process' is no error here: ask
    /// for the outcome.
    pub fn push(&self, channel: ChannelId, message: Message) -> Result<(), PushError> {
        self.push_with(channel, message, Delivery::default())
    }

    /// As [`push`](Self::push), with a policy or a ticket.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_with(&self, channel: ChannelId, message: Message, delivery: Delivery) -> Result<(), PushError> {
        self.push_to(channel, message, delivery, Full::Refuse)
    }

    /// As [`push`](Self::push), but waits for room in the inbox. Shards drain at CPU speed whatever clients do, so
    /// that is short. Not for shard threads or async code.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn push_wait(&self, channel: ChannelId, message: Message) -> Result<(), PushError> {
        self.push_to(channel, message, Delivery::default(), Full::Wait)
    }

    /// As [`push_wait`](Self::push_wait), with a policy or a ticket.
    ///
    /// # Errors
    /// As [`push_wait`](Self::push_wait).
    pub fn push_wait_with(&self, channel: ChannelId, message: Message, delivery: Delivery) -> Result<(), PushError> {
        self.push_to(channel, message, delivery, Full::Wait)
    }

    /// Pushes one message to many channels: compressed once (here, where any channel has agreed on that), encoded once
    /// for each shard, one command for each shard. Channels in
    /// `except` are left out.
    ///
    /// # Errors
    /// It was not accepted, or only partly.
    pub fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        self.push_to_many(audience, except, message, delivery, Full::Refuse)
    }

    /// As [`push_many`](Self::push_many), but waits for room.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn push_many_wait(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        self.push_to_many(audience, except, message, delivery, Full::Wait)
    }

    /// Closes a channel of this process behind what is queued for it. The code must be one that may travel (RFC 6455
    /// 7.4); the client is sent none otherwise.
    ///
    /// # Errors
    /// It was not accepted.
    pub fn close(&self, channel: ChannelId, code: u16, reason: &str) -> Result<(), PushError> {
        self.close_with(channel, code, reason, Delivery::default())
    }

    /// As [`close`](Self::close), and tells what became of it: `closed`, `not_found` or `not_owner` counts 1.
    ///
    /// # Errors
    /// As [`close`](Self::close).
    pub fn close_with(&self, channel: ChannelId, code: u16, reason: &str, delivery: Delivery) -> Result<(), PushError> {
        let close = self.close_command(channel, code, reason, delivery);
        self.send(self.shared.shard_of(channel), close, Full::Wait)
    }

    fn close_command(&self, channel: ChannelId, code: u16, reason: &str, delivery: Delivery) -> Command {
        let why = CloseFrame { code: close::code_may_travel(code).then_some(code), reason: reason.into() };
        Command::Close(Box::new(Close { channel, owner: self.owner, why, asked: self.asked(delivery.ask) }))
    }

    /// Lets the process at `guest`, an address on another node, push to a channel of this process, or no more. The
    /// outcome counts 1 as `sent` if it is so now, as `not_found` or `not_owner`, or as `dropped` if the channel has as
    /// many guests as there may be ([`grants`](crate::shard::grants)).
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn grant(
        &self,
        channel: ChannelId,
        guest: Arc<str>,
        is_granted: bool,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        let grant = self.grant_command(channel, guest, is_granted, delivery);
        self.send(self.shared.shard_of(channel), grant, Full::Wait)
    }

    fn grant_command(&self, channel: ChannelId, guest: Arc<str>, is_granted: bool, delivery: Delivery) -> Command {
        let Some(owner) = self.owner else { unreachable!("operators have no channels") };
        Command::Grant(Box::new(Grant { channel, owner, guest, is_granted, asked: self.asked(delivery.ask) }))
    }

    /// Collects orders, so that many cost as little to hand over as one. Order holds as if they were given one by one.
    pub fn batch(&self) -> Batch {
        Batch {
            pusher: self.clone(),
            shards: self.shared.inboxes.iter().map(|_| Orders::default()).collect(),
            is_full: false,
        }
    }

    fn push_to(&self, channel: ChannelId, message: Message, delivery: Delivery, full: Full) -> Result<(), PushError> {
        self.may_ask(&delivery, full)?;
        let asked = self.asked(delivery.ask);
        self.send(self.shared.shard_of(channel), self.command(channel, message, delivery.policy, asked), full)
    }

    /// Outcomes that come as events wait in the process' queue until it reads them.
    fn may_ask(&self, delivery: &Delivery, full: Full) -> Result<(), PushError> {
        if full == Full::Refuse
            && matches!(delivery.ask, Some(Ask::Event(_)))
            && self.queue().is_some_and(|(_, queue)| !queue.has_room_for_outcome())
        {
            return Err(PushError::OutcomesUnread);
        }
        Ok(())
    }

    /// Who is to be told of an order for one channel.
    fn asked(&self, ask: Option<Ask>) -> Asked {
        match ask {
            None => Asked::Nobody,
            Some(Ask::Failure(ticket)) => Asked::Failure(ticket),
            ask => self.parts(ask, 1).pop().flatten().map_or(Asked::Nobody, Asked::Outcome),
        }
    }

    /// The shares of `count` shards in the outcome, if it was asked for.
    fn parts(&self, ask: Option<Ask>, count: usize) -> Vec<Option<Box<Part>>> {
        let parts = match ask {
            None | Some(Ask::Failure(_)) => return (0..count).map(|_| None).collect(),
            Some(Ask::Ticket(ticket)) => Parts::split(count, move |outcome| {
                // Whoever asked may not wait any more.
                let _ = ticket.try_send(outcome);
            }),
            Some(Ask::Event(ticket)) => {
                let report = self.report();
                Parts::split(count, move |outcome| report(Event::Outcome { ticket, outcome }))
            }
        };
        parts.into_iter().map(|part| Some(Box::new(part))).collect()
    }

    /// Puts an event into the queue of this owner, where it still is.
    fn report(&self) -> impl Fn(Event) + Send + Sync + 'static {
        let queue = self.queue();
        move |event| {
            if let Some((owner, queue)) = &queue {
                let mut batch = events::Batch::new(*owner);
                batch.push(event);
                queue.send(batch);
            }
        }
    }

    /// This owner, and the queue of its events.
    fn queue(&self) -> Option<(OwnerId, ProcessQueue)> {
        let directory = self.shared.directory();
        let queue = directory.owners.get(&self.queue_of?)?.queue.clone();
        Some((self.owner?, queue))
    }

    fn command(&self, channel: ChannelId, message: Message, policy: Option<Policy>, asked: Asked) -> Command {
        Command::Push(Push { channel, owner: self.owner, frame: message.0, policy, asked })
    }

    fn push_to_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
        full: Full,
    ) -> Result<(), PushError> {
        self.may_ask(&delivery, full)?;
        let (mut accepted, mut refused) = (0, 0);
        for (shard, command) in self.commands_to_many(audience, except, message, delivery) {
            match self.send(shard, command, full) {
                Ok(()) => accepted += 1,
                Err(PushError::Stopped) => return Err(PushError::Stopped),
                Err(_) => refused += 1,
            }
        }
        match (accepted, refused) {
            (_, 0) => Ok(()),
            (0, _) => Err(PushError::InboxFull),
            _ => Err(PushError::Partly),
        }
    }

    /// One push to many: a command for each shard that has a part of the audience.
    fn commands_to_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> impl Iterator<Item = (usize, Command)> + use<> {
        let Some(owner) = self.owner else { unreachable!("operators have no audience") };
        let mut except: Vec<ChannelId> = except.to_vec();
        except.sort_unstable();
        let except: Arc<[ChannelId]> = except.into();
        let compressed = self.shared.compression.compress(&message.0, &self.windows);
        let targets = self.split(audience);
        let mut parts = self.parts(delivery.ask, targets.len().max(1)).into_iter();
        targets.into_iter().map(move |(shard, audience)| {
            let many = PushMany {
                audience,
                except: except.clone(),
                owner,
                frame: message.0.clone(),
                compressed: compressed.clone(),
                policy: delivery.policy,
                part: parts.next().flatten(),
            };
            (shard, Command::PushMany(Box::new(many)))
        })
    }

    /// The part of an audience on each shard that has one.
    fn split(&self, audience: Audience) -> Vec<(usize, ShardAudience)> {
        let shards = self.shared.inboxes.len();
        match audience {
            Audience::Process => (0..shards).map(|shard| (shard, ShardAudience::Process)).collect(),
            Audience::Path(path) => (0..shards).map(|shard| (shard, ShardAudience::Path(path.clone()))).collect(),
            Audience::Channels(channels) if shards == 1 => vec![(0, ShardAudience::Channels(channels))],
            Audience::Channels(channels) => {
                let mut lists = vec![Vec::new(); shards];
                for channel in channels {
                    lists[self.shared.shard_of(channel)].push(channel);
                }
                let lists = lists.into_iter().enumerate().filter(|(_, list)| !list.is_empty());
                lists.map(|(shard, list)| (shard, ShardAudience::Channels(list))).collect()
            }
        }
    }

    pub(super) fn respond(&self, respond: Respond) -> Result<(), PushError> {
        match self.shard_of_request(&respond) {
            Some(shard) => self.send(shard, Command::Respond(Box::new(respond)), Full::Wait),
            None => Ok(()),
        }
    }

    /// Where the request waits. None: the id is not one of ours, so nobody waits for an answer to it.
    fn shard_of_request(&self, respond: &Respond) -> Option<usize> {
        let shard = respond.request.shard() as usize;
        (shard < self.shared.inboxes.len()).then_some(shard)
    }

    fn send(&self, shard: usize, command: Command, full: Full) -> Result<(), PushError> {
        let bytes = command.payload_bytes();
        self.send_bytes(shard, command, bytes, full)
    }

    /// As [`send`](Self::send), where it is known already what the command keeps alive.
    fn send_bytes(&self, shard: usize, command: Command, bytes: usize, full: Full) -> Result<(), PushError> {
        let (inbox, account) = (&self.shared.inboxes[shard], &self.accounts[shard]);
        match full {
            Full::Wait => inbox.send_wait(command, bytes, account).map_err(|_| PushError::Stopped),
            Full::Refuse => inbox.try_send(command, bytes, account).map_err(|refused| match refused {
                Refused::Full(_) => PushError::InboxFull,
                Refused::Stopped(_) => PushError::Stopped,
            }),
        }
    }
}

/// Orders that are handed over together ([`Pusher::batch`]): those of one process, or of all processes of one kernel.
/// Dropping it gives up what was not sent.
pub struct Batch {
    pusher: Pusher,
    shards: Vec<Orders>,
    is_full: bool,
}

/// Those for one shard.
#[derive(Default)]
struct Orders {
    commands: Vec<Command>,
    payload_bytes: usize,
}

/// Orders per place in an inbox: enough that handing over costs nothing beside obeying, few enough that a turn of the
/// shard stays short.
const BATCH_COMMANDS_MAX: usize = 256;

/// Payload bytes per place in an inbox: what a shard takes in at most in a turn.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

impl Batch {
    /// As [`Pusher::push_wait`], when the batch is sent; a full batch is sent at once.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn push_wait(&mut self, channel: ChannelId, message: Message) -> Result<(), PushError> {
        let command = self.pusher.command(channel, message, None, Asked::Nobody);
        self.add(self.pusher.shared.shard_of(channel), command)
    }

    /// As [`Pusher::push_many_wait`], when the batch is sent; a full batch is sent at once.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn push_many_wait(
        &mut self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        let mut commands = self.pusher.commands_to_many(audience, except, message, delivery);
        commands.try_for_each(|(shard, command)| self.add(shard, command))
    }

    /// Hands everything over, waiting for room in the inboxes.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn send_wait(&mut self) -> Result<(), PushError> {
        self.is_full = false;
        (0..self.shards.len()).try_for_each(|shard| self.send_shard(shard))
    }

    fn put(&mut self, shard: usize, command: Command) {
        let orders = &mut self.shards[shard];
        orders.payload_bytes += command.payload_bytes();
        orders.commands.push(command);
        self.is_full |= orders.commands.len() >= BATCH_COMMANDS_MAX || orders.payload_bytes >= BATCH_BYTES_MAX;
    }

    fn add(&mut self, shard: usize, command: Command) -> Result<(), PushError> {
        self.put(shard, command);
        if self.is_full { self.send_wait() } else { Ok(()) }
    }

    fn send_shard(&mut self, shard: usize) -> Result<(), PushError> {
        match self.take_shard(shard) {
            Some((command, bytes)) => self.pusher.send_bytes(shard, command, bytes, Full::Wait),
            None => Ok(()),
        }
    }

    /// What waits for a shard, as one order, and what that keeps alive.
    fn take_shard(&mut self, shard: usize) -> Option<(Command, usize)> {
        let Orders { mut commands, payload_bytes } = std::mem::take(&mut self.shards[shard]);
        match commands.len() {
            0 => None,
            1 => Some((commands.remove(0), payload_bytes)),
            count => Some((Command::Batch(commands), Command::batch_bytes(count, payload_bytes))),
        }
    }
}
