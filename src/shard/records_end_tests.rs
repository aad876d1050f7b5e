//! The ends of connections over TLS: what a client has said before is heard first, wherever its channel is, and each
//! end is answered as RFC 8446 6 asks.

use super::ShardConfig;
use super::command::{Command, PushCommand, PushFrame, PushKind, ReportTo};
use super::event::Event;
use super::stage::OWNER;
use super::table::connection::ConnectionPhase;
use super::two_shards::{SHARDS, TwoShards};
use super::{ListenerKind, SocketEnd};
use crate::admission::Budget;
use crate::gateway::WebSocketRule;
use crate::proto::MessageKind;
use crate::proto::client::append_message;
use crate::tls::{Alert, ReceiveEnd, RecordDirection, Records, Suite, TlsState, TrafficSecret};
use std::io::IoSlice;

/// How a client ends its records.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Goodbye,
    GivesUp,
    Breaks,
}

const ENDS: [End; 3] = [End::Goodbye, End::GivesUp, End::Breaks];

impl End {
    /// Why its channel has ended, as its process is told.
    fn reason(self) -> &'static str {
        match self {
            Self::Goodbye => "",
            Self::GivesUp => "the client ended TLS with the alert internal_error (80)",
            Self::Breaks => "the client broke TLS: bad_record_mac (20)",
        }
    }

    /// What it is told.
    fn answer(self) -> Option<ReceiveEnd> {
        match self {
            Self::Goodbye => Some(ReceiveEnd::CloseNotify),
            Self::GivesUp => None,
            Self::Breaks => Some(ReceiveEnd::Told(Alert::BAD_RECORD_MAC)),
        }
    }
}

/// A client whose handshake is over.
struct Client {
    socket: i32,
    records: Records,
    heard: Vec<u8>,
    ended: Option<ReceiveEnd>,
}

impl Client {
    fn connect(net: &mut TwoShards, shard: usize) -> Self {
        let suite = Suite::Aes128Gcm;
        let direction =
            |fill| RecordDirection { secret: TrafficSecret::new(&[fill; 32]).expect("its length"), sequence: 1 };
        let (down, up) = (direction(1), direction(2));
        let shards = TlsState { suite, send: down.clone(), receive: up.clone() };
        let records = Records::new(TlsState { suite, send: up, receive: down });
        let listener = ListenerKind::Established(Box::new(shards));
        let (socket, _) = net.accept_at(listener, shard, usize::MAX).unwrap();
        Self { socket, records, heard: Vec::new(), ended: None }
    }

    /// All of this comes in one read.
    fn say(&mut self, net: &mut TwoShards, plain: &[u8], end: Option<End>) {
        let mut bytes = Vec::new();
        self.records.seal(&[IoSlice::new(plain)], &mut bytes);
        match end {
            None => {}
            Some(End::Goodbye) => self.records.seal_alert(Alert::CLOSE_NOTIFY, &mut bytes),
            Some(End::GivesUp) => self.records.seal_alert(Alert::INTERNAL_ERROR, &mut bytes),
            Some(End::Breaks) => bytes.extend_from_slice(&[&[23, 3, 3, 0, 32][..], &[7; 32]].concat()),
        }
        let (shard, token) = net.wire(self.socket, |wire| wire.watched).unwrap();
        net.shards[shard].handle_read(token, &mut bytes, net.now_ms);
        net.carry_out(shard);
    }

    fn ask(&mut self, net: &mut TwoShards, path: &str, resume: &str, end: Option<End>) {
        let head = format!(
            "GET /p:sim:sys/{path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: pushring.1{resume}\r\n\r\n"
        );
        self.say(net, head.as_bytes(), end);
    }

    fn hear(&mut self, net: &TwoShards) {
        let mut bytes = net.take(self.socket, usize::MAX);
        let opened = self.records.open(&mut bytes, 0);
        assert_eq!(opened.rest, 0, "whole records");
        self.heard.extend_from_slice(&bytes[..opened.plain]);
        self.ended = self.ended.or(opened.ended);
    }

    fn is_closed(&self, net: &TwoShards) -> bool {
        net.wire(self.socket, |wire| wire.is_closed)
    }
}

fn net() -> TwoShards {
    TwoShards::new(ShardConfig::default(), Budget::default(), |gateway, process| {
        let kept = WebSocketRule { resume: true, resume_events: true, ..WebSocketRule::default() };
        gateway.bind_websocket(OWNER, process, "/ws", WebSocketRule::default()).unwrap();
        gateway.bind_websocket(OWNER, process, "/kept", kept).unwrap();
        let stream = WebSocketRule { sse: true, ..WebSocketRule::default() };
        gateway.bind_websocket(OWNER, process, "/stream", stream).unwrap();
    })
}

fn turns(net: &mut TwoShards) {
    (0..20).for_each(|_| net.turn());
    net.shards.iter().for_each(super::Shard::check);
}

/// What the process is told, in short.
fn told(net: &mut TwoShards) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(batch) = net.events.try_recv() {
        told.extend(batch.events.into_iter().map(|event| match event {
            Event::Opened(_) => "opened".to_owned(),
            Event::Message { payload, .. } => String::from_utf8(payload.to_vec()).unwrap(),
            Event::Closed(closed) => format!("closed: {}", closed.reason),
            Event::Detached { .. } => "detached".to_owned(),
            Event::Resumed { .. } => "resumed".to_owned(),
            other => panic!("{other:?}"),
        }));
    }
    told
}

fn messages() -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in ["one", "two", "three"] {
        append_message(&mut bytes, MessageKind::Text, [1, 2, 3, 4], text.as_bytes());
    }
    bytes
}

/// A client that does not read what waits for it, so that what it says is not read either, and that ends so.
fn left_behind(net: &mut TwoShards, end: End) -> Client {
    let mut client = Client::connect(net, 0);
    client.ask(net, "ws", "", None);
    turns(net);
    let (_, channel) = net.shards[0].table.iter().next().unwrap();
    let channel = channel.channel().unwrap().id;
    net.wire(client.socket, |wire| wire.room = 0);
    let payload = vec![0; ShardConfig::default().outbound_bytes_max * 3 / 4].into();
    let frame = PushFrame { kind: PushKind::Message(MessageKind::Binary), payload };
    let push = PushCommand { channel, owner: Some(OWNER), frame, policy: None, asked: ReportTo::Nobody };
    net.shards[0].handle_command(Command::Push(push), net.now_ms);
    turns(net);
    client.say(net, &messages(), Some(end));
    turns(net);
    assert_eq!(told(net), ["opened"], "{end:?}");
    client
}

#[test]
fn what_a_client_has_said_is_heard_before_its_end() {
    for end in ENDS {
        let mut net = net();
        let mut client = left_behind(&mut net, end);
        net.wire(client.socket, |wire| wire.room = usize::MAX);
        net.let_write(client.socket);
        turns(&mut net);
        assert_eq!(told(&mut net), ["one", "two", "three", &format!("closed: {}", end.reason())], "{end:?}");
        client.hear(&net);
        assert_eq!(client.ended, end.answer());
    }
}

#[test]
fn but_not_waited_for_without_end() {
    for end in ENDS {
        let mut net = net();
        let client = left_behind(&mut net, end);
        for _ in 0..11 {
            net.tick(500);
            turns(&mut net);
        }
        let reason = "closed: the client has left, and what it had sent was not read in time";
        assert_eq!(told(&mut net), [reason], "{end:?}");
        assert!(client.is_closed(&net));
    }
}

/// A record costs the same, however little is in it.
#[test]
fn each_record_is_work() {
    let mut net = net();
    let mut client = Client::connect(&mut net, 0);
    client.ask(&mut net, "ws", "", None);
    turns(&mut net);
    let bytes: Vec<u8> = (0..40).flat_map(|_| messages()).collect();
    let mut spent_ns = |at_a_time: usize| {
        let mut sealed = Vec::new();
        bytes.chunks(at_a_time).for_each(|bytes| client.records.seal(&[IoSlice::new(bytes)], &mut sealed));
        let (shard, token) = net.wire(client.socket, |wire| wire.watched).unwrap();
        net.shards[shard].begin_turn(net.now_ms);
        net.shards[shard].handle_read(token, &mut sealed, net.now_ms);
        net.shards[shard].spent_ns()
    };
    let more_ns = spent_ns(1) - spent_ns(bytes.len());
    assert!(more_ns >= 250 * (bytes.len() as u64 - 1), "{more_ns}");
}

/// The channel's id, and its token, from the hello.
fn hello(client: &Client) -> (u32, String) {
    let text = String::from_utf8_lossy(&client.heard).into_owned();
    let of = |key: &str| {
        let (_, rest) = text.split_once(&format!("\"{key}\":")).unwrap();
        rest.trim_start_matches('"').split(['"', ',', '}']).next().unwrap().to_owned()
    };
    (of("channel_id").parse().unwrap(), of("resume"))
}

#[test]
fn the_end_of_a_client_that_comes_back_is_found_where_its_channel_is() {
    for end in ENDS {
        for at in 0..SHARDS as usize {
            let mut net = net();
            let mut client = Client::connect(&mut net, 0);
            client.ask(&mut net, "kept", "", None);
            turns(&mut net);
            client.hear(&net);
            let (channel, token) = hello(&client);
            let (shard, of) = net.wire(client.socket, |wire| wire.watched).unwrap();
            net.shards[shard].handle_end(of, SocketEnd::Broken, net.now_ms);
            net.carry_out(shard);
            turns(&mut net);
            assert_eq!(told(&mut net), ["opened", "detached"]);
            let mut client = Client::connect(&mut net, at);
            client.ask(&mut net, "kept", &format!(", resume.{channel}.{token}.0"), Some(end));
            turns(&mut net);
            // Who breaks the protocol loses the channel, too.
            let closed = format!("closed: {}", end.reason());
            let end_of_it = if end == End::Breaks { &closed } else { "detached" };
            assert_eq!(told(&mut net), ["resumed", end_of_it], "{end:?} at {at}");
            // It is read on for a while by whom it was refused, so that it sees the alert.
            let left = net.shards.iter().map(|shard| shard.table.over_tls()).sum::<usize>();
            assert_eq!((client.is_closed(&net), left), (end != End::Breaks, usize::from(end == End::Breaks)));
            client.hear(&net);
            assert_eq!(client.ended, end.answer(), "{end:?} at {at}");
        }
    }
}

/// A channel that waits for its client is none of the connection that has ended.
#[test]
fn a_goodbye_is_answered_in_kind_though_the_channel_stays() {
    let mut net = net();
    let mut client = Client::connect(&mut net, 0);
    client.ask(&mut net, "kept", "", None);
    turns(&mut net);
    client.say(&mut net, &messages(), Some(End::Goodbye));
    turns(&mut net);
    assert_eq!(told(&mut net), ["opened", "one", "two", "three", "detached"]);
    client.hear(&net);
    assert_eq!((client.ended, client.is_closed(&net)), (Some(ReceiveEnd::CloseNotify), true));
    assert_eq!(net.shards[0].table.len(), 1);
    // Who takes nothing is not waited for.
    let mut client = Client::connect(&mut net, 0);
    client.ask(&mut net, "kept", "", None);
    turns(&mut net);
    net.wire(client.socket, |wire| wire.room = 0);
    let (_, channel) = net.shards[0].table.iter().find(|(_, connection)| connection.tls.is_some()).unwrap();
    let channel = channel.channel().unwrap().id;
    let frame = PushFrame { kind: PushKind::Message(MessageKind::Binary), payload: vec![0; 100].into() };
    let push = PushCommand { channel, owner: Some(OWNER), frame, policy: None, asked: ReportTo::Nobody };
    net.shards[0].handle_command(Command::Push(push), net.now_ms);
    turns(&mut net);
    client.say(&mut net, b"", Some(End::Goodbye));
    turns(&mut net);
    assert_eq!(told(&mut net), ["opened", "detached"]);
    assert!(client.is_closed(&net));
}

/// Bytes of a client's socket without data in them: a record that is not whole, or one that says something else.
fn bytes_come(net: &mut TwoShards, client: &Client, bytes: &[u8]) {
    let (shard, token) = net.wire(client.socket, |wire| wire.watched).unwrap();
    net.shards[shard].handle_read(token, &mut bytes.to_vec(), net.now_ms);
    net.carry_out(shard);
    turns(net);
}

/// A client of an event stream says nothing any more but that it goes, by bytes that come as they like.
#[test]
fn what_is_no_data_ends_no_event_stream() {
    let mut net = net();
    let mut client = Client::connect(&mut net, 0);
    let head = b"GET /p:sim:sys/stream HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n";
    client.say(&mut net, head, None);
    turns(&mut net);
    assert_eq!(told(&mut net), ["opened"]);
    let mut goodbye = Vec::new();
    client.records.seal_alert(Alert::CLOSE_NOTIFY, &mut goodbye);
    let (start, rest) = goodbye.split_at(10);
    let (shard, token) = net.wire(client.socket, |wire| wire.watched).unwrap();
    bytes_come(&mut net, &client, start);
    assert_eq!(told(&mut net), [""; 0]);
    let carried = [start, rest].concat();
    assert_eq!(net.shards[shard].carried(token, &mut [0; 64]), start.len());
    bytes_come(&mut net, &client, &carried);
    assert_eq!(told(&mut net), ["closed: "]);
    client.hear(&net);
    assert_eq!((client.ended, client.is_closed(&net)), (Some(ReceiveEnd::CloseNotify), true));
}

/// What is no data begins no request, and is no sign of one that is over.
#[test]
fn what_is_no_data_gives_no_more_time_for_a_head() {
    let mut net = net();
    let client = Client::connect(&mut net, 0);
    bytes_come(&mut net, &client, &[23, 3, 3]);
    for _ in 0..=ShardConfig::default().head_timeout_ms / 500 {
        net.tick(500);
        turns(&mut net);
    }
    let is_over =
        net.shards[0].table.iter().all(|(_, connection)| matches!(connection.phase, ConnectionPhase::Ending(_)));
    assert!(is_over, "its time was up");
}
