//! Turns over scripted sockets: what a turn takes in at most, and for whom its work is counted.

use super::*;
use crate::admission::Ledger;
use crate::channel::ChannelId;
use crate::gateway::{OwnerId, Settings, Snapshot, SubdomainTokens, WebSocketRule};
use crate::proto::MessageKind;
use crate::proto::client::append_message;
use crate::queue::events::{ProcessReceiver, QueueLimits, process_queue};
use crate::queue::orders::{InboxLimits, NeverAsleep, inbox};
use crate::shard::command::{Policy, PushCommand, PushFrame, PushKind, ReportTo};
use crate::shard::operating::ChannelFilter;
use crate::shard::table::slot::Slot;
use crate::shard::wires::Wires;
use crate::shard::{Common, Directory, Owner, ShardConfig, Wishes};
use std::collections::BTreeMap;
use std::convert::Infallible;

const FRAME_BYTES: usize = 3;

/// One step more than a part of a turn may take.
const STEP_NS: u64 = 50_000;

/// Sockets that say what they are told to, once, and then nothing or their end.
#[derive(Default)]
struct ScriptedSockets {
    news: Vec<Readiness>,
    to_come: VecDeque<(SocketId, ListenerKind)>,
    says: BTreeMap<i32, Vec<u8>>,
    have_ended: bool,
    tokens: BTreeMap<i32, ConnectionToken>,
    reads: usize,
    closed: usize,
}

impl ScriptedSockets {
    fn is_readable(&mut self, socket: i32, end: Option<SocketEnd>) {
        let token = self.tokens[&socket];
        self.news.push(Readiness::Connection { token, readable: true, writable: false, end });
    }
}

impl Sockets for ScriptedSockets {
    type Error = Infallible;

    fn poll(&mut self, news: &mut Vec<Readiness>) -> Result<bool, Infallible> {
        news.append(&mut self.news);
        Ok(false)
    }

    fn accept(&mut self) -> Result<Accepted, Infallible> {
        Ok(self.to_come.pop_front().map_or(Accepted::Nobody, |(socket, listener)| {
            let [.., third, fourth] = socket.0.to_be_bytes();
            Accepted::Client(socket, ([127, 0, third, fourth], 1).into(), listener)
        }))
    }

    fn watch(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        self.tokens.insert(socket.0, token);
        if self.says.contains_key(&socket.0) {
            self.is_readable(socket.0, None);
        }
        true
    }

    fn watch_anew(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        self.watch(socket, token)
    }

    fn read(&mut self, socket: SocketId, buffer: &mut [u8]) -> SocketRead {
        self.reads += 1;
        match self.says.remove(&socket.0) {
            Some(bytes) => {
                buffer[..bytes.len()].copy_from_slice(&bytes);
                SocketRead::Bytes(bytes.len())
            }
            None if self.have_ended => SocketRead::End(SocketEnd::Broken),
            None => SocketRead::Nothing,
        }
    }

    fn shutdown_write(&mut self, _: SocketId) {}

    fn close(&mut self, _: SocketId) {
        self.closed += 1;
    }

    fn release(&mut self, socket: SocketId) -> Option<CarriedSocket> {
        Some(CarriedSocket(Box::new(socket)))
    }

    fn adopt(&mut self, carried: CarriedSocket) -> Option<SocketId> {
        carried.0.downcast().ok().map(|socket| *socket)
    }

    fn stop_listening(&mut self) {}
}

/// Shards with some processes, `p0:turn:sys` and so on, each with a path `/` whose channels outlive their connections.
struct Shards {
    turns: Vec<Turns<ScriptedSockets>>,
    inboxes: Vec<InboxSender<Command>>,
    accounts: Vec<Account>,
    wires: Wires,
    sockets: i32,
    queues: Vec<ProcessReceiver>,
}

impl Shards {
    fn new(shards: u32, processes: u32, config: ShardConfig) -> Self {
        let mut gateway = Snapshot::new(Settings::of_a_node("sim.os", SubdomainTokens::Own));
        let (ledger, mut queues, mut owners) = (Ledger::default(), Vec::new(), Vec::new());
        for number in 0..processes {
            let (id, process) = (OwnerId(number + 1), format!("p{number}:turn:sys").parse().unwrap());
            let rule = WebSocketRule { resume: true, ..WebSocketRule::default() };
            gateway.bind_websocket(id, &process, "/", rule).unwrap();
            let (queue, events) = process_queue(shards as usize, QueueLimits::default(), &ledger, |_| {});
            owners.push(Arc::new(Owner::new(id, process, queue, Wishes::of(Policy::Close))));
            queues.push(events);
        }
        let mut directory = Directory::new(gateway);
        owners.into_iter().for_each(|owner| directory.attach(owner));
        let common = Common {
            config: Arc::new(config),
            directory: Arc::new(directory),
            admission: Arc::default(),
            memory: ledger,
            resume: crate::resume::Keys::new(&[7; 32]),
        };
        let (wires, peers) = (Wires::default(), Inboxes::default());
        let (mut turns, mut inboxes) = (Vec::new(), Vec::new());
        for index in 0..shards {
            let limits = InboxLimits { commands_max: 16 * 1024, bytes_max: 1 << 30 };
            let (sender, inbox) = inbox(limits, NeverAsleep);
            let shard = Shard::new(index, shards, common.clone(), Box::new(wires.clone()), u64::from(index) + 3, 0);
            let sockets = ScriptedSockets::default();
            turns.push(Turns::new(shard, inbox, sockets, TurnLimits::default(), 0, 0).among(peers.clone()));
            inboxes.push(sender);
        }
        assert!(peers.set(inboxes.clone()).is_ok());
        let accounts = inboxes.iter().map(InboxSender::account).collect();
        Self { turns, inboxes, accounts, wires, sockets: 0, queues }
    }

    /// A client comes, and says this first, if anything.
    fn come(&mut self, shard: usize, listener: ListenerKind, says: Option<String>) -> i32 {
        let socket = self.sockets;
        self.sockets += 1;
        self.wires.add(socket, usize::MAX);
        let sockets = self.turns[shard].sockets();
        sockets.says.extend(says.map(|says| (socket, says.into_bytes())));
        sockets.to_come.push_back((SocketId(socket), listener));
        sockets.news.push(Readiness::Listener);
        socket
    }

    fn order(&self, shard: usize, command: Command) {
        let bytes = command.payload_bytes();
        assert!(self.inboxes[shard].try_send(command, bytes, &self.accounts[shard]).is_ok());
    }

    /// A message of [`FRAME_BYTES`] to a channel of the first process, carried out and sent.
    fn push(&mut self, channel: ChannelId) {
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload: bytes::Bytes::from_static(b"x") };
        let (owner, asked) = (Some(OwnerId(1)), ReportTo::Nobody);
        self.order(0, Command::Push(PushCommand { channel, owner, frame, policy: None, asked }));
        self.settle(0);
    }

    /// One turn, and whether there is more to do. It has not done more than a turn may.
    fn turn(&mut self, shard: usize) -> bool {
        let turns = &mut self.turns[shard];
        let is_busy = turns.turn(1, || 0).unwrap_or_else(|never| match never {});
        let spent_ns = turns.shard().spent_ns();
        assert!(spent_ns <= WorkLimits::default().turn_ns() + STEP_NS, "a turn of {spent_ns} ns");
        is_busy || !turns.sockets().news.is_empty()
    }

    fn settle(&mut self, shard: usize) -> usize {
        let turns = (0..20_000).take_while(|_| self.turn(shard)).count();
        assert!(turns < 20_000, "it ends");
        turns
    }
}

fn upgrade(process: u32, resume: &str) -> String {
    format!(
        "GET /p{process}:turn:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: pushring.1{resume}\r\n\r\n"
    )
}

/// The text between two others.
fn between<'a>(text: &'a str, before: &str, behind: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before} in {text}"));
    rest.split_once(behind).map_or(rest, |(found, _)| found)
}

#[test]
fn however_many_come_back_on_another_shard_a_turn_takes_some_of_them_in() {
    const CLIENTS: usize = 400;
    let mut net = Shards::new(2, 1, ShardConfig::default());
    let first = net.come(1, ListenerKind::Plain, Some(upgrade(0, "")));
    net.settle(1);
    let hello = net.wires.look(first, |wire| String::from_utf8_lossy(&wire.to_client).into_owned());
    let (channel, token) = (between(&hello, "\"channel_id\":", ","), between(&hello, "\"resume\":\"", "\""));
    let back = upgrade(0, &format!(", resume.{channel}.{token}.0"));
    for _ in 0..CLIENTS {
        net.come(0, ListenerKind::Plain, Some(back.clone()));
    }
    net.settle(0);
    // Meanwhile the other shard was busy: all of them are before it.
    assert_eq!(net.inboxes[1].held().0, CLIENTS as u64);
    let turns = net.settle(1);
    assert!(turns > 4, "{turns}");
    assert_eq!(net.turns[1].shard().report().stats.resumed, CLIENTS as u64);
}

#[test]
fn whom_others_have_woken_is_not_counted_for_the_client_that_is_read_next() {
    const PROCESSES: u32 = 60;
    let mut net = Shards::new(1, PROCESSES, ShardConfig::default());
    let clients: Vec<_> = (0..PROCESSES).map(|at| net.come(0, ListenerKind::Plain, Some(upgrade(at, "")))).collect();
    net.settle(0);
    // Each process hears of a failure of its own in the turn in which one of the clients says something.
    for owner in 1..=PROCESSES {
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload: bytes::Bytes::new() };
        let (owner, asked) = (Some(OwnerId(owner)), ReportTo::Failure(7));
        net.order(0, Command::Push(PushCommand { channel: ChannelId::new(0), owner, frame, policy: None, asked }));
    }
    net.queues.iter().for_each(|queue| while queue.try_recv().is_ok() {});
    let mut says = Vec::new();
    append_message(&mut says, MessageKind::Text, [1, 2, 3, 4], b"hello");
    let sockets = net.turns[0].sockets();
    sockets.says.insert(clients[0], says);
    sockets.is_readable(clients[0], None);
    let token = sockets.tokens[&clients[0]];
    net.turn(0);
    assert!(net.queues.iter().all(|queue| queue.try_recv().is_ok()), "all were told");
    let credit_ns = mark_of(&mut net.turns[0].marks, token).credit_ns;
    assert!(credit_ns >= 0, "{credit_ns} ns are owed by a client that has said one word");
}

#[test]
fn who_was_pushed_much_beside_others_takes_it_up_a_sends_worth_at_a_time() {
    const CLIENTS: usize = 100;
    const MESSAGES: usize = 1_000;
    let mut net = Shards::new(1, 1, ShardConfig::default());
    let clients: Vec<_> = (0..CLIENTS).map(|_| net.come(0, ListenerKind::Plain, Some(upgrade(0, "")))).collect();
    net.settle(0);
    let (client, token) = (clients[0], net.turns[0].sockets().tokens[&clients[0]]);
    let (slot, table) = (Slot::new(token.slot), &net.turns[0].shard.table);
    let slow = table[slot].channel().unwrap().id;
    let channels = table.iter().filter_map(|(_, connection)| connection.channel().map(|channel| channel.id));
    let others: Vec<_> = channels.filter(|&channel| channel != slow).collect();
    net.wires.look(client, |wire| (wire.room, wire.to_client) = (0, Vec::new()));
    let entries = |net: &Shards| net.turns[0].shard.out.kept_channels[&slot].log.entries();
    (0..2).for_each(|_| net.push(slow));
    // One whose messages come to lie between the slow one's.
    let beside = others.into_iter().find(|&other| {
        [slow, other].into_iter().for_each(|channel| net.push(channel));
        let before = entries(&net);
        net.push(slow);
        entries(&net) > before
    });
    let beside = beside.expect("there are more channels than lanes of history");
    for _ in 0..MESSAGES {
        [slow, beside].into_iter().for_each(|channel| net.push(channel));
    }
    let position = net.turns[0].shard.out.kept_channels[&slot].log.position() as usize;
    net.wires.look(client, |wire| (wire.room, wire.is_full) = (usize::MAX, false));
    let shard = &mut net.turns[0].shard;
    shard.begin_turn(1);
    shard.handle_writable(token);
    let (spent_ns, fed) = (shard.spent_ns(), shard.table[slot].outbound.queued_bytes() / FRAME_BYTES);
    assert!((1..=MESSAGES / 4).contains(&fed), "{fed} of {MESSAGES} messages at a time");
    assert!(spent_ns >= 10 * fed as u64, "{spent_ns} ns for {fed}");
    net.settle(0);
    assert_eq!(net.wires.look(client, |wire| wire.to_client.len()), position * FRAME_BYTES);
}

#[test]
fn what_operators_ask_costs_a_turn_what_it_takes_to_answer() {
    const CLIENTS: usize = 1500;
    const QUESTIONS: usize = 200;
    let mut net = Shards::new(1, 1, ShardConfig::default());
    for _ in 0..CLIENTS {
        net.come(0, ListenerKind::Plain, None);
    }
    net.settle(0);
    let answers: Vec<_> = (0..QUESTIONS)
        .map(|_| {
            let (to, answer) = crossbeam_channel::bounded(1);
            net.order(0, Command::Channels { filter: Arc::new(ChannelFilter::default()), from: 0, limit: 9, to });
            answer
        })
        .collect();
    let answered =
        |answers: &[crossbeam_channel::Receiver<_>]| answers.iter().filter(|answer| !answer.is_empty()).count();
    net.turn(0);
    let at_once = answered(&answers);
    assert!((1..QUESTIONS / 4).contains(&at_once), "{at_once} of {QUESTIONS} questions in one turn");
    net.settle(0);
    assert_eq!(answered(&answers), QUESTIONS);
}

#[cfg(feature = "tls")]
#[test]
fn however_many_leave_while_they_wait_for_their_handshake_a_turn_reads_some_of_them() {
    const CLIENTS: usize = 1500;
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let certificate = crate::tls::Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    let server = crate::tls::TlsServer::new(vec![certificate], 1_800_000_000).unwrap();
    let mut net = Shards::new(1, 1, ShardConfig { tls: Some(server), ..ShardConfig::default() });
    let clients: Vec<_> = (0..CLIENTS).map(|_| net.come(0, ListenerKind::Tls, None)).collect();
    net.settle(0);
    assert_eq!(net.turns[0].shard().connections(), CLIENTS);
    let sockets = net.turns[0].sockets();
    sockets.have_ended = true;
    clients.iter().for_each(|&client| sockets.is_readable(client, Some(SocketEnd::Broken)));
    let _ = net.turns[0].turn(1, || 0);
    let (reads, most) = (net.turns[0].sockets().reads, net.turns[0].shard().handshakes_ns() / READ_NS + 1);
    assert!(reads > 0 && reads as u64 <= most, "{reads} clients in one turn, where {most} are as much as handshakes");
    while net.turns[0].turn(1, || 0).unwrap_or_else(|never| match never {}) {}
    assert_eq!((net.turns[0].shard().connections(), net.turns[0].sockets().closed), (0, CLIENTS));
}
