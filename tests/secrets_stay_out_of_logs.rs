//! Passwords, tokens, cookies and keys pass through a node's server; none of them is in anything that it logs, at any
//! level, nor in what it prints to the node's terminal.
#![allow(missing_docs)]

mod node_support;
mod support;

use node_support::support::recv_close;
use node_support::{KEYFILE, Node, Options, SECRET, http_response, token};
use serde_json::json;
use support::log::Log;

const APP: &str = "fake.os@app:app:test.os";
const WRONG_HASH: &str = "0xa-wrong-password-hash";
const CLIENTS_SECRET: &str = "something-private-of-a-client";

fn post(node: &Node, path: &str, headers: &str, body: &str) -> (u16, String) {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    http_response(node.begin_http(&request))
}

#[test]
fn no_secret_is_logged_at_any_level() {
    let log = Log::capture();
    tracing::trace!("everything is heard");

    let mut node = Node::start(Options { expose_local: true, ..Options::default() });
    let bind = r#"{"Bind":{"path":"/dyn","authenticated":true,"local_only":false,"cache":false}}"#;
    assert_eq!(node.ask(APP, bind, None), r#"{"Ok":null}"#);
    let login = |hash: &str| json!({"password_hash": hash, "subdomain": ""}).to_string();
    let hash = std::str::from_utf8(KEYFILE).unwrap();
    let (status, response) = post(&node, "/login", "", &login(hash));
    let cookie =
        response.split("set-cookie: kinode-auth_fake.os=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    assert_eq!(status, 200);
    assert_eq!(post(&node, "/login", "", &login(WRONG_HASH)).0, 401);
    assert_eq!(post(&node, "/login", "", &format!("{{\"password_hash\":\"{WRONG_HASH}\"")).0, 400);
    assert_eq!(post(&node, "/login?redirect=//elsewhere", "", &login(hash)).0, 400);

    // A good cookie and its request's secrets; then forged and doubled ones.
    let headers = format!(
        "cookie: kinode-auth_fake.os={cookie}\r\nauthorization: Bearer {CLIENTS_SECRET}\r\nx-{CLIENTS_SECRET}: a\r\n"
    );
    let request = format!(
        "GET /app:app:test.os/dyn?key={CLIENTS_SECRET} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"
    );
    let stream = node.begin_http(&request);
    let asked = node.next();
    let answer = json!({"status": 200, "headers": {"set-cookie": CLIENTS_SECRET, "bad name": CLIENTS_SECRET}});
    node.respond(asked.id, APP, &answer.to_string(), Some(CLIENTS_SECRET.as_bytes()));
    assert_eq!(http_response(stream).0, 200);
    let forged = format!("{}x", token(None));
    for cookie in
        [format!("kinode-auth_fake.os={forged}"), format!("kinode-auth_fake.os={forged}; kinode-auth_fake.os=1")]
    {
        let request = format!(
            "GET /app:app:test.os/dyn HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncookie: {cookie}\r\n\r\n"
        );
        assert_eq!(http_response(node.begin_http(&request)).0, 200, "the login page");
    }

    // Registered with a good token, a forged one, and none at all; messages in both directions.
    let (mut client, channel) = node.register("app:app:test.os");
    node.heard();
    node_support::support::send(&mut client, CLIENTS_SECRET);
    node.next();
    node.tell(1, APP, &node_support::push(channel), Some(CLIENTS_SECRET.as_bytes()));
    node.tell(2, "fake.os@other:other:test.os", &node_support::push(channel), Some(CLIENTS_SECRET.as_bytes()));
    node.heard();
    for register in [
        json!({"auth_token": forged, "target_process": "app:app:test.os", "encrypted": false}),
        json!({"auth_token": token(None), "target_process": "app:app:test.os", "encrypted": true}),
        json!({"auth_token": token(None), "target_process": CLIENTS_SECRET}),
        json!({"auth_token": token(None)}),
    ] {
        let mut client = node.client("/");
        node_support::support::send(&mut client, register.to_string());
        assert!(recv_close(&mut client).0 >= 4400);
    }
    let call = json!({"process": "app:app:test.os", "body": CLIENTS_SECRET, "data": "!not base64"}).to_string();
    assert_eq!(post(&node, "/rpc:distro:sys/message", "", &call).0, 400);
    drop(client);
    drop(node.to_server.take());
    node.server.join().unwrap().unwrap();

    let logged = log.text();
    assert!(logged.contains("everything is heard") && logged.lines().count() > 3, "{logged}");
    let secret = std::str::from_utf8(SECRET).unwrap();
    let as_list = format!("{SECRET:?}");
    let tokens = token(None);
    for secret in [secret, &as_list, hash, WRONG_HASH, &cookie, &tokens, CLIENTS_SECRET] {
        assert!(!logged.contains(secret), "{secret:?} is in the log:\n{logged}");
    }
    // No signature of any token, wherever it was cut.
    for token in [&cookie, &tokens] {
        assert!(!logged.contains(token.rsplit('.').next().unwrap()), "{logged}");
    }
}
