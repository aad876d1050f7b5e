//! A node's process subscribes its channels to topics and publishes to them with actions that are answered as all
//! others: done, counts, or why not. It is the same over a link, with the names of the process library.

use crate::link_support::Linked;
use crate::node_support;
use crate::support;

use node_support::support::{Client, recv};
use node_support::{Node, Options};
use pushring::link::{Client as LinkClient, ClientOptions};
use pushring::process_lib::http::{
    LazyLoadBlob, WsMessageType, bind_ws_path, ws_publish, ws_subscribe, ws_unsubscribe,
};
use pushring::process_lib::{self, Address, HttpServerRequest, await_message, take_blob};
use pushring::{Audience, Event, Message as Push, TOPIC_BYTES_MAX};
use serde_json::{Value, json};
use support::{PATIENCE, connect, send};
use tungstenite::Message;

const OWNER: &str = "fake.os@app:app:test.os";
const TARGET: &str = "app:app:test.os";
const OK: &str = r#"{"Ok":null}"#;
const NOT_FOUND: &str = r#"{"Err":"WsChannelNotFound"}"#;
const MALFORMED: &str = r#"{"Err":"MalformedRequest"}"#;

fn subscribe(channel: u64, topic: &str) -> String {
    json!({"WebSocketSubscribe": {"channel_id": channel, "topic": topic}}).to_string()
}

fn unsubscribe(channel: u64, topic: &str) -> String {
    json!({"WebSocketUnsubscribe": {"channel_id": channel, "topic": topic}}).to_string()
}

fn publish(topic: &str, except: &[u64]) -> String {
    json!({"WebSocketPublish": {"topic": topic, "message_type": "Text", "except": except}}).to_string()
}

fn sent(node: &mut Node, body: &str, text: &str) -> u64 {
    let answer: Value = serde_json::from_str(&node.ask(OWNER, body, Some(text.as_bytes()))).unwrap();
    answer["Ok"]["sent"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn actions_subscribe_and_publish() {
    let mut node = Node::start(Options::default());
    node.bind(TARGET, "/");
    node.bind("other:other:test.os", "/");
    let mut clients: Vec<(Client, u64)> = (0..3).map(|_| node.open(&format!("/{TARGET}"))).collect();
    clients.push(node.register(TARGET));
    node.heard();
    let (_stranger, strangers) = node.open("/other:other:test.os");
    let ids: Vec<u64> = clients.iter().map(|(_, id)| *id).collect();
    for &id in &ids[1..] {
        assert_eq!(node.ask(OWNER, &subscribe(id, "room"), None), OK);
    }
    assert_eq!(node.ask(OWNER, &subscribe(strangers, "room"), None), NOT_FOUND);
    assert_eq!(node.ask("bob.os@app:app:test.os", &subscribe(ids[0], "room"), None), NOT_FOUND);
    assert_eq!(sent(&mut node, &publish("room", &[ids[1]]), "but one"), 2);
    assert_eq!(node.ask(OWNER, &unsubscribe(ids[2], "room"), None), OK);
    assert_eq!(node.ask(OWNER, &unsubscribe(ids[2], "never"), None), OK);
    assert_eq!(sent(&mut node, &publish("room", &[]), "all"), 2);
    assert_eq!(sent(&mut node, r#"{"WebSocketPublish":{"topic":"none","message_type":"Binary"}}"#, "nobody"), 0);
    for (at, texts) in [(1, &["all"][..]), (2, &["but one"]), (3, &["but one", "all"])] {
        for text in texts {
            assert_eq!(recv(&mut clients[at].0), Message::text(*text), "client {at}");
        }
    }

    for name in [String::new(), "x".repeat(TOPIC_BYTES_MAX + 1)] {
        assert_eq!(node.ask(OWNER, &subscribe(ids[0], &name), None), MALFORMED);
        assert_eq!(node.ask(OWNER, &publish(&name, &[]), Some(b"x")), MALFORMED);
    }
    assert_eq!(node.ask(OWNER, &publish("room", &[]), None), r#"{"Err":"NoBlob"}"#);
    assert_eq!(node.ask(OWNER, &publish("room", &[]), Some(b"\xff")), MALFORMED);
    // As many topics as a channel may have.
    for n in 0..128 {
        assert_eq!(node.ask(OWNER, &subscribe(ids[0], &format!("t{n}")), None), OK);
    }
    assert_eq!(node.ask(OWNER, &subscribe(ids[0], "one more"), None), r#"{"Err":"TooManySubscriptions"}"#);
}

/// A room for each first letter: subscribes, says to all others, leaves.
fn rooms(_: Address) {
    bind_ws_path("/", false, false).unwrap();
    loop {
        let message = await_message().unwrap();
        if let HttpServerRequest::WebSocketPush { channel_id, message_type: WsMessageType::Text } =
            HttpServerRequest::from_bytes(message.body()).unwrap()
        {
            let text = String::from_utf8(take_blob().unwrap().bytes).unwrap();
            let blob = |text: &str| LazyLoadBlob { mime: None, bytes: text.as_bytes().to_vec() };
            match text.split_once(' ').unwrap() {
                ("join", room) => {
                    ws_subscribe(channel_id, room).unwrap();
                    ws_publish(room, WsMessageType::Text, vec![], blob("joined")).unwrap();
                }
                ("leave", room) => {
                    ws_unsubscribe(channel_id, room).unwrap();
                    ws_publish(room, WsMessageType::Text, vec![], blob("left")).unwrap();
                }
                (room, text) => ws_publish(room, WsMessageType::Text, vec![channel_id], blob(text)).unwrap(),
            }
            assert!(ws_subscribe(channel_id, "").is_err());
        }
    }
}

#[test]
fn the_process_library_has_topics_over_a_link() {
    let linked = Linked::start("topics-lib", |_| {});
    let id: process_lib::ProcessId = "rooms:test:sys".parse().unwrap();
    let thread = process_lib::connect(&linked.path, id).unwrap().spawn(rooms).unwrap();
    let path = "/rooms:test:sys/";
    let connect = || support::connect_once_bound(&linked.broker, path);
    let (mut first, mut second) = (connect(), connect());
    send(&mut first, "join x");
    assert_eq!(recv(&mut first), Message::text("joined"));
    send(&mut second, "join x");
    assert_eq!(recv(&mut first), Message::text("joined"));
    assert_eq!(recv(&mut second), Message::text("joined"));
    send(&mut second, "x hello");
    assert_eq!(recv(&mut first), Message::text("hello"));
    send(&mut first, "leave x");
    assert_eq!(recv(&mut second), Message::text("left"));
    drop((linked, thread));
}

#[test]
fn a_link_carries_topics_and_who_comes_and_goes() {
    let linked = Linked::start("topics", |_| {});
    let options = ClientOptions { wants_topics: true, ..ClientOptions::default() };
    let process = LinkClient::connect(&linked.path, &"rooms:test:sys".parse().unwrap(), options).unwrap();
    process.bind("/", Default::default()).unwrap();
    let mut client = connect(&linked.broker, "/rooms:test:sys/");
    let mut events = std::collections::VecDeque::new();
    let mut next = || loop {
        if let Some(event) = events.pop_front() {
            return event;
        }
        let mut batch = Vec::new();
        assert!(process.recv_batch(&mut batch, PATIENCE).unwrap() > 0, "events come");
        events.extend(batch);
    };
    let Event::Opened(opened) = next() else { panic!("Opened comes first") };
    let channel = opened.channel;
    process.subscribe(channel, "a/1", Some(1)).unwrap();
    process.subscribe(channel, "a/2", None).unwrap();
    let told: Vec<String> = (0..3).map(|_| format!("{:?}", next())).collect();
    let has = |text: &str| told.iter().filter(|event| event.contains(text)).count();
    assert_eq!((has("Joined"), has("Outcome"), has("sent: 1")), (2, 1, 1), "{told:?}");
    assert_eq!(process.topics("a/", Some("a/1"), 9).unwrap(), [("a/2".to_owned(), 1)]);
    assert_eq!(process.topics("", None, 1).unwrap(), [("a/1".to_owned(), 1)]);
    process.push_many(Audience::Topic("a/1".into()), &[], Push::text("hello"), None, Some(2)).unwrap();
    assert_eq!(recv(&mut client), Message::text("hello"));
    assert!(matches!(next(), Event::Outcome { ticket: 2, outcome } if outcome.sent == 1));
    // A name that no topic has is refused in words, and the session goes on.
    process.subscribe(channel, "", Some(3)).unwrap();
    assert!(matches!(next(), Event::Outcome { ticket: 3, outcome } if outcome.dropped == 1));
    process.unsubscribe(channel, "a/1", Some(4)).unwrap();
    let told = [next(), next()];
    assert!(told.iter().any(|event| matches!(event, Event::Left { topic, .. } if **topic == *"a/1")), "{told:?}");
    drop(client);
    assert!(matches!(next(), Event::Left { topic, .. } if &*topic == "a/2"));
    assert!(matches!(next(), Event::Closed(_)));
}
