//! Every command, event and request whose size a client, a process or a node chooses, at one length and at twice that.
//!
//! `.ci/scaling` runs each under callgrind at both lengths and fails where the second costs over 2.5 times the first:
//! nothing may cost more than in proportion. Lengths are no larger than shows that. Run by `cargo test`, it does each
//! once.

#[path = "../tests/shard_support/mod.rs"]
mod shard_support;

use bytes::Bytes;
use pushring::internals::admission::Ledger;
use pushring::internals::gateway::{HttpRule, OwnerId, Snapshot, WebSocketRule, enter};
use pushring::internals::http::{self, Head, PreparedResponse};
use pushring::internals::hub::grammar;
use pushring::internals::proto::client::{append_frame, append_message};
use pushring::internals::proto::{MessageKind, MessageLimits, Scratch, WebSocketConnection};
use pushring::internals::push_api;
use pushring::internals::shard::command::{
    CloseFrame, Command, Membership, Policy, PushCommand, PushFrame, PushKind, PushMany, ReportTo, ShardAudience,
    SubscribeCommand,
};
use pushring::internals::shard::{ShardConfig, SocketEnd};
use pushring::node::Dialect;
use pushring::{ChannelId, ProcessId};
use shard_support::{Fan, OWNER};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Makes the work at a length; what is made before is not counted.
type Make = fn(usize) -> Box<dyn FnOnce()>;

/// A name, the length at which it is first done, and the work.
const WORKS: [(&str, usize, Make); 39] = [
    ("bind 64 paths where n are bound", 1024, |n| bind(n, |at| format!("/path/{at}"))),
    ("bind 64 patterns where n are bound", 1024, |n| bind(n, |at| format!("/path/{at}/:who"))),
    ("bind 64 patterns where n begin alike", 1024, |n| bind(n, |at| format!("/:who/{at}"))),
    ("n paths go with their process", 512, paths_go),
    ("a directory of n paths, made and let go of", 512, |n| {
        Box::new(move || drop(bound(n, |at| format!("/path/{at}"))))
    }),
    ("find one of n patterns", 1024, |n| {
        find(n, |at| format!("/path/{at}/:who"), "/p:scale:sys/path/77/me".to_owned())
    }),
    ("match a path of n bytes with 16 wildcards", 1024, |n| {
        find(1, |_| "/*a/x/*b/x".repeat(8), format!("/p:scale:sys{}", "/x/a".repeat(n / 4)))
    }),
    ("a head of n fields", 32, head_fields),
    ("n query parameters", 64, query),
    ("n pipelined requests", 128, pipelined),
    ("a body of n chunks", 1024, chunks),
    ("a response of n fields", 256, response_fields),
    ("a message of n fragments", 1024, |n| frames(n, fragments(n))),
    ("n messages of a byte", 1024, |n| frames(n, messages(n))),
    ("n pings", 1024, |n| frames(n, pings(n))),
    ("n pushes to one channel", 512, |n| pushes(n, false, None, 0)),
    ("n pushes dropped as the newest", 512, |n| pushes(n, true, Some(Policy::DropNewest), 0)),
    ("n pushes that drop the oldest", 512, |n| pushes(n, true, Some(Policy::DropOldest), 0)),
    ("n pushes that drop the oldest behind n pings", 256, |n| pushes(n, true, Some(Policy::DropOldest), n)),
    ("n keys, each conflated twice", 512, conflated),
    ("a push to a list of n channels, all but n left out", 256, push_many),
    ("a broadcast to n channels", 256, |n| {
        let mut fan = Fan::new(n);
        Box::new(move || {
            fan.shard.handle_command(Fan::broadcast(Bytes::from_static(&[7; 100])), 1);
            fan.turn();
        })
    }),
    ("n channels join a topic and leave it", 128, join_and_leave),
    ("n channels of one topic go with their process", 128, |n| {
        let (mut fan, orders) = members(n);
        fan.shard.handle_command(Command::Batch(orders), 1);
        fan.turn();
        Box::new(move || {
            let why = CloseFrame { code: Some(1001), reason: "gone".into() };
            fan.shard.handle_command(Command::OwnerGone { owner: OWNER, why }, 1);
            fan.turn();
        })
    }),
    ("a message to a topic of n channels", 128, |n| publish(n, 1)),
    ("n messages to a topic", 256, |n| publish(16, n)),
    ("n messages while a client is away, and its return", 256, resume),
    ("n events of a stream", 256, events),
    ("n events while a client is away, and its return", 256, missed_events),
    ("n topics of event streams are left", 128, leave_topics),
    ("an order of n bytes at the hub", 1024, hub_order),
    ("a batch of n lines", 512, batch_of_lines),
    ("a greeting of TLS of n bytes, in small records", 4096, hello),
    ("n records of TLS", 128, records),
    ("n clients come and go", 128, come_and_go),
    ("n channels go with their process", 128, owner_gone),
    ("n requests go unanswered with their process", 128, requests_go),
    ("a stop of n channels", 128, |n| {
        let mut fan = Fan::new(n);
        Box::new(move || {
            fan.shard.handle_command(Command::Stop { within_ms: 1000, told: None }, 1);
            fan.turn();
            fan.shard.handle_tick(2000);
            fan.turn();
        })
    }),
    ("the deadlines of n channels", 128, |n| {
        let mut fan = Fan::new(n);
        Box::new(move || {
            for tick in 1..1000 {
                fan.shard.handle_tick(tick * 100);
                fan.turn();
            }
        })
    }),
];

fn process() -> ProcessId {
    "p:scale:sys".parse().unwrap()
}

/// A snapshot in which `process` has bound n paths.
fn bound(n: usize, path: fn(usize) -> String) -> Snapshot {
    let mut snapshot = Snapshot::new(pushring::node::settings("local.os", Dialect::Kinode));
    for at in 0..n {
        snapshot.bind_http(OwnerId(1), &process(), &*path(at), HttpRule::default()).unwrap();
        snapshot.bind_websocket(OwnerId(1), &process(), &*path(at), WebSocketRule::default()).unwrap();
    }
    snapshot
}

fn bind(n: usize, path: fn(usize) -> String) -> Box<dyn FnOnce()> {
    let mut snapshot = bound(n, path);
    let more: Vec<String> = (n..n + 64).map(path).collect();
    Box::new(move || {
        for path in &more {
            // As the broker does: the shards have the state before.
            let before = snapshot.clone();
            snapshot.bind_http(OwnerId(1), &process(), path.as_str(), HttpRule::default()).unwrap();
            snapshot.unbind_http(OwnerId(1), &process(), path.as_str()).unwrap();
            drop(before);
        }
    })
}

fn paths_go(n: usize) -> Box<dyn FnOnce()> {
    let mut snapshot = bound(n, |at| format!("/path/{at}"));
    Box::new(move || snapshot.unbind_owner(OwnerId(1)))
}

fn ask(snapshot: &Snapshot, request: &[u8]) {
    let limits = http::HttpLimits::default();
    let (head, _) = Head::parse(request, &limits).unwrap().unwrap();
    black_box(enter(snapshot, &head, std::net::SocketAddr::from(([127, 0, 0, 1], 1)), 0));
}

fn find(n: usize, path: fn(usize) -> String, asked: String) -> Box<dyn FnOnce()> {
    let snapshot = bound(n, path);
    let request = format!("GET {asked} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    Box::new(move || ask(&snapshot, request.as_bytes()))
}

fn head_fields(n: usize) -> Box<dyn FnOnce()> {
    let fields: String = (0..n).map(|at| format!("x-field-{at}: {at}\r\n")).collect();
    let snapshot = bound(1, |_| "/path".to_owned());
    let request = format!("GET /p:scale:sys/path HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    Box::new(move || ask(&snapshot, request.as_bytes()))
}

fn query(n: usize) -> Box<dyn FnOnce()> {
    let query: String = (0..n).map(|at| format!("q{at}=%41&")).collect();
    let snapshot = bound(1, |_| "/path".to_owned());
    let request = format!("GET /p:scale:sys/path?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    Box::new(move || ask(&snapshot, request.as_bytes()))
}

fn pipelined(n: usize) -> Box<dyn FnOnce()> {
    let mut connection = http::HttpConnection::new(http::HttpLimits::default());
    let requests = "GET / HTTP/1.1\r\nHost: l\r\n\r\n".repeat(n).into_bytes();
    Box::new(move || {
        let mut out = Vec::new();
        let mut answered = 0;
        let mut input = &requests[..];
        while matches!(connection.feed(input), http::HttpStep::Request(_)) {
            input = &[];
            out.clear();
            connection.respond(PreparedResponse::new(204), &http::Date::at(0), &mut out);
            connection.response_left();
            answered += 1;
        }
        assert_eq!(answered, n);
    })
}

fn chunks(n: usize) -> Box<dyn FnOnce()> {
    let mut connection = http::HttpConnection::new(http::HttpLimits::default());
    let body = "1\r\nx\r\n".repeat(n);
    let request =
        format!("POST / HTTP/1.1\r\nHost: l\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n").into_bytes();
    Box::new(move || {
        let mut got = 0;
        for piece in request.chunks(100) {
            if let http::HttpStep::Request(request) = connection.feed(piece) {
                got = request.body.len();
            }
        }
        assert_eq!(got, n);
    })
}

fn response_fields(n: usize) -> Box<dyn FnOnce()> {
    let fields: http::HeaderFields = (0..n).map(|at| (format!("x-field-{at}").into(), "value".into())).collect();
    Box::new(move || assert_eq!(PreparedResponse::new(200).merge(fields).unwrap().into_parts().1.len(), n))
}

fn fragments(n: usize) -> Vec<u8> {
    let mut read = Vec::new();
    for at in 0..n {
        let (opcode, fin) = (if at == 0 { 2 } else { 0 }, if at + 1 == n { 0x80 } else { 0 });
        append_frame(&mut read, fin | opcode, KEY, b"x");
    }
    read
}

fn messages(n: usize) -> Vec<u8> {
    let mut read = Vec::new();
    (0..n).for_each(|_| append_message(&mut read, MessageKind::Binary, KEY, b"x"));
    read
}

fn pings(n: usize) -> Vec<u8> {
    let mut read = Vec::new();
    (0..n).for_each(|_| append_frame(&mut read, 0x89, KEY, b"x"));
    read
}

fn frames(n: usize, mut read: Vec<u8>) -> Box<dyn FnOnce()> {
    let (mut connection, mut scratch) = (WebSocketConnection::new(None), Scratch::new());
    let limits = MessageLimits::default();
    Box::new(move || {
        let mut events = 0;
        // As reads come: some frames each.
        let mut left = &mut read[..];
        while !left.is_empty() {
            let (piece, rest) = left.split_at_mut(left.len().min(7 * 512));
            let mut at = 0;
            while at < piece.len() {
                let (consumed, event) = connection.receive(&mut piece[at..], &limits, &mut scratch).unwrap();
                events += usize::from(event.is_some());
                at += consumed;
            }
            left = rest;
        }
        assert!(events == n || events == 1, "{events}");
    })
}

fn push(channel: ChannelId, kind: PushKind, payload: &'static [u8], policy: Option<Policy>) -> Command {
    let frame = PushFrame { kind, payload: Bytes::from_static(payload) };
    Command::Push(PushCommand { channel, owner: Some(OWNER), frame, policy, asked: ReportTo::Nobody })
}

const BINARY: PushKind = PushKind::Message(MessageKind::Binary);

fn pushes(n: usize, is_full: bool, policy: Option<Policy>, pings: usize) -> Box<dyn FnOnce()> {
    // So little that almost every push meets the policy, and so much that all pings have room.
    let mut fan = Fan::with(1, ShardConfig { outbound_bytes_max: 4096 + 2 * pings, ..ShardConfig::default() });
    let channel = fan.channels[0];
    fan.taken.is_full.store(is_full, Ordering::Relaxed);
    fan.shard.handle_command(push(channel, BINARY, b"first", policy), 1);
    fan.turn();
    for _ in 0..pings {
        fan.shard.handle_command(push(channel, PushKind::Ping, b"", policy), 1);
    }
    Box::new(move || {
        for _ in 0..n {
            fan.shard.handle_command(push(channel, BINARY, &[7; 64], policy), 1);
        }
        fan.turn();
    })
}

fn conflated(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(1);
    let channel = fan.channels[0];
    fan.taken.is_full.store(true, Ordering::Relaxed);
    fan.shard.handle_command(push(channel, BINARY, b"first", None), 1);
    fan.turn();
    Box::new(move || {
        for round in 0..2 {
            for key in 0..n as u64 {
                // Multiples of a power of two are what an unkeyed hash of numbers collides at.
                let policy = Some(Policy::Conflate { key: key << 40 });
                fan.shard.handle_command(push(channel, BINARY, if round == 0 { b"old" } else { b"new" }, policy), 1);
            }
        }
        fan.turn();
        fan.taken.is_full.store(false, Ordering::Relaxed);
        fan.shard.handle_writable(fan.tokens[0]);
        fan.turn();
    })
}

fn push_many(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(2 * n);
    let except: Arc<[ChannelId]> = {
        let mut except = fan.channels[n..].to_vec();
        except.sort_unstable();
        except.into()
    };
    let many = PushMany {
        audience: ShardAudience::Channels(fan.channels.clone()),
        except,
        owner: OWNER,
        frame: PushFrame { kind: BINARY, payload: Bytes::from_static(&[7; 100]) },
        compressed: None,
        policy: None,
        part: None,
    };
    Box::new(move || {
        fan.shard.handle_command(Command::PushMany(Box::new(many)), 1);
        fan.turn();
    })
}

/// So many channels, and the orders that subscribe all of them to one topic.
fn members(n: usize) -> (Fan, Vec<Command>) {
    let fan = Fan::new(n);
    let owner = fan.owner.clone();
    let join = |&channel: &ChannelId| {
        let change = Membership::In(owner.topics.claim(&"all".into(), 0, 1, &owner.memory));
        Command::Subscribe(Box::new(SubscribeCommand { channel, owner: OWNER, change, asked: ReportTo::Nobody }))
    };
    let orders = fan.channels.iter().map(join).collect();
    (fan, orders)
}

fn join_and_leave(n: usize) -> Box<dyn FnOnce()> {
    let (mut fan, orders) = members(n);
    Box::new(move || {
        fan.shard.handle_command(Command::Batch(orders), 1);
        fan.turn();
        let topic = fan.owner.topics.find("all");
        let leave = |&channel: &ChannelId| {
            let change = Membership::Out(topic.clone());
            Command::Subscribe(Box::new(SubscribeCommand { channel, owner: OWNER, change, asked: ReportTo::Nobody }))
        };
        let orders = fan.channels.iter().map(leave).collect();
        fan.shard.handle_command(Command::Batch(orders), 1);
        fan.turn();
    })
}

fn publish(channels: usize, messages: usize) -> Box<dyn FnOnce()> {
    let (mut fan, orders) = members(channels);
    fan.shard.handle_command(Command::Batch(orders), 1);
    fan.turn();
    let topic = fan.owner.topics.find("all").expect("channels are subscribed to it");
    let message = move || {
        let audience = ShardAudience::Topic(topic.clone());
        let frame = PushFrame { kind: BINARY, payload: Bytes::from_static(&[7; 100]) };
        let (except, compressed, policy, part) = (Arc::new([]), None, None, None);
        Command::PushMany(Box::new(PushMany { audience, except, owner: OWNER, frame, compressed, policy, part }))
    };
    let sends = fan.taken.sends.load(Ordering::Relaxed);
    Box::new(move || {
        for _ in 0..messages {
            fan.shard.handle_command(message(), 1);
        }
        fan.turn();
        assert!(fan.taken.sends.load(Ordering::Relaxed) >= sends + channels);
    })
}

/// The text between two others.
fn between<'a>(text: &'a str, before: &str, behind: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}"));
    rest.split_once(behind).map_or(rest, |(found, _)| found)
}

fn broadcasts(fan: &mut Fan, n: usize) {
    for _ in 0..n {
        fan.shard.handle_command(Fan::broadcast(Bytes::from_static(&[b'x'; 100])), 1);
        fan.turn();
    }
}

fn resume(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(0);
    let upgrade = |more: &str| {
        format!(
            "GET /fan:bench:sys/kept HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Protocol: pushring.1{more}\r\n\r\n"
        )
    };
    let taken = fan.taken.clone();
    let hello = taken.record(|| {
        fan.open_with(0, upgrade("").as_bytes());
        fan.turn();
    });
    let (channel, token) = (between(&hello, "\"channel_id\":", ","), between(&hello, "\"resume\":\"", "\""));
    let back = upgrade(&format!(", resume.{channel}.{token}.0"));
    Box::new(move || {
        fan.shard.handle_end(fan.tokens[0], SocketEnd::Broken, 1);
        fan.turn();
        broadcasts(&mut fan, n);
        come_back(&mut fan, back.as_bytes(), n);
    })
}

/// A client comes and is sent `n` messages of 100 bytes.
fn come_back(fan: &mut Fan, request: &[u8], n: usize) {
    let before = fan.taken.bytes.load(Ordering::Relaxed);
    fan.open_with(1, request);
    fan.turn();
    let sent = fan.taken.bytes.load(Ordering::Relaxed) - before;
    assert!(sent > 100 * n, "{sent} bytes of {n} messages");
}

fn listen(last: Option<&str>) -> Vec<u8> {
    let last = last.map(|last| format!("Last-Event-ID: {last}\r\n")).unwrap_or_default();
    let head = "GET /fan:bench:sys/kept HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n";
    format!("{head}{last}\r\n").into_bytes()
}

fn events(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(0);
    fan.open_with(0, &listen(None));
    fan.turn();
    Box::new(move || {
        let before = fan.taken.bytes.load(Ordering::Relaxed);
        broadcasts(&mut fan, n);
        assert!(fan.taken.bytes.load(Ordering::Relaxed) - before > 100 * n);
    })
}

fn missed_events(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(0);
    let taken = fan.taken.clone();
    let hello = taken.record(|| {
        fan.open_with(0, &listen(None));
        fan.turn();
    });
    let back = listen(Some(between(&hello, "\nid: ", "\n")));
    Box::new(move || {
        fan.shard.handle_end(fan.tokens[0], SocketEnd::Broken, 1);
        fan.turn();
        broadcasts(&mut fan, n);
        come_back(&mut fan, &back, n);
    })
}

/// Clients that listen to a topic each go, and may come back.
fn leave_topics(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(0);
    let mut orders = Vec::new();
    let taken = fan.taken.clone();
    for at in 0..n {
        let hello = taken.record(|| {
            fan.open_with(at, &listen(None));
            fan.turn();
        });
        let channel = between(&hello, "\"channel_id\":", ",").parse().expect("a number");
        let claim = fan.owner.topics.claim(&format!("topic/{at}").into(), 0, 1, &fan.owner.memory);
        let change = Membership::In(claim);
        let subscribe =
            SubscribeCommand { channel: ChannelId::new(channel), owner: OWNER, change, asked: ReportTo::Nobody };
        orders.push(Command::Subscribe(Box::new(subscribe)));
    }
    fan.shard.handle_command(Command::Batch(orders), 1);
    fan.turn();
    Box::new(move || {
        for at in 0..n {
            fan.shard.handle_end(fan.tokens[at], SocketEnd::Broken, 1);
        }
        fan.turn();
    })
}

fn hub_order(n: usize) -> Box<dyn FnOnce()> {
    let json = format!(r#"{{"publish":"news","json":[{}0],"id":7}}"#, r#""a\n","#.repeat(n / 6));
    Box::new(move || assert!(grammar::read(json.as_bytes()).is_ok_and(|said| said.is_some())))
}

fn batch_of_lines(n: usize) -> Box<dyn FnOnce()> {
    let line = r#"{"to":{"process":"p:scale:sys","topic":"news"},"text":"hello"}"#;
    let body = Bytes::from(format!("{line}\n").repeat(n));
    let memory = Ledger::default().pool().memory_of(process());
    Box::new(move || {
        let answers = push_api::answers_of(body, &memory).expect("memory has no limit");
        assert_eq!(memchr::memchr_iter(b'\n', &answers).count(), n);
        assert!(answers.starts_with(b"{\"status\":202}"));
    })
}

/// A ClientHello but for its last byte, eight bytes to a record.
#[cfg(feature = "tls")]
fn hello(n: usize) -> Box<dyn FnOnce()> {
    use pushring::internals::tls::{Certificate, HandshakeStep, TlsServer};
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("it has a name");
    let certificate = Certificate::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())
        .expect("it is good");
    let server = TlsServer::new(vec![certificate], 1_800_000_000).expect("there is one");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("it has suites");
    let mut config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    // Each of four bytes.
    config.alpn_protocols = (0..n / 4).map(|at| format!("{:03}", at % 1000).into_bytes()).collect();
    let name = "localhost".try_into().expect("it is a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("it has settings");
    let mut greeting = Vec::new();
    client.write_tls(&mut greeting).expect("memory takes it");
    let body = &greeting[5..greeting.len() - 1];
    let record = |part: &[u8]| [&[22, 3, 1, 0, part.len() as u8], part].concat();
    let records: Vec<Vec<u8>> = body.chunks(8).map(record).collect();
    let mut handshake = server.handshake();
    Box::new(move || {
        let mut out = Vec::new();
        for record in &records {
            let step = handshake.receive(record, &mut out);
            assert!(matches!(step, HandshakeStep::Goes { .. }), "it waits for the last byte");
        }
        assert!(out.is_empty());
    })
}

#[cfg(not(feature = "tls"))]
fn hello(_: usize) -> Box<dyn FnOnce()> {
    Box::new(|| {})
}

/// Records of 100 bytes that arrive side by side, and the sealing of as many.
#[cfg(feature = "tls")]
fn records(n: usize) -> Box<dyn FnOnce()> {
    use pushring::internals::tls::{RecordDirection, Records, Suite, TlsState, TrafficSecret};
    let half = |byte| RecordDirection { secret: TrafficSecret::new(&[byte; 32]).expect("32 bytes"), sequence: 0 };
    let end =
        |send, receive| Records::new(TlsState { suite: Suite::Aes128Gcm, send: half(send), receive: half(receive) });
    let (mut ours, mut theirs) = (end(1, 2), end(2, 1));
    let mut sealed = Vec::new();
    (0..n).for_each(|_| theirs.seal(&[std::io::IoSlice::new(&[7; 100])], &mut sealed));
    Box::new(move || {
        assert_eq!(ours.open(&mut sealed, 0).plain, 100 * n);
        let mut out = Vec::new();
        (0..n).for_each(|_| ours.seal(&[std::io::IoSlice::new(&[7; 100])], &mut out));
        assert!(out.len() > 100 * n);
    })
}

#[cfg(not(feature = "tls"))]
fn records(_: usize) -> Box<dyn FnOnce()> {
    Box::new(|| {})
}

fn come_and_go(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(0);
    Box::new(move || {
        for socket in 0..n {
            fan.open(socket);
        }
        fan.turn();
        for at in 0..n {
            fan.shard.handle_end(fan.tokens[at], SocketEnd::Broken, 1);
        }
        fan.turn();
    })
}

fn owner_gone(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(n);
    let why = CloseFrame { code: Some(1001), reason: "gone".into() };
    Box::new(move || {
        fan.shard.handle_command(Command::OwnerGone { owner: OWNER, why }, 1);
        fan.turn();
    })
}

fn requests_go(n: usize) -> Box<dyn FnOnce()> {
    let mut fan = Fan::new(0);
    for socket in 0..n {
        let peer = ([127, 0, 0, 1], 1).into();
        let token =
            fan.shard.handle_accept(pushring::internals::shard::flush::SocketId(socket as i32), peer, 0).unwrap();
        let mut request = b"GET /fan:bench:sys/http HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
        fan.shard.handle_read(token, &mut request, 0);
    }
    fan.turn();
    let why = CloseFrame { code: Some(1001), reason: "gone".into() };
    Box::new(move || {
        fan.shard.handle_command(Command::OwnerGone { owner: OWNER, why }, 1);
        fan.turn();
    })
}

/// The region that callgrind collects.
#[inline(never)]
fn counted(work: Box<dyn FnOnce()>) {
    work();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => WORKS.iter().for_each(|(name, n, _)| println!("{n}\t{name}")),
        ["run", name, n] => {
            let (_, _, make) = WORKS.iter().find(|(work, ..)| *work == name).expect("a name from the list");
            counted(make(n.parse().expect("a length")));
        }
        // By cargo, with arguments of its own.
        _ => WORKS.iter().for_each(|(_, n, make)| counted(make(n / 4))),
    }
}
