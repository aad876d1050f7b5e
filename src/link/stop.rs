//! Why a session, or the thread that carries out its orders, stops.

use crate::broker::PushError;

/// Why an order ends the connection.
#[derive(Debug)]
pub(super) enum Stop {
    /// The peer broke the protocol.
    Violation(String),
    /// The broker has stopped.
    Stopped,
}

impl From<PushError> for Stop {
    fn from(error: PushError) -> Self {
        match error {
            PushError::OutcomesUnread
            | PushError::TooLarge
            | PushError::Topic(_)
            | PushError::ChannelsAreHere
            | PushError::OnlyChannels => Self::Violation(error.to_string()),
            // Orders that wait for room are refused for no other reason.
            PushError::InboxFull | PushError::Partly | PushError::Stopped => Self::Stopped,
        }
    }
}
