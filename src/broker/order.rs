//! Orders of a process to the broker. An order is created by the method of its name, takes its options by name, and is
//! submitted by its last call, which determines whether it may wait:
//!
//! - `try_send()` never waits;
//! - `send()` blocks the thread until there is room in the shards' inboxes, which drain at the speed of their CPU
//!   whatever clients do;
//! - `.await` waits for the same without a thread, on any executor.
//!
//! Invariant: nothing is submitted before the last call.

use super::delivery::{DeliveryOptions, OutcomeTo};
use super::message::{Message, PAYLOAD_BYTES_MAX};
use super::other_brokers::{OnNodes, OutcomeAsker, RemoteAudience, RemotePush};
use super::pusher::{Audience, Full, PushError, Pusher};
use super::ticket::{Ticket, TicketSender, ticket};
use crate::channel::ChannelId;
use crate::http::{HeaderFields, PreparedResponse};
use crate::proto::close;
use crate::shard::command::{CloseCommand, CloseFrame, Command, Policy};
use crate::shard::command::{Membership, PushFrame, PushMany, RespondCommand, SubscribeCommand};
use crate::shard::event::RequestId;
use crate::words::topic;
use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Commands, each with its shard.
pub(super) type Commands = SmallVec<[(usize, Command); 1]>;

/// An order to the broker: [`Push`], [`Broadcast`], [`Subscribe`], [`Close`] or [`Respond`]. Sealed.
pub trait Order<'p>: Sized {
    /// In whose name.
    #[doc(hidden)]
    fn pusher(&self) -> &'p Pusher;

    /// How it is delivered.
    #[doc(hidden)]
    fn delivery(&mut self) -> &mut DeliveryOptions;

    /// Whether it can be given at all.
    #[doc(hidden)]
    fn check(&self) -> Result<(), PushError> {
        Ok(())
    }

    /// Takes out what of it is for other brokers. Only of what was checked.
    #[doc(hidden)]
    fn take_abroad(&mut self) -> Option<RemotePush> {
        None
    }

    /// The commands for each shard. Only for orders that have been checked.
    #[doc(hidden)]
    fn into_commands(self) -> Commands;
}

/// Gives an order that was checked: to the shards, and behind them to other brokers.
pub(super) fn give<'p>(mut order: impl Order<'p>, full: Full) -> Result<(), PushError> {
    let (pusher, abroad) = (order.pusher(), order.take_abroad());
    pusher.give(order.into_commands(), full)?;
    pusher.give_abroad(abroad);
    Ok(())
}

/// The three ends of an order.
macro_rules! ends {
    ($order:ident) => {
        impl<'p> $order<'p> {
            /// Gives the order, and never waits.
            ///
            /// # Errors
            /// It was not accepted: see [`PushError`].
            pub fn try_send(self) -> Result<(), PushError> {
                self.check()?;
                self.pusher.may_ask(&self.delivery)?;
                give(self, Full::Refuse)
            }

            /// Gives the order. Blocks the thread until there is room in the shards' inboxes, which drain at the speed
            /// of their CPU whatever clients do; async code awaits the order instead.
            ///
            /// # Errors
            /// The broker has stopped, or the message is too large.
            pub fn send(self) -> Result<(), PushError> {
                self.check()?;
                give(self, Full::Wait)
            }
        }

        impl<'p> IntoFuture for $order<'p> {
            type Output = Result<(), PushError>;
            type IntoFuture = Sending<'p>;

            /// Gives the order, and waits for room in the shards' inboxes as a task.
            fn into_future(self) -> Sending<'p> {
                Sending::new(self)
            }
        }
    };
}

/// The options of an order whose outcome is asked for.
macro_rules! asks {
    ($order:ident) => {
        impl<'p> $order<'p> {
            /// Asks for the outcome: the end then gives a [`Ticket`] to wait with.
            #[must_use = "nothing is given before the end is called: try_send, send or await"]
            pub fn ask(self) -> Asking<'p, Self> {
                Asking { order: self, broker: PhantomData }
            }

            /// Asks for the outcome as an [`Event::Outcome`](crate::Event::Outcome) with this number, among the
            /// process' other events.
            pub fn ask_event(mut self, number: u64) -> Self {
                self.delivery.ask = Some(OutcomeTo::Event(number));
                self
            }

            /// As plumbing hands it on.
            #[allow(dead_code)]
            pub(crate) fn delivered(mut self, delivery: DeliveryOptions) -> Self {
                self.delivery = delivery;
                self
            }
        }
    };
}

/// A message to one channel: made by [`Process::push`](crate::Process::push).
#[must_use = "nothing is pushed before the end is called: try_send, send or await"]
pub struct Push<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) channel: ChannelId,
    /// On another node of the fleet instead.
    pub(super) at: Option<OnNode>,
    pub(super) message: Message,
    pub(super) delivery: DeliveryOptions,
}

/// Where a push goes that is for a channel of another node.
#[derive(Debug, Clone)]
pub(super) struct OnNode {
    /// The node.
    pub node: Arc<str>,
    /// To a channel that its owner has let this process in to, rather than one of the process of this name.
    pub as_guest: bool,
}

ends!(Push);
asks!(Push);

impl<'p> Push<'p> {
    /// The policy if the channel is over its budget. Default: the process' own.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.delivery.policy = Some(policy);
        self
    }

    /// Asks what became of it here, and at the node that it is for.
    pub fn ask_nodes(self) -> AskingNodes<'p, Self> {
        AskingNodes::of(self)
    }

    /// Asks for an [`Event::Failed`](crate::Event::Failed) with this number if the channel is gone, closing or another
    /// process'. Costs nothing where the push succeeds.
    pub fn ask_failure(mut self, number: u64) -> Self {
        self.delivery.ask = Some(OutcomeTo::Failure(number));
        self
    }
}

impl<'p> Order<'p> for Push<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn check(&self) -> Result<(), PushError> {
        check_size(&self.message)
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn take_abroad(&mut self) -> Option<RemotePush> {
        let Some(OnNode { node, as_guest }) = self.at.clone() else { return none_abroad(&mut self.delivery) };
        let to = RemoteAudience::Channels { node, list: vec![self.channel], as_guest };
        to_one_node(self.pusher, &mut self.delivery, to, &self.message)
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, channel, at, message, delivery } = self;
        match at {
            Some(_) => Commands::new(),
            None => smallvec![pusher.push_command(channel, message, delivery)],
        }
    }
}

/// One message to many channels: made by [`Process::broadcast`](crate::Process::broadcast). It is compressed once (on
/// the thread that gives it, where any channel has agreed on that), encoded once for each shard, and one command for
/// each shard.
#[must_use = "nothing is pushed before the end is called: try_send, send or await"]
pub struct Broadcast<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) audience: Audience,
    pub(super) except: Vec<ChannelId>,
    pub(super) message: Message,
    pub(super) delivery: DeliveryOptions,
    pub(super) reach: Reach,
}

/// On which brokers a broadcast's audience is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// On this one.
    Here,
    /// On this one and all others of the fleet.
    Everywhere,
    /// On one other.
    Node(Arc<str>),
}

ends!(Broadcast);
asks!(Broadcast);

impl<'p> Broadcast<'p> {
    /// Restricts it to an audience, a list of channels or an [`Audience`], instead of all channels of the process.
    pub fn to(mut self, audience: impl Into<Audience>) -> Self {
        self.audience = audience.into();
        self
    }

    /// Leaves a channel out. May be called again for more.
    pub fn except(mut self, channel: ChannelId) -> Self {
        self.except.push(channel);
        self
    }

    /// Leaves channels out.
    pub fn except_all(mut self, channels: impl IntoIterator<Item = ChannelId>) -> Self {
        self.except.extend(channels);
        self
    }

    /// The policy for channels over their budget. Default: the process' own.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.delivery.policy = Some(policy);
        self
    }

    /// Asks what became of it here, and on each other node that it is for.
    pub fn ask_nodes(self) -> AskingNodes<'p, Self> {
        AskingNodes::of(self)
    }

    /// Reaches the channels of the process of this name on every node of the fleet: its audience is a topic, a path or
    /// the whole process, and what is left out are channels here. Without a fleet everywhere is here. Local channels do
    /// not wait for it; the outcome counts them, and says what kept the message from leaving (`fleet_full`,
    /// `fleet_down`, `fleet_too_large`). An order that ends with an error has not left.
    pub fn everywhere(self) -> Self {
        self.everywhere_if(true)
    }

    /// As [`everywhere`](Self::everywhere), or not.
    pub(crate) fn everywhere_if(mut self, everywhere: bool) -> Self {
        self.reach = if everywhere { Reach::Everywhere } else { Reach::Here };
        self
    }

    /// Reaches channels of the named node of the fleet, which may be this one; the audience must be a list of channels.
    /// The outcome covers only the message's departure; the other node's outcome goes to the code that [asks
    /// nodes](Self::ask_nodes).
    pub fn on_node(mut self, node: &str) -> Self {
        let is_here = self.pusher.other_brokers().is_some_and(|other_brokers| other_brokers.node() == node);
        self.reach = if is_here { Reach::Here } else { Reach::Node(node.into()) };
        self
    }
}

impl<'p> Order<'p> for Broadcast<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn check(&self) -> Result<(), PushError> {
        if let Audience::Topic(name) = &self.audience {
            topic::check(name)?;
        }
        match (&self.reach, &self.audience) {
            (Reach::Everywhere, Audience::Channels(_)) => return Err(PushError::ChannelsAreHere),
            (Reach::Node(_), Audience::Path(_) | Audience::Topic(_) | Audience::Process) => {
                return Err(PushError::OnlyChannels);
            }
            _ => {}
        }
        check_size(&self.message)
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn take_abroad(&mut self) -> Option<RemotePush> {
        if let (Reach::Node(node), Audience::Channels(list)) = (&self.reach, &self.audience) {
            let to = RemoteAudience::Channels { node: node.clone(), list: list.clone(), as_guest: false };
            return to_one_node(self.pusher, &mut self.delivery, to, &self.message);
        }
        if self.reach == Reach::Here || self.pusher.other_brokers().is_none() {
            return none_abroad(&mut self.delivery);
        }
        let memory = self.pusher.memory.clone()?;
        let mut part = None;
        if matches!(self.delivery.ask, Some(OutcomeTo::Ticket(_) | OutcomeTo::Event(_))) {
            let mut parts = self.pusher.parts(self.delivery.ask.take(), 2).into_iter().flatten();
            part = parts.next();
            self.delivery.ask = parts.next().map(OutcomeTo::Part);
        }
        let to = RemoteAudience::All(self.audience.clone());
        let nodes = self.delivery.nodes.take();
        Some(RemotePush { memory, to, frame: self.message.0.clone(), policy: self.delivery.policy, part, nodes })
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, audience, mut except, message, delivery, reach } = self;
        if matches!(reach, Reach::Node(_)) {
            return Commands::new();
        }
        let Some(owner) = pusher.owner else { unreachable!("operators have no audience") };
        except.sort_unstable();
        // The shards look at each of them.
        except.dedup();
        let except: Arc<[ChannelId]> = except.into();
        let targets = pusher.split(audience);
        let compressed = if targets.is_empty() { None } else { pusher.compress(&message) };
        // Most are for one shard, and their outcome is not requested: nothing is made or shared for these.
        let parts = delivery.ask.map(|ask| pusher.parts(Some(ask), targets.len().max(1)));
        let mut parts = parts.into_iter().flatten();
        let PushFrame { kind, mut payload } = message.0;
        let last = targets.len().saturating_sub(1);
        let command = |(number, (shard, audience))| {
            let payload = if number == last { std::mem::take(&mut payload) } else { payload.clone() };
            let many = PushMany {
                audience,
                except: except.clone(),
                owner,
                frame: PushFrame { kind, payload },
                compressed: compressed.clone(),
                policy: delivery.policy,
                part: parts.next().flatten(),
            };
            (shard, Command::PushMany(Box::new(many)))
        };
        targets.into_iter().enumerate().map(command).collect()
    }
}

/// A channel into a topic, or out of it: made by [`Process::subscribe`](crate::Process::subscribe) and
/// [`Process::unsubscribe`](crate::Process::unsubscribe). Its outcome counts 1 as `sent` if it is so now; as `dropped`
/// if the channel has as many topics as it may have, all channels together have, or memory has no room; as `closed` if
/// the channel is closing; as `not_found` or `not_owner`.
#[must_use = "nothing changes before the end is called: try_send, send or await"]
pub struct Subscribe<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) channel: ChannelId,
    pub(super) topic: Arc<str>,
    /// Out of it instead.
    pub(super) is_out: bool,
    /// Notified, apart from the outcome, once other nodes know of it.
    pub(super) heard: Option<TicketSender>,
    pub(super) delivery: DeliveryOptions,
}

ends!(Subscribe);
asks!(Subscribe);

impl Subscribe<'_> {
    /// Gives the order, and tells apart whether it is so on this node, and that the other nodes of the fleet know of
    /// it: what any node publishes from then on reaches the channel.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub(crate) fn send_apart(mut self) -> Result<(Ticket, Ticket), PushError> {
        self.check()?;
        let ((here, ticket), (heard, heard_ticket)) = (ticket(), ticket());
        self.delivery.ask = Some(OutcomeTo::Ticket(here));
        self.heard = Some(heard);
        give(self, Full::Wait).map(|()| (ticket, heard_ticket))
    }

    /// Asks for an [`Event::Failed`](crate::Event::Failed) with this number if it could not be done.
    pub fn ask_failure(mut self, number: u64) -> Self {
        self.delivery.ask = Some(OutcomeTo::Failure(number));
        self
    }
}

impl<'p> Order<'p> for Subscribe<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn check(&self) -> Result<(), PushError> {
        Ok(topic::check(&self.topic)?)
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, channel, topic, is_out, heard, delivery } = self;
        let Some(owner) = pusher.owner else { unreachable!("operators have no topics") };
        // Counted here, so that what is published behind it knows of this shard.
        let change = match is_out {
            true => Membership::Out(pusher.topic(&topic)),
            false => Membership::In(pusher.claim(channel, &topic)),
        };
        let ask = match (is_out, heard) {
            (true, _) => delivery.ask,
            (false, None) => pusher.listen(&topic, delivery.ask),
            (false, Some(heard)) => {
                pusher.listen_apart(&topic, heard);
                delivery.ask
            }
        };
        let asked = pusher.asked(ask);
        let subscribe = SubscribeCommand { channel, owner, change, asked };
        smallvec![(pusher.shard_of(channel), Command::Subscribe(Box::new(subscribe)))]
    }
}

/// The end of a channel, behind what is queued for it: made by [`Process::close`](crate::Process::close); or of its
/// connection alone: made by [`Process::disconnect`](crate::Process::disconnect). Its outcome counts 1 as `closed`,
/// `not_found` or `not_owner`.
#[must_use = "nothing is closed before the end is called: try_send, send or await"]
pub struct Close<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) channel: ChannelId,
    pub(super) why: CloseFrame,
    /// Without a close frame, as a network fails.
    pub(super) abruptly: bool,
    pub(super) delivery: DeliveryOptions,
}

ends!(Close);
asks!(Close);

impl Close<'_> {
    /// Asks for an [`Event::Failed`](crate::Event::Failed) with this number if the channel is another process'. One
    /// that is gone already is no failure.
    pub fn ask_failure(mut self, number: u64) -> Self {
        self.delivery.ask = Some(OutcomeTo::Failure(number));
        self
    }
}

impl<'p> Order<'p> for Close<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, channel, why, abruptly, delivery } = self;
        let asked = pusher.asked(delivery.ask);
        let close = CloseCommand { channel, owner: pusher.owner, why, abruptly, asked };
        smallvec![(pusher.shard_of(channel), Command::Close(Box::new(close)))]
    }
}

/// The response to an HTTP request: made by [`Process::respond`](crate::Process::respond). A late response is dropped;
/// header fields that no response may carry are left out; one with more fields than a client would take, or with a body
/// over [`PAYLOAD_BYTES_MAX`], becomes a 500, and is logged.
#[must_use = "nothing is answered before the end is called: try_send, send or await"]
pub struct Respond<'p> {
    pub(super) pusher: &'p Pusher,
    pub(super) request: RequestId,
    pub(super) status: u16,
    pub(super) headers: HeaderFields,
    pub(super) body: Bytes,
    pub(super) delivery: DeliveryOptions,
}

ends!(Respond);

impl Respond<'_> {
    /// Adds a header field.
    pub fn header(mut self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Adds header fields.
    pub fn headers(mut self, fields: impl IntoIterator<Item = (Box<str>, Box<str>)>) -> Self {
        self.headers.extend(fields);
        self
    }

    /// Its body. Default: none.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

impl<'p> Order<'p> for Respond<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn delivery(&mut self) -> &mut DeliveryOptions {
        &mut self.delivery
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, request, status, headers, body, .. } = self;
        let response = response(pusher, status, headers, body);
        let shard = request.shard() as usize;
        let Some(owner) = pusher.owner else { unreachable!("operators are asked nothing") };
        if shard >= pusher.shards() {
            // Not an id of this broker: no request waits for it.
            return Commands::new();
        }
        smallvec![(shard, Command::Respond(Box::new(RespondCommand { request, owner, response })))]
    }
}

/// The response that a process answers with, made on its own thread: that takes longer the more header fields there
/// are.
fn response(pusher: &Pusher, status: u16, headers: HeaderFields, body: Bytes) -> PreparedResponse {
    let replaced = |error: &dyn std::fmt::Display| {
        tracing::warn!(process = ?pusher.name(), %error, "a process' answer was replaced by a 500");
        PreparedResponse::text(500, "the process' answer cannot be sent")
    };
    match PreparedResponse::new(status).merge(headers) {
        Err(error) => replaced(&error),
        Ok(_) if body.len() > PAYLOAD_BYTES_MAX => replaced(&PushError::TooLarge),
        Ok(response) => response.with_body(body),
    }
}

/// The part for channels of one other node; the whole outcome is that of its departure.
fn to_one_node(
    pusher: &Pusher,
    delivery: &mut DeliveryOptions,
    to: RemoteAudience,
    message: &Message,
) -> Option<RemotePush> {
    let parts = pusher.parts(delivery.ask.take(), 1);
    let mut part = parts.into_iter().next().flatten();
    if let (Some(part), None) = (&mut part, pusher.other_brokers()) {
        part.counts.fleet_down = 1;
    }
    let memory = pusher.memory.clone()?;
    let nodes = delivery.nodes.take();
    Some(RemotePush { memory, to, frame: message.0.clone(), policy: delivery.policy, part, nodes })
}

/// Nothing leaves this broker, so the other nodes' outcome is known at once: empty.
fn none_abroad(delivery: &mut DeliveryOptions) -> Option<RemotePush> {
    if let Some(nodes) = delivery.nodes.take() {
        nodes.tell(OnNodes::default());
    }
    None
}

pub(super) fn check_size(message: &Message) -> Result<(), PushError> {
    if message.payload().len() <= PAYLOAD_BYTES_MAX { Ok(()) } else { Err(PushError::TooLarge) }
}

/// The close frame of this code, if it is one that may travel (RFC 6455 7.4), and reason.
pub(super) fn close_frame(code: u16, reason: &str) -> CloseFrame {
    CloseFrame { code: close::code_may_travel(code).then_some(code), reason: reason.into() }
}

/// A push of which is asked what became of it on each node: its ends give a [`Ticket`] to what became of it here, and
/// one to what the other nodes have said, which is settled within [`NODE_ANSWER_WITHIN`](crate::NODE_ANSWER_WITHIN) of
/// its leaving.
#[must_use = "nothing is given before the end is called: try_send or send"]
pub struct AskingNodes<'p, O> {
    order: O,
    broker: PhantomData<&'p Pusher>,
}

impl<'p, O: Order<'p>> AskingNodes<'p, O> {
    fn of(order: O) -> Self {
        Self { order, broker: PhantomData }
    }

    /// Gives the order, and never waits.
    ///
    /// # Errors
    /// It was not accepted: see [`PushError`].
    pub fn try_send(self) -> Result<(Ticket, Ticket<OnNodes>), PushError> {
        self.give(Full::Refuse)
    }

    /// Gives the order. Blocks the thread until there is room in the shards' inboxes.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn send(self) -> Result<(Ticket, Ticket<OnNodes>), PushError> {
        self.give(Full::Wait)
    }

    fn give(self, full: Full) -> Result<(Ticket, Ticket<OnNodes>), PushError> {
        self.order.check()?;
        let (order, tickets) = self.with_tickets();
        give(order, full).map(|()| tickets)
    }

    pub(super) fn with_tickets(mut self) -> (O, (Ticket, Ticket<OnNodes>)) {
        let ((teller, ticket), (nodes, on_nodes)) = (ticket(), OutcomeAsker::new());
        let delivery = self.order.delivery();
        (delivery.ask, delivery.nodes) = (Some(OutcomeTo::Ticket(teller)), Some(nodes));
        (self.order, (ticket, on_nodes))
    }
}

/// An order whose outcome is asked for: its ends give a [`Ticket`].
#[must_use = "nothing is given before the end is called: try_send, send or await"]
pub struct Asking<'p, O> {
    order: O,
    broker: PhantomData<&'p Pusher>,
}

impl<'p, O: Order<'p>> Asking<'p, O> {
    /// Gives the order, and never waits.
    ///
    /// # Errors
    /// It was not accepted: see [`PushError`].
    pub fn try_send(self) -> Result<Ticket, PushError> {
        self.give(Full::Refuse)
    }

    /// Gives the order. Blocks the thread until there is room in the shards' inboxes; async code awaits the order
    /// instead.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn send(self) -> Result<Ticket, PushError> {
        self.give(Full::Wait)
    }

    fn give(self, full: Full) -> Result<Ticket, PushError> {
        self.order.check()?;
        let (order, ticket) = self.with_ticket();
        give(order, full).map(|()| ticket)
    }

    pub(super) fn with_ticket(mut self) -> (O, Ticket) {
        let (teller, ticket) = ticket();
        self.order.delivery().ask = Some(OutcomeTo::Ticket(teller));
        (self.order, ticket)
    }
}

impl<'p, O: Order<'p>> IntoFuture for Asking<'p, O> {
    type Output = Result<Ticket, PushError>;
    type IntoFuture = SendingAsked<'p>;

    /// Gives the order, and waits for room in the shards' inboxes as a task.
    fn into_future(self) -> SendingAsked<'p> {
        let (order, ticket) = self.with_ticket();
        SendingAsked { sending: Sending::new(order), ticket: Some(ticket) }
    }
}

/// An order on its way, as a future. Dropping it gives up what was not handed over yet: of a broadcast, the part of
/// some shards.
#[must_use = "futures do nothing unless polled"]
pub struct Sending<'p> {
    pusher: &'p Pusher,
    /// An order that was refused before it was given.
    refused: Option<PushError>,
    commands: smallvec::IntoIter<[(usize, Command); 1]>,
    /// The part for other brokers, submitted once these shards have taken theirs.
    abroad: Option<RemotePush>,
    /// The next one, with its shard and what it keeps alive.
    next: Option<(usize, usize, Option<Command>)>,
}

impl<'p> Sending<'p> {
    pub(super) fn new(mut order: impl Order<'p>) -> Self {
        let (pusher, refused) = (order.pusher(), order.check().err());
        let abroad = if refused.is_none() { order.take_abroad() } else { None };
        let commands = if refused.is_none() { order.into_commands() } else { Commands::new() };
        Self { pusher, refused, commands: commands.into_iter(), abroad, next: None }
    }
}

impl Future for Sending<'_> {
    type Output = Result<(), PushError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { pusher, refused, commands, abroad, next } = self.get_mut();
        if let Some(refused) = refused.take() {
            return Poll::Ready(Err(refused));
        }
        loop {
            let Some((shard, bytes, command)) = next else {
                match commands.next() {
                    Some((shard, command)) => *next = Some((shard, command.payload_bytes(), Some(command))),
                    None => {
                        pusher.give_abroad(abroad.take());
                        return Poll::Ready(Ok(()));
                    }
                }
                continue;
            };
            match pusher.poll_send(*shard, command, *bytes, context) {
                Poll::Ready(Ok(())) => *next = None,
                other => return other,
            }
        }
    }
}

/// As [`Sending`], of an order whose outcome is asked for.
#[must_use = "futures do nothing unless polled"]
pub struct SendingAsked<'p> {
    sending: Sending<'p>,
    ticket: Option<Ticket>,
}

impl Future for SendingAsked<'_> {
    type Output = Result<Ticket, PushError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { sending, ticket } = self.get_mut();
        Pin::new(sending)
            .poll(context)
            .map_ok(|()| ticket.take().expect("a future is not polled again once it is ready"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;

    #[test]
    fn a_channel_that_is_left_out_again_and_again_is_one() {
        let broker = Broker::builder().shards(1).start().unwrap();
        let process = broker.process("p").unwrap();
        let channels = [3, 1].map(ChannelId::new);
        let broadcast = process.broadcast(Message::text("all")).except_all([channels; 1000].concat());
        let commands = broadcast.into_commands();
        let [(0, Command::PushMany(many))] = &commands[..] else { panic!("one order for one shard") };
        assert_eq!(&*many.except, [1, 3].map(ChannelId::new));
    }
}
