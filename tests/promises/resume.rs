//! A channel outlives its connection: its client resumes, on any shard, and gets each message once and in order, or the
//! exact number that it missed. A client with another's token, or a used one, gets a new channel and is told so.

use crate::support;
use pushring::{
    AttachOptions, Broker, ChannelFilter, ChannelId, Closed, ClosedBy, Config, Event, Outcome, Policy, Process,
    WebSocketRule,
};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;
use support::{
    Client, Inbound, PATIENCE, Patient, Push, SECRET, broker, driver, free_port, on_each_driver, recv, send,
};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

const RULE: WebSocketRule = WebSocketRule {
    authenticated: false,
    secure_subdomain: false,
    extension: false,
    deflate: false,
    resume: true,
    hub: false,
    resume_events: true,
    sse: false,
};

/// A client that counts as the protocol says.
struct Counting {
    socket: Client,
    hello: Value,
    id: u32,
    token: String,
    /// Messages received, and those it was told to be dropped.
    received: u64,
    sent: u64,
}

fn offer(broker: &Broker, path: &str, cookie: Option<&str>, elements: &[String]) -> Result<Client, tungstenite::Error> {
    let address = broker.address();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("sec-websocket-protocol", elements.join(", ").parse().unwrap());
    if let Some(cookie) = cookie {
        headers.insert("cookie", cookie.parse().unwrap());
        headers.insert("origin", format!("http://{address}").parse().unwrap());
    }
    match tungstenite::client(request, Patient::new(stream)) {
        Ok((client, response)) => {
            assert_eq!(
                response.headers().get("sec-websocket-protocol").unwrap(),
                "pushring.1",
                "nothing else is echoed"
            );
            Ok(client)
        }
        Err(tungstenite::HandshakeError::Failure(error)) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

impl Counting {
    fn begin(mut socket: Client) -> Self {
        let hello: Value = serde_json::from_str(socket.read().unwrap().to_text().unwrap()).unwrap();
        let mut client = Self { socket, hello, id: 0, token: String::new(), received: 0, sent: 0 };
        client.note_hello();
        client
    }

    fn note_hello(&mut self) {
        assert_eq!(self.hello["pushring"], 1);
        self.id = u32::try_from(self.hello["channel_id"].as_u64().unwrap()).unwrap();
        self.token = self.hello["resume"].as_str().unwrap().to_owned();
        assert_eq!(self.token.len(), 22);
    }

    fn open(broker: &Broker, path: &str) -> Self {
        Self::begin(offer(broker, path, None, &["pushring.1".to_owned()]).unwrap())
    }

    fn element(&self) -> String {
        format!("resume.{}.{}.{}", self.id, self.token, self.received)
    }

    /// Comes back on another connection. The answer is the old one, left as it is.
    fn come_back(&mut self, broker: &Broker, path: &str) -> Client {
        let elements = ["pushring.1".to_owned(), self.element()];
        let old = std::mem::replace(&mut self.socket, offer(broker, path, None, &elements).unwrap());
        self.hello = serde_json::from_str(self.socket.read().unwrap().to_text().unwrap()).unwrap();
        self.note_hello();
        match (self.hello["resumed"].as_bool().unwrap(), self.hello["lost"].as_u64(), self.hello["received"].as_u64()) {
            (true, None, Some(_)) => {}
            (false, Some(lost), Some(_)) => self.received += lost,
            (false, _, None) => (self.received, self.sent) = (0, 0),
            other => panic!("{other:?}"),
        }
        old
    }

    fn is_resumed(&self) -> bool {
        self.hello["resumed"].as_bool().unwrap()
    }

    fn reason(&self) -> &str {
        self.hello["reason"].as_str().unwrap()
    }

    /// The next message, or how many were dropped before it.
    fn next(&mut self) -> Result<Message, u64> {
        let message = recv(&mut self.socket);
        if let Message::Text(text) = &message
            && let Some(rest) = text.strip_prefix('\u{1e}')
        {
            if rest.starts_with('\u{1e}') {
                self.received += 1;
                return Ok(rest.into());
            }
            let control: Value = serde_json::from_str(rest).unwrap();
            let dropped = control["dropped"].as_u64().unwrap();
            self.received += dropped;
            return Err(dropped);
        }
        self.received += 1;
        Ok(message)
    }

    #[track_caller]
    fn expect(&mut self, text: &str) {
        assert_eq!(self.next().map(|message| message.to_text().unwrap().to_owned()), Ok(text.to_owned()));
    }

    fn say(&mut self, text: &str) {
        self.sent += 1;
        send(&mut self.socket, text);
    }

    /// The network is gone: no close frame, no word.
    fn cut(&mut self) {
        self.socket.get_ref().shutdown(Shutdown::Both).unwrap();
    }

    fn channel(&self) -> ChannelId {
        ChannelId::new(self.id)
    }
}

struct Scene {
    broker: Broker,
    process: Process,
    inbound: Inbound,
}

const PATH: &str = "/kept:test:sys/";

impl Scene {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let broker = broker(driver(), change);
        let process = broker.handle().process("kept:test:sys", AttachOptions::default()).unwrap();
        process.bind("/", RULE).unwrap();
        Self { broker, process, inbound: Inbound::default() }
    }

    fn open(&mut self) -> Counting {
        let client = Counting::open(&self.broker, PATH);
        assert!(client.hello.get("resumed").is_none());
        assert_eq!(self.inbound.opened(&self.process), client.channel());
        client
    }

    #[track_caller]
    fn detached(&mut self, client: &Counting) {
        match self.inbound.next(&self.process) {
            Event::Detached { channel } => assert_eq!(channel, client.channel()),
            other => panic!("expected Detached, got {other:?}"),
        }
    }

    #[track_caller]
    fn resumed(&mut self, client: &Counting) -> u64 {
        match self.inbound.next(&self.process) {
            Event::Resumed { channel, lost, .. } if channel == client.channel() => lost,
            other => panic!("expected Resumed, got {other:?}"),
        }
    }

    #[track_caller]
    fn message(&mut self, client: &Counting) -> String {
        loop {
            match self.inbound.next(&self.process) {
                Event::Message { channel, payload, .. } if channel == client.channel() => {
                    return String::from_utf8(payload.to_vec()).unwrap();
                }
                Event::Detached { .. } | Event::Resumed { .. } => {}
                other => panic!("expected a message, got {other:?}"),
            }
        }
    }

    fn push(&self, client: &Counting, text: &str) -> Outcome {
        self.push_by(client, text, None)
    }

    fn push_by(&self, client: &Counting, text: &str, policy: Option<Policy>) -> Outcome {
        support::push_outcome(&self.process, client.channel(), Push::text(text), policy)
    }

    fn closed(&mut self) -> Closed {
        self.inbound.closed(&self.process)
    }
}

#[test]
fn what_was_pushed_meanwhile_comes_with_the_client() {
    on_each_driver(|_| {
        let mut scene = Scene::new(|_| {});
        let mut client = scene.open();
        assert_eq!(client.hello["window_ms"], 30_000);
        scene.push(&client, "one");
        client.expect("one");
        client.cut();
        scene.detached(&client);
        assert_eq!(scene.push(&client, "two").queued, 1);
        let everybody = scene.process.broadcast(Push::text("three")).ask().send().unwrap();
        assert_eq!(everybody.wait(PATIENCE).unwrap().queued, 1);
        assert_eq!(scene.broker.handle().reports().iter().map(|report| report.detached).sum::<usize>(), 1);
        let before = client.token.clone();
        client.come_back(&scene.broker, PATH);
        assert!(client.is_resumed() && client.token != before);
        assert_eq!(client.hello["received"], 0);
        client.expect("two");
        client.expect("three");
        assert_eq!(scene.resumed(&client), 0);
        assert_eq!(scene.push(&client, "four").sent, 1);
        client.expect("four");
        client.say("hello");
        assert_eq!(scene.message(&client), "hello");
        client.socket.close(None).unwrap();
        assert_eq!(scene.closed().by, ClosedBy::Client, "a close frame ends the channel");
        drop(scene.broker);
    });
}

#[test]
fn a_hundred_times_in_a_row_each_message_comes_once_both_ways() {
    on_each_driver(|_| {
        let mut scene = Scene::new(|_| {});
        let mut client = scene.open();
        let (mut pushed, mut heard, mut told) = (0u64, 0u64, 0u64);
        for round in 0..100u64 {
            for _ in 0..3 {
                scene.process.push(client.channel(), Push::text(format!("{pushed}"))).send().unwrap();
                pushed += 1;
            }
            // Some of them are taken before the network is gone, some not, and some are never sent.
            for _ in 0..round % 4 {
                client.expect(&heard.to_string());
                heard += 1;
            }
            client.say(&client.sent.to_string());
            if round % 2 == 0 {
                assert_eq!(scene.message(&client), told.to_string());
                told += 1;
            }
            if round % 3 != 0 {
                client.cut();
            }
            scene.process.push(client.channel(), Push::text(format!("{pushed}"))).send().unwrap();
            pushed += 1;
            let sent = client.sent;
            client.come_back(&scene.broker, PATH);
            assert!(client.is_resumed(), "{}", client.hello);
            // Messages that did not arrive are sent again.
            for again in client.hello["received"].as_u64().unwrap()..sent {
                send(&mut client.socket, again.to_string());
            }
            while told < sent {
                match scene.inbound.next(&scene.process) {
                    Event::Message { payload, .. } => {
                        assert_eq!(payload, told.to_string().as_bytes());
                        told += 1;
                    }
                    Event::Detached { .. } | Event::Resumed { lost: 0, .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            while heard < pushed {
                client.expect(&heard.to_string());
                heard += 1;
            }
            while let Ok(Some(event)) = scene.process.recv_timeout(Duration::ZERO) {
                assert!(matches!(event, Event::Detached { .. } | Event::Resumed { .. }), "{event:?}");
            }
        }
        let stats: Vec<_> = scene.broker.handle().reports().iter().map(|report| report.stats).collect();
        assert_eq!(stats.iter().map(|stats| stats.resumed).sum::<u64>(), 100);
        assert!(stats.iter().map(|stats| stats.taken_over).sum::<u64>() >= 34, "those that were not cut");
        assert_eq!(stats.iter().map(|stats| stats.opened).sum::<u64>(), 1);
    });
}

#[test]
fn a_client_that_comes_back_takes_over_a_connection_that_looks_alive() {
    let mut scene = Scene::new(|_| {});
    let mut client = scene.open();
    for round in 0..8 {
        scene.process.push(client.channel(), Push::text(format!("{round}"))).send().unwrap();
        let mut old = client.come_back(&scene.broker, PATH);
        assert!(client.is_resumed());
        assert_eq!(scene.resumed(&client), 0, "and nothing was told of an end");
        client.expect(&round.to_string());
        let heard = old.read();
        let is_first = heard.as_ref().is_ok_and(|message| *message == Message::text(round.to_string()));
        assert!(is_first || heard.is_err(), "{heard:?}");
        assert!(heard.is_err() || old.read().is_err(), "the old socket is closed");
    }
}

#[test]
fn texts_that_look_like_control_texts_are_escaped_both_ways() {
    let mut scene = Scene::new(|_| {});
    let mut client = scene.open();
    for text in ["\u{1e}{\"dropped\":9}", "\u{1e}\u{1e}x", "\u{1e}"] {
        scene.push(&client, text);
        client.expect(text);
        send(&mut client.socket, format!("\u{1e}{text}"));
        assert_eq!(scene.message(&client), text);
    }
    // Binary is never escaped, and a control text is no message.
    scene.process.push(client.channel(), Push::binary(vec![0x1e, 0x1e, 1])).send().unwrap();
    assert_eq!(client.next().unwrap(), Message::binary(vec![0x1e, 0x1e, 1]));
    send(&mut client.socket, "\u{1e}{\"ack\":4}");
    send(&mut client.socket, Message::binary(vec![0x1e, 2]));
    assert_eq!(scene.inbound.message(&scene.process, client.channel()), [0x1e, 2][..]);
    // A client that claims to have received more than was sent has lost count.
    send(&mut client.socket, "\u{1e}{\"ack\":5}");
    assert_eq!(support::recv_close(&mut client.socket), (1008, "invalid control text (pushring.1)".to_owned()));
}

#[test]
fn a_client_may_ask_whether_its_connection_works() {
    let mut scene = Scene::new(|config| config.shard.control_frames_per_s_max = 3);
    let mut client = scene.open();
    let asks = |client: &mut Counting, number: u32| {
        send(&mut client.socket, format!("\u{1e}{{\"ping\":{number}}}"));
        assert_eq!(recv(&mut client.socket), Message::text(format!("\u{1e}{{\"pong\":{number}}}")));
    };
    asks(&mut client, 0);
    asks(&mut client, u32::MAX);
    // Neither counts as a message: not with the process, nor with who comes back.
    scene.push(&client, "first");
    client.expect("first");
    client.say("up");
    assert_eq!(scene.message(&client), "up");
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed());
    assert_eq!(client.hello["received"], 1);
    // Pings of both kinds share one limit.
    let mut flood = Counting::open(&scene.broker, PATH);
    (0..10).for_each(|_| send(&mut flood.socket, "\u{1e}{\"ping\":1}"));
    loop {
        match flood.socket.read().unwrap() {
            Message::Text(pong) => assert_eq!(pong, "\u{1e}{\"pong\":1}"),
            Message::Close(Some(close)) => {
                assert_eq!((u16::from(close.code), &*close.reason), (1008, "too many control frames per second"));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_policy_drops_is_told_in_its_place() {
    let mut scene = Scene::new(|config| config.shard.outbound_bytes_max = 2_000);
    let mut client = scene.open();
    client.cut();
    scene.detached(&client);
    let long = "x".repeat(900);
    assert_eq!(scene.push_by(&client, &format!("0{long}"), Some(Policy::DropNewest)).queued, 1);
    assert_eq!(scene.push_by(&client, &format!("1{long}"), Some(Policy::DropNewest)).queued, 1);
    assert_eq!(scene.push_by(&client, &format!("2{long}"), Some(Policy::DropNewest)).dropped, 1);
    assert_eq!(scene.push_by(&client, "3", Some(Policy::DropNewest)).queued, 1);
    let key = Some(Policy::Conflate { key: 7 });
    assert_eq!(scene.push_by(&client, "4", key).queued, 1);
    assert_eq!(scene.push_by(&client, "5", key).conflated, 1);
    assert_eq!(scene.push_by(&client, &format!("6{long}"), Some(Policy::DropOldest)).queued, 1);
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed());
    assert_eq!(client.next(), Err(1), "the oldest made room for the last");
    client.expect(&format!("1{long}"));
    assert_eq!(client.next(), Err(1));
    client.expect("3");
    assert_eq!(client.next(), Err(1));
    client.expect("5");
    client.expect(&format!("6{long}"));
    assert_eq!(client.received, 7);
    // The default policy ends the channel.
    client.cut();
    for event in [scene.inbound.next(&scene.process), scene.inbound.next(&scene.process)] {
        assert!(matches!(event, Event::Resumed { .. } | Event::Detached { .. }), "{event:?}");
    }
    assert_eq!(scene.push(&client, &long).queued, 1);
    assert_eq!(scene.push(&client, &long).queued, 1);
    assert_eq!(scene.push(&client, &long).closed, 1);
    assert_eq!(scene.closed().code, 1013);
    client.come_back(&scene.broker, PATH);
    assert_eq!((client.is_resumed(), client.reason(), client.hello["lost"].as_u64()), (false, "expired", Some(2)));
}

#[test]
fn who_comes_too_late_or_has_missed_too_much_is_told_how_much() {
    let mut scene = Scene::new(|config| {
        config.shard.resume.window_ms = 2_000;
        config.shard.resume.bytes_max = 1_000;
    });
    let mut client = scene.open();
    let old = client.id;
    for text in ["a", "b", "c"] {
        scene.push(&client, &text.repeat(300));
        client.expect(&text.repeat(300));
    }
    // It claims less than it was sent, and history reaches back to a part of that.
    for text in ["d", "e", "f"] {
        scene.push(&client, &text.repeat(300));
        client.next().unwrap();
    }
    client.received = 1;
    client.come_back(&scene.broker, PATH);
    assert_eq!((client.is_resumed(), client.reason(), client.hello["lost"].as_u64()), (false, "trimmed", Some(2)));
    assert_eq!((client.id, client.received), (old, 3), "the channel goes on");
    assert_eq!(scene.resumed(&client), 2);
    for text in ["d", "e", "f"] {
        client.expect(&text.repeat(300));
    }
    client.cut();
    scene.detached(&client);
    scene.push(&client, "lost");
    let closed = scene.closed();
    assert_eq!((closed.code, closed.by, closed.lost_bytes), (1006, ClosedBy::Connection, 6));
    client.come_back(&scene.broker, PATH);
    assert_eq!((client.is_resumed(), client.reason(), client.hello["lost"].as_u64()), (false, "expired", Some(1)));
    assert_ne!(client.id, old, "a new channel");
    assert_eq!(scene.inbound.opened(&scene.process), client.channel());
    scene.push(&client, "new");
    client.expect("new");
}

#[test]
fn nobody_gets_at_a_channel_with_anything_but_its_token() {
    let mut scene = Scene::new(|_| {});
    scene.process.bind("/other", RULE).unwrap();
    let (client, other) = (scene.open(), scene.open());
    let used = client.element();
    let mut client = client;
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed());
    scene.resumed(&client);
    // By what it says its client shows that the next token has come.
    client.say("here");
    assert_eq!(scene.message(&client), "here");
    let of_other = format!("resume.{}.{}.0", client.id, other.token);
    let mut forged = client.token.clone().into_bytes();
    forged[21] = if forged[21] == b'A' { b'Q' } else { b'A' };
    let forged = format!("resume.{}.{}.0", client.id, String::from_utf8(forged).unwrap());
    let future = format!("resume.{}.{}.1", client.id, client.token);
    let nobodys = format!("resume.{}.{}.0", client.id.wrapping_add(64), client.token);
    let attempts = [
        (PATH, used, "unknown"),
        (PATH, of_other, "foreign"),
        (PATH, forged, "foreign"),
        (PATH, future, "unknown"),
        (PATH, nobodys, "foreign"),
        (PATH, format!("resume.{}.AAAAAAAAAAAAAAAAAAAAAA.0", client.id), "elsewhere"),
        (PATH, format!("resume.{}", client.id), "unknown"),
        ("/kept:test:sys/other", client.element(), "foreign"),
    ];
    for (path, element, reason) in attempts {
        let stranger =
            Counting::begin(offer(&scene.broker, path, None, &["pushring.1".into(), element.clone()]).unwrap());
        assert_eq!((stranger.is_resumed(), stranger.reason()), (false, reason), "{element} at {path}");
        assert!(stranger.hello.get("lost").is_none());
        assert_ne!(stranger.id, client.id);
        assert_eq!(scene.inbound.opened(&scene.process), stranger.channel());
        drop(stranger.socket);
        while !matches!(scene.inbound.next(&scene.process), Event::Detached { .. }) {}
    }
    // After all of that the right one is still good.
    client.cut();
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed());
}

#[test]
fn a_token_whose_answer_was_lost_is_good_until_the_next_was_heard() {
    let mut scene = Scene::new(|_| {});
    let mut client = scene.open();
    let first = client.token.clone();
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed());
    // It has heard nothing of that: it comes with what it has.
    client.token = first.clone();
    client.cut();
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed() && client.token != first);
    // Over either way there is one channel, and it is the same.
    scene.push(&client, "one");
    client.expect("one");
    send(&mut client.socket, "\u{1e}{\"ack\":1}");
    client.say("heard");
    assert_eq!(scene.message(&client), "heard");
    let second = std::mem::replace(&mut client.token, first);
    let channel = client.id;
    client.come_back(&scene.broker, PATH);
    assert_eq!((client.is_resumed(), client.reason()), (false, "unknown"));
    client.cut();
    (client.token, client.id, client.received, client.sent) = (second, channel, 1, 1);
    client.come_back(&scene.broker, PATH);
    assert!(client.is_resumed(), "{}", client.hello);
}

#[test]
fn the_same_user_must_be_logged_in() {
    let mut scene = Scene::new(|_| {});
    scene.process.bind("/in", WebSocketRule { authenticated: true, ..RULE }).unwrap();
    let path = "/kept:test:sys/in";
    let claims = pushring::internals::gateway::Claims {
        username: "local.os".to_owned(),
        subdomain: None,
        expiration: u64::MAX / 2,
    };
    let secret = pushring::internals::gateway::Secret::new(SECRET).unwrap();
    let cookie = format!("kinode-auth_local.os={}", pushring::internals::gateway::mint(&secret, &claims));
    let opened = offer(&scene.broker, path, Some(&cookie), &["pushring.1".into()]).unwrap();
    let mut client = Counting::begin(opened);
    scene.inbound.opened(&scene.process);
    let elements = ["pushring.1".to_owned(), client.element()];
    let refused = offer(&scene.broker, path, None, &elements);
    let Err(tungstenite::Error::Http(response)) = refused else { panic!("no cookie, no channel: {refused:?}") };
    assert_eq!(response.status(), 401);
    client.cut();
    scene.detached(&client);
    let socket = offer(&scene.broker, path, Some(&cookie), &elements).unwrap();
    assert!(Counting::begin(socket).is_resumed(), "what was refused has not used the token up");
}

#[test]
fn after_a_restart_the_client_is_told_that_it_begins_anew() {
    // Nobody else is given the port between the two.
    let listen = ([127, 0, 0, 1], free_port()).into();
    let mut scene = Scene::new(|config| config.listen = listen);
    let mut client = scene.open();
    scene.push(&client, "before");
    client.expect("before");
    let Scene { broker, process, .. } = scene;
    client.cut();
    drop(process);
    broker.stop(Duration::ZERO).unwrap();
    let mut scene = Scene::new(|config| config.listen = listen);
    client.come_back(&scene.broker, PATH);
    assert_eq!((client.is_resumed(), client.reason()), (false, "elsewhere"));
    assert!(client.hello.get("lost").is_none());
    assert_eq!(scene.inbound.opened(&scene.process), client.channel());
}

#[test]
fn a_stop_and_a_process_that_ends_close_channels_that_wait() {
    let mut scene = Scene::new(|_| {});
    let mut client = scene.open();
    client.cut();
    scene.detached(&client);
    scene.process.close(client.channel(), 4000, "done").send().unwrap();
    let closed = scene.closed();
    assert_eq!((closed.code, closed.by), (4000, ClosedBy::Process));
    client.come_back(&scene.broker, PATH);
    assert_eq!((client.is_resumed(), client.reason()), (false, "expired"));
    scene.inbound.opened(&scene.process);
    client.cut();
    scene.detached(&client);
    scene.broker.handle().stop(PATIENCE);
    assert_eq!(scene.closed().by, ClosedBy::Broker);
    scene.broker.wait().unwrap();
}

#[test]
fn channels_that_wait_count_and_the_oldest_goes_first() {
    let mut scene = Scene::new(|config| {
        config.shards = 1;
        config.admission.connections_max = 2;
        config.admission.turned_away_max = 2;
    });
    let (mut first, second) = (scene.open(), scene.open());
    first.cut();
    scene.detached(&first);
    let third = scene.open_behind(|scene| {
        let closed = scene.closed();
        assert_eq!((closed.channel, closed.by), (first.channel(), ClosedBy::Broker));
    });
    assert!(third.id != first.id && second.id != third.id);
    let refused = offer(&scene.broker, PATH, None, &["pushring.1".into()]);
    assert!(refused.is_err(), "nobody waits any more");
}

impl Scene {
    /// Opens a channel for which another must go first.
    fn open_behind(&mut self, first: impl FnOnce(&mut Self)) -> Counting {
        let client = Counting::open(&self.broker, PATH);
        first(self);
        assert_eq!(self.inbound.opened(&self.process), client.channel());
        client
    }
}

#[test]
fn without_the_subprotocol_or_the_rule_a_channel_is_as_it_was() {
    let mut scene = Scene::new(|_| {});
    scene.process.bind("/plain", WebSocketRule::default()).unwrap();
    let (mut client, channel) = scene.inbound.open(&scene.broker, &scene.process);
    scene.process.push(channel, Push::text("\u{1e}raw")).send().unwrap();
    assert_eq!(recv(&mut client).to_text().unwrap(), "\u{1e}raw", "no hello, nothing is escaped");
    client.get_ref().shutdown(Shutdown::Both).unwrap();
    assert_eq!(scene.closed().code, 1006, "it does not wait");
    let refused = offer(&scene.broker, "/kept:test:sys/plain", None, &["pushring.1".into()]);
    assert!(matches!(refused, Err(tungstenite::Error::Protocol(_))), "nothing is echoed: {refused:?}");
}

#[test]
fn an_operator_sees_what_is_kept_for_a_client_and_that_it_is_away() {
    let mut scene = Scene::new(|_| {});
    let mut client = scene.open();
    let report = |scene: &Scene, queued_bytes_min| {
        let filter = ChannelFilter { queued_bytes_min, ..ChannelFilter::default() };
        let report = scene.broker.handle().channels(&filter, 0, 10).0.pop()?;
        Some((report.queued_bytes, report.kept_bytes, report.is_detached))
    };
    scene.push(&client, &"x".repeat(100));
    client.expect(&"x".repeat(100));
    assert_eq!(report(&scene, 0), Some((0, 102, false)));
    client.cut();
    scene.detached(&client);
    assert_eq!((report(&scene, 0), report(&scene, 1)), (Some((0, 102, true)), None));
    scene.push(&client, &"y".repeat(50));
    assert_eq!(report(&scene, 52), Some((52, 102, true)), "it is found by what waits");
    client.come_back(&scene.broker, PATH);
    client.expect(&"y".repeat(50));
    send(&mut client.socket, "\u{1e}{\"ack\":2}");
    client.say("acknowledged");
    assert_eq!(scene.message(&client), "acknowledged");
    assert_eq!(report(&scene, 0), Some((0, 0, false)));
}

/// Over TLS 1.3 a client's first request comes with the last of its handshake, before it can have read the tickets that
/// answer that.
#[test]
fn a_client_may_come_back_with_the_last_of_its_handshake() {
    let mut scene = Scene::new(|config| {
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(support::tls::server());
    });
    scene.process.bind("/events", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let mut client = scene.open();
    client.cut();
    scene.detached(&client);
    let resumes = format!(
        "GET {PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: pushring.1, {}\r\n\r\n",
        client.element()
    );
    let listens = format!("GET {PATH}events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    for (request, answer) in [(resumes, "HTTP/1.1 101 "), (listens, "HTTP/1.1 200 ")] {
        let mut stream = TcpStream::connect(scene.broker.tls_address().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tls = support::tls::connection(&support::tls::client(), "localhost");
        tls.write_tls(&mut stream).unwrap();
        while tls.is_handshaking() {
            tls.read_tls(&mut stream).unwrap();
            tls.process_new_packets().unwrap();
        }
        tls.writer().write_all(request.as_bytes()).unwrap();
        let mut said = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut said).unwrap();
        }
        stream.write_all(&said).unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            tls.read_tls(&mut stream).unwrap();
            tls.process_new_packets().unwrap();
            // It reports that no more is there yet.
            let _ = tls.reader().read_to_end(&mut head);
        }
        assert!(head.starts_with(answer.as_bytes()), "{}", String::from_utf8_lossy(&head));
    }
    assert_eq!(scene.resumed(&client), 0);
}
