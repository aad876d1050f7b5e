//! Commands to a shard: one enum, one direction.

use super::event::RequestId;
use super::handler::Handler;
use super::operating::{ChannelFilter, ChannelPage, Drain};
use super::outcome::OutcomePart;
use crate::admission::{EvictedChannel, HeapBytes};
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::http::PreparedResponse;
use crate::process_id::ProcessId;
use crate::proto::MessageKind;
use crate::queue::events::QueueLimits;
use crate::shard::out::deflate::Compressed;
use crate::shard::owners::directory::{Directory, Owner};
use crate::shard::owners::topics::{Topic, TopicClaim};
pub use crate::shard::table::arrival::{Arrival, CarriedSocket, Handover};
use crate::shard::table::relayed_message::RelayedMessage;
pub use crate::words::policy::{Policy, WhenFull};
use bytes::Bytes;
use std::sync::Arc;

/// An order to one shard. Orders of one producer are executed in order.
pub enum Command {
    /// One frame to one channel of this shard.
    Push(PushCommand),
    /// One frame to many channels of this shard.
    PushMany(Box<PushMany>),
    /// Small messages, each to one channel of this shard, in order.
    PushEach(Box<PushEach>),
    /// Several orders, executed in order: what a process hands over at a time costs one place in the inbox.
    Batch(Vec<Command>),
    /// End a channel behind what is queued for it.
    Close(Box<CloseCommand>),
    /// One frame of a guest to channels of this shard.
    PushAsGuest(Box<GuestPushCommand>),
    /// Messages for channels of this shard were lost before they came here.
    LostMessages(Box<LostMessages>),
    /// Subscribe a channel to a topic, or out of it.
    Subscribe(Box<SubscribeCommand>),
    /// Let a guest in to a channel, or no more.
    Grant(Box<GrantCommand>),
    /// The answer to a waiting HTTP request.
    Respond(Box<RespondCommand>),
    /// Use these routes and owners from now on.
    Adopt(Arc<Directory>, Acknowledge),
    /// A connection that another shard has accepted is for a channel of this one.
    Arrive(CarriedSocket, Box<Arrival>),
    /// Another has the place of a channel here that waits for its client.
    Evict(EvictedChannel),
    /// A message of a client that only receives, whose channel is here.
    Said(Box<RelayedMessage>),
    /// Run a process here. Sent before it is adopted, so that no client comes before its handler.
    Host(Box<HostCommand>),
    /// A process is gone: close its channels and refuse its waiting requests.
    OwnerGone {
        /// The owner that is gone.
        owner: OwnerId,
        /// Why, for the clients.
        why: CloseFrame,
    },
    /// Answer with a copy of the shard's counters.
    Report(crossbeam_channel::Sender<super::stats::Report>),
    /// Answer with the last channels that ended, in order.
    Disconnects(crossbeam_channel::Sender<Vec<super::disconnects::Disconnect>>),
    /// Answer with the channels that pass, from a place of the shard's table on.
    Channels {
        /// Which are asked for.
        filter: Arc<ChannelFilter>,
        /// Where the page before ended; 0 at first.
        from: u32,
        /// How many fit the page.
        limit: usize,
        /// The requester.
        to: crossbeam_channel::Sender<ChannelPage>,
    },
    /// Answer with the processes that have channels here, and how many.
    Processes(crossbeam_channel::Sender<Vec<(ProcessId, usize)>>),
    /// The orders before it were given at this time of the broker's clock, in microseconds: record how long they took.
    Probe {
        /// When.
        asked_us: u64,
    },
    /// Accept clients from now on.
    Open,
    /// Obey these numbers from now on.
    Reconfigure(Arc<super::config::ShardConfig>),
    /// Close channels one after another, then stop.
    Drain(Box<Drain>),
    /// Close everything, then end.
    Stop {
        /// How long clients get to answer the close.
        within_ms: u64,
        /// Dropped when no client is accepted any more and every client has been told, as far as its socket takes it.
        told: Acknowledge,
    },
}

/// Called (by drop) when a shard has done what it was told. All shards hold a clone; the last drop is the answer.
pub type Acknowledge = Option<Arc<dyn Send + Sync>>;

/// A process that is to run on a shard.
pub struct HostCommand {
    /// The process to run.
    pub owner: Arc<Owner>,
    /// How much it may leave unread.
    pub limits: QueueLimits,
    /// Makes its handler, on the shard's thread; none, if that has failed.
    pub make: Box<dyn FnOnce() -> Option<Box<dyn Handler<Command>>> + Send>,
}

/// One frame to one channel.
#[derive(Debug)]
pub struct PushCommand {
    /// The channel.
    pub channel: ChannelId,
    /// The pusher; `None` is the broker's operator, who may push to any channel.
    pub owner: Option<OwnerId>,
    /// The frame to push.
    pub frame: PushFrame,
    /// The policy if the channel is over its budget.
    pub policy: Option<Policy>,
    /// Where the outcome goes.
    pub asked: ReportTo,
}

/// Small messages of one process, each to one channel. Their payloads lie side by side: many of them are one order,
/// which the shard reads from one end to the other.
#[derive(Debug)]
pub struct PushEach {
    owner: OwnerId,
    pushes: Vec<SmallPush>,
    payloads: Vec<u8>,
    /// How many of them are done, and how many bytes those had.
    done: usize,
    done_bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct SmallPush {
    channel: ChannelId,
    payload_bytes: u32,
    kind: MessageKind,
    /// As [`ReportTo::Failure`].
    failure: Option<u64>,
}

impl PushEach {
    /// The largest payload of a small message.
    const PAYLOAD_BYTES_MAX: usize = 1024;

    fn new(owner: OwnerId) -> Self {
        Self { owner, pushes: Vec::new(), payloads: Vec::new(), done: 0, done_bytes: 0 }
    }

    /// Returns whether a push can be one of these: a small message about which nothing is asked, or only its failure.
    fn takes(&self, push: &PushCommand) -> bool {
        let PushCommand { owner, frame, policy, asked, .. } = push;
        *owner == Some(self.owner)
            && matches!(frame.kind, PushKind::Message(_))
            && frame.payload.len() <= Self::PAYLOAD_BYTES_MAX
            && policy.is_none()
            && !matches!(asked, ReportTo::Outcome(_))
    }

    /// Appends one that it [takes](Self::takes).
    fn push(&mut self, push: PushCommand) {
        let PushCommand { channel, frame: PushFrame { kind, payload }, asked, .. } = push;
        let (PushKind::Message(kind), Ok(payload_bytes)) = (kind, u32::try_from(payload.len())) else {
            unreachable!("it takes small messages alone");
        };
        let failure = match asked {
            ReportTo::Failure(number) => Some(number),
            ReportTo::Nobody | ReportTo::Outcome(_) => None,
        };
        self.pushes.push(SmallPush { channel, payload_bytes, kind, failure });
        self.payloads.extend_from_slice(&payload);
    }

    /// Returns whether all are done.
    pub fn is_done(&self) -> bool {
        self.done == self.pushes.len()
    }

    /// Passes the next push, if there is one, to `push`: its owner, channel, message, and where a failure is reported.
    pub fn next(&mut self, push: impl FnOnce(OwnerId, ChannelId, MessageKind, &[u8], ReportTo)) {
        let Some(&next) = self.pushes.get(self.done) else { return };
        let end = self.done_bytes + next.payload_bytes as usize;
        let asked = next.failure.map_or(ReportTo::Nobody, ReportTo::Failure);
        push(self.owner, next.channel, next.kind, &self.payloads[self.done_bytes..end], asked);
        (self.done, self.done_bytes) = (self.done + 1, end);
    }
}

impl HeapBytes for PushEach {
    fn heap_bytes(&self) -> usize {
        self.pushes.capacity() * size_of::<SmallPush>() + self.payloads.capacity()
    }
}

/// The recipient of the outcome of an order for one channel.
#[derive(Debug, Default)]
pub enum ReportTo {
    /// The outcome is not reported.
    #[default]
    Nobody,
    /// Its owner, by an [`Event::Failed`](super::event::Event::Failed) with this number, and only if it failed.
    Failure(u64),
    /// The holder of a ticket.
    Outcome(Box<OutcomePart>),
}

/// One frame to many channels.
#[derive(Debug)]
pub struct PushMany {
    /// The audience.
    pub audience: ShardAudience,
    /// Channels of the audience that are left out, sorted.
    pub except: Arc<[ChannelId]>,
    /// The pusher.
    pub owner: OwnerId,
    /// The frame to push.
    pub frame: PushFrame,
    /// The same compressed, where any channel of the owner has agreed on that.
    pub compressed: Option<Arc<Compressed>>,
    /// The policy for channels over their budget.
    pub policy: Option<Policy>,
    /// Wants to know what became of it.
    pub part: Option<Box<OutcomePart>>,
}

/// The part of an audience that lives on one shard.
#[derive(Debug, Clone)]
pub enum ShardAudience {
    /// These channels, all of this shard.
    Channels(Vec<ChannelId>),
    /// The process' channels that were opened on this path.
    Path(Arc<str>),
    /// The process' channels that are subscribed to this topic.
    Topic(Arc<Topic>),
    /// All channels of the process.
    Process,
}

/// The payload of a push. Its maker has checked it: Text is valid UTF-8, control payloads have at most 125 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushFrame {
    /// The kind of frame.
    pub kind: PushKind,
    /// Its payload.
    pub payload: Bytes,
}

/// The frames that a process may push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushKind {
    /// A data frame.
    Message(MessageKind),
    /// A ping; it keeps its place behind queued data.
    Ping,
    /// An unsolicited pong (RFC 6455 5.5.3).
    Pong,
    /// A control text of the subprotocol `pushring.1`: a Text frame that is no message, and counts as none.
    ControlText {
        /// For which connection of the channel it is: how often its client had come back. It goes to no other: what was
        /// said to a connection that was lost is said again, and in order, behind the event that the client came back.
        to_return: u32,
    },
}

/// Ends one channel.
#[derive(Debug)]
pub struct CloseCommand {
    /// The channel to close.
    pub channel: ChannelId,
    /// The requester; `None` is the broker's operator.
    pub owner: Option<OwnerId>,
    /// The close frame for the client.
    pub why: CloseFrame,
    /// The client is told nothing instead: its connection ends as one that fails.
    pub abruptly: bool,
    /// Where the outcome goes: `closed`, `not_found` or `not_owner` counts 1. A channel closed already is no failure.
    pub asked: ReportTo,
}

/// Messages that were lost on their way to this broker.
#[derive(Debug)]
pub struct LostMessages {
    /// The audience, which is no list.
    pub audience: ShardAudience,
    /// Whose channels.
    pub owner: OwnerId,
    /// How many.
    pub count: u32,
}

/// One frame to channels that their owners have let a guest in to.
#[derive(Debug)]
pub struct GuestPushCommand {
    /// The channels.
    pub channels: Vec<ChannelId>,
    /// The pusher: an address on another node.
    pub guest: Arc<str>,
    /// The frame to push.
    pub frame: PushFrame,
    /// Wants to know what became of it.
    pub part: Option<Box<OutcomePart>>,
}

/// Subscribes one channel to a topic, or takes it out of it.
#[derive(Debug)]
pub struct SubscribeCommand {
    /// The channel to subscribe or unsubscribe.
    pub channel: ChannelId,
    /// The requester: only the channel's owner may.
    pub owner: OwnerId,
    /// Into or out of which topic.
    pub change: Membership,
    /// Where the outcome goes: `sent` counts 1 if it holds now, `dropped` if there are too many or no memory, `closed`
    /// if the channel is closing.
    pub asked: ReportTo,
}

/// Into or out of a topic.
#[derive(Debug)]
pub enum Membership {
    /// Into the topic of this claim. None: there was no memory for it.
    In(Option<TopicClaim>),
    /// Out of it. None: it has no subscriber.
    Out(Option<Arc<Topic>>),
}

/// Lets a guest in to one channel, or no more.
#[derive(Debug)]
pub struct GrantCommand {
    /// The channel that the grant is for.
    pub channel: ChannelId,
    /// The granter: only the channel's owner may.
    pub owner: OwnerId,
    /// The guest: an address on another node.
    pub guest: Arc<str>,
    /// False takes it back.
    pub is_granted: bool,
    /// Where the outcome goes: `sent` counts 1 if it holds now, `dropped` if there are too many guests.
    pub asked: ReportTo,
}

/// The payload of a close frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame {
    /// `None` sends an empty payload, which the client sees as 1005.
    pub code: Option<u16>,
    /// At most 123 bytes leave (RFC 6455 5.5).
    pub reason: Box<str>,
}

/// A response to an HTTP request.
#[derive(Debug)]
pub struct RespondCommand {
    /// The request's id.
    pub request: RequestId,
    /// The responder: only the process that was asked may.
    pub owner: OwnerId,
    /// The response. Built by the process that answers, since the time grows with the number of header fields.
    pub response: PreparedResponse,
}

impl Command {
    /// The bytes that a batch of so many keeps alive, where they themselves keep `payload_bytes`.
    pub fn batch_bytes(commands: usize, payload_bytes: usize) -> usize {
        payload_bytes + commands * size_of::<Self>()
    }

    /// Returns whether it carries something to channels.
    pub fn is_push(&self) -> bool {
        match self {
            Command::Push(_) | Command::PushMany(_) | Command::PushEach(_) | Command::PushAsGuest(_) => true,
            Command::Batch(commands) => commands.iter().any(Self::is_push),
            _ => false,
        }
    }

    /// Puts this behind `commands`; small pushes of one process in a row are one command. Returns how many bytes more
    /// the commands keep alive.
    pub fn join(self, commands: &mut Vec<Self>) -> usize {
        let Command::Push(push) = self else {
            let bytes = self.payload_bytes();
            commands.push(self);
            return bytes;
        };
        let before_bytes = commands.last().map_or(0, Self::payload_bytes);
        match (commands.last_mut(), push.owner.map(PushEach::new)) {
            (Some(Command::PushEach(each)), _) if each.takes(&push) => each.push(push),
            (Some(last @ Command::Push(_)), Some(mut each))
                if each.takes(&push) && matches!(&*last, Command::Push(first) if each.takes(first)) =>
            {
                if let Command::Push(first) = std::mem::replace(last, Command::Batch(Vec::new())) {
                    each.push(first);
                }
                each.push(push);
                *last = Command::PushEach(Box::new(each));
            }
            _ => {
                let bytes = push.frame.payload.len() + push.asked.heap_bytes();
                commands.push(Command::Push(push));
                return bytes;
            }
        }
        commands.last().map_or(0, Self::payload_bytes) - before_bytes
    }

    /// The bytes that it keeps alive while it waits: what the inbox counts.
    pub fn payload_bytes(&self) -> usize {
        match self {
            Command::Push(push) => push.frame.payload.len() + push.asked.heap_bytes(),
            Command::PushMany(many) => size_of::<PushMany>() + many.heap_bytes(),
            Command::PushEach(each) => size_of::<PushEach>() + each.heap_bytes(),
            Command::PushAsGuest(push) => size_of::<GuestPushCommand>() + push.heap_bytes(),
            // The topic itself is charged.
            Command::Subscribe(subscribe) => size_of::<SubscribeCommand>() + subscribe.asked.heap_bytes(),
            Command::Grant(grant) => size_of::<GrantCommand>() + grant.guest.heap_bytes() + grant.asked.heap_bytes(),
            Command::Close(close) => size_of::<CloseCommand>() + close.why.reason.len() + close.asked.heap_bytes(),
            Command::Respond(respond) => size_of::<RespondCommand>() + respond.response.heap_bytes(),
            Command::Batch(commands) => {
                Self::batch_bytes(commands.capacity(), commands.iter().map(Command::payload_bytes).sum())
            }
            Command::OwnerGone { why, .. } => why.reason.len(),
            Command::Arrive(_, arrival) => arrival.heap_bytes(),
            Command::Said(message) => message.heap_bytes(),
            // Orders of the broker itself, of which there are few.
            _ => 0,
        }
    }
}

impl HeapBytes for ChannelId {
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl HeapBytes for ReportTo {
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Nobody | Self::Failure(_) => 0,
            Self::Outcome(part) => part.heap_bytes(),
        }
    }
}

impl HeapBytes for PushMany {
    /// Memory that its shards share counts in full for each: they release it one after the other.
    fn heap_bytes(&self) -> usize {
        let audience = match &self.audience {
            ShardAudience::Channels(channels) => channels.heap_bytes(),
            ShardAudience::Path(_) | ShardAudience::Topic(_) | ShardAudience::Process => 0,
        };
        audience
            + size_of_val(&*self.except)
            + self.frame.payload.len()
            + self.compressed.as_ref().map_or(0, |compressed| compressed.bytes())
            + self.part.heap_bytes()
    }
}

impl HeapBytes for GuestPushCommand {
    fn heap_bytes(&self) -> usize {
        self.channels.heap_bytes() + self.guest.heap_bytes() + self.frame.payload.len() + self.part.heap_bytes()
    }
}

// Commands are moved through the inbox by value: at most a cache line and a half each.
const _: () = assert!(std::mem::size_of::<Command>() <= 96);
