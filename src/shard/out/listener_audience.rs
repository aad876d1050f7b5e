//! Whom a push to clients of event streams was for, as a journal keeps it.
//!
//! Invariant: what an audience keeps for itself is counted. It must not depend on who is of it.

use std::sync::Arc;

/// Whom a push was for.
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
        /// Who was logged in.
        user: Option<Arc<str>>,
    },
    /// A list of channels.
    Listed,
}

impl ListenerAudience {
    /// What is kept for it alone: a path that a client has asked for, and who was logged in; a path whose binding may
    /// be gone. A topic is charged as such.
    pub(super) fn name_bytes(&self) -> usize {
        let counts = 2 * size_of::<usize>();
        match self {
            Self::One { path, user } => 2 * counts + path.len() + user.as_ref().map_or(0, |user| user.len()),
            Self::Path(path) => counts + path.len(),
            Self::Process | Self::Topic(_) | Self::Listed => 0,
        }
    }

    /// Returns whether nobody can tell whether a client that returns is of it.
    pub(super) fn is_unsure(&self) -> bool {
        matches!(self, Self::Listed | Self::One { user: None, .. })
    }
}
