//! The secret that tokens are signed with, the token of a link, and tokens for development.
//!
//! Invariant: no secret is ever printed, nor is a part of it.

use super::admin;
use anyhow::{Context, ensure};
#[cfg(feature = "fleet")]
use pushring::fleet::Credentials;
use pushring::internals::gateway::{Claims, Secret, mint};
use pushring::internals::push_api;
use pushring::link;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Far more than any key has: HS256 hashes keys over 64 bytes (RFC 2104 section 2).
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// The fewest bytes of a secret that tokens are signed with; fewer are guessed.
pub(crate) const SECRET_BYTES_MIN: usize = 16;

/// How many it should have: as many as the hash (RFC 7518 section 3.2).
pub(crate) const SECRET_BYTES_ADVISED: usize = 32;

/// Reads the secret in the file that `setting` names: all its bytes but a line end behind its last line, which editors
/// add.
pub(crate) fn read_secret(setting: &str, path: &Path) -> anyhow::Result<Secret> {
    let name = || format!("{setting}: {}", path.display());
    let bytes = read_secret_file(path).with_context(name)?;
    let secret = without_line_end(&bytes);
    let count = secret.len();
    ensure!(
        count >= SECRET_BYTES_MIN,
        "{setting}: {} holds {count} bytes, too few for a secret: at least {SECRET_BYTES_MIN}, better \
         {SECRET_BYTES_ADVISED}: head -c 32 /dev/urandom > FILE",
        path.display()
    );
    if count < SECRET_BYTES_ADVISED {
        tracing::warn!(
            setting, file = %path.display(), bytes = count, advised = SECRET_BYTES_ADVISED,
            "the token secret is short: make a new one with head -c 32 /dev/urandom"
        );
    }
    Secret::new(secret).with_context(name)
}

/// How many bytes the secret in a file has, as [`read_secret`] counts them.
pub(crate) fn secret_bytes(path: &Path) -> anyhow::Result<usize> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(without_line_end(&bytes).len())
}

/// Reads the token of a link, in the same way.
pub(crate) fn read_link_token(path: &Path) -> anyhow::Result<link::LinkToken> {
    let name = || format!("link_token_file: {}", path.display());
    let bytes = read_secret_file(path).with_context(name)?;
    let text = std::str::from_utf8(without_line_end(&bytes)).context("it is no text").with_context(name)?;
    link::LinkToken::new(text).with_context(name)
}

/// Reads the credentials of a fleet's node, in the same way.
#[cfg(feature = "fleet")]
pub(crate) fn read_fleet_credentials(path: &Path) -> anyhow::Result<Credentials> {
    let name = || format!("fleet_credentials_file: {}", path.display());
    let bytes = read_secret_file(path).with_context(name)?;
    let text = std::str::from_utf8(&bytes).context("it is no text").with_context(name)?;
    Credentials::new(text).with_context(name)
}

/// Reads the token of the admin listener, in the same way.
pub(crate) fn read_admin_token(path: &Path) -> anyhow::Result<admin::AdminToken> {
    let name = || format!("admin_token_file: {}", path.display());
    let bytes = read_secret_file(path).with_context(name)?;
    let text = std::str::from_utf8(without_line_end(&bytes)).context("it is no text").with_context(name)?;
    admin::AdminToken::new(text).with_context(name)
}

/// Reads the token of the API, in the same way.
pub(crate) fn read_api_token(path: &Path) -> anyhow::Result<push_api::ApiToken> {
    let name = || format!("api_token_file: {}", path.display());
    let bytes = read_secret_file(path).with_context(name)?;
    let text = std::str::from_utf8(without_line_end(&bytes)).context("it is no text").with_context(name)?;
    push_api::ApiToken::new(text).with_context(name)
}

/// Reads another secret, in the same way: its bytes.
pub(crate) fn read_secret_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(without_line_end(&read_secret_file(path)?).to_vec())
}

fn read_secret_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o004 != 0 {
        tracing::warn!(file = %path.display(), "every user of this machine can read this secret: chmod 600 it");
    }
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= SECRET_BYTES_MAX, "larger than {SECRET_BYTES_MAX} bytes: is this the right file?");
    Ok(bytes)
}

/// Random bytes can end like a line, but hardly ever are UTF-8 as a whole.
fn without_line_end(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text)).as_bytes(),
        Err(_) => bytes,
    }
}

/// A random secret.
pub(crate) fn random_secret() -> anyhow::Result<Secret> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(Secret::new(&bytes)?)
}

/// A token of `node` that expires after `ttl`.
pub(crate) fn make_token(secret: &Secret, node: &str, ttl: Duration) -> anyhow::Result<String> {
    ensure!(ttl.as_secs() > 0, "ttl: a token must live for at least a second");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is before 1970")?;
    let expiration = now.saturating_add(ttl).as_secs();
    Ok(mint(secret, &Claims { username: node.to_owned(), subdomain: None, expiration }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lives_for_a_second_at_least() {
        let secret = Secret::new(b"a secret of thirty-two bytes, no less").unwrap();
        for ms in [0, 1, 999] {
            assert!(make_token(&secret, "alice.os", Duration::from_millis(ms)).is_err(), "{ms} ms");
        }
        assert!(make_token(&secret, "alice.os", Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn only_a_text_loses_its_line_end() {
        for (file, secret) in [
            (&b"word"[..], &b"word"[..]),
            (b"word\n", b"word"),
            (b"word\r\n", b"word"),
            (b"word\n\n", b"word\n"),
            (b"\n", b""),
            (b"\xff\n", b"\xff\n"),
        ] {
            assert_eq!(without_line_end(file), secret);
        }
    }

    #[test]
    fn a_token_holds_for_its_node_and_time() {
        let secret = random_secret().unwrap();
        let token = make_token(&secret, "a.os", Duration::from_secs(60)).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(secret.verify(&token, "a.os", now, |claim| claim.is_none()), Ok(()));
        assert!(secret.verify(&token, "a.os", now + 61, |_| true).is_err());
        assert!(secret.verify(&token, "b.os", now, |_| true).is_err());
        assert!(random_secret().unwrap().verify(&token, "a.os", now, |_| true).is_err());
        assert!(make_token(&secret, "a.os", Duration::ZERO).is_err());
    }
}
