//! Every malformed upgrade is answered with a 4xx that says in words what is wrong, and then the connection is over or
//! as good as before; it opens no channel.

use crate::support;
use pushring::{AttachOptions, Broker};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use support::{Inbound, broker, on_each_driver, process};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
const HOST: &str = "Host: localhost";
const UPGRADE: &str = "Upgrade: websocket";
const CONNECTION: &str = "Connection: Upgrade";
const VERSION: &str = "Sec-WebSocket-Version: 13";
const REQUEST_LINE: &str = "GET /upgrades:test:sys/ HTTP/1.1";

/// The fault, the request's lines, the status, and a header that must be in the answer.
type Case = (&'static str, Vec<&'static str>, u16, &'static str);

fn cases() -> Vec<Case> {
    let good = [REQUEST_LINE, HOST, UPGRADE, CONNECTION, KEY, VERSION];
    let without = |line: &str| good.iter().copied().filter(|&kept| kept != line).collect::<Vec<_>>();
    let instead = |line: &str, other: &'static str| {
        good.iter().map(|&kept| if kept == line { other } else { kept }).collect::<Vec<_>>()
    };
    let with = |line: &'static str| good.iter().copied().chain([line]).collect::<Vec<_>>();
    vec![
        ("no Upgrade", without(UPGRADE), 400, ""),
        ("another protocol", instead(UPGRADE, "Upgrade: h2c"), 400, ""),
        ("no Connection", without(CONNECTION), 400, ""),
        ("Connection without Upgrade", instead(CONNECTION, "Connection: keep-alive"), 400, ""),
        ("no Host", without(HOST), 400, ""),
        ("two Hosts", with("Host: other"), 400, ""),
        ("no key", without(KEY), 400, ""),
        ("two keys", with("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400, ""),
        ("an empty key", instead(KEY, "Sec-WebSocket-Key:"), 400, ""),
        ("a short key", instead(KEY, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="), 400, ""),
        ("a key that is no base64", instead(KEY, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, ""),
        ("no version", without(VERSION), 426, "sec-websocket-version: 13"),
        ("version 8", instead(VERSION, "Sec-WebSocket-Version: 8"), 426, "sec-websocket-version: 13"),
        ("version 130", instead(VERSION, "Sec-WebSocket-Version: 130"), 426, "sec-websocket-version: 13"),
        ("two versions", with("Sec-WebSocket-Version: 13"), 400, ""),
        ("HTTP/1.0", instead(REQUEST_LINE, "GET /upgrades:test:sys/ HTTP/1.0"), 400, ""),
        ("a POST", instead(REQUEST_LINE, "POST /upgrades:test:sys/ HTTP/1.1"), 405, "allow: GET"),
        ("a body", with("Content-Length: 3"), 400, ""),
        ("an empty protocol", with("Sec-WebSocket-Protocol: a,,b c"), 400, ""),
        ("a malformed extension", with("Sec-WebSocket-Extensions: permessage-deflate; ="), 400, ""),
        ("a header without a colon", with("Sec-WebSocket"), 400, ""),
        ("a space before the colon", with("X-A : b"), 400, ""),
        ("a folded header", with(" folded"), 400, ""),
        ("no path", instead(REQUEST_LINE, "GET upgrades HTTP/1.1"), 400, ""),
    ]
}

/// The whole answer to a request, in lower case, after which the client says no more.
fn answer(broker: &Broker, lines: &[&str]) -> String {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    let body = if lines.contains(&"Content-Length: 3") { "abc" } else { "" };
    stream.write_all(format!("{}\r\n\r\n{body}", lines.join("\r\n")).as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"HTTP/1.1 101") {
        // The connection may be kept for another request, which will not come.
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut answer).unwrap();
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn every_malformed_upgrade_is_refused_in_words() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "upgrades", AttachOptions::default());
        for (what, lines, status, header) in cases() {
            let answer = answer(&broker, &lines);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
            assert!(answer.to_lowercase().contains(&header.to_lowercase()), "{what}: {answer}");
            let reason = answer.split_once("\r\n\r\n").unwrap().1;
            assert!(reason.len() >= 8, "{what}: no reason in {answer}");
        }
        // None of them was opened: the first channel is that of the lawful request.
        let mut inbound = Inbound::default();
        inbound.open(&broker, &process);
        assert_eq!(broker.handle().reports().iter().map(|report| report.stats.opened).sum::<u64>(), 1);
    });
}
