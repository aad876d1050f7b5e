//! The audience of a push to clients of event streams, as a journal keeps it.
//!
//! Invariant: the memory of an audience's own is counted. It must not depend on its members.

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
    One {
        /// The path on which it was opened.
        path: Arc<str>,
        /// The logged-in user.
        user: Option<Arc<str>>,
    },
    /// A list of channels.
    Listed,
}

impl ListenerAudience {
    /// The bytes kept for it alone: a path that a client has asked for, and a user's name; a path whose binding may be
    /// gone. A topic is charged as such.
    pub(super) fn name_bytes(&self) -> usize {
        let counts = 2 * size_of::<usize>();
        match self {
            Self::One { path, user } => 2 * counts + path.len() + user.as_ref().map_or(0, |user| user.len()),
            Self::Path(path) => counts + path.len(),
            Self::Process | Self::Topic(_) | Self::Listed => 0,
        }
    }

    /// Returns whether it cannot be determined if a returning client belongs to it.
    pub(super) fn is_unsure(&self) -> bool {
        matches!(self, Self::Listed | Self::One { user: None, .. })
    }
}
