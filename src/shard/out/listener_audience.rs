//! The audience of a push to clients of event streams, as a journal keeps it.
//!
//! Invariant: the memory of an audience's own is counted. It must not depend on its members.

use super::kept_channels::ResumeHolder;
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
    /// The bytes kept for it alone: a path whose binding may be gone. A topic is charged as such.
    pub(super) fn name_bytes(&self) -> usize {
        let counts = 2 * size_of::<usize>();
        match self {
            Self::Path(path) => counts + path.len(),
            Self::Process | Self::Topic(_) | Self::One(_) | Self::Listed => 0,
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
