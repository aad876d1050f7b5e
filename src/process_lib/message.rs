//! A message as its receiver sees it, and a request that failed.

use super::backend::SendErrorKind;
use super::body::Body;
use crate::node::{Address, Capability, ProcessId};
use std::fmt;

/// A received message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A request from another process.
    Request {
        /// The sender.
        source: Address,
        /// Seconds within which a response is expected.
        expects_response: Option<u64>,
        /// The body.
        body: Body,
        /// Text beside the body.
        metadata: Option<String>,
        /// Capabilities that came with it.
        capabilities: Vec<Capability>,
    },
    /// A response to a request of this process.
    Response {
        /// The sender.
        source: Address,
        /// The body.
        body: Body,
        /// Text beside the body.
        metadata: Option<String>,
        /// The context kept with the request.
        context: Option<Vec<u8>>,
        /// Capabilities that came with it.
        capabilities: Vec<Capability>,
    },
}

impl Message {
    /// The sender.
    pub fn source(&self) -> &Address {
        match self {
            Self::Request { source, .. } | Self::Response { source, .. } => source,
        }
    }

    /// The body. JSON of the server's own is written here, at the first call.
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Request { body, .. } | Self::Response { body, .. } => body,
        }
    }

    /// Text beside the body.
    pub fn metadata(&self) -> Option<&str> {
        match self {
            Self::Request { metadata, .. } | Self::Response { metadata, .. } => metadata.as_deref(),
        }
    }

    /// The context kept with the request; none if this is a request.
    pub fn context(&self) -> Option<&[u8]> {
        match self {
            Self::Request { .. } => None,
            Self::Response { context, .. } => context.as_deref(),
        }
    }

    /// Capabilities that came with it.
    pub fn capabilities(&self) -> &[Capability] {
        match self {
            Self::Request { capabilities, .. } | Self::Response { capabilities, .. } => capabilities,
        }
    }

    /// Returns whether it is a request.
    pub fn is_request(&self) -> bool {
        matches!(self, Self::Request { .. })
    }

    /// Returns whether it came from a process on our node.
    pub fn is_local(&self, our: &Address) -> bool {
        self.source().is_on(&our.node)
    }

    /// Returns whether it came from a process of this id, on any node.
    pub fn is_process<T>(&self, process: T) -> bool
    where
        ProcessId: PartialEq<T>,
    {
        self.source().process == process
    }
}

/// A request that was not delivered or not answered in time.
#[derive(Debug, Clone)]
pub struct SendError {
    /// Why.
    pub kind: SendErrorKind,
    /// The target of the request.
    pub target: Address,
    /// The context kept with the request.
    pub context: Option<Vec<u8>>,
}

impl SendError {
    /// Why.
    pub fn kind(&self) -> &SendErrorKind {
        &self.kind
    }

    /// The target of the request.
    pub fn target(&self) -> &Address {
        &self.target
    }

    /// The context kept with the request.
    pub fn context(&self) -> Option<&[u8]> {
        self.context.as_deref()
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            SendErrorKind::Offline => write!(f, "{} is offline", self.target),
            SendErrorKind::Timeout => write!(f, "{} did not answer in time", self.target),
        }
    }
}

impl std::error::Error for SendError {}
