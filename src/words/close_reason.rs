//! The close codes that the server itself sends, what they mean, and what the client does next.
//!
//! Codes below 3000 are RFC 6455's (7.4.1) and the registry's; those from 4000 on are this protocol's own. A process
//! may close its channels with any other code. `docs/PROTOCOL.md` has the same table, and a test holds it to this one.

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// The code.
    pub code: u16,
    /// Its name in the registry, or ours.
    pub name: &'static str,
    /// What a client does that is told so.
    pub then: ClientNext,
}

/// What a client does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientNext {
    /// Connect again, after a random pause that doubles with each attempt.
    ConnectAgain,
    /// Get a new token, then connect again.
    LogIn,
    /// Nothing: it would be told the same again until it is mended, or asks for something else.
    Mend,
}

impl ClientNext {
    /// Returns whether the same client may connect again with the same request.
    pub const fn may_connect_again(self) -> bool {
        matches!(self, Self::ConnectAgain)
    }

    /// In words, as `docs/PROTOCOL.md` has them.
    pub const fn words(self) -> &'static str {
        match self {
            Self::ConnectAgain => "connect again",
            Self::LogIn => "log in again",
            Self::Mend => "mend the client",
        }
    }
}

/// The first message of a client on `/` is no registration.
pub const MALFORMED_REGISTRATION: u16 = 4400;
/// The token of a registration does not hold.
pub const UNAUTHORIZED: u16 = 4401;
/// The process that a registration names is not attached.
pub const NO_SUCH_PROCESS: u16 = 4404;
/// No registration came in time.
pub const REGISTRATION_TIMEOUT: u16 = 4408;
/// Encryption is not offered.
pub const ENCRYPTION_NOT_OFFERED: u16 = 4501;

const fn reason(code: u16, name: &'static str, then: ClientNext) -> CloseReason {
    CloseReason { code, name, then }
}

/// Every code that the server itself sends, in order.
pub const CLOSE_REASONS: [CloseReason; 13] = [
    reason(1001, "going away", ClientNext::ConnectAgain),
    reason(1002, "protocol error", ClientNext::Mend),
    reason(1007, "invalid payload", ClientNext::Mend),
    reason(1008, "policy violation", ClientNext::Mend),
    reason(1009, "message too big", ClientNext::Mend),
    reason(1011, "internal error", ClientNext::ConnectAgain),
    reason(1012, "service restart", ClientNext::ConnectAgain),
    reason(1013, "try again later", ClientNext::ConnectAgain),
    reason(MALFORMED_REGISTRATION, "malformed registration", ClientNext::Mend),
    reason(UNAUTHORIZED, "unauthorized", ClientNext::LogIn),
    reason(NO_SUCH_PROCESS, "no such process", ClientNext::ConnectAgain),
    reason(REGISTRATION_TIMEOUT, "registration timeout", ClientNext::ConnectAgain),
    reason(ENCRYPTION_NOT_OFFERED, "encryption not offered", ClientNext::Mend),
];

impl CloseReason {
    /// What is known of a code; `None` where a process, or the client, chose it.
    pub fn of(code: u16) -> Option<Self> {
        CLOSE_REASONS.into_iter().find(|reason| reason.code == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::close::code_may_travel;

    #[test]
    fn the_table_is_in_order_and_every_code_may_travel() {
        assert!(CLOSE_REASONS.is_sorted_by_key(|reason| reason.code));
        assert!(CLOSE_REASONS.iter().all(|reason| code_may_travel(reason.code)));
        assert_eq!(CloseReason::of(1013).unwrap().name, "try again later");
        assert!(CloseReason::of(1013).unwrap().then.may_connect_again() && CloseReason::of(3000).is_none());
    }
}
