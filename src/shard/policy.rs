//! What becomes of a frame that a slow client has no room for.

/// What to do with a frame that does not fit a channel's byte budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Close the channel with 1013.
    #[default]
    Close,
    /// Drop this frame.
    DropNewest,
    /// Drop queued data frames, oldest first, until it fits.
    DropOldest,
    /// While the client is behind, keep only the newest value of this key; over the budget even so, close.
    Conflate {
        /// What the values are of.
        key: u64,
    },
}

/// A policy without what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyKind {
    Close,
    DropNewest,
    DropOldest,
    Conflate,
}

impl Policy {
    pub(super) fn kind(self) -> PolicyKind {
        match self {
            Self::Close => PolicyKind::Close,
            Self::DropNewest => PolicyKind::DropNewest,
            Self::DropOldest => PolicyKind::DropOldest,
            Self::Conflate { .. } => PolicyKind::Conflate,
        }
    }
}
