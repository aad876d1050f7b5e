//! A token that does not hold opens nothing: not as a registration, not as the cookie of a WebSocket, not as the cookie
//! of an HTTP request. The table is of what forgers try; each forgery is sent through every door of a real broker, and
//! the one good token beside them through the same doors, so that a refusal is the token's and not the door's.

use crate::support;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD as BASE64URL};
use hmac::{Hmac, KeyInit, Mac};
use pushring::internals::gateway::{HttpRule, WebSocketRule};
use pushring::{AttachOptions, Broker, Process};
use sha2::{Sha256, Sha384, Sha512};
use std::io::{Read, Write};
use std::net::TcpStream;
use support::{DriverKind, PATIENCE, SECRET, broker, connect, on_each_driver, recv, recv_close, send};
use tungstenite::Message;

const NODE: &str = "local.os";
const PROCESS: &str = "guarded:test:sys";
const HS256: &str = r#"{"alg":"HS256"}"#;
/// 2100-01-01.
const GOOD: &str = r#"{"username":"local.os","subdomain":null,"expiration":4102444800}"#;

/// Signs any header and payload, encoded already, with `key`.
fn signed(key: &[u8], header: &str, payload: &str) -> String {
    let text = format!("{header}.{payload}");
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    format!("{text}.{}", BASE64URL.encode(mac.finalize().into_bytes()))
}

fn forge(key: &[u8], header: &str, payload: &str) -> String {
    signed(key, &BASE64URL.encode(header), &BASE64URL.encode(payload))
}

fn with_header(header: &str) -> String {
    forge(SECRET, header, GOOD)
}

fn with_claims(claims: &str) -> String {
    forge(SECRET, HS256, claims)
}

fn expiring(expiration: &str) -> String {
    with_claims(&GOOD.replace("4102444800", expiration))
}

fn good() -> String {
    with_claims(GOOD)
}

/// Headers that try to forge the key's check.
fn forged_headers() -> Vec<(String, String)> {
    let (header, payload) = (BASE64URL.encode(HS256), BASE64URL.encode(GOOD));
    let none = |alg: &str| format!("{}.{payload}.", BASE64URL.encode(format!("{{\"alg\":{alg}}}")));
    let text = format!("{header}.{payload}");
    let mut hs384 = Hmac::<Sha384>::new_from_slice(SECRET).unwrap();
    hs384.update(format!("{}.{payload}", BASE64URL.encode(r#"{"alg":"HS384"}"#)).as_bytes());
    let mut hs512 = Hmac::<Sha512>::new_from_slice(SECRET).unwrap();
    hs512.update(text.as_bytes());
    let hs384 = BASE64URL.encode(hs384.finalize().into_bytes());
    let hs512 = BASE64URL.encode(hs512.finalize().into_bytes());
    let mut all = vec![
        ("alg none, unsigned".to_owned(), none("\"none\"")),
        ("alg None".to_owned(), none("\"None\"")),
        ("alg NONE, signed all the same".to_owned(), with_header(r#"{"alg":"NONE"}"#)),
        ("no alg".to_owned(), with_header("{}")),
        ("alg null".to_owned(), with_header(r#"{"alg":null}"#)),
        ("alg a list".to_owned(), with_header(r#"{"alg":["HS256"]}"#)),
        ("alg twice".to_owned(), with_header(r#"{"alg":"none","alg":"HS256"}"#)),
        ("alg with a space".to_owned(), with_header(r#"{"alg":"HS256 "}"#)),
        ("alg in another case".to_owned(), with_header(r#"{"alg":"hs256"}"#)),
        ("Alg".to_owned(), with_header(r#"{"Alg":"HS256"}"#)),
        ("crit".to_owned(), with_header(r#"{"alg":"HS256","crit":["exp"]}"#)),
        ("b64 false".to_owned(), with_header(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#)),
        ("HS384's own signature".to_owned(), format!("{}.{payload}.{hs384}", BASE64URL.encode(r#"{"alg":"HS384"}"#))),
        ("HS512's signature under HS256".to_owned(), format!("{text}.{hs512}")),
        ("a header that is no object".to_owned(), with_header("[]")),
        ("a header with text behind it".to_owned(), with_header(r#"{"alg":"HS256"}x"#)),
        ("a header with a byte order mark".to_owned(), with_header("\u{feff}{\"alg\":\"HS256\"}")),
        ("an empty header".to_owned(), signed(SECRET, "", &payload)),
        ("no signature".to_owned(), format!("{text}.")),
        ("no signature and no dot".to_owned(), text.clone()),
        ("a signature of the empty key".to_owned(), forge(b"", HS256, GOOD)),
        ("a signature of another key".to_owned(), forge(b"another secret", HS256, GOOD)),
        ("a key in the header".to_owned(), forge(b"k", r#"{"alg":"HS256","jwk":{"kty":"oct","k":"aw"}}"#, GOOD)),
        ("a key id that is a file".to_owned(), forge(b"", r#"{"alg":"HS256","kid":"/dev/null"}"#, GOOD)),
    ];
    for alg in ["HS384", "HS512", "RS256", "RS512", "ES256", "PS256", "EdDSA", "dir"] {
        all.push((format!("alg {alg}"), with_header(&format!("{{\"alg\":\"{alg}\"}}"))));
    }
    all
}

/// Claims of an attacker that has one good token and wants more of it, or found a way to have odd ones signed.
fn forged_claims() -> Vec<(String, String)> {
    let claims = |what: &str, from: &str, to: &str| (what.to_owned(), with_claims(&GOOD.replace(from, to)));
    let mut all = vec![
        claims("another node", "local.os", "other.os"),
        claims("a longer node", "local.os", "local.osx"),
        claims("the node in another case", "local.os", "Local.os"),
        claims("the node and a NUL", "local.os", r"local.os\u0000"),
        claims("no node", r#""username":"local.os","#, ""),
        claims("two nodes", r#""username":"#, r#""username":"other.os","username":"#),
        claims("two expirations", r#""expiration":"#, r#""expiration":1,"expiration":"#),
        claims("a node that is a list", r#""local.os""#, r#"["local.os"]"#),
        claims("another process' subdomain", "null", r#""other:test:sys""#),
        claims("an empty subdomain", "null", r#""""#),
        claims("a subdomain that is a flag", "null", "false"),
        claims("two subdomains", r#""subdomain":null"#, r#""subdomain":null,"subdomain":"other:test:sys""#),
        ("no expiration".to_owned(), with_claims(r#"{"username":"local.os","subdomain":null}"#)),
        ("text behind the claims".to_owned(), with_claims(&format!("{GOOD}{GOOD}"))),
        ("claims that are a list".to_owned(), with_claims(r#"["local.os",null]"#)),
        ("claims that are null".to_owned(), with_claims("null")),
        ("no claims".to_owned(), with_claims("")),
        ("claims that are not UTF-8".to_owned(), signed(SECRET, &BASE64URL.encode(HS256), &BASE64URL.encode(b"\xff"))),
        ("a huge token".to_owned(), with_claims(&format!("{}{}", GOOD, " ".repeat(5_000)))),
    ];
    for expiration in [
        "0",
        "1",
        "1000000000",
        "-1",
        "-4102444800",
        "4102444800.5",
        "4102444800.0",
        "4.1e9",
        "1e400",
        "null",
        "true",
        "\"4102444800\"",
        "[4102444800]",
        "18446744073709551616",
        "-9223372036854775809",
        "04102444800",
        "0xffffffff",
        "NaN",
        "Infinity",
    ] {
        all.push((format!("expiration {expiration}"), expiring(expiration)));
    }
    all
}

/// The good token in another dress: what a lenient decoder would let pass, and a filter before us may read otherwise.
fn disguises() -> Vec<(String, String)> {
    let good = good();
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("three parts") };
    let bytes = BASE64URL.decode(signature).unwrap();
    // Payloads whose base64 has the characters in which the alphabets differ, and padding.
    let odd = r#"{"username":"local.os","subdomain":null,"expiration":4102444800,"x":"~~~???"}"#;
    let last = signature.chars().last().unwrap();
    let sibling = (last as u8 ^ 1) as char;
    assert!(STANDARD.encode(odd).contains(['+', '/']) && URL_SAFE.encode(format!("{GOOD} ")).ends_with('='));
    [
        ("padding on the signature", format!("{good}=")),
        (
            "padding as the standard has it",
            signed(SECRET, &URL_SAFE.encode(HS256), &URL_SAFE.encode(format!("{GOOD} "))),
        ),
        ("the standard alphabet", signed(SECRET, &STANDARD_NO_PAD.encode(HS256), &STANDARD_NO_PAD.encode(odd))),
        ("the standard alphabet, padded", signed(SECRET, header, &STANDARD.encode(odd))),
        ("a signature in the standard alphabet, padded", format!("{header}.{payload}.{}", STANDARD.encode(&bytes))),
        ("spare bits in the signature", format!("{}{sibling}", &good[..good.len() - 1])),
        ("half a signature", format!("{header}.{payload}.{}", BASE64URL.encode(&bytes[..16]))),
        ("a signature and more", format!("{header}.{payload}.{}", BASE64URL.encode([&bytes[..], &[0]].concat()))),
        (
            "a signature in hexadecimal",
            format!("{header}.{payload}.{}", bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()),
        ),
        ("four parts", format!("{good}.{signature}")),
        ("five parts, as of an encrypted token", format!("{header}.{payload}.{header}.{payload}.{signature}")),
        ("a dot before it", format!(".{good}")),
        ("a dot behind it", format!("{good}.")),
        ("two dots in it", good.replacen('.', "..", 1)),
        ("quotes around it", format!("\"{good}\"")),
        ("Bearer", format!("Bearer {good}")),
        ("a space in it", good.replacen('.', ". ", 1)),
        ("percent encoding", good.replace('.', "%2E")),
        ("twice", format!("{good}{good}")),
        ("nothing", String::new()),
        ("dots", "..".to_owned()),
        ("text", "let me in".to_owned()),
    ]
    .map(|(what, token)| (what.to_owned(), token))
    .to_vec()
}

struct Doors {
    broker: Broker,
    process: Process,
}

impl Doors {
    fn new(driver: DriverKind) -> Self {
        let broker = broker(driver, |_| {});
        let process = broker.handle().process(PROCESS, AttachOptions::default()).unwrap();
        process.bind("/in", WebSocketRule { authenticated: true, ..Default::default() }).unwrap();
        process.bind("/deep", WebSocketRule { secure_subdomain: true, ..Default::default() }).unwrap();
        let content = pushring::internals::http::Content::new(Some("text/plain"), "inside".into());
        let content = Some(std::sync::Arc::new(content));
        process.bind_http("/page", HttpRule { authenticated: true, content, ..Default::default() }).unwrap();
        Self { broker, process }
    }

    /// The status of an answer.
    fn ask(&self, path: &str, host: &str, headers: &str) -> u16 {
        let mut stream = TcpStream::connect(self.broker.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /{PROCESS}{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
    }

    fn page(&self, cookie: &str) -> u16 {
        self.ask("/page", "localhost", &format!("Cookie: {cookie}\r\n"))
    }

    fn websocket(&self, path: &str, host: &str, cookie: &str) -> u16 {
        let handshake = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        self.ask(path, host, &format!("{handshake}Cookie: {cookie}\r\n"))
    }

    /// The server's answer to a registration with this token: the first message, or the code and reason of the close.
    fn register(&self, token: &str) -> Result<String, (u16, String)> {
        let mut client = connect(&self.broker, "/");
        let register = serde_json::json!({ "auth_token": token, "target_process": PROCESS }).to_string();
        send(&mut client, Message::text(register));
        match client.read().unwrap() {
            Message::Text(text) => Ok(text.to_string()),
            Message::Close(frame) => Err(frame.map(|frame| (frame.code.into(), frame.reason.to_string())).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    fn opened_nothing(&self) {
        let opened: u64 = self.broker.handle().reports().iter().map(|report| report.stats.opened).sum();
        assert_eq!(opened, 0, "a forgery opened a channel");
    }
}

#[test]
fn no_forgery_passes_any_door() {
    let forgeries = [forged_headers(), forged_claims(), disguises()].concat();
    on_each_driver(|driver| {
        let doors = Doors::new(driver);
        for (what, token) in &forgeries {
            let refused = doors.register(token).expect_err(what);
            assert_eq!(refused.0, 4401, "{what}: {}", refused.1);
            let name = token.split('.').nth(1).filter(|payload| payload.len() > 8).unwrap_or("no payload");
            assert!(!refused.1.contains(name), "{what}: the refusal repeats the token: {}", refused.1);
            let cookie = format!("kinode-auth_{NODE}={token}");
            assert_eq!(doors.page(&cookie), 401, "{what}");
            assert_eq!(doors.websocket("/in", "localhost", &cookie), 401, "{what}");
        }
        doors.opened_nothing();
        // The same doors, and the token that holds; whatever the header says besides.
        for token in [good(), with_header(r#"{"typ":"JWT","alg":"HS256"}"#), expiring("18446744073709551615")] {
            let cookie = format!("kinode-auth_{NODE}={token}");
            assert_eq!((doors.page(&cookie), doors.websocket("/in", "localhost", &cookie)), (200, 101));
            assert!(doors.register(&token).unwrap().starts_with("{\"channel_id\":"));
        }
    });
}

#[test]
fn a_cookie_counts_under_its_whole_name_and_one_that_holds_is_enough() {
    let good = good();
    let name = format!("kinode-auth_{NODE}");
    let whole = [
        format!("{name}={good}"),
        format!("a=b; {name}={good}; c=d"),
        format!("a=b;{name}={good}"),
        format!("{name}x=1; {name}={good}; x{name}=2; {name}@{PROCESS}=3"),
        // Of the host and of its domain, whichever comes first, in whatever fields.
        format!("{name}={good}; {name}={good}"),
        format!("{name}=; {name}={good}"),
        format!("{name}={good}; {name}="),
        format!("{name}={good};\t{name}=x"),
        format!("{name}=a.b.c; {name}={good}"),
        format!("{name}={good}\r\nCookie: {name}={good}"),
        format!("{name}=x\r\nX: y\r\ncookie: {name}={good}"),
    ];
    let tricks = [
        format!("{name}X={good}"),
        format!("{name}@={good}"),
        format!("{name}@{PROCESS}={good}"),
        format!("X{name}={good}"),
        format!("__Host-{name}={good}"),
        format!("={name}={good}"),
        format!("x={name}={good}"),
        format!("{name} ={good}"),
        format!("{name}\t={good}"),
        format!("{name}%20={good}"),
        format!("{}={good}", name.to_uppercase()),
        format!("kinode-auth_LOCAL.OS={good}"),
        format!("kinode-auth_={good}"),
        format!("kinode-auth={good}"),
        format!("hyperware-auth_{NODE}={good}"),
        format!("{name}=\"{good}\""),
        format!("{name}={good},x"),
        format!("a=b, {name}={good}"),
        format!("{name}=a.b.c; {name}=x"),
        "a=b".to_owned(),
    ];
    on_each_driver(|driver| {
        let doors = Doors::new(driver);
        for cookie in &tricks {
            assert_eq!(doors.page(cookie), 401, "{cookie:?}");
            assert_eq!(doors.websocket("/in", "localhost", cookie), 401, "{cookie:?}");
        }
        doors.opened_nothing();
        for cookie in &whole {
            assert_eq!((doors.page(cookie), doors.websocket("/in", "localhost", cookie)), (200, 101), "{cookie:?}");
        }
    });
}

#[test]
fn a_secure_subdomain_takes_the_token_of_its_process_only() {
    let of = |process: &str| with_claims(&GOOD.replace("null", &format!("\"{process}\"")));
    let (own, other, node) = (of(PROCESS), of("other:test:sys"), good());
    let name = format!("kinode-auth_{NODE}");
    on_each_driver(|driver| {
        let doors = Doors::new(driver);
        let deep = |host: &str, cookie: &str| doors.websocket("/deep", host, cookie);
        let host = "test-sys.localhost";
        for cookie in [
            format!("{name}={own}"),
            format!("{name}={node}"),
            format!("{name}@{PROCESS}={node}"),
            format!("{name}@{PROCESS}={other}"),
            format!("{name}@other:test:sys={own}"),
            format!("{name}@{PROCESS}x={own}"),
            format!("{name}@{PROCESS}={node}; {name}@{PROCESS}={other}"),
        ] {
            assert_eq!(deep(host, &cookie), 401, "{cookie}");
        }
        let cookie = format!("{name}@{PROCESS}={own}");
        for elsewhere in ["localhost", "other-sys.localhost", "127.0.0.1", "a.test-sys.localhost"] {
            assert_eq!(deep(elsewhere, &cookie), 403, "{elsewhere}");
        }
        // It is no token of the node, nor of another process.
        assert_eq!(doors.page(&format!("{name}={own}")), 401);
        assert_eq!(doors.register(&other).unwrap_err().0, 4401);
        assert_eq!(deep(host, &cookie), 101);
        assert!(doors.register(&own).is_ok(), "it opens channels of its own process");
        drop(doors.process);
    });
}

#[test]
fn a_registration_says_one_thing() {
    on_each_driver(|driver| {
        let doors = Doors::new(driver);
        let good = good();
        for (first, code) in [
            (format!(r#"{{"auth_token":"x.y.z","auth_token":"{good}","target_process":"{PROCESS}"}}"#), 4400),
            (
                format!(r#"{{"auth_token":"{good}","target_process":"{PROCESS}","target_process":"other:test:sys"}}"#),
                4400,
            ),
            (format!(r#"{{"auth_token":["{good}"],"target_process":"{PROCESS}"}}"#), 4400),
            (format!(r#"{{"auth_token":"{good}","target_process":"{PROCESS}"}}x"#), 4400),
            (format!(r#"{{"auth_token":null,"target_process":"{PROCESS}"}}"#), 4400),
            (format!(r#"{{"Auth_Token":"{good}","target_process":"{PROCESS}"}}"#), 4400),
            (format!(r#"{{"auth_token":"{good}","target_process":"{PROCESS}","encrypted":true}}"#), 4501),
            (format!(r#"{{"auth_token":"{}","target_process":"{PROCESS}"}}"#, "x".repeat(12 << 10)), 4401),
            (format!(r#"{{"auth_token":"{}","target_process":"{PROCESS}"}}"#, "x".repeat(20 << 10)), 1009),
        ] {
            let mut client = connect(&doors.broker, "/");
            send(&mut client, Message::text(first.clone()));
            let (closed, reason) = recv_close(&mut client);
            assert_eq!(closed, code, "{reason}: {first:.80}");
        }
        doors.opened_nothing();
        let mut client = connect(&doors.broker, "/");
        send(&mut client, Message::text(format!(r#"{{"target_process":"{PROCESS}","x":1,"auth_token":"{good}"}}"#)));
        assert!(recv(&mut client).is_text());
    });
}
