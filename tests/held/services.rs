//! Memory kept for clients that resume, by the hub, and by the API.

use super::{MIB, PATIENCE, Scene, UPGRADE, attach, broker, connect, message, take_turn};
use pushring::internals::gateway::{Grant, HubAccess, TopicPattern};
use pushring::internals::hub::{self, CallLimits, WebhookEvent, WebhookQueue};
use pushring::internals::push_api::{self, ApiOptions, ApiToken};
use pushring::{Audience, Broker, Config, Event, Message, Process, QueueLimits, WebSocketRule};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const RESUMABLE: &str = "Sec-WebSocket-Protocol: pushring.1\r\n";

/// So many channels, and clients that read nothing.
pub(super) fn open(
    broker: &Broker,
    process: &Process,
    count: usize,
    fields: &str,
) -> Vec<(TcpStream, pushring::ChannelId)> {
    let clients: Vec<TcpStream> = (0..count).map(|_| connect(broker, "/p:test:sys/", fields).0).collect();
    let (mut events, mut channels) = (Vec::new(), Vec::new());
    while channels.len() < count {
        process.recv_batch(&mut events, PATIENCE).unwrap();
        channels.extend(events.drain(..).filter_map(|event| match event {
            Event::Opened(opened) => Some(opened.channel),
            _ => None,
        }));
    }
    clients.into_iter().zip(channels).collect()
}

/// Waits until so many channels have ended.
fn wait_closed(process: &Process, count: usize) {
    let (mut events, mut closed) = (Vec::new(), 0);
    while closed < count {
        process.recv_batch(&mut events, PATIENCE).unwrap();
        closed += events.drain(..).filter(|event| matches!(event, Event::Closed(_))).count();
    }
}

#[test]
fn what_channels_that_outlive_their_connections_may_ask_for_again() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() }).unwrap();
    let warm = open(&broker, &process, 1, &format!("{UPGRADE}{RESUMABLE}"));
    let scene = Scene::new(broker);
    let clients = open(&scene.broker, &process, 60, &format!("{UPGRADE}{RESUMABLE}"));
    for at in 0..3_000 {
        let text = Message::text(format!("{at}: {}", "x".repeat(150)));
        process.push(clients[at % clients.len()].1, text).send().unwrap();
        if at % 10 == 0 {
            let all = Message::text(format!("to all, {at}: {}", "y".repeat(60)));
            process.broadcast(all).to(Audience::Process).send().unwrap();
        }
    }
    scene.judge("history of channels that outlive their connections", MIB / 2);
    // Their connections go, and what is kept stays.
    let (streams, _): (Vec<_>, Vec<_>) = clients.into_iter().unzip();
    drop(streams);
    process.broadcast(Message::text("x".repeat(200_000))).to(Audience::Process).send().unwrap();
    scene.judge("the same, detached", MIB / 2);
    drop(warm);
}

#[test]
fn what_event_streams_were_sent_and_who_left_them() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let scene = Scene::new(broker);
    let streams = open(&scene.broker, &process, 40, "Accept: text/event-stream\r\n");
    for (at, (_, channel)) in streams.iter().enumerate() {
        (0..50).for_each(|topic| process.subscribe(*channel, format!("of/{at}/{topic}")).send().unwrap());
    }
    let publish = |text: &str| {
        for at in (0..40).flat_map(|at| (0..50).map(move |topic| (at, topic))) {
            let to = Audience::Topic(format!("of/{}/{}", at.0, at.1).into());
            process.broadcast(Message::text(text)).to(to).send().unwrap();
        }
    };
    publish(&"x".repeat(100));
    scene.judge("event streams, their topics and events", MIB / 2);
    let (clients, _): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
    drop(clients);
    wait_closed(&process, 40);
    scene.judge("topics that were left", MIB / 2);
    publish(&"y".repeat(300));
    scene.judge("topics that were left, and events for who may return", MIB);
}

/// A broker with an open hub, whose clients' events are never taken.
fn hub_broker(calls: WebhookQueue) -> Broker {
    let mut config = Config { shards: 1, ..Config::default() };
    config.settings.hub = Some(Arc::new(HubAccess {
        secret: None,
        audience: "pushring-hub".into(),
        open: Some(Arc::new(Grant {
            may_subscribe: TopicPattern::parse("public.*").into_iter().collect(),
            ..Grant::default()
        })),
        authority: None,
        lifetime_max_s: None,
    }));
    let broker = Broker::start(config).unwrap();
    hub::start_telling(&broker.handle(), Some(calls)).unwrap();
    broker
}

#[test]
fn events_of_the_hub_that_its_backend_does_not_take() {
    let _turn = take_turn();
    let told = vec![WebhookEvent::Opened, WebhookEvent::Closed, WebhookEvent::Message];
    let calls = WebhookQueue::new(CallLimits { told, events_max: 100_000, bytes_max: 64 * MIB });
    let scene = Scene::new(hub_broker(calls.clone()));
    let fields = format!("{UPGRADE}{RESUMABLE}");
    let clients: Vec<_> = (0..40).map(|_| connect(&scene.broker, "/hub", &fields)).collect();
    for (client, status) in &clients {
        assert!(status.ends_with("101"), "{status}");
        (&*client).write_all(&message(&[b'x'; 100]).repeat(100)).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while calls.waiting() < 40 * 101 {
        assert!(Instant::now() < deadline, "{} of the events came", calls.waiting());
        std::thread::sleep(Duration::from_millis(10));
    }
    scene.judge("events for a webhook", 40 * 100 * 200);
    drop(clients);
}

/// A batch of so many equal lines, as a request.
pub(super) fn batch(address: std::net::SocketAddr, line: &str, lines: usize) -> String {
    format!(
        "POST /push:pushring:sys/api/push HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer a token of the tests\r\n\
         Content-Type: application/x-ndjson\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
        line.len() * lines,
        line.repeat(lines)
    )
}

/// Sends the same request again and again, as long as `goes_on`, and takes the answers.
pub(super) fn send_again_and_again(address: std::net::SocketAddr, request: &str, goes_on: &AtomicBool) {
    while goes_on.load(Ordering::Relaxed) {
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        // Nothing of it is kept here: it is the tests' allocator that counts.
        let (mut bytes, mut is_first) = ([0; 4096], true);
        while let read @ 1.. = client.read(&mut bytes).unwrap() {
            let text = &bytes[..read];
            assert!(!is_first || text.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(text));
            is_first = false;
        }
    }
}

/// The API, for `process`, at this broker's own address.
pub(super) fn start_api(broker: &Broker, process: &Process) {
    let options = ApiOptions {
        token: ApiToken::new("a token of the tests").unwrap(),
        process: Some(process.id().clone()),
        keys: Default::default(),
    };
    push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
}

#[test]
fn batches_that_wait_for_their_turn_and_their_answers() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    start_api(&broker, &process);
    let (mut scene, goes_on) = (Scene::new(broker), AtomicBool::new(true));
    let address = scene.broker.address();
    let request = batch(address, "{\"to\":{\"topic\":\"a\"},\"text\":\"x\"}\n", 20_000);
    scene.begin_anew();
    std::thread::scope(|scope| {
        let _end = EndOnDrop(&goes_on);
        (0..4).for_each(|_| drop(scope.spawn(|| send_again_and_again(address, &request, &goes_on))));
        scene.judge("batches and their answers", MIB);
    });
}

/// Ends what goes on, also where a test fails.
pub(super) struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn answers_that_are_given_again() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    start_api(&broker, &process);
    let mut scene = Scene::new(broker);
    let address = scene.broker.address();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answered = 0;
    let mut push = |key: &str| {
        let body = r#"{"to":{"process":"p:test:sys"},"text":"x"}"#;
        let request = format!(
            "POST /push:pushring:sys/api/push HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer a token of the tests\r\n\
             Content-Type: application/json\r\nIdempotency-Key: {key}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\"accepted\":true}") {
            let mut bytes = [0; 512];
            let read = client.read(&mut bytes).unwrap();
            answer.extend_from_slice(&bytes[..read]);
            assert!(read > 0 && answer.len() < 2_000, "{}", String::from_utf8_lossy(&answer));
        }
        answered += 1;
    };
    (0..100).for_each(|number| push(&format!("warm {number}")));
    scene.begin_anew();
    (0..4_000).for_each(|number| push(&format!("key {number}")));
    scene.judge("answers that are given again", 4_000 * 150);
    assert_eq!(answered, 4_100);
}

/// A client's text, masked with zeros.
fn order(json: &str) -> Vec<u8> {
    let mut frame = vec![0x81, 0x81 + json.len() as u8, 0, 0, 0, 0, 0x1e];
    frame.extend_from_slice(json.as_bytes());
    frame
}

#[test]
fn topics_of_the_hubs_clients() {
    const CLIENTS: usize = 40;
    const TOPICS: usize = 60;
    let _turn = take_turn();
    let none = WebhookQueue::new(CallLimits { told: Vec::new(), events_max: 1, bytes_max: MIB });
    let scene = Scene::new(hub_broker(none));
    let fields = format!("{UPGRADE}{RESUMABLE}");
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(&scene.broker, "/hub", &fields)).collect();
    for (at, (client, status)) in clients.iter().enumerate() {
        assert!(status.ends_with("101"), "{status}");
        for topic in 0..TOPICS {
            let name = format!("public.{}", if topic % 2 == 0 { format!("{at}/{topic}") } else { topic.to_string() });
            (&*client).write_all(&order(&format!(r#"{{"subscribe":"{name}","id":{topic}}}"#))).unwrap();
        }
    }
    let subscribed = || scene.broker.handle().reports()[0].subscriptions;
    let deadline = Instant::now() + PATIENCE;
    while subscribed() < CLIENTS * TOPICS {
        assert!(Instant::now() < deadline, "{} subscriptions", subscribed());
        std::thread::sleep(Duration::from_millis(10));
    }
    scene.judge("topics of the hub's clients", 200 * 1024);
    drop(clients);
}
