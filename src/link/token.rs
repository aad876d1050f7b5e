//! The token that a peer over TCP shows.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// As many as a guess has no chance against.
pub(super) const TOKEN_BYTES_MIN: usize = 16;

/// Longer ones do not fit a hello.
pub(super) const TOKEN_BYTES_MAX: usize = 1024;

/// See the module. It is never shown.
#[derive(Clone)]
pub struct LinkToken(String);

/// Text that is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link's token is text of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} bytes")]
pub struct LinkTokenError;

impl LinkToken {
    /// A token.
    ///
    /// # Errors
    /// It is too short to protect anything, or too long.
    pub fn new(text: &str) -> Result<Self, LinkTokenError> {
        match text.len() {
            TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX => Ok(Self(text.to_owned())),
            _ => Err(LinkTokenError),
        }
    }

    /// The text, for a hello.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Returns whether `text` is this token. How long that takes does not depend on where they differ.
    pub fn is(&self, text: &str) -> bool {
        is_same(self.0.as_bytes(), text.as_bytes())
    }
}

impl fmt::Debug for LinkToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkToken")
    }
}

/// Compares secrets in a time that does not depend on where they differ: by their hashes.
pub(super) fn is_same(a: &[u8], b: &[u8]) -> bool {
    let hash = |secret| {
        let hash = Hmac::<Sha256>::new_from_slice(b"pushring link").expect("HMAC takes keys of any length");
        hash.chain_update(secret)
    };
    hash(a).verify_slice(&hash(b).finalize().into_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_equal_to_itself_alone_and_not_shown() {
        assert_eq!(LinkToken::new("0123456789abcde").err(), Some(LinkTokenError));
        assert_eq!(LinkToken::new(&"x".repeat(1025)).err(), Some(LinkTokenError));
        let token = LinkToken::new("0123456789abcdef").unwrap();
        assert!(token.is("0123456789abcdef"));
        for other in ["", "0123456789abcde", "0123456789abcdeF", "0123456789abcdef0", "0123456789abcdef\0"] {
            assert!(!token.is(other), "{other}");
        }
        assert_eq!(format!("{token:?}"), "LinkToken");
    }
}
