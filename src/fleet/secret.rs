//! The credentials with which a node authenticates to NATS. Never shown, never logged.

/// The contents of a credentials file.
#[derive(Clone)]
pub struct Credentials(pub(super) SecretKind);

#[derive(Clone)]
pub(super) enum SecretKind {
    /// A JWT and the seed that signs for it, as `nsc` writes them.
    Jwt(String),
    /// The seed of an nkey.
    Seed(String),
    /// A user and a password.
    Password(String, String),
}

/// A text that holds no credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it holds no credentials: write the file that nsc makes (with BEGIN NATS USER JWT), the seed of an nkey (SU…), or \
     one line USER:PASSWORD"
)]
pub struct InvalidCredentials;

impl Credentials {
    /// Reads the text of a credentials file.
    ///
    /// # Errors
    /// It holds none.
    pub fn new(text: &str) -> Result<Self, InvalidCredentials> {
        let line = text.trim();
        if line.contains("BEGIN NATS USER JWT") {
            // The client wants a line's end behind the last one; some tools write none.
            return Ok(Self(SecretKind::Jwt(format!("{line}\n"))));
        }
        if line.is_empty() || line.contains(['\n', '\r', ' ']) {
            return Err(InvalidCredentials);
        }
        match line.split_once(':') {
            Some(("", _) | (_, "")) => Err(InvalidCredentials),
            Some((user, password)) => Ok(Self(SecretKind::Password(user.to_owned(), password.to_owned()))),
            None if line.starts_with("SU") => Ok(Self(SecretKind::Seed(line.to_owned()))),
            None => Err(InvalidCredentials),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_of_three_things() {
        let kind = |text: &str| Credentials::new(text).map(|credentials| credentials.0);
        assert!(matches!(kind("-----BEGIN NATS USER JWT-----\nx\n"), Ok(SecretKind::Jwt(_))));
        assert!(matches!(
            kind("SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n"),
            Ok(SecretKind::Seed(_))
        ));
        assert!(matches!(kind("node-1:secret:with:colons\n"), Ok(SecretKind::Password(user, _)) if user == "node-1"));
        for text in ["", "\n", "word", ":x", "x:", "two words:x", "a:b\nc:d"] {
            assert!(kind(text).is_err(), "{text:?}");
        }
        assert_eq!(format!("{:?}", Credentials::new("user:hunter2").unwrap()), "Credentials");
    }
}
