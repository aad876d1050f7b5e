//! The first message of a client on `/`: a channel is given only for a token that this node issued for the process that
//! the message names, whatever else the message says.

use pushring::internals::gateway::{Claims, RegistrationError, Secret, Snapshot, TokenError, mint, register};
use pushring::internals::proto::close::{REASON_BYTES_MAX, code_may_travel};
use pushring::node::Dialect;
use serde::Deserialize;
use std::sync::LazyLock;

const NODE: &str = "alice.os";
const SUBDOMAIN: &str = "p:p:t.os";
const NOW_UNIX_S: u64 = 1_000;

/// The bytes that stand for a token in an input, and the token.
static TOKENS: LazyLock<[(u8, String); 4]> = LazyLock::new(|| {
    let token = |username: &str, subdomain: Option<&str>, expiration| {
        let claims = Claims { username: username.into(), subdomain: subdomain.map(Into::into), expiration };
        mint(&secret(), &claims)
    };
    [
        (0x01, token(NODE, None, NOW_UNIX_S + 1)),
        (0x02, token(NODE, Some(SUBDOMAIN), NOW_UNIX_S + 1)),
        (0x03, token(NODE, None, NOW_UNIX_S)),
        (0x04, token("bob.os", None, NOW_UNIX_S + 1)),
    ]
});

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut settings = pushring::node::settings(NODE, Dialect::Kinode);
    settings.secret = Some(secret());
    Snapshot::new(settings)
});

fn secret() -> Secret {
    Secret::new(b"the key of this property").expect("it is not empty")
}

/// The message; the bytes 1 to 4 stand for tokens: of the node, of a subdomain, expired, of another node.
pub fn holds(data: &[u8]) {
    let mut message = Vec::new();
    for &byte in data {
        match TOKENS.iter().find(|(stand_in, _)| *stand_in == byte) {
            Some((_, token)) => message.extend_from_slice(token.as_bytes()),
            None => message.push(byte),
        }
    }
    let registered = register(&SNAPSHOT, &message, NOW_UNIX_S);
    match &registered {
        Ok(registration) => is_entitled(&message, registration.target.as_str()),
        Err(error) => {
            assert!(code_may_travel(error.close_code()));
            assert!(error.to_string().len() <= REASON_BYTES_MAX, "{error}");
        }
    }
    let keyless = Snapshot::new(pushring::node::settings(NODE, Dialect::Kinode));
    let without_key = register(&keyless, &message, NOW_UNIX_S);
    match without_key {
        Ok(_) => panic!("no node without a key lets anybody in"),
        Err(RegistrationError::Token(error)) => assert_eq!(error, TokenError::NoSecret),
        Err(error) => assert_eq!(registered, Err(error)),
    }
}

/// A message's fields, parsed once more. Other fields are ignored, so they need not be JSON text.
#[derive(Debug, Deserialize)]
struct Said {
    auth_token: String,
    target_process: String,
    encrypted: Option<bool>,
}

fn is_entitled(message: &[u8], target: &str) {
    let Said { auth_token, target_process, encrypted } =
        serde_json::from_slice(message).expect("a registration has these fields");
    assert_eq!(target_process, target);
    assert!(target.split(':').count() == 3 && target.split(':').all(|part| !part.is_empty()));
    assert_ne!(encrypted, Some(true));
    let is_token = |index: usize| auth_token == TOKENS[index].1;
    assert!(is_token(0) || (is_token(1) && target == SUBDOMAIN), "nobody minted {auth_token}");
}
