//! Whoever connects to a link and says nothing, or lies about who it is, keeps nobody out and writes nothing into the log
//! but one escaped line.
#![allow(missing_docs)]

mod link_support;
mod support;

use link_support::{Linked, Raw, attach, frame};
use pushring::link::{Client, ClientOptions, Endpoint, Token};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use support::PATIENCE;
use tracing_subscriber::fmt::MakeWriter;

const TOKEN: &str = "a token of the link";

fn linked(name: &str) -> Linked {
    Linked::start(name, |config| {
        config.tcp = Some(([127, 0, 0, 1], 0).into());
        config.token = Some(Token::new(TOKEN).unwrap());
    })
}

#[test]
fn silent_connections_keep_nobody_out() {
    let linked = linked("silent");
    let address = linked.server.as_ref().unwrap().tcp_address().unwrap();
    let mut silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(address).unwrap()).collect();
    let silent_unix: Vec<UnixStream> = (0..64).map(|_| UnixStream::connect(&linked.path).unwrap()).collect();
    // The oldest have gone, so that there is room; whoever has a place may still speak.
    for stream in &mut silent[..60] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    let endpoint = Endpoint::Tcp { address: address.to_string(), token: Token::new(TOKEN).unwrap() };
    let over_tcp = Client::connect(endpoint, &"tcp:test:sys".parse().unwrap(), ClientOptions::default()).unwrap();
    let over_unix = attach(&linked.path, "unix");
    drop((over_tcp, over_unix, silent, silent_unix));
    linked.stop();
}

#[test]
fn a_session_is_asked_for_by_a_few_at_a_time() {
    let linked = linked("crowd");
    let hello = json!({"version_min": 1, "version_max": 1, "attach": {"process": {"id": "one:test:sys"}}});
    let (_first, welcome) = Raw::attach(&linked.path, &hello);
    let mut again = hello.clone();
    again["session"] = welcome["session"].clone();
    // Each takes the session from the one before, which is told so or cut off; none is left waiting.
    let mut crowd: Vec<Raw> = (0..50).map(|_| Raw::connect(&linked.path)).collect();
    for raw in &mut crowd {
        // Some have been sent away as the oldest of too many.
        let _ = raw.0.write_all(&frame(&json!({"hello": again})));
    }
    let welcomed = crowd.iter_mut().filter_map(Raw::next).filter(|(name, ..)| name == "welcome").count();
    assert!(welcomed >= 1, "nobody has got it");
    drop(crowd);
    linked.stop();
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn what_a_peer_says_of_itself_is_logged_escaped() {
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false).with_writer(log.clone());
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let linked = linked("escaped");
    let address = linked.server.as_ref().unwrap().tcp_address().unwrap();
    let evil = "\r\n\u{1b}[31mERROR forged\u{7f}\u{9b}2J\u{202e}";
    let process = json!({"process": {"id": format!("a:{evil}:c")}});
    let kernel = json!({"kernel": {"node": evil}});
    let unknown = json!({ evil: {} });
    for attach in [&process, &kernel, &unknown] {
        let hello = json!({"hello": {"version_min": 1, "version_max": 1, "attach": attach}});
        for bytes in [frame(&hello), frame(&json!({ evil: {} }))] {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&bytes).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
    // Also once it has been let in.
    let mut raw = Raw::attach(&linked.path, &json!({"version_min": 1, "version_max": 1, "attach": process})).0;
    raw.send(&json!({ evil: {} }), b"");
    while raw.next().is_some() {}
    linked.stop();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("forged"), "it is logged at all: {text}");
    for (number, line) in text.lines().enumerate() {
        let is_clean = line.chars().all(|c| !c.is_control() && c != '\u{202e}');
        assert!(is_clean && !line.starts_with("\u{1b}") && !line.contains("ERROR forged\u{7f}"), "{number}: {line:?}");
        assert!(!line.trim_start().starts_with("ERROR"), "{number}: {line:?}");
    }
}
