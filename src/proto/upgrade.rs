//! The opening handshake (RFC 6455 4.2): checking a request head, and the 101 that answers it.
//!
//! `http` has parsed the head and checked its Host; this file reads the header fields only. It must not know paths or
//! rules of entry.
//!
//! Invariants: a request is either entirely valid or refused with a status and a reason; only the response allocates.

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use httparse::Header;
use sha1::{Digest, Sha1};

use super::deflate::Agreed;
use super::extension::{self, Offers};

/// A lawful request to upgrade.
#[derive(Debug, Clone, Copy)]
pub struct Upgrade<'a> {
    /// The value of `Sec-WebSocket-Accept`: ASCII.
    pub accept: [u8; ACCEPT_BYTES],
    /// The subprotocol: the first of the client's that we support.
    pub protocol: Option<&'a str>,
    headers: &'a [Header<'a>],
}

impl<'a> Upgrade<'a> {
    /// The client's offers in `Sec-WebSocket-Extensions`, in its order of preference; known to be well-formed.
    pub fn extensions(&self) -> Offers<'a> {
        Offers::new(self.headers)
    }
}

/// Why a request to upgrade is refused. The client is at fault; it gets [`UpgradeError::status`] and the words of the
/// `Display`, and may send another request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    /// The method is not GET (4.2.1 item 1).
    #[error("a WebSocket upgrade must be a GET request")]
    MethodNotGet,
    /// The request is older than HTTP/1.1.
    #[error("a WebSocket upgrade needs HTTP/1.1")]
    HttpVersion,
    /// No Host, or more than one (item 2).
    #[error("a WebSocket upgrade needs exactly one Host header")]
    Host,
    /// No `websocket` in Upgrade (item 3).
    #[error("the Upgrade header must name websocket")]
    UpgradeMissing,
    /// No `upgrade` in Connection (item 4).
    #[error("the Connection header must name Upgrade")]
    ConnectionMissing,
    /// No Sec-WebSocket-Key, or more than one (item 5, 11.3.1).
    #[error("exactly one Sec-WebSocket-Key is needed")]
    KeyCount,
    /// The key is not the base64 of 16 bytes.
    #[error("Sec-WebSocket-Key must be the base64 of 16 bytes")]
    KeyMalformed,
    /// The version is missing or is not 13 (item 6, 4.4).
    #[error("only WebSocket version 13 is supported")]
    VersionUnsupported,
    /// More than one Sec-WebSocket-Version (11.3.5).
    #[error("Sec-WebSocket-Version must not be repeated")]
    VersionRepeated,
    /// The request announces a body, which would be taken for frames.
    #[error("a WebSocket upgrade must not have a body")]
    Body,
    /// A subprotocol is not a token, or is offered twice (item 8 and 4.1 item 10).
    #[error("Sec-WebSocket-Protocol must list distinct tokens")]
    ProtocolMalformed,
    /// Sec-WebSocket-Extensions does not follow its grammar (9.1).
    #[error("Sec-WebSocket-Extensions is malformed")]
    ExtensionsMalformed,
}

impl UpgradeError {
    /// The HTTP status: 400, 405 or 426.
    pub const fn status(&self) -> u16 {
        match self {
            Self::MethodNotGet => 405,
            Self::VersionUnsupported => 426,
            Self::HttpVersion
            | Self::Host
            | Self::UpgradeMissing
            | Self::ConnectionMissing
            | Self::KeyCount
            | Self::KeyMalformed
            | Self::VersionRepeated
            | Self::Body
            | Self::ProtocolMalformed
            | Self::ExtensionsMalformed => 400,
        }
    }

    /// Header fields that this status must come with, as name and value.
    pub const fn headers(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            // RFC 9110 15.5.6.
            Self::MethodNotGet => &[("Allow", "GET")],
            // RFC 6455 4.4, and RFC 9110 15.5.22: "The server MUST send an Upgrade header field in a 426 response".
            Self::VersionUnsupported => {
                &[("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
            }
            _ => &[],
        }
    }
}

/// Returns whether a request means to be a WebSocket: it names the protocol, or carries a field that only its handshake
/// has. It may still be refused by [`negotiate`], in words that tell its author what is missing.
pub fn wants_upgrade(headers: &[Header<'_>]) -> bool {
    headers.iter().any(|header| {
        let is_named = |name: &str| header.name.eq_ignore_ascii_case(name);
        is_named("Sec-WebSocket-Key")
            || is_named("Sec-WebSocket-Version")
            || (is_named("Upgrade") && lists_token(header.value, "websocket"))
    })
}

/// Judges a request head by RFC 6455 4.2.1 and chooses the subprotocol.
///
/// `protocols_supported` is in no order: the client's order decides. A client that offers only what is not in it is
/// upgraded without a subprotocol, and may then close (4.2.2 item 5).
///
/// # Errors
/// The request is no lawful upgrade; answer with the error's status and headers.
pub fn negotiate<'a>(
    method: &str,
    minor_version: u8,
    headers: &'a [Header<'a>],
    protocols_supported: &[&str],
) -> Result<Upgrade<'a>, UpgradeError> {
    if method != "GET" {
        return Err(UpgradeError::MethodNotGet);
    }
    if minor_version < 1 {
        return Err(UpgradeError::HttpVersion);
    }
    let fields = HandshakeFields::read(headers)?;
    if fields.hosts != 1 {
        return Err(UpgradeError::Host);
    }
    if !fields.upgrade_to_websocket {
        return Err(UpgradeError::UpgradeMissing);
    }
    if !fields.connection_upgrade {
        return Err(UpgradeError::ConnectionMissing);
    }
    if fields.version.map(<[u8]>::trim_ascii) != Some(b"13") {
        return Err(UpgradeError::VersionUnsupported);
    }
    let key = fields.key.ok_or(UpgradeError::KeyCount)?;
    let accept = accept(key.trim_ascii())?;
    let protocol = choose_protocol(headers, protocols_supported)?;
    extension::check_grammar(headers).map_err(|_| UpgradeError::ExtensionsMalformed)?;
    Ok(Upgrade { accept, protocol, headers })
}

/// Appends the 101 response. `deflate` is what was agreed from [`Upgrade::extensions`], if anything.
pub fn append_response(out: &mut Vec<u8>, upgrade: &Upgrade<'_>, deflate: Option<Agreed>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    if let Some(protocol) = upgrade.protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    if let Some(agreed) = deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        agreed.append_to(out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// The fields of which the handshake looks at one value, or at whether they are there.
#[derive(Default)]
struct HandshakeFields<'a> {
    hosts: usize,
    upgrade_to_websocket: bool,
    connection_upgrade: bool,
    key: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
}

impl<'a> HandshakeFields<'a> {
    fn read(headers: &'a [Header<'a>]) -> Result<Self, UpgradeError> {
        let mut fields = Self::default();
        for header in headers {
            let is_named = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is_named("Host") {
                fields.hosts += 1;
            } else if is_named("Upgrade") {
                fields.upgrade_to_websocket |= lists_token(header.value, "websocket");
            } else if is_named("Connection") {
                fields.connection_upgrade |= lists_token(header.value, "upgrade");
            } else if is_named("Sec-WebSocket-Key") {
                if fields.key.replace(header.value).is_some() {
                    return Err(UpgradeError::KeyCount);
                }
            } else if is_named("Sec-WebSocket-Version") {
                if fields.version.replace(header.value).is_some() {
                    return Err(UpgradeError::VersionRepeated);
                }
            } else if is_named("Transfer-Encoding")
                || (is_named("Content-Length") && header.value.trim_ascii().iter().any(|&digit| digit != b'0'))
            {
                return Err(UpgradeError::Body);
            }
        }
        Ok(fields)
    }
}

/// The length of the base64 of a SHA-1.
const ACCEPT_BYTES: usize = 28;
/// The length of the base64 of 16 bytes.
const KEY_TEXT_BYTES: usize = 24;
const KEY_BYTES: usize = 16;
/// 4.2.2 item 5.4.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Reads keys. The last of their 22 characters has four bits that decode to nothing; RFC 4648 3.5 lets a decoder refuse
/// those that are set, but RFC 6455's own example has them (4.1 item 7), and 4.2.1 item 5 asks only that a key "when
/// decoded, is 16 bytes in length".
const KEY_BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// The proof that we read the key: the base64 of the SHA-1 of the key's text and the GUID. The key itself must be the
/// base64 of 16 bytes, with its padding.
fn accept(key: &[u8]) -> Result<[u8; ACCEPT_BYTES], UpgradeError> {
    // The engine wants room for 18, and checks the padding.
    let mut nonce = [0; 18];
    let nonce_bytes = KEY_BASE64.decode_slice(key, &mut nonce).map_err(|_| UpgradeError::KeyMalformed)?;
    if nonce_bytes != KEY_BYTES || key.len() != KEY_TEXT_BYTES {
        return Err(UpgradeError::KeyMalformed);
    }
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let mut accept = [0; ACCEPT_BYTES];
    let written = STANDARD.encode_slice(digest, &mut accept);
    debug_assert_eq!(written, Ok(ACCEPT_BYTES));
    Ok(accept)
}

/// Checks all that is offered, and gives the first that is supported.
fn choose_protocol<'a>(headers: &'a [Header<'a>], supported: &[&str]) -> Result<Option<&'a str>, UpgradeError> {
    let mut chosen = None;
    for (index, protocol) in protocols(headers).enumerate() {
        let protocol = std::str::from_utf8(protocol).map_err(|_| UpgradeError::ProtocolMalformed)?;
        let is_repeated = || protocols(headers).take(index).any(|earlier| earlier == protocol.as_bytes());
        if index >= PROTOCOLS_MAX || !extension::is_token(protocol.as_bytes()) || is_repeated() {
            return Err(UpgradeError::ProtocolMalformed);
        }
        if chosen.is_none() && supported.contains(&protocol) {
            chosen = Some(protocol);
        }
    }
    Ok(chosen)
}

/// More subprotocols than any client speaks; the search for repetitions is quadratic in them.
const PROTOCOLS_MAX: usize = 64;

/// 11.3.4: the field "MAY appear multiple times", which is the same as one list. Empty elements are skipped (RFC 9110
/// 5.6.1.2).
pub fn protocols<'a>(headers: &'a [Header<'a>]) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("Sec-WebSocket-Protocol"))
        .flat_map(|header| list(header.value))
}

/// The elements of a comma-separated list without those that are empty.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

fn lists_token(value: &[u8], token: &str) -> bool {
    list(value).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAWFUL: &[(&str, &str)] = &[
        ("Host", "server.example.com"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Origin", "http://example.com"),
        ("Sec-WebSocket-Version", "13"),
    ];

    fn headers<'a>(fields: &[(&'a str, &'a str)]) -> Vec<Header<'a>> {
        fields.iter().map(|&(name, value)| Header { name, value: value.as_bytes() }).collect()
    }

    /// LAWFUL with the field of that name replaced by other fields.
    fn with<'a>(name: &str, fields: &[(&'a str, &'a str)]) -> Vec<Header<'a>> {
        let kept = LAWFUL.iter().copied().filter(|field| !field.0.eq_ignore_ascii_case(name));
        headers(&kept.chain(fields.iter().copied()).collect::<Vec<_>>())
    }

    fn verdict(headers: &[Header<'_>]) -> Result<(), UpgradeError> {
        negotiate("GET", 1, headers, &[]).map(|_| ())
    }

    #[test]
    fn the_rfc_example_is_answered_as_the_rfc_says() {
        let headers = with("", &[("Sec-WebSocket-Protocol", "chat, superchat")]);
        let upgrade = negotiate("GET", 1, &headers, &["superchat", "chat"]).unwrap();
        let mut out = Vec::new();
        append_response(&mut out, &upgrade, None);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
        );
    }

    #[test]
    fn what_browsers_and_proxies_vary_is_accepted() {
        for fields in [
            with("Upgrade", &[("UPGRADE", "h2c, WebSocket")]),
            with("Upgrade", &[("Upgrade", "h2c"), ("Upgrade", "websocket")]),
            with("Connection", &[("connection", "keep-alive, Upgrade")]),
            with("Connection", &[("Connection", "keep-alive"), ("Connection", ",upgrade ,")]),
            with("Sec-WebSocket-Version", &[("sec-websocket-version", " 13 ")]),
            with("", &[("Content-Length", "0")]),
            with("", &[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")]),
        ] {
            assert_eq!(verdict(&fields), Ok(()), "{fields:?}");
            assert!(wants_upgrade(&fields));
        }
    }

    #[test]
    fn what_is_missing_repeated_or_malformed_is_refused() {
        use UpgradeError as E;
        let refused = [
            (with("Host", &[]), E::Host),
            (with("", &[("Host", "other")]), E::Host),
            (with("Upgrade", &[]), E::UpgradeMissing),
            (with("Upgrade", &[("Upgrade", "websockets")]), E::UpgradeMissing),
            (with("Connection", &[]), E::ConnectionMissing),
            (with("Connection", &[("Connection", "close")]), E::ConnectionMissing),
            (with("Sec-WebSocket-Key", &[]), E::KeyCount),
            (with("", &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")]), E::KeyCount),
            (with("Sec-WebSocket-Version", &[]), E::VersionUnsupported),
            (with("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", "8")]), E::VersionUnsupported),
            (with("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", "13, 8")]), E::VersionUnsupported),
            (with("", &[("Sec-WebSocket-Version", "13")]), E::VersionRepeated),
            (with("", &[("Content-Length", "5")]), E::Body),
            (with("", &[("Content-Length", "-0")]), E::Body),
            (with("", &[("Transfer-Encoding", "chunked")]), E::Body),
            (with("", &[("Sec-WebSocket-Protocol", "a b")]), E::ProtocolMalformed),
            (with("", &[("Sec-WebSocket-Protocol", "chat/1")]), E::ProtocolMalformed),
            (with("", &[("Sec-WebSocket-Protocol", "chat\u{e9}")]), E::ProtocolMalformed),
            (with("", &[("Sec-WebSocket-Protocol", "a, b, a")]), E::ProtocolMalformed),
            (with("", &[("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "a")]), E::ProtocolMalformed),
            (with("", &[("Sec-WebSocket-Extensions", "permessage-deflate; =10")]), E::ExtensionsMalformed),
        ];
        for (fields, error) in refused {
            assert_eq!(verdict(&fields), Err(error), "{fields:?}");
        }
        assert_eq!(negotiate("POST", 1, &headers(LAWFUL), &[]).unwrap_err(), E::MethodNotGet);
        assert_eq!(negotiate("get", 1, &headers(LAWFUL), &[]).unwrap_err(), E::MethodNotGet);
        assert_eq!(negotiate("GET", 0, &headers(LAWFUL), &[]).unwrap_err(), E::HttpVersion);
    }

    #[test]
    fn a_key_is_any_base64_of_16_bytes() {
        let judge = |key: &str| verdict(&with("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", key)]));
        // RFC 6455 4.1 item 7 gives the first for the bytes 1 to 16; their canonical form is the second.
        for key in ["AQIDBAUGBwgJCgsMDQ4PEC==", "AQIDBAUGBwgJCgsMDQ4PEA==", "AQIDBAUGBwgJCgsMDQ4PEP=="] {
            assert_eq!(judge(key), Ok(()), "{key}");
        }
        for key in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQ== x",
            "dGhlIHNhbXBsZSBub25j",
            "dGhlIHNhbXBsZSBub25jZSEh",
            "dGhlIHNhbXBsZSBub25jZSEhISE=",
            "dGhlIHNhbXBsZSBub25_ZQ==",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        ] {
            assert_eq!(judge(key), Err(UpgradeError::KeyMalformed), "{key}");
        }
    }

    #[test]
    fn the_clients_first_supported_protocol_is_chosen() {
        let fields = with("", &[("Sec-WebSocket-Protocol", "x, b"), ("Sec-WebSocket-Protocol", "a")]);
        for (supported, chosen) in [(&["a", "b"][..], Some("b")), (&["a"], Some("a")), (&["c"], None), (&[], None)] {
            assert_eq!(negotiate("GET", 1, &fields, supported).unwrap().protocol, chosen);
        }
    }

    #[test]
    fn refusals_carry_the_headers_their_status_needs() {
        assert_eq!(UpgradeError::VersionUnsupported.status(), 426);
        assert!(UpgradeError::VersionUnsupported.headers().contains(&("Sec-WebSocket-Version", "13")));
        assert_eq!(UpgradeError::MethodNotGet.status(), 405);
        assert!(UpgradeError::MethodNotGet.headers().contains(&("Allow", "GET")));
    }

    #[test]
    fn a_plain_request_does_not_want_an_upgrade() {
        assert!(!wants_upgrade(&headers(&[("Host", "a"), ("Connection", "keep-alive")])));
        assert!(!wants_upgrade(&headers(&[("Upgrade", "h2c"), ("Connection", "Upgrade")])));
        assert!(wants_upgrade(&headers(&[("Sec-WebSocket-Key", "")])));
    }
}
