//! A message that a process sends everywhere reaches the channels of the process of that name on every node of the
//! fleet, each once and in the order of its source, or it is counted as lost and reported. Local channels do not wait
//! for it: NATS may be slow, full, down or killed. Messages that a node may not send are refused and reported. Once
//! NATS is back, so is the fleet, within seconds.

use crate::support;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pushring::fleet::{Credentials, Fleet, Name, Options};
use pushring::{AttachOptions, Audience, Broker, ChannelAt, ChannelId, FleetReport, Message, Outcome, Process};
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};
use support::daemon::{Daemon, TemporaryFile, output, pushring};
use support::nats::Nats;
use support::{Client, Inbound, PATIENCE, broker, process, recv};

/// How soon the fleet is there again once NATS is: within 5 s, and as much again for each attempt that a busy machine
/// starves.
const RECOVERED_WITHIN: Duration = Duration::from_secs(25);

/// A broker with one process, one client of it, and its place in the fleet.
pub struct Node {
    name: String,
    chat: Process,
    _inbound: Inbound,
    client: Client,
    channel: ChannelId,
    _fleet: Fleet,
    pub broker: Broker,
}

fn options(nats: &Nats, name: &str) -> Options {
    Options { servers: vec![nats.url()], ..Options::new(Name::new(name).unwrap()) }
}

impl Node {
    fn start(nats: &Nats, name: &str) -> Self {
        Self::with(options(nats, name))
    }

    pub fn with(options: Options) -> Self {
        let broker = broker(support::driver(), |_| {});
        let chat = process(&broker, "chat", AttachOptions::default());
        let name = options.node.to_string();
        let fleet = Fleet::start(&broker.handle(), options).unwrap();
        let mut inbound = Inbound::default();
        let (client, channel) = inbound.open(&broker, &chat);
        Self { name, chat, _inbound: inbound, client, channel, _fleet: fleet, broker }
    }

    pub fn report(&self) -> FleetReport {
        report(&self.broker)
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&FleetReport) -> bool) -> FleetReport {
        wait_for(&self.broker, what, is_so)
    }

    /// Waits until it is connected, hears so many others and listens to its process and the paths of that.
    pub fn joined(&self, others: usize) {
        let is_here = |report: &FleetReport| report.nodes.iter().filter(|node| !node.is_gone).count() == others;
        self.wait_for("joined", |report| report.connected && is_here(report) && report.listens >= 2);
    }

    /// The outcome of a subscription of its client.
    pub fn subscribe_outcome(&self, topic: &str) -> Outcome {
        self.chat.subscribe(self.channel, topic).ask().send().unwrap().wait(PATIENCE).unwrap()
    }

    pub fn subscribe(&self, topic: &str) {
        let outcome = self.subscribe_outcome(topic);
        assert_eq!(outcome, Outcome { sent: 1, ..Outcome::default() });
    }

    /// Sends everywhere, and how that went.
    pub fn send(&self, audience: &Audience, text: &str) -> Outcome {
        let message = Message::text(text.to_owned());
        let push = self.chat.broadcast(message).to(audience.clone()).everywhere();
        push.ask().send().unwrap().wait(PATIENCE).unwrap()
    }

    pub fn recv(&mut self) -> String {
        recv(&mut self.client).into_text().unwrap().to_string()
    }

    /// All that has come up to the text `end` of its own.
    pub fn recv_all(&mut self) -> Vec<String> {
        self.chat.push(self.channel, Message::text("end")).send().unwrap();
        let mut texts = Vec::new();
        loop {
            match self.recv() {
                end if end == "end" => return texts,
                text => texts.push(text),
            }
        }
    }

    fn at(&self) -> ChannelAt {
        ChannelAt { node: self.name.as_str().into(), channel: self.channel }
    }
}

/// How a broker's fleet stands.
pub fn report(broker: &Broker) -> FleetReport {
    broker.handle().fleet().unwrap()
}

/// A message as a node of the name `ghost` would send it to the topic `room` of a process.
pub fn from_ghost(process: &str, sequence: u64, text: &str) -> (String, Vec<u8>) {
    let name = "room";
    let hash = Sha256::digest(format!("topic\0{process}\0{name}"));
    let mut bytes = b"P\x01\0\0\0\x05".to_vec();
    bytes.extend((process.len() as u16).to_be_bytes());
    bytes.extend((name.len() as u16).to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 16]);
    bytes.extend_from_slice(format!("ghost{process}{name}{text}").as_bytes());
    (format!("pushring.v1.main.ghost.topic.{}", URL_SAFE_NO_PAD.encode(&hash[..16])), bytes)
}

/// Waits until a broker's fleet stands so.
pub fn wait_for(broker: &Broker, what: &str, is_so: impl Fn(&FleetReport) -> bool) -> FleetReport {
    let since = Instant::now();
    loop {
        let report = report(broker);
        if is_so(&report) {
            return report;
        }
        assert!(since.elapsed() < PATIENCE, "{what}: {report:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn topic(name: &str) -> Audience {
    Audience::Topic(name.into())
}

/// Whether these are numbers that become larger.
#[track_caller]
fn assert_in_order(texts: &[String]) {
    let numbers: Vec<u64> = texts.iter().map(|text| text.parse().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, other| one < other), "once and in order: {numbers:?}");
}

#[test]
fn an_audience_is_the_same_on_every_node() {
    let Some(nats) = Nats::start("") else { return };
    let mut nodes: Vec<Node> = ["a", "b", "c"].into_iter().map(|name| Node::start(&nats, name)).collect();
    nodes.iter().for_each(|node| node.joined(2));
    for node in &nodes {
        // The name that reads everything where names are not hashed.
        node.subscribe(">");
    }
    nodes[1].subscribe("only b");
    let here = Outcome { sent: 1, ..Outcome::default() };
    for node in &nodes {
        assert_eq!(node.send(&topic(">"), &format!("topic of {}", node.name)), here);
        assert_eq!(node.send(&Audience::Path("/".into()), &format!("path of {}", node.name)), here);
        assert_eq!(node.send(&Audience::Process, &format!("all of {}", node.name)), here);
    }
    assert_eq!(nodes[0].send(&topic("only b"), "for b"), Outcome::default());
    assert_eq!(nodes[0].send(&topic("nobody"), "for nobody"), Outcome::default());
    for node in &mut nodes {
        let mut texts: Vec<String> = (0..9).map(|_| node.recv()).collect();
        if node.name == "b" {
            texts.push(node.recv());
            assert!(texts.contains(&"for b".to_owned()));
        }
        for of in ["a", "b", "c"] {
            for kind in ["topic", "path", "all"] {
                assert_eq!(texts.iter().filter(|text| **text == format!("{kind} of {of}")).count(), 1, "{texts:?}");
            }
        }
        assert!(node.recv_all().is_empty(), "each once");
    }
    // One channel, on any node; an absent one is counted as not found.
    let to: Vec<ChannelAt> = nodes.iter().map(Node::at).collect();
    for n in 0..300 {
        for to in &to {
            nodes[0].chat.push_at(to, Message::text(n.to_string())).send().unwrap();
        }
    }
    let at: ChannelAt = "nowhere/7".parse().unwrap();
    let outcome = nodes[0].chat.push_at(&at, Message::text("x")).ask().send().unwrap().wait(PATIENCE).unwrap();
    assert_eq!(outcome, Outcome::default(), "who may be there is not known");
    for node in &mut nodes {
        let texts: Vec<String> = (0..300).map(|_| node.recv()).collect();
        assert_eq!(texts, (0..300).map(|n| n.to_string()).collect::<Vec<_>>());
        let counts = node.report().counts;
        assert_eq!((counts.lost, counts.gaps_unknown, counts.late), (0, 0, 0));
    }
    let list = nodes[0].chat.broadcast(Message::text("x")).to(vec![nodes[0].channel]).everywhere().send();
    assert_eq!(list, Err(pushring::PushError::ChannelsAreHere));
    drop(nodes.remove(2));
    nodes[0].wait_for("gone", |report| report.nodes.iter().any(|node| node.node == "c" && node.is_gone));
}

/// The outcomes of the nodes, once all have answered in time.
fn on_nodes(ask: impl Fn() -> pushring::OnNodes) -> pushring::OnNodes {
    let since = Instant::now();
    loop {
        let told = ask();
        if !told.is_partial {
            return told;
        }
        assert!(since.elapsed() < PATIENCE, "{told:?}");
    }
}

#[test]
fn what_became_of_a_push_is_told_by_node() {
    let Some(nats) = Nats::start("") else { return };
    let nodes: Vec<Node> = ["a", "b", "c"].into_iter().map(|name| Node::start(&nats, name)).collect();
    nodes.iter().for_each(|node| node.joined(2));
    let (a, b) = (&nodes[0], &nodes[1]);
    b.subscribe("room");
    let sent = |sent| Outcome { sent, ..Outcome::default() };
    let everywhere = || {
        let push = a.chat.broadcast(Message::text("x")).to(topic("room")).everywhere();
        let (here, nodes) = push.ask_nodes().send().unwrap();
        assert_eq!(here.wait(PATIENCE).unwrap(), Outcome::default());
        nodes.wait(PATIENCE).unwrap()
    };
    let told = on_nodes(everywhere);
    assert_eq!((told.said["b"], told.said["c"], told.said.len()), (sent(1), sent(0), 2));
    let at = |channel| {
        let at = ChannelAt { node: "b".into(), channel };
        on_nodes(|| {
            let (_, nodes) = a.chat.push_at(&at, Message::text("x")).ask_nodes().send().unwrap();
            nodes.wait(PATIENCE).unwrap()
        })
    };
    assert_eq!(at(b.channel).said["b"], sent(1));
    let other = ChannelId::new(b.channel.get() ^ 0x4000_0000);
    assert_eq!(at(other).said["b"], Outcome { not_found: 1, ..Outcome::default() });
    let wrong = a.chat.broadcast(Message::text("x")).to(topic("room")).on_node("b").send();
    assert_eq!(wrong, Err(pushring::PushError::OnlyChannels));

    // The same nodes say how many subscribers they have.
    let since = Instant::now();
    let presence = loop {
        let presence = a.chat.handle().presence("room").wait(PATIENCE).unwrap();
        if !presence.is_partial {
            break presence;
        }
        assert!(since.elapsed() < PATIENCE, "{presence:?}");
    };
    let present = |node| (presence.nodes[node].subscribers, presence.nodes[node].age);
    assert_eq!((present("b"), present("c")), ((1, Duration::ZERO), (0, Duration::ZERO)));

    // Over HTTP, by the names of channels.
    let token = pushring::internals::push_api::ApiToken::new("a token of the tests").unwrap();
    let api = pushring::internals::push_api::ApiOptions {
        token,
        process: Some(a.chat.id().clone()),
        keys: Default::default(),
    };
    pushring::internals::push_api::start(&a.broker.handle(), false, a.broker.handle(), api).unwrap();
    let ask = |to: serde_json::Value| {
        let body = serde_json::json!({"to": to, "text": "over http", "outcome": "nodes"}).to_string();
        let (status, answer) = post(a.broker.address(), &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let since = Instant::now();
    let answer = loop {
        let answer = ask(serde_json::json!({"channels": [a.channel.get(), b.at().to_string()]}));
        if answer["partial"] == false {
            break answer;
        }
        assert!(since.elapsed() < PATIENCE, "{answer}");
    };
    assert_eq!((&answer["sent"], &answer["nodes"]["b"]["sent"]), (&1.into(), &1.into()), "{answer}");

    // A known node that does not answer is named.
    let ghost = "pushring.v1.main.ghost.node.all".to_owned();
    let mut hello = [&b"P\x01\x04\x00\x00\x05"[..], &[0; 40], b"ghost{}"].concat();
    hello[17] = 1;
    let since = Instant::now();
    let answer = loop {
        nats.publish("{\"verbose\":false}", &[(ghost.clone(), hello.clone())]);
        let answer = ask(serde_json::json!({"topic": "room"}));
        if answer["nodes"].get("ghost").is_some() {
            break answer;
        }
        assert!(since.elapsed() < PATIENCE, "{answer}");
    };
    assert_eq!((&answer["partial"], &answer["nodes"]["ghost"]), (&true.into(), &serde_json::Value::Null), "{answer}");
    let presence = get(a.broker.address(), &format!("topics/room?nodes=true&process={}", a.chat.id()));
    assert_eq!((&presence["partial"], &presence["nodes"]["ghost"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!((&presence["subscribers"], &presence["nodes"]["b"]["subscribers"]), (&1.into(), &1.into()));
    let told = everywhere();
    assert!(!told.is_partial || !told.silent.is_empty(), "{told:?}");
}

/// The API's answer.
fn get(address: std::net::SocketAddr, path: &str) -> serde_json::Value {
    request(address, &format!("GET /push:pushring:sys/api/{path}"), "").1
}

/// The status and body of a push over HTTP.
fn post(address: std::net::SocketAddr, body: &str) -> (u16, serde_json::Value) {
    request(address, "POST /push:pushring:sys/api/push", body)
}

fn request(address: std::net::SocketAddr, request: &str, body: &str) -> (u16, serde_json::Value) {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Authorization: Bearer a token of the tests\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|_| panic!("{response}")))
}

#[test]
fn nats_may_be_killed() {
    let Some(mut nats) = Nats::start("") else { return };
    let (mut a, mut b) = (Node::start(&nats, "a"), Node::start(&nats, "b"));
    a.joined(1);
    b.joined(1);
    let room = topic("room");
    a.subscribe("room");
    b.subscribe("room");
    let mut sent = Vec::new();
    let mut next = 0;
    let mut send = |a: &Node, sent: &mut Vec<String>| {
        next += 1;
        let outcome = a.send(&room, &next.to_string());
        assert_eq!(outcome.sent, 1, "local channels do not wait");
        if outcome.fleet_down == 0 {
            sent.push(next.to_string());
        }
        outcome.fleet_down
    };
    // A count that begins within a second of the subscription may be older than it: what came before the first number
    // that is heard is accounted for only later.
    assert_eq!(send(&a, &mut sent), 0);
    b.wait_for("the first is heard", |report| report.counts.received == 1);
    for round in 0..2 {
        for _ in 0..100 {
            send(&a, &mut sent);
        }
        nats.kill();
        let since = Instant::now();
        while send(&a, &mut sent) == 0 {
            assert!(since.elapsed() < PATIENCE, "{round}: it is told that NATS is gone");
            std::thread::sleep(Duration::from_millis(10));
        }
        let outcome = a.chat.subscribe(a.channel, format!("new {round}")).ask().send().unwrap().wait(PATIENCE).unwrap();
        assert_eq!((outcome.sent, outcome.fleet_down), (1, 1));
        nats.run();
        let since = Instant::now();
        while !(a.report().connected && b.report().connected) {
            assert!(since.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("round {round}: connected after {:?}", since.elapsed());
        assert!(since.elapsed() < RECOVERED_WITHIN, "{:?}", since.elapsed());
    }
    assert_eq!(send(&a, &mut sent), 0);
    // Accepted messages have arrived, or are lost and reported; a second later the last announcement is believed.
    let accounted = |report: &FleetReport| report.counts.received + report.counts.lost >= sent.len() as u64;
    let report = b.wait_for("all is accounted for", accounted);
    assert_eq!(report.counts.gaps_unknown, 0);
    let came = b.recv_all();
    assert_in_order(&came);
    assert!(came.iter().all(|text| sent.contains(text)));
    assert_eq!(came.len() as u64, report.counts.received);
    assert_eq!(came.len() as u64 + report.counts.lost, sent.len() as u64);
    println!("{} came, {} are lost", came.len(), report.counts.lost);
    assert_in_order(&a.recv_all());
}

#[test]
fn a_node_that_stands_still_hears_what_it_missed_or_that_it_did() {
    let Some(nats) = Nats::start("") else { return };
    let a = Node::start(&nats, "a");
    let control = std::env::temp_dir().join(format!("pushring-fleet-{}.sock", std::process::id()));
    let control = control.to_str().unwrap();
    let url = nats.url();
    let stopped = Daemon::spawn(&mut pushring(&[
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--shards",
        "1",
        "--fleet-nats",
        &url,
        "--fleet-node",
        "still",
        "--control",
        control,
    ]));
    // The demo's chat is a process of a name that this node can have too.
    let processes = output(&mut pushring(&["processes", "--control", control, "--json"]));
    let processes = String::from_utf8(processes.stdout).unwrap();
    let ids: Vec<String> = processes
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["process"].as_str().unwrap().to_owned())
        .collect();
    let echo = ids.iter().find(|id| id.starts_with("echo")).unwrap_or_else(|| panic!("{ids:?}"));
    let mut client = stopped.connect(&format!("/{echo}/"));
    let twin = a.broker.process(echo.as_str().parse::<pushring::ProcessId>().unwrap()).unwrap();
    let shown = || -> FleetReport {
        let shown = output(&mut pushring(&["fleet", "--control", control, "--json"]));
        serde_json::from_slice(&shown.stdout).unwrap_or_default()
    };
    let since = Instant::now();
    while shown().listens < 2 {
        assert!(since.elapsed() < PATIENCE, "{:?}", shown());
        std::thread::sleep(Duration::from_millis(50));
    }
    a.joined(1);
    stopped.signal("STOP");
    let mut sent = 0;
    for n in 0..3000 {
        let push = twin.broadcast(Message::text(n.to_string())).everywhere();
        let outcome = push.ask().send().unwrap().wait(PATIENCE).unwrap();
        sent += u64::from((outcome.fleet_down, outcome.fleet_full) == (0, 0));
    }
    a.wait_for("it is missed", |report| report.nodes.iter().any(|node| node.node == "still" && node.is_gone));
    stopped.signal("CONT");
    let since = Instant::now();
    let report = loop {
        let report = shown();
        if report.counts.received + report.counts.lost >= sent {
            break report;
        }
        assert!(since.elapsed() < PATIENCE, "{report:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(report.counts.received + report.counts.lost, sent);
    let came: Vec<String> =
        (0..report.counts.received).map(|_| recv(&mut client).into_text().unwrap().to_string()).collect();
    assert_in_order(&came);
    a.wait_for("it is back", |report| report.nodes.iter().any(|node| node.node == "still" && !node.is_gone));
    let text = String::from_utf8(output(&mut pushring(&["fleet", "--control", control])).stdout).unwrap();
    assert!(text.contains("still in the fleet main") && text.contains("there"), "{text}");
    let metrics = String::from_utf8(output(&mut pushring(&["metrics", "--control", control])).stdout).unwrap();
    for name in ["pushring_fleet_lost_total", "pushring_fleet_connected 1", "pushring_fleet_received_total"] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    stopped.signal("TERM");
    stopped.wait();
}

#[test]
fn what_a_node_may_not_say_is_refused_and_told() {
    // The configuration in docs/FLEET.md.
    let page = include_str!("../../docs/FLEET.md");
    let permissions = page.split("```conf\n").nth(1).and_then(|rest| rest.split("\n```").next()).unwrap();
    let settings = format!("max_payload: 65536\n{permissions}");
    let Some(nats) = Nats::start(&settings) else { return };
    let with = |name: &str, user: &str| {
        let credentials = Some(Credentials::new(user).unwrap());
        Node::with(Options { credentials, ..options(&nats, name) })
    };
    let (a, mut b) = (with("node-1", "node-1:secret-1"), with("node-2", "node-2:secret-2"));
    a.joined(1);
    b.joined(1);
    b.subscribe("room");
    let outcome = a.send(&topic("room"), &"x".repeat(70_000));
    assert_eq!(outcome, Outcome { fleet_too_large: 1, ..Outcome::default() });
    assert_eq!(a.send(&topic("room"), "1"), Outcome::default());
    assert_eq!(b.recv(), "1");
    assert_eq!(
        (a.report().counts.server_errors, b.report().counts.server_errors),
        (0, 0),
        "all that is needed is permitted"
    );

    // A node may publish under its own name alone: NATS refuses others.
    let mut header = b"P\x01\x02\x00\x00\x06".to_vec();
    header.extend([0; 40]);
    let connect = r#"{"verbose":false,"pedantic":false,"user":"node-1","pass":"secret-1"}"#;
    let as_other = [("pushring.v1.main.node-3.process.AAAAAAAAAAAAAAAAAAAAAA".to_owned(), header.clone())];
    nats.publish(connect, &as_other);
    // The receiver checks messages under a permitted name.
    let subject = |kind: &str, token: &str| format!("pushring.v1.main.node-1.{kind}.{token}");
    let with_source = |version: u8, kind: u8, source: &str, tail: &[u8]| {
        let mut bytes = vec![b'P', version, kind, 0, 0, source.len() as u8];
        bytes.extend([0; 40]);
        bytes.extend_from_slice(source.as_bytes());
        bytes.extend_from_slice(tail);
        bytes
    };
    let forged = [
        (subject("node", "all"), with_source(1, 4, "node-2", b"{}")),
        (subject("node", "all"), with_source(1, 4, "node-9", b"{}")),
        (subject("node", "all"), with_source(7, 4, "node-1", b"{}")),
        (subject("node", "all"), b"noise".to_vec()),
        (subject("channels", "node-2"), with_source(1, 0, "node-1", b"")),
    ];
    nats.publish(connect, &forged);
    let report = b.wait_for("all are refused", |report| {
        let counts = report.counts;
        counts.refused_source + counts.refused_version + counts.refused_malformed + counts.refused_subject >= 5
    });
    let counts = report.counts;
    assert_eq!((counts.refused_source, counts.refused_version), (2, 1), "{counts:?}");
    assert_eq!((counts.refused_malformed, counts.refused_subject), (1, 1), "{counts:?}");
    assert_eq!(a.send(&topic("room"), "2"), Outcome::default());
    assert_eq!((b.recv(), b.recv_all().len()), ("2".to_owned(), 0));

    // A name that another node has.
    let twin = with("node-1", "node-1:secret-1");
    a.wait_for("the twin is told", |report| report.counts.refused_twin > 0);
    drop(twin);

    // The doctor looks at the same.
    let password = TemporaryFile::new("fleet-password", "node-1:secret-1\n");
    let url = nats.url();
    let doctor = |name: &str| {
        let flags = ["--fleet-nats", &url, "--fleet-node", name, "--fleet-credentials-file", password.path()];
        let said = output(pushring(&["doctor", "--listen", "127.0.0.1:0"]).args(flags));
        String::from_utf8(said.stdout).unwrap()
    };
    let said = doctor("node-1");
    assert!(said.contains("NATS takes messages of"), "{said}");
    let said = doctor("node-2");
    assert!(said.contains("does not permit"), "{said}");
}
