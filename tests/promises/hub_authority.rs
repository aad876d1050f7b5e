//! An authority signs the hub's tokens: the daemon itself fetches the keys, only from the configured place; a token
//! with a new key has them fetched, and however many come with unknown ones, that is once; a key that left the set is
//! refused, and so is the secret. A broken answer of the authority leaves the previous keys in force, and stops no
//! client; over TLS only a server with the configured certificate is believed.

use crate::support;

use ::aws_lc_rs::rand::SystemRandom;
use ::aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use support::daemon::{Daemon, TemporaryFile, output, pushring};
use support::{PATIENCE, tls};

const ISSUER: &str = "https://id.example";

struct Key {
    kid: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (BASE64URL.encode(&point[1..33]), BASE64URL.encode(&point[33..]));
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid, "x": x, "y": y})
    }

    fn token(&self) -> String {
        let exp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3600;
        let header = json!({"alg": "ES256", "kid": self.kid}).to_string();
        let claims = json!({"iss": ISSUER, "aud": "chat", "sub": "ann", "exp": exp}).to_string();
        let signed = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL.encode(signature.as_ref()))
    }
}

fn set(keys: &[&Key]) -> String {
    json!({ "keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Answers each request with the last configured answer, and counts them.
#[derive(Clone)]
struct Authority {
    address: SocketAddr,
    answer: Arc<Mutex<(u16, String)>>,
    asked: Arc<Mutex<usize>>,
}

impl Authority {
    fn start(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            answer: Arc::new(Mutex::new((200, answer))),
            asked: Arc::default(),
        };
        let served = this.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                assert!(head[0].starts_with("GET /keys "), "{head:?}");
                *served.asked.lock().unwrap() += 1;
                let (status, body) = served.answer.lock().unwrap().clone();
                let length = body.len();
                // The daemon may have ended.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
                );
            }
        });
        this
    }

    fn answers(&self, status: u16, body: String) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}/keys", self.address)
    }
}

/// The status of an upgrade with this token.
fn enter(daemon: &Daemon, token: &str) -> u16 {
    let fields = format!(
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: pushring.1, bearer.{token}\r\nConnection: Upgrade\r\n"
    );
    let mut stream = daemon.stream();
    write!(stream, "GET /hub HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", daemon.address).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap()
}

/// Until an upgrade with this token has this status.
fn until(daemon: &Daemon, token: &str, status: u16) {
    let end = Instant::now() + PATIENCE;
    while enter(daemon, token) != status {
        assert!(Instant::now() < end, "never {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn keys_are_fetched_once_for_however_many_that_are_unknown() {
    let (first, second) = (Key::new("first"), Key::new("second"));
    let authority = Authority::start(set(&[&first]));
    let daemon = Daemon::start(&[
        "serve",
        "--hub",
        "--auth-jwks-url",
        &authority.url(),
        "--auth-issuer",
        ISSUER,
        "--auth-audience",
        "chat",
    ]);
    until(&daemon, &first.token(), 101);
    // It was fetched just now: no client has it fetched again for half a minute, and none waits for that.
    authority.answers(200, set(&[&second]));
    for _ in 0..20 {
        assert_eq!(enter(&daemon, &second.token()), 401);
    }
    assert_eq!(authority.asked(), 1);
    assert_eq!(enter(&daemon, &first.token()), 101, "others come in meanwhile");
    let token = first.token();
    let (said, signature) = token.rsplit_once('.').unwrap();
    let altered = if signature.starts_with('A') { 'B' } else { 'A' };
    assert_eq!(enter(&daemon, &format!("{said}.{altered}{}", &signature[1..])), 401);
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert!(code == Some(0) && !log.contains("bearer") && !log.contains(&first.token()), "{log}");
}

/// Serves the set over TLS, each time with the certificate of `pair`, and counts the requests inside of it.
fn over_tls(pair: &tls::Pair, set: String) -> (SocketAddr, Arc<Mutex<usize>>) {
    let chain = vec![CertificateDer::from_pem_slice(pair.chain.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::<Mutex<usize>>::default());
    let counted = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let inside = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream.unwrap());
            let mut inside = BufReader::new(inside);
            let lines = inside.by_ref().lines();
            // A client that does not trust the certificate sends nothing.
            if lines.map_while(Result::ok).take_while(|line| !line.is_empty()).count() == 0 {
                continue;
            }
            *counted.lock().unwrap() += 1;
            let length = set.len();
            // The daemon may have ended.
            let _ = write!(
                inside.get_mut(),
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{set}"
            );
            inside.get_mut().conn.send_close_notify();
            let _ = inside.get_mut().flush();
        }
    });
    (address, asked)
}

#[test]
fn keys_come_over_tls_from_who_has_the_certificate_that_was_named() {
    let key = Key::new("k");
    let named = tls::make(&["localhost"]);
    let ca = TemporaryFile::new("jwks-ca.pem", &named.chain);
    let start = |address: SocketAddr| {
        let url = format!("https://localhost:{}/keys", address.port());
        let args = ["serve", "--hub", "--auth-jwks-url", &url, "--auth-jwks-ca", ca.path()];
        Daemon::start(&[&args[..], &["--auth-issuer", ISSUER, "--auth-audience", "chat", "--metrics"]].concat())
    };
    let (address, asked) = over_tls(&named, set(&[&key]));
    let daemon = start(address);
    until(&daemon, &key.token(), 101);
    assert_eq!(*asked.lock().unwrap(), 1);
    drop(daemon);
    // Another's, for the same name, is not believed: it is not even asked.
    let (address, asked) = over_tls(&tls::make(&["localhost"]), set(&[&key]));
    let daemon = start(address);
    let failed = "pushring_hub_key_fetches_failed_total 1";
    let end = Instant::now() + PATIENCE;
    while !daemon.get("/metrics:pushring:sys/", "").contains(failed) {
        assert!(Instant::now() < end, "it says that it has failed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(enter(&daemon, &key.token()), 503, "nobody knows which keys there are");
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert!(code == Some(0) && log.contains("certificate") && *asked.lock().unwrap() == 0, "{log}");
}

#[test]
fn an_authority_that_answers_nonsense_stops_nobody() {
    let key = Key::new("k");
    let authority = Authority::start("<html>".to_owned());
    authority.answers(500, String::new());
    let url = authority.url();
    let args = ["serve", "--hub", "--auth-jwks-url", &url, "--auth-issuer", ISSUER, "--auth-audience", "chat"];
    let daemon = Daemon::start(&[&args[..], &["--metrics"]].concat());
    // The keys are not known yet: the client is asked to retry.
    assert_eq!(enter(&daemon, &key.token()), 503);
    let end = Instant::now() + PATIENCE;
    while !daemon.get("/metrics:pushring:sys/", "").contains("pushring_hub_key_fetches_failed_total 1") {
        assert!(Instant::now() < end, "it says that it has failed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(enter(&daemon, "a.b.c"), 401);
    assert!(daemon.get("/", "").starts_with("HTTP/1.1 404 "));
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert!(code == Some(0) && log.contains("it answers 500"), "{log}");
}

#[test]
fn a_key_that_left_the_file_opens_nothing_any_more() {
    let (first, second) = (Key::new("first"), Key::new("second"));
    let file = TemporaryFile::new("jwks", &set(&[&first]));
    let args = ["serve", "--hub", "--auth-jwks-file", file.path(), "--auth-issuer", ISSUER, "--auth-audience", "chat"];
    let daemon = Daemon::start(&args);
    assert_eq!(enter(&daemon, &first.token()), 101);
    std::fs::write(file.path(), set(&[&second])).unwrap();
    until(&daemon, &second.token(), 101);
    // Where keys may be looked for again, an unknown one is: 503 for a moment.
    until(&daemon, &first.token(), 401);
    // A malformed set leaves the previous one in force.
    std::fs::write(file.path(), "{").unwrap();
    assert_eq!(enter(&daemon, &second.token()), 101);
}

#[test]
fn settings_that_would_open_more_than_they_say_are_refused() {
    let (secret, file) = (TemporaryFile::new("authority-secret", &"s".repeat(32)), TemporaryFile::new("no-jwks", "{}"));
    let url = "https://id.example/keys";
    for (more, words) in [
        (&["--auth-jwks-url", url][..], "auth_issuer"),
        (&["--auth-jwks-url", url, "--auth-issuer", ISSUER], "auth_audience"),
        (&["--auth-jwks-url", "http://id.example/keys", "--auth-issuer", ISSUER, "--auth-audience", "x"], "https://"),
        (
            &[
                "--auth-jwks-url",
                url,
                "--auth-issuer",
                ISSUER,
                "--auth-audience",
                "x",
                "--hub-secret-file",
                secret.path(),
            ],
            "hub_secret_file",
        ),
        (
            &["--auth-jwks-url", url, "--auth-jwks-file", "x", "--auth-issuer", ISSUER, "--auth-audience", "x"],
            "auth_jwks_file",
        ),
        (&["--auth-jwks-file", file.path(), "--auth-issuer", ISSUER, "--auth-audience", "x"], "auth_jwks_file"),
        (&["--auth-issuer", ISSUER, "--hub-open"], "auth_issuer"),
    ] {
        let args = [&["serve", "--hub", "--listen", "127.0.0.1:0", "--control", "off"], more].concat();
        let refused = output(&mut pushring(&args));
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && told.contains(words), "{more:?}: {told}");
    }
}
