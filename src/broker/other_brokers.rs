//! Other brokers with the same audience: messages submitted to them, and messages from them that are delivered here.
//!
//! The broker does not know how other brokers are reached: a fleet implements [`OtherBrokers`] and is set once. Without
//! one there are no other brokers, and everywhere is here.
//!
//! Invariants: submitting never waits; the outcome reports messages that were not accepted; a message from another
//! broker is carried out as an order of the process that it names, and of no other.

use super::delivery::OutcomeTo;
#[cfg(feature = "fleet")]
use super::guest::GuestPushOrder;
use super::message::Message;
use super::order::{Broadcast, Commands, OnNode, Order, Reach, Sending};
use super::process::ProcessHandle;
use super::pusher::{Audience, PushError, Pusher};
use super::ticket::{Ticket, TicketSender, ticket};
use super::{BrokerHandle, BrokerShared};
use crate::admission::ProcessMemory;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::process_id::ProcessId;
use crate::resume::RunId;
use crate::shard::Directory;
use crate::shard::command::{Command, LostMessages, Policy, PushFrame};
use crate::shard::operating::ChannelReport;
use crate::shard::outcome::{Outcome, OutcomePart};
use crate::words::strict::digits;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Reaches other brokers.
pub(crate) trait OtherBrokers: Send + Sync {
    /// Takes a push that is meant for others too, or for one of them, and settles its part of the outcome.
    fn push(&self, abroad: RemotePush);

    /// A channel here is about to belong to a topic of `process`. The part is settled once others know it.
    fn listen(&self, process: &ProcessId, topic: &Arc<str>, part: Option<Box<OutcomePart>>);

    /// Asks the others how many subscribers a topic of `process` has there.
    fn count(&self, process: &ProcessId, topic: &Arc<str>, asker: Asker<Presence>);

    /// Asks another node to tell of a channel of its own, or to close it.
    fn ask_of_channel(&self, at: &ChannelAt, what: ChannelQuestion, asker: Asker<ChannelAnswer>);

    /// This broker's name among the others.
    fn node(&self) -> &str;

    /// How it stands.
    fn report(&self) -> FleetReport;
}

/// A push for other brokers.
pub struct RemotePush {
    /// In whose name, and where what waits is charged.
    pub memory: ProcessMemory,
    /// Where to.
    pub to: RemoteAudience,
    /// The frame to push.
    pub frame: PushFrame,
    /// The policy for channels over their budget.
    pub policy: Option<Policy>,
    /// Its part of the outcome.
    pub part: Option<Box<OutcomePart>>,
    /// Receives the outcomes of the other nodes.
    pub nodes: Option<OutcomeAsker>,
}

/// The outcomes of a push on the other nodes of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnNodes {
    /// The outcome on each node that answered, for its own channels; all zeros where the audience has none there.
    pub said: BTreeMap<Arc<str>, Outcome>,
    /// Nodes that are there and have not said within [`NODE_ANSWER_WITHIN`]: what became of it there is not known.
    pub silent: BTreeSet<Arc<str>>,
    /// The counts are not all: a node is silent, or the push did not leave (its outcome says why).
    pub is_partial: bool,
}

/// How a node of this name is called in a fleet, unless it is named otherwise: in subjects of NATS `.` means something.
#[cfg_attr(not(feature = "node"), allow(dead_code))]
pub(crate) fn name_of_node(node: &str) -> String {
    node.replace('.', "-")
}

/// How long other nodes have to say what became of a push.
pub const NODE_ANSWER_WITHIN: Duration = Duration::from_millis(250);

/// The subscribers of a topic on the other nodes of a fleet, as they have said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presence {
    /// The last report of each node, and its age.
    pub nodes: BTreeMap<Arc<str>, Present>,
    /// Nodes that are there and have never said, as far as is remembered.
    pub unknown: BTreeSet<Arc<str>>,
    /// It is not what all nodes say now: one is unknown, or has not said it within [`NODE_ANSWER_WITHIN`].
    pub is_partial: bool,
}

/// A node's report on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// Its subscribers.
    pub subscribers: usize,
    /// How long ago it has said so: zero is now.
    pub age: Duration,
}

/// The result of a ticket that no node answers.
pub trait NoAnswer {
    /// The value given then.
    fn no_answer() -> Self;
}

/// A question to another node about one of its channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ChannelQuestion {
    /// To tell of it.
    Look,
    /// To close it, with this code and reason.
    Close(u16, Box<str>),
}

/// The answer to a [`ChannelQuestion`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
pub(crate) enum ChannelAnswer {
    /// There it is.
    Shown(Box<ChannelReport>),
    /// Its close frame is queued.
    Closed,
    /// The node has no such channel.
    NotFound,
    /// The node has not said anything within [`NODE_ANSWER_WITHIN`].
    Silent,
}

impl NoAnswer for ChannelAnswer {
    fn no_answer() -> Self {
        Self::Silent
    }
}

impl NoAnswer for OnNodes {
    fn no_answer() -> Self {
        Self { is_partial: true, ..Self::default() }
    }
}

impl NoAnswer for Presence {
    fn no_answer() -> Self {
        Self { is_partial: true, ..Self::default() }
    }
}

/// Receives the answers of other nodes. Dropping it reports that nothing is known.
#[derive(Debug)]
pub struct Asker<T: NoAnswer>(Option<TicketSender<T>>);

/// Receives the outcomes of a push on other nodes.
pub(crate) type OutcomeAsker = Asker<OnNodes>;

impl<T: NoAnswer> Asker<T> {
    pub(super) fn new() -> (Self, Ticket<T>) {
        let (teller, ticket) = ticket();
        (Self(Some(teller)), ticket)
    }

    /// Has `call` made with it, on a thread that must not wait.
    #[cfg_attr(not(feature = "link"), allow(dead_code))]
    pub(super) fn calling(call: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Some(TicketSender::calling(call)))
    }

    /// Passes the answer on.
    pub fn tell(mut self, said: T) {
        if let Some(teller) = self.0.take() {
            teller.tell(said);
        }
    }
}

impl<T: NoAnswer> Drop for Asker<T> {
    fn drop(&mut self) {
        if let Some(teller) = self.0.take() {
            teller.tell(T::no_answer());
        }
    }
}

/// The audience of a push on other brokers.
#[derive(Debug, Clone)]
pub enum RemoteAudience {
    /// An audience, on all of them.
    All(Audience),
    /// Channels of one of them.
    Channels {
        /// The node that has the channels.
        node: Arc<str>,
        /// The channels there.
        list: Vec<ChannelId>,
        /// They are of whatever process has let the sender in, rather than of the process of its name.
        as_guest: bool,
    },
}

/// A channel of a broker in a fleet: written `NODE/ID`, as in `node-2/4711`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelAt {
    /// The node.
    pub node: Arc<str>,
    /// The channel there.
    pub channel: ChannelId,
}

/// A text that names no channel of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no channel of a fleet: write NODE/ID, as in node-2/4711")]
#[non_exhaustive]
pub struct InvalidChannelAt(pub String);

impl fmt::Display for ChannelAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.channel)
    }
}

impl std::str::FromStr for ChannelAt {
    type Err = InvalidChannelAt;

    fn from_str(text: &str) -> Result<Self, InvalidChannelAt> {
        let parts = text.split_once('/').filter(|(node, _)| !node.is_empty());
        let parsed = parts.and_then(|(node, id)| Some((node, digits(id)?)));
        match parsed {
            Some((node, id)) => Ok(Self { node: node.into(), channel: ChannelId::new(id) }),
            None => Err(InvalidChannelAt(text.chars().take(100).collect())),
        }
    }
}

/// A broker's fleet at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetReport {
    /// The fleet's name.
    pub fleet: String,
    /// This node's name in it.
    pub node: String,
    /// Whether NATS is reached now.
    pub connected: bool,
    /// The NATS server, or why there is none.
    pub server: String,
    /// How long the way to NATS and back takes, in microseconds; none: it was not measured yet.
    pub round_trip_us: Option<u64>,
    /// The largest message that NATS takes, in bytes; 0: it is not known yet.
    pub payload_bytes_max: u64,
    /// Messages that wait for NATS.
    pub queued: u64,
    /// See there: bytes.
    pub queued_bytes: u64,
    /// Audiences that this node listens to.
    pub listens: u64,
    /// Audiences of its own that it counts.
    pub counts_out: u64,
    /// Audiences and sources that it counts of others.
    pub counts_in: u64,
    /// Counts since the start.
    pub counts: FleetCounts,
    /// The other nodes, by name.
    pub nodes: Vec<FleetNode>,
    /// Where messages were lost last, the newest last.
    pub losses: Vec<FleetLine>,
}

macro_rules! fleet_counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counts of a fleet's node since its start.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct FleetCounts {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl FleetCounts {
            /// All of them, by name, and what they count.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
                [$((stringify!($name), self.$name, concat!($($doc),+)),)+].into_iter()
            }
        }
    };
}

fleet_counts! {
    /// Messages that were handed to NATS.
    sent,
    /// Their bytes, headers included.
    sent_bytes,
    /// Messages of other nodes that were handed to channels here.
    received,
    /// Their bytes, headers included.
    received_bytes,
    /// Messages of other nodes that are known to be lost.
    lost,
    /// Gaps of which it is not known how many messages they are.
    gaps_unknown,
    /// Messages that came when they had been counted as lost, or came twice; they were dropped.
    late,
    /// Messages that were not taken because the queue to NATS was full.
    full,
    /// Messages that were not taken because NATS was not reached.
    down,
    /// Messages that were not taken because NATS takes none of their size.
    too_large,
    /// Messages that were refused: of a version that is not spoken here.
    refused_version,
    /// Messages that were refused: their source is not that of their subject.
    refused_source,
    /// Messages that were refused: their names are not those of their subject.
    refused_subject,
    /// Messages that were refused: of no shape that is known.
    refused_malformed,
    /// Messages that were refused: another node has this node's name.
    refused_twin,
    /// Audiences that are not listened to because there are too many.
    listens_refused,
    /// Connections to NATS that were made.
    connects,
    /// Errors that NATS has told, missing permissions among them.
    server_errors,
}

/// The state of NATS as a node sees it, and the other nodes that were heard meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetProbe {
    /// The server's version.
    pub version: String,
    /// The largest message that it takes, in bytes.
    pub payload_bytes_max: usize,
    /// The way there and back.
    pub round_trip: Duration,
    /// Things that it did not permit.
    pub refused: u64,
    /// The other nodes' versions of pushring, by name.
    pub nodes: BTreeMap<String, String>,
    /// The version of messages of a node that speaks another than this one does.
    pub spoken_elsewhere: Option<u8>,
}

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetNode {
    /// Its name.
    pub node: String,
    /// Its version of pushring.
    pub version: String,
    /// Where it listens.
    pub address: String,
    /// Where clients reach it alone, as it was told (`fleet_address`).
    pub public: String,
    /// Its live channels, as it last said.
    pub channels: u64,
    /// How long ago it was heard, in milliseconds.
    pub heard_ms: u64,
    /// It was not heard for so long that it counts as gone.
    pub is_gone: bool,
    /// It is stopping.
    pub draining: bool,
    /// Messages of it that are known to be lost.
    pub lost: u64,
}

/// Messages that were lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetLine {
    /// When that was seen, in milliseconds after 1970.
    pub unix_ms: u64,
    /// Of which node.
    pub node: String,
    /// The destination: `process topic name`.
    pub to: String,
    /// How many; none: that is not known.
    pub lost: Option<u64>,
}

impl Pusher {
    /// The fleet, if one is set.
    pub(super) fn other_brokers(&self) -> Option<&Arc<dyn OtherBrokers>> {
        self.shared().other_brokers.get()
    }

    /// Hands a push over that is for other brokers, if there is one.
    pub(super) fn give_abroad(&self, abroad: Option<RemotePush>) {
        if let (Some(abroad), Some(other_brokers)) = (abroad, self.other_brokers()) {
            other_brokers.push(abroad);
        }
    }

    /// Has other brokers know that a channel here will belong to a topic, if there are any. An outcome that was asked
    /// for waits until they do.
    pub(super) fn listen(&self, topic: &Arc<str>, ask: Option<OutcomeTo>) -> Option<OutcomeTo> {
        let (Some(other_brokers), Some(process)) = (self.other_brokers(), self.process()) else { return ask };
        let (mut part, mut here) = (None, ask);
        if matches!(here, Some(OutcomeTo::Ticket(_) | OutcomeTo::Event(_))) {
            let mut parts = self.parts(here, 2).into_iter().flatten();
            (part, here) = (parts.next(), parts.next().map(OutcomeTo::Part));
        }
        other_brokers.listen(process, topic, part);
        here
    }

    /// The same, where the outcome is that of this node, and `heard` is told once others know.
    pub(super) fn listen_apart(&self, topic: &Arc<str>, heard: TicketSender) {
        let part = self.parts(Some(OutcomeTo::Ticket(heard)), 1).pop().flatten();
        if let (Some(other_brokers), Some(process)) = (self.other_brokers(), self.process()) {
            other_brokers.listen(process, topic, part);
        }
    }

    /// The id of its process.
    fn process(&self) -> Option<&ProcessId> {
        self.memory.as_ref()?.tenant().process()
    }
}

impl BrokerHandle {
    /// Sets what reaches other brokers. Returns false if it is set already.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn set_other_brokers(&self, other_brokers: Arc<dyn OtherBrokers>) -> bool {
        self.shared.other_brokers.set(other_brokers).is_ok()
    }

    /// How the broker's fleet stands; none: it is in none.
    pub fn fleet(&self) -> Option<FleetReport> {
        self.shared.other_brokers.get().map(|other_brokers| other_brokers.report())
    }

    /// Its node's name in its fleet, if it is in one.
    #[cfg_attr(not(feature = "control"), allow(dead_code))]
    pub(crate) fn fleet_node(&self) -> Option<&str> {
        self.shared.other_brokers.get().map(|other_brokers| other_brokers.node())
    }

    /// Asks the node of a channel of the fleet to tell of it, or to close it; none: the broker is in no fleet, or it is
    /// the node itself that is asked.
    #[cfg_attr(not(feature = "control"), allow(dead_code))]
    pub(crate) fn ask_of_channel(&self, at: &ChannelAt, what: ChannelQuestion) -> Option<Ticket<ChannelAnswer>> {
        let other_brokers =
            self.shared.other_brokers.get().filter(|other_brokers| other_brokers.node() != &*at.node)?;
        let (asker, ticket) = Asker::new();
        other_brokers.ask_of_channel(at, what, asker);
        Some(ticket)
    }

    /// The name of this run of the broker in the tokens with which clients resume.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn run(&self) -> RunId {
        self.shared.keys.run()
    }

    /// Sets where clients reach the brokers of other runs; a client that resumes here by mistake is sent there.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn set_other_runs(&self, others: BTreeMap<RunId, Arc<str>>) {
        self.shared.keys.others().set(others);
    }

    /// The live channels of all processes that are attached.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn connections(&self) -> usize {
        self.shared.admission.total()
    }
}

impl ProcessHandle {
    /// The name of its broker's node in its fleet, if it is in one.
    pub(crate) fn fleet_node(&self) -> Option<&str> {
        self.pusher.other_brokers().map(|other_brokers| other_brokers.node())
    }

    /// Returns whether its broker is in a fleet, so that its audiences may have members elsewhere.
    pub(crate) fn is_in_fleet(&self) -> bool {
        self.pusher.other_brokers().is_some()
    }

    /// How many channels are subscribed to a topic of the process of this name on the other nodes of the fleet; those
    /// here are [counted](Self::subscribers) beside it. The ticket is settled within [`NODE_ANSWER_WITHIN`]: of a node
    /// that has not said by then it tells what it has said last, and how long ago.
    pub fn presence(&self, topic: &str) -> Ticket<Presence> {
        let (asker, ticket) = Asker::new();
        match (self.pusher.other_brokers(), self.pusher.process()) {
            (Some(other_brokers), Some(process)) => other_brokers.count(process, &topic.into(), asker),
            _ => asker.tell(Presence::default()),
        }
        ticket
    }

    /// A message to a channel of the process of this name on another node of the fleet, or on this one. The outcome
    /// covers only its departure (`fleet_full`, `fleet_down`, `fleet_too_large`), not its delivery there.
    pub fn push_at(&self, to: &ChannelAt, message: Message) -> super::Push<'_> {
        let is_here = self.pusher.other_brokers().is_some_and(|other_brokers| other_brokers.node() == &*to.node);
        let at = (!is_here).then(|| OnNode { node: to.node.clone(), as_guest: false });
        super::Push { at, ..self.push(to.channel, message) }
    }

    /// The same to a channel of another node whose owner, whatever process that is, has let this process in.
    #[cfg(feature = "node")]
    pub(crate) fn push_as_guest(&self, to: &ChannelAt, message: Message) -> super::Push<'_> {
        let at = Some(OnNode { node: to.node.clone(), as_guest: true });
        super::Push { at, ..self.push(to.channel, message) }
    }
}

/// Acts here in the names of processes for which something comes from elsewhere. Its futures wait for room in the
/// shards' inboxes; what they do begins when they are polled.
#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
pub(crate) struct LocalDelivery {
    shared: Arc<BrokerShared>,
    /// In whose name guests are served.
    #[cfg(feature = "fleet")]
    operator: Pusher,
    /// Of those for which something came lately.
    pushers: HashMap<ProcessId, (OwnerId, Pusher)>,
}

/// Messages that were lost, to be counted by the channels of an audience.
struct LossOrder<'p> {
    pusher: &'p Pusher,
    audience: Audience,
    count: u32,
    delivery: super::DeliveryOptions,
}

impl<'p> Order<'p> for LossOrder<'p> {
    fn pusher(&self) -> &'p Pusher {
        self.pusher
    }

    fn delivery(&mut self) -> &mut super::DeliveryOptions {
        &mut self.delivery
    }

    fn into_commands(self) -> Commands {
        let Self { pusher, audience, count, .. } = self;
        let Some(owner) = pusher.owner else { unreachable!("operators have no audience") };
        let miss = |audience| Command::LostMessages(Box::new(LostMessages { audience, owner, count }));
        pusher.split(audience).into_iter().map(|(shard, audience)| (shard, miss(audience))).collect()
    }
}

/// Topics that are listed at a time.
const PAGE: usize = 1000;

/// How many processes' accounts are kept at hand.
const AT_HAND_MAX: usize = 1024;

/// An audience of a process.
#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
pub(crate) type Audiences = BTreeMap<ProcessId, Vec<Arc<str>>>;

#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
impl LocalDelivery {
    pub(crate) fn new(handle: &BrokerHandle) -> Self {
        Self {
            shared: handle.shared.clone(),
            #[cfg(feature = "fleet")]
            operator: handle.pusher.clone(),
            pushers: HashMap::new(),
        }
    }

    /// Pushes in the name of `process`, if there is such a process here. The part is settled with what became of it.
    ///
    /// # Errors
    /// The broker has stopped, or the message is too large.
    pub(crate) fn push(
        &mut self,
        process: &ProcessId,
        to: Audience,
        message: Message,
        policy: Option<Policy>,
        part: Option<Box<OutcomePart>>,
    ) -> impl Future<Output = Result<(), PushError>> + use<> {
        let pusher = self.pusher_of(process);
        async move {
            let Some(pusher) = &pusher else {
                if let (Some(mut part), Audience::Channels(list)) = (part, to) {
                    part.counts.not_found = list.len();
                }
                return Ok(());
            };
            let delivery = super::DeliveryOptions { policy, ask: part.map(OutcomeTo::Part), nodes: None };
            Broadcast { pusher, audience: to, except: Vec::new(), message, delivery, reach: Reach::Here }.await
        }
    }

    fn pusher_of(&mut self, process: &ProcessId) -> Option<Pusher> {
        let Some(owner) = self.shared.directory().find(process) else {
            self.pushers.remove(process);
            return None;
        };
        if self.pushers.get(process).is_none_or(|(id, _)| *id != owner.id) {
            if self.pushers.len() >= AT_HAND_MAX {
                self.pushers.clear();
            }
            let pusher = Pusher::of_process(self.shared.clone(), &owner);
            self.pushers.insert(process.clone(), (owner.id, pusher));
        }
        Some(self.pushers[process].1.clone())
    }

    /// Has the channels of an audience of `process` that outlive their connections count messages that were lost, if
    /// there is such a process here.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn miss(
        &mut self,
        process: &ProcessId,
        audience: Audience,
        count: u32,
    ) -> impl Future<Output = Result<(), PushError>> + use<> {
        let pusher = self.pusher_of(process);
        async move {
            let Some(pusher) = &pusher else { return Ok(()) };
            Sending::new(LossOrder { pusher, audience, count, delivery: super::DeliveryOptions::default() }).await
        }
    }

    /// Pushes in the name of a process on another node, to channels that it was let in to.
    ///
    /// # Errors
    /// The broker has stopped.
    #[cfg(feature = "fleet")]
    pub(crate) fn push_as_guest(
        &self,
        guest: Arc<str>,
        channels: Vec<ChannelId>,
        message: Message,
        part: Option<Box<OutcomePart>>,
    ) -> impl Future<Output = Result<(), PushError>> + use<> {
        let operator = self.operator.clone();
        async move {
            let delivery =
                super::DeliveryOptions { ask: part.map(OutcomeTo::Part), ..super::DeliveryOptions::default() };
            Sending::new(GuestPushOrder { pusher: &operator, guest, channels, message, delivery }).await
        }
    }

    /// Closes a channel, as an operator does.
    ///
    /// # Errors
    /// The broker has stopped.
    #[cfg(feature = "fleet")]
    pub(crate) fn close(
        &self,
        channel: ChannelId,
        (code, reason): (u16, &str),
        part: Box<OutcomePart>,
    ) -> impl Future<Output = Result<(), PushError>> + use<> {
        let (operator, why) = (self.operator.clone(), super::order::close_frame(code, reason));
        async move {
            let delivery =
                super::DeliveryOptions { ask: Some(OutcomeTo::Part(part)), ..super::DeliveryOptions::default() };
            super::Close { pusher: &operator, channel, why, abruptly: false, delivery }.await
        }
    }

    /// The shard of a channel.
    #[cfg(feature = "fleet")]
    pub(crate) fn shard_of(&self, channel: ChannelId) -> usize {
        self.operator.shard_of(channel)
    }

    /// The paths on which each process may have channels, of those processes that have any.
    pub(crate) fn paths(&self) -> Audiences {
        let directory = self.directory();
        let with_channels = directory.owners.values().filter(|owner| owner.connections.count() > 0);
        // Registered channels belong to `/`, whatever is bound.
        let mut paths: Audiences = with_channels.map(|owner| (owner.process.clone(), vec![Arc::from("/")])).collect();
        for (process, path) in directory.gateway.websocket_paths() {
            if let Some(paths) = paths.get_mut(process)
                && path != "/"
            {
                paths.push(path.into());
            }
        }
        paths
    }

    /// All topics with subscribers.
    pub(crate) fn topics(&self) -> Audiences {
        let directory = self.directory();
        let named = directory.owners.values().map(|owner| {
            let mut topics: Vec<Arc<str>> = Vec::new();
            loop {
                // The list is not held for long at a time.
                let page = owner.topics.page("", topics.last().map(|last| &**last), PAGE);
                let is_last = page.len() < PAGE;
                topics.extend(page.into_iter().map(|report| report.topic));
                if is_last {
                    break (owner.process.clone(), topics);
                }
            }
        });
        named.collect()
    }

    /// Returns whether a topic has subscribers.
    pub(crate) fn has_subscribers(&self, process: &ProcessId, topic: &str) -> bool {
        let owner = self.shared.directory().find(process);
        owner.is_some_and(|owner| owner.topics.find(topic).is_some())
    }

    /// How many.
    pub(crate) fn subscribers(&self, process: &ProcessId, topic: &str) -> usize {
        let owner = self.shared.directory().find(process);
        owner.and_then(|owner| owner.topics.find(topic)).map_or(0, |topic| topic.subscribers())
    }

    fn directory(&self) -> Directory {
        self.shared.directory().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_a_fleet_are_written_and_read() {
        let at: ChannelAt = "node-2/4711".parse().unwrap();
        assert_eq!((&*at.node, at.channel.get(), at.to_string().as_str()), ("node-2", 4711, "node-2/4711"));
        for text in ["", "/", "node", "node/", "/7", "node/x", "node/-1", "node/+7", "node/ 7", "node/4294967296"] {
            assert!(text.parse::<ChannelAt>().is_err(), "{text}");
        }
    }
}
