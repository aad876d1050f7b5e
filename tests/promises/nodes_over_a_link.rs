//! The promise: a node whose server is in another program has what one has whose server is its own: its modes, and a
//! shutdown to await; and it is told when that other program drains.

use crate::link_support::{Linked, Raw};
use crate::node_support::{self, KEYFILE, NODE, Node, NodeMessage, SECRET, http_response, listening};
use crate::support::{self, recv, recv_close};
use node_support::MyNode;
use pushring::link::{KernelParts, LinkedNode};
use pushring::node::Dialect;
use pushring::{Broker, Config, Drain};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tungstenite::Message;

const APP: &str = "app:app:test.os";

fn broker() -> Broker {
    let settings = pushring::node::settings(NODE, Dialect::Hyperdrive);
    let config = Config { settings, shards: 2, driver: support::driver(), ..Config::default() };
    Broker::start(Config { listen: ([127, 0, 0, 1], 0).into(), ..config }).unwrap()
}

fn get(node: &Node, path: &str) -> (u16, String) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    http_response(node.begin_http(&head))
}

fn login(node: &Node, hash: &str) -> u16 {
    let body = json!({"password_hash": hash, "subdomain": ""}).to_string();
    let head = "POST /login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length";
    http_response(node.begin_http(&format!("{head}: {}\r\n\r\n{body}", body.len()))).0
}

/// A node in the modes that `change` chooses, with a page that needs a login.
fn node(linked: &Linked, change: impl FnOnce(&mut KernelParts<MyNode>)) -> Node {
    let (mut node, mut prints) = Node::attach_with(linked.path.as_path().into(), change);
    node.address = listening(&mut prints);
    let bind = r#"{"Bind":{"path":"/page","authenticated":true,"local_only":false,"cache":true}}"#;
    assert_eq!(node.ask(&format!("{NODE}@{APP}"), bind, Some(b"the page")), r#"{"Ok":null}"#);
    node
}

#[test]
fn a_public_node_has_no_login() {
    let linked = Linked::at(broker(), "node-public", |_| {});
    let public = node(&linked, |parts| parts.public_mode = true);
    let (status, page) = get(&public, &format!("/{APP}/page"));
    assert!(status == 200 && page.ends_with("the page"), "{page}");
    drop(public);
    // The next is not, though the daemon is the same.
    let linked = Linked::at(broker(), "node-private", |_| {});
    let (_, page) = get(&node(&linked, |_| {}), &format!("/{APP}/page"));
    assert!(page.contains("<form") && !page.ends_with("the page"));
}

#[test]
fn a_simulated_node_is_opened_by_any_password() {
    let linked = Linked::at(broker(), "node-simulated", |_| {});
    let simulated = node(&linked, |parts| parts.simulation_mode = true);
    assert_eq!(login(&simulated, "0xany"), 200);
    drop(simulated);
    let linked = Linked::at(broker(), "node-real", |_| {});
    let real = node(&linked, |_| {});
    assert_eq!((login(&real, "0xany"), login(&real, std::str::from_utf8(KEYFILE).unwrap())), (401, 200));
}

fn parts(path: &Path) -> (KernelParts<MyNode>, mpsc::Sender<NodeMessage>, [mpsc::Receiver<NodeMessage>; 1]) {
    let (to_server, from_kernel) = mpsc::channel(32);
    let (to_kernel, from_server) = mpsc::channel(1000);
    let (prints, _) = mpsc::channel(32);
    let parts = KernelParts {
        host: MyNode,
        our_node: NODE.into(),
        endpoint: path.into(),
        keyfile: KEYFILE.to_vec(),
        jwt_secret: SECRET.to_vec(),
        expose_local: None,
        public_mode: false,
        simulation_mode: false,
        policy: Default::default(),
        from_kernel,
        to_kernel,
        prints,
    };
    (parts, to_server, [from_server])
}

#[test]
fn a_shutdown_is_awaited_and_what_was_sent_before_it_arrives() {
    let linked = Linked::at(broker(), "node-shutdown", |_| {});
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (parts, to_server, [mut from_server]) = parts(&linked.path);
    let (server, serving) = LinkedNode::new(parts);
    let serving = runtime.spawn(serving);
    let source = format!("{NODE}@{APP}");
    let bind = br#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
    let ask = node_support::request(1, &source, bind, None, Some(5));
    to_server.blocking_send(NodeMessage(ask)).unwrap();
    assert_eq!(from_server.blocking_recv().unwrap().0.message.body(), br#"{"Ok":null}"#);
    // Where no daemon was there yet the answer was the kernel client's own.
    let mut client = support::connect_once_bound(&linked.broker, &format!("/{APP}/"));
    let opened = from_server.blocking_recv().unwrap().0;
    let opened: serde_json::Value = serde_json::from_slice(opened.message.body()).unwrap();
    let push = node_support::push(opened["WebSocketOpen"]["channel_id"].as_u64().unwrap());
    let last = node_support::request(2, &source, push.as_bytes(), Some(b"the last word"), None);
    to_server.blocking_send(NodeMessage(last)).unwrap();
    assert_eq!(recv(&mut client), Message::text("the last word"));
    runtime.block_on(server.shutdown(support::PATIENCE));
    assert_eq!(recv_close(&mut client).0, 1001);
    runtime.block_on(serving).unwrap().unwrap();
    // Again, and of one that never ran.
    runtime.block_on(server.shutdown(support::PATIENCE));
    let (never, _serving) = LinkedNode::new(self::parts(&linked.path).0);
    runtime.block_on(never.shutdown(support::PATIENCE));
    linked.stop();
}

#[test]
fn who_asked_is_told_of_a_drain_and_nobody_else() {
    let linked = Linked::at(broker(), "node-drain", |_| {});
    let hello = |name: &str, wants_drain: bool| {
        let attach = json!({"process": {"id": format!("{name}:test:sys")}});
        json!({"version_min": 1, "version_max": 1, "attach": attach, "wants_drain": wants_drain})
    };
    let (mut told, _) = Raw::attach(&linked.path, &hello("told", true));
    let (mut silent, _) = Raw::attach(&linked.path, &hello("silent", false));
    let client = crate::link_support::attach(&linked.path, "client");
    assert_eq!(client.draining(), None);
    linked.broker.handle().drain(Drain { grace_ms: 3_600_000, over_ms: 3_600_000, within_ms: 0 });
    let within = |fields: &serde_json::Value| {
        let ms = |name: &str| fields[name].as_u64().unwrap();
        let (begins, ends) = (ms("begins_in_ms"), ms("ends_in_ms"));
        assert!((3_000_000..=3_600_000).contains(&begins) && (6_600_000..=7_200_000).contains(&ends), "{fields}");
    };
    let (name, fields, _) = told.next_said().unwrap();
    assert_eq!(name, "draining");
    within(&fields);
    while client.draining().is_none() {
        std::thread::yield_now();
    }
    assert!(client.draining().unwrap().1 > Duration::from_secs(3_600));
    // A process that attaches meanwhile is told too; numbers do not count the notice.
    let (mut late, _) = Raw::attach(&linked.path, &hello("late", true));
    let (name, fields, _) = late.next_said().unwrap();
    assert_eq!(name, "draining");
    within(&fields);
    for raw in [&mut told, &mut silent] {
        raw.send(&json!({"bind": {"path": "/", "ask": 1}}), b"");
        assert_eq!(raw.next_said().unwrap().0, "done");
        raw.send(&json!({"ack": {"received": 1}}), b"");
        raw.send(&json!({"bind": {"path": "/", "ask": 2}}), b"");
        assert_eq!(raw.next_said().unwrap().0, "done");
    }
    drop(client);
    linked.stop();
}
