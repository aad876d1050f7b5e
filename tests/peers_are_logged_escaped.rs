//! Whatever a peer of a link says of itself stands escaped in the log: it can forge no line and speak to no terminal.
#![allow(missing_docs)]

mod link_support;
mod support;

use link_support::{Linked, Raw, frame};
use pushring::link::LinkToken;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use support::PATIENCE;
use support::log::Log;

#[test]
fn what_a_peer_says_of_itself_is_logged_escaped() {
    let log = Log::capture();
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
    let text = log.text();
    assert!(text.contains("forged"), "it is logged at all: {text}");
    for (number, line) in text.lines().enumerate() {
        let is_clean = line.chars().all(|c| !c.is_control() && c != '\u{202e}');
        assert!(is_clean && !line.starts_with("\u{1b}") && !line.contains("ERROR forged\u{7f}"), "{number}: {line:?}");
        assert!(!line.trim_start().starts_with("ERROR"), "{number}: {line:?}");
    }
}
