//! A client that only receives opens an event stream (`text/event-stream`) where a path allows it: it gets what any
//! channel gets, in the same bytes as all that listen; a client that returns with `Last-Event-ID` gets what it missed
//! and is entitled to, from whichever shard, or first a report of the gap; budgets, policies, closes and origins hold
//! as for WebSockets; it sends by POST with the stream's own token, and no other.

use crate::support;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use pushring::internals::gateway::{Grant, HubAccess, Secret, patterns};
use pushring::internals::hub;
use pushring::{AttachOptions, Audience, Broker, Event, Message, MessageKind, Policy, Process, WebSocketRule};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use support::{Inbound, PATIENCE, broker, connect, recv};

const PATH: &str = "/news:test:sys/";

/// An event: its name, data and id, as they stand there.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Heard {
    name: String,
    data: String,
    id: String,
}

struct Stream {
    lines: BufReader<TcpStream>,
    head: String,
    /// Of the last event that had one.
    last: String,
    channel: String,
}

impl Stream {
    fn request(address: SocketAddr, path: &str, fields: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{fields}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(lines.read_line(&mut head).unwrap() > 0, "{head}");
        }
        Self { lines, head, last: String::new(), channel: String::new() }
    }

    /// A stream whose first event has said which channel it is.
    fn open(broker: &Broker, path: &str, fields: &str) -> Self {
        let mut stream = Self::request(broker.address(), path, fields);
        assert!(stream.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", stream.head);
        let hello = stream.next();
        assert_eq!(hello.name, "channel", "{hello:?}");
        let data: Value = serde_json::from_str(&hello.data).unwrap();
        stream.channel = format!("{}.{}", data["channel_id"], data["token"].as_str().unwrap());
        stream
    }

    /// The next bytes up to an empty line; none where the stream has ended.
    fn raw(&mut self) -> String {
        let mut event = String::new();
        while !event.ends_with("\n\n") {
            if self.lines.read_line(&mut event).unwrap() == 0 {
                return event;
            }
        }
        event
    }

    /// The next event.
    fn next(&mut self) -> Heard {
        loop {
            let raw = self.raw();
            assert!(!raw.is_empty(), "the stream has ended");
            let mut heard = Heard::default();
            let mut data: Vec<&str> = Vec::new();
            for line in raw.lines() {
                match line.split_once(": ") {
                    Some(("event", name)) => heard.name = name.into(),
                    Some(("data", line)) => data.push(line),
                    Some(("id", id)) => heard.id = id.into(),
                    _ => {}
                }
            }
            if !heard.id.is_empty() {
                self.last = heard.id.clone();
            }
            if !data.is_empty() {
                return Heard { data: data.join("\n"), ..heard };
            }
        }
    }

    fn text(&mut self) -> String {
        let heard = self.next();
        assert_eq!(heard.name, "", "{heard:?}");
        heard.data
    }

    /// Hears the rest, which is the end.
    fn ends(mut self) {
        assert_eq!(self.raw(), "");
    }

    fn last_event(&self) -> String {
        format!("Last-Event-ID: {}\r\n", self.last)
    }
}

fn bound(broker: &Broker, options: AttachOptions) -> Process {
    let process = broker.handle().process("news:test:sys", options).unwrap();
    process.bind("/", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    process
}

fn start() -> (Broker, Process) {
    let broker = broker(support::driver(), |_| {});
    let process = bound(&broker, AttachOptions::default());
    (broker, process)
}

fn status(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer["HTTP/1.1 ".len()..][..3].to_owned()
}

#[test]
fn listeners_hear_what_channels_hear_in_the_same_bytes() {
    let (broker, news) = start();
    let mut inbound = Inbound::default();
    let (mut client, _) = inbound.open(&broker, &news);
    let mut listeners = [Stream::open(&broker, PATH, ""), Stream::open(&broker, PATH, "")];
    let head = &listeners[0].head;
    for field in ["content-type: text/event-stream\r\n", "x-accel-buffering: no\r\n", "connection: close\r\n"] {
        assert!(head.contains(field), "{head}");
    }
    inbound.opened(&news);
    let second = inbound.opened(&news);
    for text in ["hello", "two\nlines", "", " led by a space"] {
        let outcome = news.broadcast(Message::text(text)).ask().send().unwrap().wait(PATIENCE).unwrap();
        assert_eq!(outcome.sent, 3, "{outcome:?}");
        assert_eq!(recv(&mut client).to_text().unwrap(), text);
        assert!(listeners.iter_mut().all(|listener| listener.text() == text));
    }
    for (message, name) in [(Message::binary(&b"\x00\n\n"[..]), "binary"), (Message::text("a\rb"), "text")] {
        let payload = message.payload().clone();
        news.broadcast(message).send().unwrap();
        for listener in &mut listeners {
            let heard = listener.next();
            assert_eq!((&*heard.name, STANDARD.decode(heard.data).unwrap()), (name, payload.to_vec()));
        }
    }
    // Larger than what is copied, and to one alone.
    let large = "x".repeat(200_000);
    news.broadcast(Message::text(large.clone())).send().unwrap();
    assert!(listeners.iter_mut().all(|listener| listener.text() == large));
    news.push(second, Message::text("to one")).send().unwrap();
    for text in ["to all", "end"] {
        news.broadcast(Message::text(text)).send().unwrap();
    }
    let mut heard = listeners.map(|mut listener| {
        let texts = std::iter::repeat_with(|| listener.text()).take_while(|text| text != "end");
        texts.collect::<Vec<_>>()
    });
    heard.sort();
    assert_eq!(heard, [vec!["to all"], vec!["to one", "to all"]]);
}

#[test]
fn on_one_shard_all_events_are_the_same_bytes() {
    let broker = broker(support::driver(), |config| config.shards = 1);
    let news = bound(&broker, AttachOptions::default());
    let mut listeners = [Stream::open(&broker, PATH, ""), Stream::open(&broker, PATH, "")];
    for text in ["one", "two\nlines"] {
        news.broadcast(Message::text(text)).send().unwrap();
        let [first, second] = listeners.each_mut().map(Stream::raw);
        assert_eq!(first, second);
        assert!(first.starts_with("id: "), "{first}");
    }
}

#[test]
fn who_comes_back_hears_what_it_missed_from_any_shard() {
    let (broker, news) = start();
    // Another client stays, and others of other paths.
    news.bind("/other", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let _other = Stream::open(&broker, "/news:test:sys/other", "");
    let mut listener = Stream::open(&broker, PATH, "");
    news.broadcast(Message::text("one")).send().unwrap();
    assert_eq!(listener.text(), "one");
    for round in 0..12 {
        let last = listener.last_event();
        drop(listener);
        for number in 0..3 {
            news.broadcast(Message::text(format!("{round} {number}"))).to(Audience::Path("/".into())).send().unwrap();
            news.broadcast(Message::text("not yours")).to(Audience::Path("/other".into())).send().unwrap();
        }
        // The accepting shard is the kernel's choice: over so many rounds it is each.
        listener = Stream::open(&broker, PATH, &last);
        for number in 0..3 {
            assert_eq!(listener.text(), format!("{round} {number}"));
        }
        news.broadcast(Message::text("live")).send().unwrap();
        assert_eq!(listener.text(), "live");
    }
}

#[test]
fn what_cannot_be_known_is_a_gap_and_comes_first() {
    let (broker, news) = start();
    let mut inbound = Inbound::default();
    let gap = |last: &str, why: &str| {
        let mut listener = Stream::open(&broker, PATH, &format!("Last-Event-ID: {last}\r\n"));
        let heard = listener.next();
        assert_eq!((&*heard.name, &*heard.data), ("gap", &*format!(r#"{{"missed":null,"reason":"{why}"}}"#)), "{last}");
    };
    gap("of another server", "elsewhere");
    let listener = Stream::open(&broker, PATH, "");
    let own = listener.last.clone();
    let (run, rest) = own.split_once('.').unwrap();
    let (shard, place) = rest.split_once('.').unwrap();
    gap(&format!("{:04x}.{rest}", u16::from_str_radix(run, 16).unwrap() ^ 1), "elsewhere");
    gap(&format!("{run}.77.{place}"), "elsewhere");
    gap(&format!("{run}.{shard}.1"), "elsewhere");
    // A place cannot be made up.
    let (first, others) = place.split_at(1);
    gap(&format!("{run}.{shard}.{}{others}", if first == "A" { "B" } else { "A" }), "trimmed");
    gap(&format!("{run}.{shard}.AAAAAAAAAAAAAAAAAAAAAA"), "trimmed");
    // An anonymous client's messages are not given to the next one.
    loop {
        let Event::Opened(opened) = inbound.next(&news) else { continue };
        if listener.channel.starts_with(&format!("{}.", opened.channel)) {
            news.push(opened.channel, Message::text("for one")).ask().send().unwrap().wait(PATIENCE).unwrap();
            break;
        }
    }
    drop(listener);
    gap(&own, "trimmed");
    let mut fresh = Stream::open(&broker, PATH, "");
    news.broadcast(Message::text("live")).send().unwrap();
    assert_eq!(fresh.text(), "live", "who does not come back has no gap");
}

#[test]
fn a_message_goes_up_with_the_streams_own_token() {
    let (broker, mut news) = start();
    let mut inbound = Inbound::default();
    let listeners = [Stream::open(&broker, PATH, ""), Stream::open(&broker, PATH, "")];
    let channels = [inbound.opened(&news), inbound.opened(&news)];
    let post = |path: &str, channel: &str, mime: &str, body: &str| {
        let (address, length) = (broker.address(), body.len());
        status(
            address,
            &format!(
                "POST {path} HTTP/1.1\r\nHost: {address}\r\nSSE-Channel: {channel}\r\nContent-Type: {mime}\r\n\
                 Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            ),
        )
    };
    // Over so many, each shard accepts one for the other.
    for number in 0..16 {
        let at = number % 2;
        let (mime, kind) = [("text/plain", MessageKind::Text), ("image/png", MessageKind::Binary)][at];
        assert_eq!(post(PATH, &listeners[at].channel, mime, &number.to_string()), "202");
        match news.recv_blocking().unwrap() {
            Event::Message { channel, kind: heard, payload } => {
                assert!(listeners[at].channel.starts_with(&format!("{channel}.")) && channels.contains(&channel));
                assert_eq!((heard, &*payload), (kind, number.to_string().as_bytes()));
            }
            other => panic!("{other:?}"),
        }
    }
    news.bind("/other", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
    let (id, token) = listeners[0].channel.split_once('.').unwrap();
    let (other_id, _) = listeners[1].channel.split_once('.').unwrap();
    for (path, channel, expected) in [
        (PATH, format!("{other_id}.{token}"), "404"),
        (PATH, format!("{id}.{}", "A".repeat(22)), "404"),
        (PATH, format!("99999.{token}"), "404"),
        (PATH, "nonsense".into(), "400"),
        ("/news:test:sys/other", listeners[0].channel.clone(), "404"),
    ] {
        assert_eq!(post(path, &channel, "text/plain", "x"), expected, "{channel} at {path}");
    }
    assert_eq!(post(PATH, &listeners[0].channel, "text/plain", "\u{feff}ok"), "202");
    // Whether both ways work.
    let [mut listener, _] = listeners;
    assert_eq!(post(PATH, &listener.channel, "text/plain", "\u{1e}{\"ping\":7}"), "202");
    assert_eq!(listener.next(), Heard { name: "control".into(), data: "{\"pong\":7}".into(), id: String::new() });
}

/// Likewise before its body is taken in; and in words that a page of a listed origin may read.
#[test]
fn a_message_that_its_head_refuses_is_answered_before_its_body() {
    let broker = broker(support::driver(), |config| {
        config.settings.origins = vec!["https://app.example".to_owned()];
        config.shard.limits.message_bytes_max = 1000;
    });
    let news = bound(&broker, AttachOptions::default());
    let listener = Stream::open(&broker, PATH, "");
    let (id, token) = listener.channel.split_once('.').unwrap();
    // The last of its characters says less than the others.
    let forged = format!("{}{}{}", &token[..12], if &token[12..13] == "A" { "B" } else { "A" }, &token[13..]);
    for (channel, bytes, expected) in [
        ("nonsense".to_owned(), 900, "400"),
        (format!("{id}.{forged}"), 900, "404"),
        (format!("99999.{token}"), 900, "404"),
        (listener.channel.clone(), 1001, "413"),
    ] {
        let address = broker.address();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "POST {PATH} HTTP/1.1\r\nHost: {address}\r\nSSE-Channel: {channel}\r\nContent-Length: {bytes}\r\n\
             Origin: https://app.example\r\n\r\n"
        )
        .unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        assert_eq!(head[0].split(' ').nth(1), Some(expected), "{channel}: {head:?}");
        let fields = head.iter().filter(|line| *line == "access-control-allow-origin: https://app.example");
        assert_eq!(fields.count(), 1, "{channel}: {head:?}");
    }
    drop(news);
}

#[test]
fn ends_are_told_and_the_stream_ends() {
    let (broker, news) = start();
    let mut inbound = Inbound::default();
    let mut listener = Stream::open(&broker, PATH, "");
    let channel = inbound.opened(&news);
    news.push(channel, Message::text("before")).send().unwrap();
    news.close(channel, 4000, "enough").send().unwrap();
    assert_eq!(listener.text(), "before");
    let close = listener.next();
    assert_eq!((&*close.name, &*close.data), ("close", r#"{"code":4000,"reason":"enough"}"#));
    let (address, token) = (broker.address(), listener.channel.clone());
    listener.ends();
    let closed = inbound.closed(&news);
    assert_eq!((closed.channel, closed.code), (channel, 4000));
    // Its token is good for nothing more, on whichever shard it is shown.
    for _ in 0..4 {
        let head = format!("POST {PATH} HTTP/1.1\r\nHost: {address}\r\nSSE-Channel: {token}\r\n");
        assert_eq!(status(address, &format!("{head}Content-Length: 1\r\nConnection: close\r\n\r\nx")), "404");
    }
    // A client that leaves is gone.
    let listener = Stream::open(&broker, PATH, "");
    let channel = inbound.opened(&news);
    drop(listener);
    let closed = inbound.closed(&news);
    assert_eq!((closed.channel, closed.code), (channel, 1006));
    // A client that sends bytes after its request is no listener.
    let mut chatty = Stream::open(&broker, PATH, "");
    inbound.opened(&news);
    chatty.lines.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    inbound.closed(&news);
    // A process that ends takes its listeners along.
    let mut listener = Stream::open(&broker, PATH, "");
    drop(news);
    assert!(listener.next().data.starts_with(r#"{"code":1001"#));
    listener.ends();
}

#[test]
fn who_does_not_read_meets_its_budget_and_hears_whole_events() {
    let broker = broker(support::driver(), |config| config.shard.outbound_bytes_max = 64 * 1024);
    let news = bound(&broker, AttachOptions { policy: Policy::DropOldest, ..AttachOptions::default() });
    let mut listener = Stream::open(&broker, PATH, "");
    let text = "line\n".repeat(200);
    let mut sent = 0_u32;
    let mut push = |count| {
        for _ in 0..count {
            news.broadcast(Message::text(format!("{sent} {text}"))).send().unwrap();
            sent += 1;
        }
        let probe = news.broadcast(Message::text("x")).ask().send().unwrap().wait(PATIENCE).unwrap();
        (probe.queued > 0, sent)
    };
    // Until its socket is full; then more than its budget.
    while !push(50).0 {}
    let (_, sent) = push(200);
    news.broadcast(Message::text("end")).send().unwrap();
    let mut heard = Vec::new();
    loop {
        match listener.text() {
            end if end == "end" => break,
            between if between == "x" => {}
            whole => {
                let (number, rest) = whole.split_once(' ').unwrap();
                assert_eq!(rest, text, "an event is whole or not there");
                heard.push(number.parse::<u32>().unwrap());
            }
        }
    }
    assert!(heard.is_sorted() && heard.len() < sent as usize);
}

#[test]
fn comments_keep_a_silent_stream_alive() {
    let broker = broker(support::driver(), |config| config.shard.ping_interval_ms = 200);
    let _news = bound(&broker, AttachOptions::default());
    let mut listener = Stream::open(&broker, PATH, "");
    for _ in 0..5 {
        assert_eq!(listener.raw(), ":\n\n", "it is never let go of for its silence");
    }
}

#[test]
fn pages_of_listed_origins_may_read_and_others_may_not() {
    let broker = broker(support::driver(), |config| {
        config.settings.origins = vec!["https://app.example".into()];
    });
    let _news = bound(&broker, AttachOptions::default());
    let listed = Stream::open(&broker, PATH, "Origin: https://app.example\r\n");
    assert!(listed.head.contains("access-control-allow-origin: https://app.example\r\n"), "{}", listed.head);
    assert!(listed.head.contains("access-control-allow-credentials: true\r\n") && listed.head.contains("vary: Origin"));
    let other = Stream::open(&broker, PATH, "Origin: https://other.example\r\n");
    assert!(!other.head.contains("access-control"), "{}", other.head);
    let preflight = |origin: &str| {
        let address = broker.address();
        let field = "Access-Control-Request-Method: POST";
        status(address, &format!("OPTIONS {PATH} HTTP/1.1\r\nHost: {address}\r\nOrigin: {origin}\r\n{field}\r\n\r\n"))
    };
    assert_eq!((preflight("https://app.example"), preflight("https://other.example")), ("204".into(), "403".into()));
}

#[test]
fn only_where_the_path_allows_it_and_only_who_may_enter() {
    let broker = broker(support::driver(), |_| {});
    let plain = support::process(&broker, "plain", AttachOptions::default());
    plain.bind("/private", WebSocketRule { sse: true, authenticated: true, ..WebSocketRule::default() }).unwrap();
    let answer = |path: &str| Stream::request(broker.address(), path, "").head;
    assert!(answer("/plain:test:sys/").starts_with("HTTP/1.1 404"));
    assert!(answer("/plain:test:sys/private").starts_with("HTTP/1.1 401"));
    drop(connect(&broker, "/plain:test:sys/"));
}

const KEY: &[u8] = b"the secret of the hub, which is another";

fn token(mut claims: Value) -> String {
    claims["aud"] = "pushring-hub".into();
    let signed = [json!({"alg": "HS256"}), claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(KEY).unwrap();
    mac.update(signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

#[test]
fn at_the_hub_the_query_names_topics_and_the_token_allows_them() {
    let broker = broker(support::driver(), |config| {
        let grant = Grant { may_subscribe: patterns(&["public.*".to_owned()]).unwrap(), ..Grant::default() };
        config.settings.hub = Some(Arc::new(HubAccess {
            secret: Some(Secret::new(KEY).unwrap()),
            audience: "pushring-hub".into(),
            open: Some(Arc::new(grant)),
            authority: None,
            lifetime_max_s: None,
        }));
    });
    hub::start_with(&broker.handle(), None, true).unwrap();
    let options = pushring::internals::push_api::ApiOptions {
        token: pushring::internals::push_api::ApiToken::new("a token of the tests").unwrap(),
        process: Some(hub::PROCESS.parse().unwrap()),
        keys: Default::default(),
    };
    pushring::internals::push_api::start(&broker.handle(), false, broker.handle(), options).unwrap();
    let publish = |to: Value, text: &str| {
        let (address, body) = (broker.address(), json!({"to": to, "text": text, "outcome": true}).to_string());
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "POST /push:pushring:sys/api/push HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer a token of the tests\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let heard_by_one = |to: Value, text: &str| while !publish(to.clone(), text).contains("\"sent\":1") {};
    let refused = Stream::request(broker.address(), "/hub?topic=private", "").head;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let mut open = Stream::open(&broker, "/hub?topic=public.a&topic=public.b", "");
    // Its subscriptions are the hub's to make: once they are made, it hears.
    heard_by_one(json!({"topic": "public.a"}), "a");
    heard_by_one(json!({"topic": "public.b"}), "b");
    assert_eq!([open.text(), open.text()], ["a", "b"]);
    let last = open.last_event();
    drop(open);
    // No client is left.
    while !publish(json!({"topic": "public.a"}), "x").contains("\"sent\":0") {}
    publish(json!({"topic": "public.c"}), "not subscribed to");
    publish(json!({"topic": "public.b"}), "missed");
    let mut back = Stream::open(&broker, "/hub?topic=public.a&topic=public.b", &last);
    publish(json!({"topic": "public.a"}), "live");
    let mut heard = back.text();
    while heard == "x" {
        heard = back.text();
    }
    assert_eq!([heard, back.text()], ["missed", "live"], "what is published as it comes back is not lost");
    // Nobody here has listened to it in this form: what was published meanwhile has no place in history.
    let mut enveloped = Stream::open(&broker, "/hub?topic=public.a&topic=public.b&envelope", &last);
    assert_eq!(enveloped.next().name, "gap");

    let bearer = format!("Authorization: Bearer {}\r\n", token(json!({"sub": "ann", "topics": ["room.7"]})));
    let mut ann = Stream::open(&broker, "/hub", &bearer);
    heard_by_one(json!({"topic": "room.7"}), "to the room");
    heard_by_one(json!({"user": "ann"}), "to ann");
    assert_eq!([ann.text(), ann.text()], ["to the room", "to ann"]);
    let last = ann.last_event();
    // Another user who knows the position gets none of her messages.
    let bobs = format!("Authorization: Bearer {}\r\n", token(json!({"sub": "bob", "topics": ["room.8"]})));
    let mut bob = Stream::open(&broker, "/hub", &format!("{bobs}{last}"));
    heard_by_one(json!({"user": "ann"}), "again to ann");
    heard_by_one(json!({"user": "bob"}), "to bob");
    assert_eq!(bob.next().name, "gap", "what was for him before is not known here");
    assert_eq!(bob.text(), "to bob");
    assert_eq!(ann.text(), "again to ann");
    // To one of her channels alone: she hears it again when she comes back, and nobody else has missed anything.
    let [ann_last, bob_last] = [ann.last_event(), bob.last_event()];
    let id: u32 = ann.channel.split_once('.').unwrap().0.parse().unwrap();
    heard_by_one(json!({"channels": [id]}), "alone");
    assert_eq!(ann.text(), "alone");
    drop((ann, bob));
    let mut ann = Stream::open(&broker, "/hub", &format!("{bearer}{ann_last}"));
    assert_eq!(ann.text(), "alone");
    let mut bob = Stream::open(&broker, "/hub", &format!("{bobs}{bob_last}"));
    heard_by_one(json!({"user": "bob"}), "live");
    assert_eq!(bob.text(), "live");
    let expired = format!("Authorization: Bearer {}\r\n", token(json!({"exp": 1})));
    assert!(Stream::request(broker.address(), "/hub", &expired).head.starts_with("HTTP/1.1 401"));
}
