//! The first message of a client on `/` and the server's answer to it (node contract, section 4).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Asks for a channel of a process. Unknown fields are ignored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WsRegister {
    /// The value of the node's login cookie.
    pub auth_token: String,
    /// The process id, as text: a malformed one is refused with its own reason.
    pub target_process: String,
    /// Whether messages shall be encrypted with a key derived from the token.
    #[serde(default)]
    pub encrypted: bool,
}

/// The token is a secret and is not shown.
impl fmt::Debug for WsRegister {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WsRegister")
            .field("target_process", &self.target_process)
            .field("encrypted", &self.encrypted)
            .finish_non_exhaustive()
    }
}

/// The first frame of a registered channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WsRegisterResponse {
    /// The channel.
    pub channel_id: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encrypted_may_be_absent_and_the_token_is_not_shown() {
        let text = r#"{"auth_token":"secret","target_process":"p:p:t.os","more":1}"#;
        let register: WsRegister = serde_json::from_str(text).unwrap();
        assert!(!register.encrypted);
        assert!(!format!("{register:?}").contains("secret"));
        assert_eq!(serde_json::to_string(&WsRegisterResponse { channel_id: 7 }).unwrap(), r#"{"channel_id":7}"#);
    }
}
