//! Traffic of a node in a fleet: pushes of its broker and of other nodes, and news.

use super::names::Name;
use super::roster::Change;
use super::subject::{NamedAudience, Target};
use crate::admission::HeapBytes;
use crate::broker::{Audience, ChannelQuestion, Message, OnNodes};
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use crate::shard::command::PushFrame;
use crate::shard::operating::ChannelReport;
use crate::words::policy::Policy;
use bytes::Bytes;
use std::sync::Arc;

/// A push to others.
#[derive(Debug, Clone)]
pub(super) struct OutboundPush {
    /// In whose name.
    pub process: ProcessId,
    /// The audience.
    pub to: OutboundTo,
    /// The frame to push.
    pub frame: PushFrame,
    /// The policy for channels over their budget.
    pub policy: Option<Policy>,
    /// Whether other nodes are to say what became of it.
    pub asks: bool,
}

/// See [`OutboundPush`].
#[derive(Debug, Clone)]
pub(super) enum OutboundTo {
    /// An audience on all nodes.
    All(NamedAudience),
    /// Channels of a node.
    Channels(Name, Vec<ChannelId>),
    /// The same, of whatever processes have let this one in.
    Guest(Name, Vec<ChannelId>),
}

impl OutboundPush {
    /// The heap bytes that it holds.
    pub(super) fn heap_bytes(&self) -> usize {
        let to = match &self.to {
            OutboundTo::Channels(_, list) | OutboundTo::Guest(_, list) => list.capacity() * size_of::<ChannelId>(),
            OutboundTo::All(NamedAudience::Topic(name) | NamedAudience::Path(name)) => name.heap_bytes(),
            OutboundTo::All(NamedAudience::Process) => 0,
        };
        self.frame.payload.len() + to
    }
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    /// Where.
    pub subject: String,
    /// The message.
    pub bytes: Bytes,
}

/// A push that has got its number.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    /// The message to publish.
    pub push: Publish,
    /// A question to publish after it, if nodes are asked that may not listen to the message.
    pub ask: Option<Publish>,
    /// Under which number others will say what became of it, or what there is to say already.
    pub asked: Option<Result<u64, OnNodes>>,
}

/// A push of another node, for the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivery {
    /// Whose it is.
    pub source: Arc<str>,
    /// In whose name.
    pub process: ProcessId,
    /// The audience.
    pub channels: Channels,
    /// The message, by reference to the bytes received.
    pub message: Message,
    /// The policy for channels over their budget.
    pub policy: Option<Policy>,
    /// The node that wants the outcome, and its number for it.
    pub asked: Option<(Name, u64)>,
}

/// See [`Delivery`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Channels {
    /// An audience.
    Of(NamedAudience),
    /// A list.
    List(Vec<ChannelId>),
    /// A list of channels that this process, an address on another node, was let in to.
    Guest(Arc<str>, Vec<ChannelId>),
}

impl NamedAudience {
    /// For the broker.
    pub(super) fn audience(self) -> Audience {
        match self {
            Self::Topic(name) => Audience::Topic(name),
            Self::Path(path) => Audience::Path(path),
            Self::Process => Audience::Process,
        }
    }
}

/// Events of a fleet that are reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FleetNews {
    /// Messages of a node are lost; none: it is not known how many.
    Lost {
        /// The node whose messages are lost.
        source: Arc<str>,
        /// The audience; none: channels here, or all messages of that node.
        to: Option<Target>,
        /// How many.
        count: Option<u64>,
    },
    /// A message was refused.
    Refused {
        /// Of which node, as its subject says.
        source: String,
        /// Why.
        why: Refusal,
    },
    /// A node has joined, returned or restarted.
    Node {
        /// The node that has come.
        node: Arc<str>,
        /// The change.
        change: Change,
    },
    /// A node is silent.
    Gone {
        /// The node concerned.
        node: Arc<str>,
    },
}

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// See there.
    #[error("its version is {0}, which this node does not support: run the same version on both nodes")]
    Version(u8),
    /// The header and the subject name different sources.
    #[error("its subject names another node than its header: a node may publish for itself only")]
    Source,
    /// The header and the subject name different audiences.
    #[error("its subject names another audience than its header")]
    Subject,
    /// It is none, or a part of it is not what it should be.
    #[error("it is no message of a fleet, or is incomplete")]
    Malformed,
    /// Another node has this one's name.
    #[error("another node of the fleet has this node's name: give each a name of its own (fleet_node)")]
    Twin,
}

/// Another node's question about a channel here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChannelAsked {
    /// The node that asks.
    pub source: Name,
    /// Under which number it is answered.
    pub ask: u64,
    /// The channel.
    pub channel: ChannelId,
    /// The question.
    pub what: ChannelQuestion,
}

/// All that was said to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QuestionResult {
    /// Its number.
    pub ask: u64,
    /// The nodes' outcomes.
    pub on_nodes: OnNodes,
    /// The channel that was asked for, if it is there.
    pub shown: Option<Box<ChannelReport>>,
}

/// The result of a received message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effects {
    /// The order for the broker.
    pub delivery: Option<Delivery>,
    /// The answer to publish at once.
    pub answer: Option<Publish>,
    /// A node wants to know how many subscribers a topic has here; the answer goes to it under the number.
    pub count: Option<(ProcessId, Arc<str>, Name, u64)>,
    /// A node wants to hear of a channel here, or to have it closed.
    pub of_channel: Option<ChannelAsked>,
    /// All have said what was asked under this number.
    pub settled: Option<QuestionResult>,
    /// The news to report.
    pub told: Vec<FleetNews>,
}
