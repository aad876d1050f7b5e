//! The audience of a push to clients of event streams, as a journal keeps it.
//!
//! Invariant: the memory of an audience's own is counted. It must not depend on its members.

use super::kept_channels::ResumeHolder;
use crate::admission::HeapBytes;
use std::sync::Arc;

/// The audience of a push.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::shard) enum ListenerAudience {
    /// All channels of the process.
    Process,
    /// Those of one path.
    Path(Arc<str>),
    /// Those that are subscribed to a topic.
    Topic(Arc<str>),
    /// One channel, by whose it was.
    One(ResumeHolder),
    /// A list of channels.
    Listed,
}

impl ListenerAudience {
    /// The bytes of its name, which lives as long as any of its entries, whatever becomes of the path or topic.
    pub(super) fn name_bytes(&self) -> usize {
        match self {
            Self::Path(name) | Self::Topic(name) => name.heap_bytes(),
            Self::Process | Self::One(_) | Self::Listed => 0,
        }
    }

    /// Returns whether it cannot be determined if a returning client belongs to it.
    pub(super) fn is_unsure(&self) -> bool {
        match self {
            Self::Listed => true,
            Self::One(holder) => holder.is_anonymous(),
            Self::Process | Self::Path(_) | Self::Topic(_) => false,
        }
    }
}
