//! The opening handshake: a request is upgraded if and only if RFC 6455 4.2.1 lets it, and the answer says nothing but
//! what was asked and agreed.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use pushring::internals::http::{Head, Header, HttpLimits};
use pushring::internals::proto::deflate::{Agreed, Terms, negotiate as negotiate_deflate};
use pushring::internals::proto::extension::ExtensionOffer;
use pushring::internals::proto::upgrade::{Upgrade, append_response, negotiate, wants_upgrade};
use tungstenite::handshake::derive_accept_key;

/// The bytes are header fields to add to a lawful head, rather than a head.
const LAWFUL: u8 = 1;
/// Context takeover is allowed on our side.
const TAKEOVER: u8 = 2;

const LAWFUL_HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// RFC 6455's own example of a key has bits that decode to nothing set (4.1 item 7).
const ANY_BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

const PROTOCOLS: [&str; 3] = ["chat", "v1.p", "x"];

/// A byte of settings, then a head or some fields of one.
pub fn holds(data: &[u8]) {
    let Some((&settings, bytes)) = data.split_first() else { return };
    let head = match settings & LAWFUL {
        0 => bytes.to_vec(),
        _ => [LAWFUL_HEAD, bytes, b"\r\n\r\n"].concat(),
    };
    let Ok(Some((head, _))) = Head::parse(&head, &HttpLimits::default()) else { return };
    let terms = Terms { window_bits: 9 + (settings >> 4) % 7, takeover: settings & TAKEOVER != 0 };
    match negotiate(head.method, head.minor_version, head.headers(), &PROTOCOLS) {
        Ok(upgrade) => {
            assert!(wants_upgrade(head.headers()));
            assert_eq!((head.method, head.minor_version), ("GET", 1));
            is_lawful(head.headers());
            is_answered(head.headers(), &upgrade, negotiate_deflate(upgrade.extensions(), terms), terms);
        }
        Err(error) => {
            assert!(matches!(error.status(), 400 | 405 | 426), "{error}");
            assert_eq!(error.status() == 405, head.method != "GET");
        }
    }
}

fn values<'a>(headers: &[Header<'a>], name: &str) -> Vec<&'a [u8]> {
    headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value).collect()
}

fn elements<'a>(headers: &[Header<'a>], name: &str) -> Vec<&'a [u8]> {
    let lists = values(headers, name).into_iter();
    let elements = lists.flat_map(|list| list.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty()).collect()
}

/// 4.2.1, items 2 to 6.
fn is_lawful(headers: &[Header<'_>]) {
    let lists = |name: &str, token: &[u8]| elements(headers, name).iter().any(|have| have.eq_ignore_ascii_case(token));
    assert_eq!(values(headers, "host").len(), 1);
    assert!(lists("upgrade", b"websocket") && lists("connection", b"upgrade"));
    let version = values(headers, "sec-websocket-version");
    assert!(version.len() == 1 && version[0].trim_ascii() == b"13");
    let keys = values(headers, "sec-websocket-key");
    let nonce = ANY_BASE64.decode(keys[0].trim_ascii());
    assert!(keys.len() == 1 && nonce.is_ok_and(|nonce| nonce.len() == 16));
    assert!(values(headers, "transfer-encoding").is_empty());
}

/// 4.2.2 item 5: the fields of the answer and no others, each with a reason in the request.
fn is_answered(headers: &[Header<'_>], upgrade: &Upgrade<'_>, agreed: Option<Agreed>, terms: Terms) {
    let mut out = Vec::new();
    append_response(&mut out, upgrade, agreed);
    let answer = std::str::from_utf8(&out).expect("the answer is ASCII");
    let lines = answer.strip_suffix("\r\n\r\n").expect("the answer is one whole head");
    let mut lines = lines.split("\r\n");
    assert_eq!(lines.next(), Some("HTTP/1.1 101 Switching Protocols"));
    for line in lines {
        match line.split_once(": ").expect("a field") {
            ("Upgrade", value) => assert_eq!(value, "websocket"),
            ("Connection", value) => assert_eq!(value, "Upgrade"),
            ("Sec-WebSocket-Accept", value) => {
                assert_eq!(value, derive_accept_key(values(headers, "sec-websocket-key")[0].trim_ascii()));
            }
            ("Sec-WebSocket-Protocol", value) => {
                let offered = elements(headers, "sec-websocket-protocol");
                let first = offered.iter().find(|have| PROTOCOLS.iter().any(|known| known.as_bytes() == **have));
                assert_eq!(first, Some(&value.as_bytes()));
            }
            ("Sec-WebSocket-Extensions", value) => {
                let (answer, agreed) = (Answer::parse(value), agreed.expect("an answer is agreed"));
                assert_eq!(agreed.server_takes_context_over(), !answer.no_takeover);
                assert!(agreed.server_window_bits() <= terms.window_bits || answer.window_bits.is_some());
                assert!(terms.takeover || answer.no_takeover);
                assert!(upgrade.extensions().any(|offer| answer.keeps(&offer)), "{value}: nobody offered that");
            }
            other => panic!("{other:?} belongs into no answer"),
        }
    }
}

/// The server's answer about permessage-deflate.
struct Answer {
    no_takeover: bool,
    window_bits: Option<u8>,
}

impl Answer {
    fn parse(value: &str) -> Self {
        let mut parameters = value.split("; ");
        assert_eq!(parameters.next(), Some("permessage-deflate"));
        let mut answer = Self { no_takeover: false, window_bits: None };
        for parameter in parameters {
            match parameter.split_once('=') {
                None if parameter == "client_no_context_takeover" => {}
                None if parameter == "server_no_context_takeover" => answer.no_takeover = true,
                Some(("server_max_window_bits", bits)) => answer.window_bits = bits.parse().ok(),
                _ => panic!("{parameter} belongs into no answer"),
            }
        }
        answer
    }

    /// Whether a client that made this offer accepts the answer (RFC 7692 7.1).
    fn keeps(&self, offer: &ExtensionOffer<'_>) -> bool {
        let named = |name: &str| {
            let mut parameters = offer.parameters.iter();
            parameters.find(|parameter| parameter.name.eq_ignore_ascii_case(name.as_bytes()))
        };
        let asks_for = named("server_max_window_bits").and_then(|parameter| parameter.value());
        let asks_for = asks_for.and_then(|value| String::from_utf8(value.collect()).ok()?.parse::<u8>().ok());
        let window_is_kept = match (asks_for, self.window_bits) {
            (Some(most), Some(bits)) => (8..=most).contains(&bits),
            (None, None) => true,
            _ => false,
        };
        offer.name.eq_ignore_ascii_case(b"permessage-deflate")
            && (self.no_takeover || named("server_no_context_takeover").is_none())
            && window_is_kept
    }
}
