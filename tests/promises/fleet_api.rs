//! A backend that pushes over a link or HTTP is told on demand the outcome on each node, with the nodes that have not
//! answered named; channels of other nodes are queried and closed like those of this one; a process over a link lets
//! processes of other nodes in without a node kernel. A first subscriber at the hub is answered once NATS knows of it,
//! and holds up no others.

use super::fleet::{report, wait_for};
use crate::link_support::Linked;
use crate::support;

use pushring::fleet::{Fleet, Name, Options};
use pushring::internals::gateway::{Grant, HubAccess, patterns};
use pushring::internals::hub;
use pushring::internals::push_api::{self, ApiOptions, ApiToken};
use pushring::link::{Client as LinkClient, ClientOptions};
use pushring::process_lib::{self, http::send_ws_push};
use pushring::{Audience, Broker, ChannelAt, ChannelId, Event, Message, OnNodes, Outcome, WebSocketRule};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::nats::Nats;
use support::{Client, PATIENCE, Patient, broker, connect, recv, recv_close, send};
use tungstenite::client::IntoClientRequest;

const CHAT: &str = "chat:test:sys";

fn join(broker: &Broker, nats: &Nats, node: &str) -> Fleet {
    Fleet::start(&broker.handle(), Options { servers: vec![nats.url()], ..Options::new(Name::new(node).unwrap()) })
        .unwrap()
}

/// A broker with the hub, where any client may do anything, the HTTP API and a link, over which its only process is
/// attached.
struct Node {
    chat: LinkClient,
    linked: Linked,
    _fleet: Fleet,
}

impl Node {
    fn start(nats: &Nats, node: &str) -> Self {
        let broker = broker(support::driver(), |config| {
            let any = || patterns(&["*".to_owned()]).unwrap();
            let grant = Grant { may_subscribe: any(), may_publish: any(), ..Grant::default() };
            config.settings.user = format!("{node}.os");
            config.settings.hub = Some(Arc::new(HubAccess { open: Some(Arc::new(grant)), ..HubAccess::default() }));
        });
        let fleet = join(&broker, nats, node);
        hub::start(&broker.handle()).unwrap();
        let options = ApiOptions {
            token: ApiToken::new("a token of the tests").unwrap(),
            process: None,
            keys: Default::default(),
        };
        push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
        let linked = Linked::at(broker, &format!("fleet-{node}-{}", nats.port), |_| {});
        let chat = LinkClient::connect(&linked.path, &CHAT.parse().unwrap(), ClientOptions::default()).unwrap();
        chat.bind("/", WebSocketRule::default()).unwrap();
        Self { chat, linked, _fleet: fleet }
    }

    fn broker(&self) -> &Broker {
        &self.linked.broker
    }

    /// A client of the process, and its channel.
    fn open(&self) -> (Client, ChannelId) {
        let client = connect(self.broker(), &format!("/{CHAT}/"));
        match self.event() {
            Event::Opened(opened) => (client, opened.channel),
            other => panic!("{other:?}"),
        }
    }

    fn event(&self) -> Event {
        let mut events = Vec::new();
        let since = Instant::now();
        while events.is_empty() {
            assert!(since.elapsed() < PATIENCE, "nothing has happened");
            self.chat.recv_batch(&mut events, Duration::from_millis(100)).unwrap();
        }
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    /// The status and body of an answer of the API.
    fn ask(&self, request: &str, kind: &str, body: &str) -> (u16, String) {
        let address = self.broker().address();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (method, path) = request.split_once(' ').unwrap();
        write!(
            stream,
            "{method} /push:pushring:sys/api/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Authorization: Bearer a token of the tests\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn json(&self, request: &str) -> (u16, Value) {
        let (status, body) = self.ask(request, "application/json", "");
        (status, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}")))
    }
}

fn both(nats: &Nats) -> (Node, Node) {
    let (a, b) = (Node::start(nats, "a"), Node::start(nats, "b"));
    for node in [&a, &b] {
        wait_for(node.broker(), "each hears the other", |report| {
            report.connected && report.nodes.iter().any(|node| !node.is_gone)
        });
    }
    (a, b)
}

/// Asks again until all nodes have said it in time: a busy machine may need longer.
fn until_whole<T>(mut ask: impl FnMut() -> (T, bool)) -> T {
    let since = Instant::now();
    loop {
        match ask() {
            (told, false) => return told,
            (_, true) => assert!(since.elapsed() < PATIENCE, "the other node does not say it"),
        }
    }
}

fn sent(sent: usize) -> Outcome {
    Outcome { sent, ..Outcome::default() }
}

#[test]
fn what_became_of_a_push_on_each_node_is_told_over_a_link_and_line_by_line() {
    let Some(nats) = Nats::start("") else { return };
    let (a, b) = both(&nats);
    let ((_here, here), (mut client, there)) = (a.open(), b.open());
    wait_for(b.broker(), "it listens", |report| report.listens >= 2);
    let ask = |told: Result<(Outcome, OnNodes), _>| {
        let (here, nodes) = told.unwrap();
        let is_partial = nodes.is_partial;
        ((here, nodes), is_partial)
    };
    let everywhere =
        until_whole(|| ask(a.chat.push_everywhere_asking_nodes(Audience::Process, &[], Message::text("all"), None)));
    assert_eq!((everywhere.0, everywhere.1.said["b"]), (sent(1), sent(1)));
    let at = ChannelAt { node: "b".into(), channel: there };
    let one = until_whole(|| ask(a.chat.push_at_asking_node(&at, Message::text("one"), None)));
    assert_eq!((one.0, one.1.said["b"]), (Outcome::default(), sent(1)));
    let gone = ChannelAt { node: "nowhere".into(), channel: there };
    let (_, nodes) = a.chat.push_at_asking_node(&gone, Message::text("x"), None).unwrap();
    assert!(nodes.is_partial && nodes.silent.contains("nowhere"), "{nodes:?}");

    let lines = [
        json!({"to": {"process": CHAT, "channels": [here.get(), format!("b/{there}")]}, "text": "1", "outcome": "nodes"}),
        json!({"to": {"process": CHAT, "topic": "nobody"}, "text": "2", "outcome": true}),
        json!({"to": {"process": CHAT}, "text": "3", "outcome": "nodes"}),
    ];
    let body = lines.map(|line| line.to_string()).join("\n");
    let answers = until_whole(|| {
        let (status, body) = a.ask("POST push", "application/x-ndjson", &body);
        assert_eq!(status, 200, "{body}");
        let answers: Vec<Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let is_partial = answers.iter().any(|answer| answer["outcome"]["partial"] == true);
        (answers, is_partial)
    });
    assert_eq!(answers.len(), 3);
    for answer in [&answers[0], &answers[2]] {
        assert_eq!((&answer["outcome"]["sent"], &answer["outcome"]["nodes"]["b"]["sent"]), (&1.into(), &1.into()));
    }
    assert!(answers[1]["outcome"].get("nodes").is_none(), "{answers:?}");
    // Each once, in order of what was sent to this audience.
    a.chat.push_at(&at, Message::text("end"), None, None).unwrap();
    let mut texts = Vec::new();
    while texts.last().is_none_or(|last| last != "end") {
        texts.push(recv(&mut client).into_text().unwrap().to_string());
    }
    assert!(texts.contains(&"all".to_owned()) && texts.contains(&"one".to_owned()) && texts.contains(&"3".to_owned()));
}

#[test]
fn channels_of_other_nodes_are_looked_at_and_closed_by_their_names() {
    let Some(nats) = Nats::start("") else { return };
    let (a, b) = both(&nats);
    let (mut client, channel) = b.open();
    b.chat.subscribe(channel, "room", Some(1)).unwrap();
    assert!(matches!(b.event(), Event::Outcome { outcome: Outcome { sent: 1, .. }, .. }));
    let until_said = |request: String| {
        until_whole(|| {
            let (status, told) = a.json(&request);
            ((status, told), status == 503)
        })
    };
    let (status, shown) = until_said(format!("GET channels/b/{channel}"));
    assert_eq!((status, &shown["channel"], &shown["process"]), (200, &channel.get().into(), &CHAT.into()), "{shown}");
    assert_eq!((&shown["node"], &shown["topics"]), (&"b".into(), &json!(["room"])), "{shown}");
    // By its name on its own node, it is the same.
    assert_eq!(b.json(&format!("GET channels/b/{channel}")).1["node"], "b");
    let stranger = channel.get() ^ 0x4000_0000;
    assert_eq!(until_said(format!("GET channels/b/{stranger}")).0, 404);
    assert_eq!(until_said(format!("DELETE channels/b/{stranger}")).0, 404);
    assert_eq!(a.json(&format!("DELETE channels/b/{channel}?code=1005")).0, 400);
    let (status, told) = a.json(&format!("GET channels/nowhere/{channel}"));
    assert_eq!(status, 503, "{told}");
    let (status, told) = until_said(format!("DELETE channels/b/{channel}?code=4000&reason=enough"));
    // The answer may have been late, and the second request have met what the first has done.
    assert!(matches!(status, 202 | 404), "{told}");
    assert_eq!(recv_close(&mut client), (4000, "enough".to_owned()));
}

#[test]
fn a_process_over_a_link_lets_others_in_without_a_kernel() {
    let Some(nats) = Nats::start("") else { return };
    let (a, b) = both(&nats);
    let (mut client, channel) = b.open();
    let (say, said) = std::sync::mpsc::channel::<&str>();
    let _guest = process_lib::spawn_on(&a.broker().handle(), "guest:test:sys".parse().unwrap(), move |_| {
        for what in said {
            let blob = process_lib::LazyLoadBlob { mime: None, bytes: what.into() };
            send_ws_push("b".into(), channel.get(), process_lib::WsMessageType::Text, blob).unwrap();
        }
    });
    let guest = "a.os@guest:test:sys";
    let heard = || report(b.broker()).counts.received;
    let push_unheard = |what| {
        let before = heard();
        say.send(what).unwrap();
        wait_for(b.broker(), "it has come", |report| report.counts.received > before);
    };
    // The name that a node of a fleet is known by may be that of a Kinode node only where both match; here it is its
    // own.
    let names = [guest, "a@guest:test:sys"];
    push_unheard("without a grant");
    let grant = |name: &str, is_granted| {
        b.chat.grant(channel, name, is_granted, Some(7)).unwrap();
        match b.event() {
            Event::Outcome { ticket: 7, outcome } => assert_eq!(outcome, sent(1)),
            other => panic!("{other:?}"),
        }
    };
    names.iter().for_each(|name| grant(name, true));
    say.send("with a grant").unwrap();
    assert_eq!(recv(&mut client).into_text().unwrap().as_str(), "with a grant");
    names.iter().for_each(|name| grant(name, false));
    push_unheard("too late");
    names.iter().for_each(|name| b.chat.grant_all(name, true).unwrap());
    say.send("to all").unwrap();
    assert_eq!(recv(&mut client).into_text().unwrap().as_str(), "to all");
    names.iter().for_each(|name| b.chat.grant_all(name, false).unwrap());
    push_unheard("too late again");
    b.chat.grant(channel, "nobody", true, Some(8)).unwrap();
    assert!(matches!(b.event(), Event::Outcome { ticket: 8, outcome: Outcome { dropped: 1, .. } }), "no address");
    b.chat.push(channel, Message::text("end"), None, None).unwrap();
    assert_eq!(recv(&mut client).into_text().unwrap().as_str(), "end", "and nothing else");
}

/// Opens a client of the hub, behind its hello.
fn enter(broker: &Broker) -> Client {
    let mut request = format!("ws://{}/hub", broker.address()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "pushring.1".parse().unwrap());
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut client, _) = tungstenite::client(request, Patient(stream)).unwrap();
    recv(&mut client);
    client
}

fn order(client: &mut Client, order: &Value) {
    send(client, format!("\u{1e}{order}"));
}

fn answer(client: &mut Client) -> Value {
    let text = recv(client).into_text().unwrap();
    serde_json::from_str(text.as_str().trim_start_matches('\u{1e}')).unwrap_or_else(|_| panic!("{text}"))
}

#[test]
fn a_first_subscriber_waits_for_nats_and_nobody_for_it() {
    let Some(nats) = Nats::start("") else { return };
    let broker = broker(support::driver(), |config| {
        let any = || patterns(&["*".to_owned()]).unwrap();
        let grant = Grant { may_subscribe: any(), may_publish: any(), ..Grant::default() };
        config.settings.hub = Some(Arc::new(HubAccess { open: Some(Arc::new(grant)), ..HubAccess::default() }));
    });
    hub::start(&broker.handle()).unwrap();
    let _fleet = join(&broker, &nats, "a");
    let (mut first, mut other) = (enter(&broker), enter(&broker));
    let is_connected = || wait_for(&broker, "connected", |report| report.connected);
    is_connected();
    order(&mut other, &json!({"subscribe": "known", "id": 1}));
    assert_eq!(answer(&mut other), json!({"subscribed": "known", "id": 1}));
    let ((say, said), (tell, answers)) = (std::sync::mpsc::channel::<u64>(), std::sync::mpsc::channel());
    std::thread::spawn(move || {
        for round in said {
            order(&mut first, &json!({"subscribe": format!("new {round}"), "id": round}));
            if tell.send(answer(&mut first)).is_err() {
                return;
            }
        }
    });
    let since = Instant::now();
    // NATS does not answer for a second or two: the client that waits for it is answered after the one that does not. A
    // busy machine may need longer for that, and then it is tried again.
    for round in 0u64.. {
        assert!(since.elapsed() < PATIENCE, "who does not wait for NATS is held up by who does");
        is_connected();
        nats.signal("STOP");
        say.send(round).unwrap();
        order(&mut other, &json!({"publish": "known", "text": "x", "id": round}));
        loop {
            // The message and its answer, in whatever order.
            let text = recv(&mut other).into_text().unwrap();
            if text.as_str().starts_with('\u{1e}') {
                break;
            }
        }
        let waits = answers.try_recv().is_err();
        nats.signal("CONT");
        let told = if waits { answers.recv_timeout(PATIENCE).unwrap() } else { continue };
        assert_eq!(told, json!({"subscribed": format!("new {round}"), "id": round}));
        return;
    }
}

#[test]
fn subscribers_of_the_hub_are_counted_on_all_nodes_in_whatever_form() {
    let Some(nats) = Nats::start("") else { return };
    let (a, b) = both(&nats);
    let mut clients = [enter(a.broker()), enter(b.broker()), enter(b.broker())];
    for (client, envelope) in clients.iter_mut().zip([true, true, false]) {
        order(client, &json!({"subscribe": "news", "envelope": envelope}));
        assert_eq!(answer(client), json!({"subscribed": "news"}));
    }
    let told = until_whole(|| {
        let (status, told) = a.json(&format!("GET topics/news?process={}&nodes=true", hub::PROCESS));
        assert_eq!(status, 200, "{told}");
        let is_partial = told["partial"] == true;
        (told, is_partial)
    });
    assert_eq!(
        (&told["subscribers"], &told["here"], &told["nodes"]["b"]["subscribers"]),
        (&3.into(), &1.into(), &2.into())
    );
}
