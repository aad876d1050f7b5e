//! Registration: the first message of a client on `/` (node contract, section 4).

use super::auth::TokenError;
use super::snapshot::Snapshot;
use crate::process_id::{ParseProcessIdError, ProcessId};
use crate::words::close_reason;
use serde::Deserialize;

/// A client that may have a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The process it wants to talk to. Whether that process exists is not known here.
    pub target: ProcessId,
}

/// Why a registration is refused. The client's fault but for a missing secret; the connection closes with
/// [`Self::close_code`] and these words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// Not the JSON of a `WsRegister`.
    #[error("the first message is not a WsRegister: {{\"auth_token\":…,\"target_process\":…}}")]
    Malformed,
    /// The target is no process id.
    #[error("target_process: {0}")]
    Target(#[from] ParseProcessIdError),
    /// The token does not hold.
    #[error("auth_token: {0}")]
    Token(#[from] TokenError),
    /// Encryption is wanted, which we do not offer; running in the clear instead would betray the client.
    #[error("encrypted channels are not offered")]
    Encrypted,
}

impl RegistrationError {
    /// The WebSocket close code.
    pub const fn close_code(&self) -> u16 {
        match self {
            Self::Malformed | Self::Target(_) => close_reason::code::MALFORMED_REGISTRATION,
            Self::Token(_) => close_reason::code::UNAUTHORIZED,
            Self::Encrypted => close_reason::code::ENCRYPTION_NOT_OFFERED,
        }
    }
}

/// The longest first message that is looked at: a token, a process id and room to spare.
pub const REGISTRATION_BYTES_MAX: usize = 16 << 10;

#[derive(Deserialize)]
struct RegisterText {
    auth_token: String,
    target_process: String,
    encrypted: Option<bool>,
}

/// Checks a first message, Text or Binary.
///
/// # Errors
/// The first rule it breaks: form, target, token, encryption.
pub fn register(snapshot: &Snapshot, message: &[u8], now_unix_s: u64) -> Result<Registration, RegistrationError> {
    if message.len() > REGISTRATION_BYTES_MAX {
        return Err(RegistrationError::Malformed);
    }
    let register: RegisterText = serde_json::from_slice(message).map_err(|_| RegistrationError::Malformed)?;
    let target: ProcessId = register.target_process.parse()?;
    let settings = snapshot.settings();
    if !settings.public_mode {
        // A token of a secure subdomain opens channels of that very process.
        let scope = |subdomain: Option<&str>| subdomain.is_none_or(|process| process == target.as_str());
        settings.verify(&register.auth_token, now_unix_s, scope)?;
    }
    match register.encrypted {
        Some(true) => Err(RegistrationError::Encrypted),
        _ => Ok(Registration { target }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::{Claims, Secret, Settings, SubdomainTokens, mint};

    fn snapshot(key: Option<&[u8]>) -> Snapshot {
        let mut settings = Settings::of_a_node("alice.os", SubdomainTokens::Own);
        settings.secret = key.map(|key| Secret::new(key).unwrap());
        Snapshot::new(settings)
    }

    fn token(subdomain: Option<&str>, expiration: u64) -> String {
        let subdomain = subdomain.map(Into::into);
        mint(&Secret::new(b"k").unwrap(), &Claims { username: "alice.os".into(), subdomain, expiration })
    }

    fn judge(message: &str) -> Result<String, (u16, String)> {
        register(&snapshot(Some(b"k")), message.as_bytes(), 100)
            .map(|registration| registration.target.to_string())
            .map_err(|error| (error.close_code(), error.to_string()))
    }

    fn message(token: &str, more: &str) -> String {
        format!(r#"{{"auth_token":"{token}","target_process":"my_p:my_p:t.os"{more}}}"#)
    }

    #[test]
    fn accepted() {
        let good = token(None, 101);
        for more in ["", r#","encrypted":false"#, r#","encrypted":null"#, r#","unknown":{"a":[1]}"#] {
            assert_eq!(judge(&message(&good, more)), Ok("my_p:my_p:t.os".into()), "{more}");
        }
        assert_eq!(judge(&message(&token(Some("my_p:my_p:t.os"), 101), "")), Ok("my_p:my_p:t.os".into()));
    }

    #[test]
    fn refused_with_a_code_and_the_reason() {
        let good = token(None, 101);
        let code = |message: &str| judge(message).unwrap_err();
        for malformed in ["", "{", "[]", "null", "\u{0}", r#"{"auth_token":"x"}"#, &message("x", r#","encrypted":1"#)] {
            assert_eq!(code(malformed).0, 4400, "{malformed}");
        }
        assert_eq!(code(&message(&good, &" ".repeat(REGISTRATION_BYTES_MAX))).0, 4400);
        let target = message(&good, "").replace("my_p:my_p", "my_p");
        assert!(matches!(code(&target), (4400, words) if words.contains("three parts")));
        assert_eq!(code(&message("x", "")), (4401, "auth_token: the token is malformed".into()));
        assert_eq!(code(&message(&token(None, 100), "")), (4401, "auth_token: the token has expired".into()));
        let other = message(&token(Some("p:p:o"), 101), "");
        assert_eq!(code(&other), (4401, "auth_token: the token is for another subdomain".into()));
        assert_eq!(code(&message(&good, r#","encrypted":true"#)).0, 4501);
        let refused = register(&snapshot(None), message(&good, "").as_bytes(), 100).unwrap_err();
        assert_eq!((refused.close_code(), refused), (4401, RegistrationError::Token(TokenError::NoSecret)));
    }

    #[test]
    fn words_fit_a_close_frame() {
        let tokens = [TokenError::Malformed, TokenError::Subdomain, TokenError::NoSecret, TokenError::Algorithm];
        let mut all: Vec<_> = tokens.into_iter().map(RegistrationError::Token).collect();
        all.extend([RegistrationError::Malformed, RegistrationError::Encrypted]);
        all.push(ParseProcessIdError::MissingField.into());
        all.push(ParseProcessIdError::TooManyColons.into());
        all.push(ParseProcessIdError::At.into());
        for error in all {
            assert!(error.to_string().len() <= 123, "{error}");
        }
    }
}
