//! What happens to a frame that a slow client has no room for.

pub(super) use crate::words::policy::Policy;

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
