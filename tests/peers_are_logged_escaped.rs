//! Whatever a peer of a link says of itself stands escaped in the log: it can forge no line and speak to no terminal.
#![allow(missing_docs)]

mod link_support;
mod support;

use link_support::{Linked, Raw, frame};
use pushring::link::LinkToken;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use support::PATIENCE;
use tracing_subscriber::fmt::MakeWriter;

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
    let linked = Linked::start("escaped", |config| {
        config.tcp = Some(([127, 0, 0, 1], 0).into());
        config.token = Some(LinkToken::new("a token of the link").unwrap());
    });
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
