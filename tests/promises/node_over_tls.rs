//! The promise: a node speaks TLS by itself, by what `node::config()` was given: browsers log in and talk, cookies are
//! `Secure`, and redirects to secure subdomains stay on `https`.

use crate::node_support;

use node_support::support::{Patient, driver, recv, recv_close, send, tls};
use node_support::{KEYFILE, Node, Options, push};
use pushring::internals::gateway::HostPolicy;
use pushring::{Config, node};
use std::io::{Read, Write};
use std::net::TcpStream;
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

const APP: &str = "fake.os@app:app:test.os";

/// A node of which the address is that of its TLS listener.
fn start() -> Node {
    let certificate = tls::certificate(tls::pair());
    let mut config = Config { listens_plain: false, shards: 2, driver: driver(), ..node::config() };
    config.settings.hosts = HostPolicy::Listed(vec!["node.test".to_owned()]);
    Node::start(Options { config: config.with_tls(([127, 0, 0, 1], 0).into(), [certificate]), ..Options::default() })
}

fn stream(node: &Node) -> Patient {
    let stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(node_support::support::PATIENCE)).unwrap();
    Patient::over_tls(stream).unwrap()
}

/// All that a request is answered with, by a host that certificate and node know.
fn answer(node: &Node, request: &str, host: &str, fields_and_body: &str) -> String {
    let mut stream = stream(node);
    let head = format!("{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields_and_body}");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_browser_logs_in_and_talks_over_tls() {
    let mut node = start();
    let ok = r#"{"Ok":null}"#;
    let bind = r#"{"WebSocketBind":{"path":"/","authenticated":true,"extension":false}}"#;
    assert_eq!(node.ask(APP, bind, None), ok);
    let page = r#"{"SecureBind":{"path":"/secure","cache":true}}"#;
    assert_eq!(node.ask(APP, page, Some(b"inside")), ok);

    let body = format!(r#"{{"password_hash":"{}","subdomain":""}}"#, std::str::from_utf8(KEYFILE).unwrap());
    let fields = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let login = answer(&node, "POST /login", "node.test", &fields).to_lowercase();
    assert!(login.starts_with("http/1.1 200"), "{login}");
    let (_, cookie) = login.split_once("set-cookie: ").unwrap_or_else(|| panic!("{login}"));
    let attributes = cookie.lines().next().unwrap();
    for attribute in ["secure", "httponly", "samesite=lax", "path=/"] {
        assert!(attributes.split("; ").any(|given| given == attribute), "{attribute}: {attributes}");
    }
    let secure = answer(&node, "GET /app:app:test.os/secure", "node.test", "\r\n").to_lowercase();
    assert!(secure.contains("location: https://app-test-os.node.test/app:app:test.os/secure\r\n"), "{secure}");

    let url = format!("wss://localhost:{}/app:app:test.os/", node.address.port());
    assert!(
        tungstenite::client(url.clone().into_client_request().unwrap(), stream(&node)).is_err(),
        "nobody is logged in"
    );
    let mut request = url.into_client_request().unwrap();
    let cookie = format!("kinode-auth_fake.os={}", node_support::token(None));
    request.headers_mut().insert("cookie", cookie.parse().unwrap());
    let (mut client, _) = tungstenite::client(request, stream(&node)).unwrap();
    let opened: serde_json::Value = serde_json::from_str(&node.heard().2).unwrap();
    let channel = opened["WebSocketOpen"]["channel_id"].as_u64().unwrap();
    send(&mut client, "over to you");
    assert_eq!(node.next().lazy_load_blob.unwrap().bytes, b"over to you");
    for number in 0..100 {
        node.tell(number, APP, &push(channel), Some(format!("{number}").as_bytes()));
    }
    for number in 0..100 {
        assert_eq!(recv(&mut client), Message::text(format!("{number}")));
    }
    // The node's kernel goes: so does its server, with a goodbye over TLS.
    node.to_server = None;
    assert_eq!(recv_close(&mut client).0, 1001);
}
