//! Other brokers with the same audience: what is handed over for them, and what is handed on for them here.
//!
//! The broker does not know how others are reached: whoever does (a fleet) is an [`Elsewhere`] that is set once. Without
//! one there is nobody elsewhere, and everywhere is here.
//!
//! Invariants: handing over never waits; what is not taken is told in the outcome; what comes from elsewhere is obeyed as
//! an order of the process that it names, and of no other.

use super::delivery::OutcomeTo;
use super::message::Message;
use super::order::{Broadcast, Order};
use super::process::ProcessHandle;
use super::pusher::{Audience, PushError, Pusher};
use super::{BrokerHandle, BrokerShared};
use crate::admission::ProcessFund;
use crate::channel::ChannelId;
use crate::gateway::OwnerId;
use crate::process_id::ProcessId;
use crate::shard::Directory;
use crate::shard::command::{Policy, PushFrame};
use crate::shard::outcome::OutcomePart;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// Who reaches other brokers.
pub trait Elsewhere: Send + Sync {
    /// Takes a push that is meant for others too, or for one of them, and settles its part of the outcome.
    fn push(&self, abroad: Abroad);

    /// A channel here is about to belong to a topic of `process`. The part is settled once others know it.
    fn listen(&self, process: &ProcessId, topic: &Arc<str>, part: Option<Box<OutcomePart>>);

    /// This broker's name among the others.
    fn node(&self) -> &str;

    /// How it stands.
    fn report(&self) -> FleetReport;
}

/// A push for other brokers.
pub struct Abroad {
    /// In whose name, and where what waits is charged.
    pub purse: ProcessFund,
    /// Where to.
    pub to: AbroadTo,
    /// What.
    pub frame: PushFrame,
    /// What to do where a channel is over its budget.
    pub policy: Option<Policy>,
    /// Its part of the outcome.
    pub part: Option<Box<OutcomePart>>,
}

/// To whom a push goes that is for other brokers.
#[derive(Debug, Clone)]
pub enum AbroadTo {
    /// An audience, on all of them.
    All(Audience),
    /// A channel of one of them.
    Channel(ChannelAt),
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
        let parsed = parts.and_then(|(node, id)| Some((node, id.parse().ok()?)));
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
    /// What waits for NATS: messages.
    pub queued: u64,
    /// See there: bytes.
    pub queued_bytes: u64,
    /// Audiences that this node listens to.
    pub listens: u64,
    /// Audiences of its own that it counts.
    pub counts_out: u64,
    /// Audiences and sources that it counts of others.
    pub counts_in: u64,
    /// What was counted since the start.
    pub counts: FleetCounts,
    /// The other nodes, by name.
    pub nodes: Vec<FleetNode>,
    /// Where messages were lost last, the newest last.
    pub losses: Vec<FleetLine>,
}

macro_rules! fleet_counts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What a node of a fleet has counted since its start.
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

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FleetNode {
    /// Its name.
    pub node: String,
    /// Its version of pushring.
    pub version: String,
    /// Where clients connect to it.
    pub address: String,
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
    /// To whom: `process topic name`.
    pub to: String,
    /// How many; none: that is not known.
    pub lost: Option<u64>,
}

impl Pusher {
    /// Who reaches other brokers, if anybody does.
    pub(super) fn elsewhere(&self) -> Option<&Arc<dyn Elsewhere>> {
        self.shared().elsewhere.get()
    }

    /// Hands a push over that is for other brokers, if there is one.
    pub(super) fn give_abroad(&self, abroad: Option<Abroad>) {
        if let (Some(abroad), Some(elsewhere)) = (abroad, self.elsewhere()) {
            elsewhere.push(abroad);
        }
    }

    /// Has other brokers know that a channel here will belong to a topic, if there are any. An outcome that was asked for waits
    /// until they do.
    pub(super) fn listen(&self, topic: &Arc<str>, ask: Option<OutcomeTo>) -> Option<OutcomeTo> {
        let (Some(elsewhere), Some(process)) = (self.elsewhere(), self.process()) else { return ask };
        let (mut part, mut here) = (None, ask);
        if matches!(here, Some(OutcomeTo::Ticket(_) | OutcomeTo::Event(_))) {
            let mut parts = self.parts(here, 2).into_iter().flatten();
            (part, here) = (parts.next(), parts.next().map(OutcomeTo::Part));
        }
        elsewhere.listen(process, topic, part);
        here
    }

    /// The id of its process.
    fn process(&self) -> Option<&ProcessId> {
        self.purse.as_ref()?.tenant().process()
    }
}

impl BrokerHandle {
    /// Names who reaches other brokers. Returns false if somebody does already.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn set_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) -> bool {
        self.shared.elsewhere.set(elsewhere).is_ok()
    }

    /// How the broker's fleet stands; none: it is in none.
    pub fn fleet(&self) -> Option<FleetReport> {
        self.shared.elsewhere.get().map(|elsewhere| elsewhere.report())
    }

    /// The live channels of all processes that are attached.
    #[cfg_attr(not(feature = "fleet"), allow(dead_code))]
    pub(crate) fn connections(&self) -> usize {
        self.shared.admission.total()
    }
}

impl ProcessHandle {
    /// A message to a channel of the process of this name on another node of the fleet, or on this one.
    /// What has become of it there is not told: the outcome says what kept it from leaving (`fleet_full`, `fleet_down`,
    /// `fleet_too_large`).
    pub fn push_at(&self, to: &ChannelAt, message: Message) -> super::Push<'_> {
        let is_here = self.pusher.elsewhere().is_some_and(|elsewhere| elsewhere.node() == &*to.node);
        super::Push { at: (!is_here).then(|| to.node.clone()), ..self.push(to.channel, message) }
    }
}

/// Acts here in the names of processes for which something comes from elsewhere.
#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
pub(crate) struct Hands {
    shared: Arc<BrokerShared>,
    /// Of those for which something came lately.
    pushers: HashMap<ProcessId, (OwnerId, Pusher)>,
}

/// Topics that are listed at a time.
const PAGE: usize = 1000;

/// How many processes' accounts are kept at hand.
const AT_HAND_MAX: usize = 1024;

/// An audience of a process, for [`Hands::audiences`].
#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
pub(crate) type Audiences = BTreeMap<ProcessId, Vec<Arc<str>>>;

#[cfg_attr(not(feature = "fleet"), allow(dead_code))]
impl Hands {
    pub fn new(handle: &BrokerHandle) -> Self {
        Self { shared: handle.shared.clone(), pushers: HashMap::new() }
    }

    /// Pushes in the name of `process`, if there is such a process here. Blocks the thread until there is room in the
    /// shards' inboxes. Returns whether there is one.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn push(
        &mut self,
        process: &ProcessId,
        to: Audience,
        message: Message,
        policy: Option<Policy>,
    ) -> Result<bool, PushError> {
        let Some(owner) = self.shared.directory().find(process) else {
            self.pushers.remove(process);
            return Ok(false);
        };
        if self.pushers.get(process).is_none_or(|(id, _)| *id != owner.id) {
            if self.pushers.len() >= AT_HAND_MAX {
                self.pushers.clear();
            }
            let pusher = Pusher::of_process(self.shared.clone(), &owner);
            self.pushers.insert(process.clone(), (owner.id, pusher));
        }
        let (_, pusher) = &self.pushers[process];
        let delivery = super::DeliveryOptions { policy, ask: None };
        let broadcast = Broadcast { pusher, audience: to, except: Vec::new(), message, delivery, everywhere: false };
        broadcast.check()?;
        broadcast.send()?;
        Ok(true)
    }

    /// The paths on which each process may have channels, of those processes that have any.
    pub fn paths(&self) -> Audiences {
        let directory = self.directory();
        let with_channels = directory.owners.values().filter(|owner| owner.connections.count() > 0);
        // Who has registered is on `/`, whatever is bound.
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
    pub fn topics(&self) -> Audiences {
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

    /// Whether a topic has subscribers.
    pub fn has_subscribers(&self, process: &ProcessId, topic: &str) -> bool {
        let owner = self.shared.directory().find(process);
        owner.is_some_and(|owner| owner.topics.find(topic).is_some())
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
        for text in ["", "/", "node", "node/", "/7", "node/x", "node/-1", "node/4294967296"] {
            assert!(text.parse::<ChannelAt>().is_err(), "{text}");
        }
    }
}
