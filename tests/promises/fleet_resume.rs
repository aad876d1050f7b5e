//! Clients that count are told what they miss between nodes, and where their channels are.
//!
//! A client that comes back to another node than its channel's begins anew there, and is told where its channel is, as
//! far as that node has said where clients reach it. There it takes up what it had, with the same token.

use super::fleet::wait_for;
use crate::support;

use pushring::fleet::{Fleet, Name, Options};
use pushring::{AttachOptions, Broker, ChannelId, Outcome, Process, WebSocketRule};
use serde_json::Value;
use std::net::TcpStream;
use std::time::Instant;
use support::nats::Nats;
use support::{Client, PATIENCE, Patient, broker, recv};
use tungstenite::client::IntoClientRequest;

const PUBLIC: &str = "wss://a.example.com";

fn node(nats: &Nats, name: &str, public: &str) -> (Broker, Process, Fleet) {
    let broker = broker(support::driver(), |_| {});
    let rooms = broker.handle().process("rooms:test:sys", AttachOptions::default()).unwrap();
    rooms.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() }).unwrap();
    let options = Options::new(Name::new(name).unwrap());
    let options = Options { servers: vec![nats.url()], public: public.to_owned(), ..options };
    let fleet = Fleet::start(&broker.handle(), options).unwrap();
    (broker, rooms, fleet)
}

/// A client that offers these, and its hello.
fn open(broker: &Broker, offers: &str) -> (Client, Value) {
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("ws://{}/rooms:test:sys/", broker.address()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", offers.parse().unwrap());
    let (mut client, _) = tungstenite::client(request, Patient::new(stream)).unwrap();
    let hello = serde_json::from_str(client.read().unwrap().to_text().unwrap()).unwrap();
    (client, hello)
}

/// A message of the ghost to `rooms:test:sys`, which says its number.
fn from_ghost(sequence: u64) -> (String, Vec<u8>) {
    super::fleet::from_ghost("rooms:test:sys", sequence, &sequence.to_string())
}

#[test]
fn clients_that_count_are_told_what_was_lost_between_nodes() {
    let Some(nats) = Nats::start("") else { return };
    let (a, rooms, _fleet) = node(&nats, "a", "");
    wait_for(&a, "it is there", |report| report.connected);
    let (mut client, hello) = open(&a, "pushring.1");
    let channel = ChannelId::new(hello["channel_id"].as_u64().unwrap() as u32);
    let outcome = rooms.subscribe(channel, "room").ask().send().unwrap().wait(PATIENCE).unwrap();
    assert_eq!(outcome, Outcome { sent: 1, ..Outcome::default() });
    nats.publish(r#"{"verbose":false}"#, &[from_ghost(1), from_ghost(4), from_ghost(5)]);
    let texts: Vec<String> = (0..4).map(|_| recv(&mut client).into_text().unwrap().to_string()).collect();
    assert_eq!(texts, ["1", "\u{1e}{\"dropped\":2}", "4", "5"]);
    // The gap has its place in the history: a client that resumes counts it with the rest.
    let (mut client, back) = open(&a, &format!("pushring.1, resume.{channel}.{}.1", hello["resume"].as_str().unwrap()));
    assert_eq!(back["resumed"], true, "{back}");
    let texts: Vec<String> = (0..3).map(|_| recv(&mut client).into_text().unwrap().to_string()).collect();
    assert_eq!(texts, ["\u{1e}{\"dropped\":2}", "4", "5"]);
}

#[test]
fn who_comes_back_elsewhere_is_told_where_its_channel_is() {
    let Some(nats) = Nats::start("") else { return };
    let ((a, _rooms_a, _fleet_a), (b, _rooms_b, _fleet_b)) = (node(&nats, "a", PUBLIC), node(&nats, "b", ""));
    let offers =
        |hello: &Value| format!("pushring.1, resume.{}.{}.0", hello["channel_id"], hello["resume"].as_str().unwrap());
    let (_client, at_a) = open(&a, "pushring.1");
    let (_other, at_b) = open(&b, "pushring.1");
    let since = Instant::now();
    let back = loop {
        let (_client, back) = open(&b, &offers(&at_a));
        assert_eq!((&back["resumed"], &back["reason"]), (&Value::Bool(false), &"elsewhere".into()));
        if back.get("at").is_some() {
            break back;
        }
        assert!(since.elapsed() < PATIENCE, "{back}");
    };
    assert_eq!(back["at"], PUBLIC);
    assert_eq!(open(&a, &offers(&at_a)).1["resumed"], true, "the token is good there still");
    // A node without a configured address is not named to clients.
    let back = open(&a, &offers(&at_b)).1;
    assert_eq!((&back["reason"], back.get("at")), (&"elsewhere".into(), None));
}
