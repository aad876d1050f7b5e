//! The drop-in's promises beyond a node's own server, from a client's socket to the node kernel's queue: a limit of
//! connections with an explanation, ids that are not reused, cookies that are useless to other sites' pages, cookies
//! with attributes, pings, sizes, compression, and a stop that closes channels properly. The others have tests of their
//! own names.

use crate::node_support;

use node_support::support::{recv, recv_close, send};
use node_support::{KEYFILE, Node, Options, http_response, push, token};
use serde_json::json;
use std::collections::HashSet;
use std::io::Read;
use std::time::Duration;
use tungstenite::Message;

const APP: &str = "app:app:test.os";
const PATH: &str = "/app:app:test.os/";
const OWNER: &str = "fake.os@app:app:test.os";

fn start(change: impl FnOnce(&mut pushring::Config)) -> Node {
    let mut options = Options::default();
    change(&mut options.config);
    let mut node = Node::start(options);
    node.bind(APP, "/");
    node
}

/// An upgrade by hand; what it is answered with.
fn upgrade(node: &Node, path: &str, headers: &str) -> String {
    let mut stream = node.begin_http(&format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n",
        node.address
    ));
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn one_connection_too_many_is_told_when_to_come_again_and_nobody_else_notices() {
    let mut node = start(|config| config.admission.connections_max = 3);
    let mut clients: Vec<_> = (0..3).map(|_| node.open(PATH)).collect();
    let refused = upgrade(&node, PATH, "").to_lowercase();
    assert!(refused.starts_with("http/1.1 503") && refused.contains("\r\nretry-after: "), "{refused}");
    node.is_quiet();
    for (client, channel) in &mut clients {
        node.tell(1, OWNER, &push(*channel), Some(b"still here"));
        assert_eq!(recv(client), Message::text("still here"));
    }
    drop(clients.pop());
    assert!(node.heard().2.contains("WebSocketClose"));
    // Its place is free as soon as its connection is over, which is a moment after its channel is.
    while !upgrade(&node, PATH, "").starts_with("HTTP/1.1 101") {
        std::thread::yield_now();
    }
}

#[test]
fn ids_are_unique_and_a_late_push_reaches_no_stranger() {
    let mut node = start(|_| {});
    let mut ids = HashSet::new();
    for _ in 0..50 {
        let (client, channel) = node.open(PATH);
        assert!(ids.insert(channel));
        drop(client);
        assert!(node.heard().2.contains("WebSocketClose"));
    }
    let (mut client, channel) = node.open(PATH);
    assert!(ids.insert(channel));
    for late in ids.iter().filter(|id| **id != channel) {
        assert_eq!(node.ask(OWNER, &push(*late), Some(b"late")), r#"{"Err":"WsChannelNotFound"}"#);
    }
    node.tell(1, OWNER, &push(channel), Some(b"mine"));
    assert_eq!(recv(&mut client), Message::text("mine"));
}

#[test]
fn a_page_of_another_site_gets_nowhere_with_our_cookie() {
    let mut node = start(|config| config.settings.origins = vec!["https://friend.example".into()]);
    let bind = r#"{"WebSocketBind":{"path":"/in","authenticated":true,"extension":false}}"#;
    assert_eq!(node.ask(OWNER, bind, None), r#"{"Ok":null}"#);
    let cookie = format!("cookie: kinode-auth_fake.os={}\r\n", token(None));
    let at = |origin: &str| upgrade(&node, &format!("{PATH}in"), &format!("{cookie}{origin}"))[9..12].to_owned();
    for origin in
        ["https://evil.example", "null", "http://fake.os", "http://127.0.0.1:1", "https://friend.example.evil"]
    {
        assert_eq!(at(&format!("origin: {origin}\r\n")), "403", "{origin}");
    }
    let own = format!("origin: http://{}\r\n", node.address);
    for origin in ["", &own, "origin: https://friend.example\r\n"] {
        assert_eq!(at(origin), "101", "{origin}");
    }
    assert_eq!(upgrade(&node, &format!("{PATH}in"), "")[9..12], *"401");
}

#[test]
fn the_login_cookie_is_one_cookie_with_real_attributes_and_opens_what_it_should() {
    let mut node = start(|_| {});
    let bind = r#"{"Bind":{"path":"/page","authenticated":true,"local_only":false,"cache":true}}"#;
    assert_eq!(node.ask(OWNER, bind, Some(b"the page")), r#"{"Ok":null}"#);
    let get = |node: &Node, cookie: &str| {
        let head = format!("GET {PATH}page HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{cookie}\r\n");
        http_response(node.begin_http(&head))
    };
    let (status, login_page) = get(&node, "");
    assert!(status == 200 && login_page.contains("<form") && !login_page.ends_with("the page"));
    let body = json!({"password_hash": std::str::from_utf8(KEYFILE).unwrap(), "subdomain": ""}).to_string();
    let (status, response) = http_response(node.begin_http(&format!(
        "POST /login?redirect={PATH}page HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )));
    assert!(status == 303 && response.contains(&format!("\r\nlocation: {PATH}page\r\n")), "{response}");
    let cookies: Vec<&str> = response.lines().filter_map(|line| line.strip_prefix("set-cookie: ")).collect();
    let [cookie] = cookies[..] else { panic!("one cookie: {response}") };
    for attribute in ["HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.split("; ").any(|have| have == attribute), "{cookie}");
    }
    let pair = cookie.split(';').next().unwrap();
    assert!(get(&node, &format!("cookie: {pair}\r\n")).1.ends_with("the page"));
}

#[test]
fn a_silent_client_is_pinged_and_a_vanished_one_is_closed() {
    let mut node = start(|config| {
        config.shard.ping_interval_ms = 50;
        config.shard.pings_unanswered_max = 2;
    });
    // Never reads, so it answers no ping.
    let (mut vanished, channel) = node.open(PATH);
    assert_eq!(node.heard().2, format!(r#"{{"WebSocketClose":{channel}}}"#));
    assert!(matches!(vanished.read().unwrap(), Message::Ping(_)));
    node.is_quiet();
}

#[test]
fn a_message_over_the_limit_is_closed_with_1009_and_compression_is_offered_where_it_is_on() {
    let mut node = start(|config| {
        config.shard.limits = pushring::internals::proto::MessageLimits::for_messages(1000);
        config.shard.deflate.everywhere = true;
    });
    let (mut client, channel) = node.open(PATH);
    send(&mut client, "x".repeat(1000));
    assert_eq!(node.next().lazy_load_blob.unwrap().bytes.len(), 1000);
    send(&mut client, "x".repeat(1001));
    assert_eq!(recv_close(&mut client).0, 1009);
    assert_eq!(node.heard().2, format!(r#"{{"WebSocketClose":{channel}}}"#));
    let answer = upgrade(&node, PATH, "sec-websocket-extensions: permessage-deflate\r\n").to_lowercase();
    assert!(answer.contains("\r\nsec-websocket-extensions: permessage-deflate"), "{answer}");
}

#[test]
fn a_stop_says_goodbye_to_every_client() {
    let mut node = start(|_| {});
    let mut clients: Vec<_> = (0..20).map(|_| node.open(PATH).0).collect();
    drop(node.to_server.take());
    for client in &mut clients {
        client.get_mut().set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(recv_close(client).0, 1001);
    }
    drop(clients);
    node.server.join().unwrap().unwrap();
}
