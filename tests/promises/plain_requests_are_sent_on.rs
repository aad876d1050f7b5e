//! If the operator wants it, requests without TLS are redirected to it: to the host that the request names, if it is
//! one of ours, WebSockets too. Over TLS the same request is answered, and so is an authority that asks for a token,
//! while it may.

use crate::support;

use pushring::Broker;
use pushring::internals::gateway::HostPolicy;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use support::{PATIENCE, Patient, on_each_driver, tls};

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn stream(address: std::net::SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The head of the answer to a request for `path` of `host`.
fn ask(mut stream: impl Read + Write, path: &str, host: &str, fields: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n").unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn started() -> Broker {
    support::demo(|config| {
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(tls::server());
        config.settings.hosts = HostPolicy::Listed(vec!["node.test".to_owned()]);
        config.settings.redirect_to_tls = Some(8443);
    })
}

#[test]
fn to_the_host_that_they_name() {
    on_each_driver(|_| {
        let broker = started();
        let plain = |path: &str, host: &str, fields: &str| ask(stream(broker.address()), path, host, fields);
        let over_tls = |path: &str, fields: &str| {
            let sealed = Patient::over_tls(stream(broker.tls_address().unwrap())).unwrap();
            ask(sealed, path, "node.test", fields)
        };
        let path = "/echo:pushring:sys/?a=b";
        for fields in ["", UPGRADE] {
            let head = plain(path, "node.test:8080", fields);
            assert!(head.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{head}");
            assert!(head.contains(&format!("\r\nlocation: https://node.test:8443{path}\r\n")), "{head}");
            assert!(plain(path, "evil.test", fields).starts_with("HTTP/1.1 421 "));
        }
        assert!(over_tls(path, UPGRADE).starts_with("HTTP/1.1 101 "));
        assert!(over_tls("/nothing", "").starts_with("HTTP/1.1 404 "));
    });
}

#[test]
fn but_for_tokens_that_are_outstanding() {
    let broker = started();
    let asked = |token: &str| {
        let path = format!("/.well-known/acme-challenge/{token}");
        ask(stream(broker.address()), &path, "whatever.example", "")
    };
    assert!(asked("token").starts_with("HTTP/1.1 421 "));
    broker.handle().set_challenges(BTreeMap::from([("token".to_owned(), "token.print".to_owned())])).unwrap();
    assert!(asked("token").starts_with("HTTP/1.1 200 ") && asked("other").starts_with("HTTP/1.1 421 "));
    broker.handle().set_challenges(BTreeMap::new()).unwrap();
    assert!(asked("token").starts_with("HTTP/1.1 421 "));
}
