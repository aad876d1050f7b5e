//! The close codes that the server itself sends, their meanings, and the client's next step.
//!
//! Codes below 3000 are RFC 6455's (7.4.1) and the registry's; those from 4000 on are this protocol's own. A process
//! may close its channels with any other code. `docs/PROTOCOL.md` has the same table, and a test holds it to this one.

/// The codes by name.
pub mod code {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// The server goes down, or the browser left the page.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// A type of data that cannot be accepted.
    pub const UNSUPPORTED_DATA: u16 = 1003;
    /// Data that does not fit its message's type, like text that is not UTF-8.
    pub const INVALID_PAYLOAD: u16 = 1007;
    /// The peer broke a rule that has no code of its own.
    pub const POLICY_VIOLATION: u16 = 1008;
    /// More than this end takes.
    pub const MESSAGE_TOO_BIG: u16 = 1009;
    /// The client wanted an extension that the server did not agree to.
    pub const MANDATORY_EXTENSION: u16 = 1010;
    /// The server failed.
    pub const INTERNAL_ERROR: u16 = 1011;
    /// The server restarts; come back.
    pub const SERVICE_RESTART: u16 = 1012;
    /// The server is overloaded, or the client too slow; come back later.
    pub const TRY_AGAIN_LATER: u16 = 1013;
    /// A gateway got a bad answer from behind it.
    pub const BAD_GATEWAY: u16 = 1014;
    /// The first message of a client on `/` is no registration.
    pub const MALFORMED_REGISTRATION: u16 = 4400;
    /// The token of a registration does not hold.
    pub const UNAUTHORIZED: u16 = 4401;
    /// The token of a client is for another server.
    pub const FORBIDDEN: u16 = 4403;
    /// The process that a registration names is not attached.
    pub const NO_SUCH_PROCESS: u16 = 4404;
    /// No registration came in time.
    pub const REGISTRATION_TIMEOUT: u16 = 4408;
    /// Encryption is not offered.
    pub const ENCRYPTION_NOT_OFFERED: u16 = 4501;
}

/// One code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseReason {
    /// The code.
    pub code: u16,
    /// Its name in the registry, or ours.
    pub name: &'static str,
    /// Why the server sends it. A close frame's own reason says which of these it was, or more.
    pub why: &'static str,
    /// The client's next step.
    pub then: ClientNext,
}

/// A client's next step after a close.
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

const fn reason(code: u16, name: &'static str, why: &'static str, then: ClientNext) -> CloseReason {
    CloseReason { code, name, why, then }
}

/// Every code that the server itself sends, in order.
#[rustfmt::skip]
pub const CLOSE_REASONS: [CloseReason; 14] = {
    use ClientNext::{ConnectAgain, LogIn, Mend};
    [
        reason(code::GOING_AWAY, "going away", "the server stops, the process has ended, or pings went unanswered", ConnectAgain),
        reason(code::PROTOCOL_ERROR, "protocol error", "broke the framing", Mend),
        reason(code::INVALID_PAYLOAD, "invalid payload", "Text, or a close reason, that is not UTF-8", Mend),
        reason(code::POLICY_VIOLATION, "policy violation",
            "too many control frames, an invalid control text, or the operator closed the channel", Mend),
        reason(code::MESSAGE_TOO_BIG, "message too big", "a message that is too large, or in too many fragments", Mend),
        reason(code::INTERNAL_ERROR, "internal error", "the process failed", ConnectAgain),
        reason(code::SERVICE_RESTART, "service restart",
            "the daemon drains before a restart, or a process in another program was lost", ConnectAgain),
        reason(code::TRY_AGAIN_LATER, "try again later", "the client did not keep up, or there is no room for it", ConnectAgain),
        reason(code::MALFORMED_REGISTRATION, "malformed registration",
            "not a WsRegister, or `target_process` is no process id", Mend),
        reason(code::UNAUTHORIZED, "unauthorized", "the token does not hold", LogIn),
        reason(code::FORBIDDEN, "forbidden", "the token is good elsewhere", Mend),
        reason(code::NO_SUCH_PROCESS, "no such process", "no such process is attached", ConnectAgain),
        reason(code::REGISTRATION_TIMEOUT, "registration timeout", "no registration came in time", ConnectAgain),
        reason(code::ENCRYPTION_NOT_OFFERED, "encryption not offered", "`\"encrypted\":true` is not offered", Mend),
    ]
};

impl CloseReason {
    /// The row of a code; `None` where a process or a client chose the code.
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
