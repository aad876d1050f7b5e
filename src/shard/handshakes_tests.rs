//! The turns of a shard with a TLS listener, stepped by hand: how many handshakes one does, whose they are, and which
//! clients get none.

use super::command::{CarriedSocket, Command};
use super::flush::SocketId;
use super::turn::{Accepted, Readiness, SocketRead, Sockets, TurnLimits, Turns};
use super::wires::{Wire, Wires};
use super::{Common, ConnectionToken, Directory, ListenerKind, Shard, ShardConfig, SocketEnd};
use crate::admission::{Budget, ConnectionLimits, Connections, Ledger};
use crate::gateway::{Settings, Snapshot, SubdomainTokens};
use crate::queue::orders::{InboxLimits, NeverAsleep, inbox};
use crate::tls::{Certificate, TlsServer};
use ::rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::hash::RandomState;
use std::net::SocketAddr;
use std::sync::Arc;

const BALANCER: &str = "127.0.0.7";

/// See the module.
struct Stage {
    turns: Turns<MemorySockets>,
    wires: Wires,
    sockets: i32,
}

impl Stage {
    fn new(handshakes_per_turn: u32, limits: ConnectionLimits) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        let tls = Some(TlsServer::new(vec![certificate], 0).unwrap());
        let config = ShardConfig { tls, tls_handshakes_per_turn: handshakes_per_turn, ..ShardConfig::default() };
        let mut settings = Settings::of_a_node("sim.os", SubdomainTokens::Own);
        settings.proxy_protocol_from = vec![BALANCER.parse().unwrap()];
        let common = Common {
            config: Arc::new(config),
            directory: Arc::new(Directory::new(Snapshot::new(settings))),
            admission: Arc::new(Connections::new(limits, RandomState::new())),
            memory: Ledger::new(Budget::default()),
            resume: crate::resume::Keys::new(&[7; 32]),
        };
        let wires = Wires::default();
        let shard = Shard::new(0, 1, common, Box::new(wires.clone()), 1, 0);
        let (_, inbox) = inbox::<Command>(InboxLimits { commands_max: 16, bytes_max: 1 << 20 }, NeverAsleep);
        let sockets = MemorySockets { wires: wires.clone(), ..MemorySockets::default() };
        Self { turns: Turns::new(shard, inbox, sockets, TurnLimits::default(), 0, 0), wires, sockets: 0 }
    }

    /// Clients from here connect, one after another, and have sent this, which the shard is not told of yet.
    fn connect(&mut self, from: &str, count: usize, said: impl Fn() -> Vec<u8>) -> std::ops::Range<i32> {
        let first = self.sockets;
        for _ in 0..count {
            let peer = SocketAddr::new(from.parse().unwrap(), 4711);
            self.turns.sockets().to_come.push_back((SocketId(self.sockets), peer));
            self.wires.add(self.sockets, usize::MAX);
            self.wires.look(self.sockets, |wire| wire.to_server = said());
            self.sockets += 1;
        }
        self.turns.sockets().news.push(Readiness::Listener);
        while !self.turns.sockets().to_come.is_empty() {
            self.turn();
        }
        first..self.sockets
    }

    /// The shard is told that all of them have sent something.
    fn tell(&mut self, of: std::ops::Range<i32>) {
        let sockets = self.turns.sockets();
        for socket in of {
            if let Some(&token) = sockets.tokens.get(&socket) {
                sockets.news.push(Readiness::Connection { token, readable: true, writable: true, end: None });
            }
        }
    }

    fn turn(&mut self) -> bool {
        self.turns.turn(1, || 0).unwrap()
    }

    fn count(&self, of: std::ops::Range<i32>, is_it: impl Fn(&Wire) -> bool) -> usize {
        of.filter(|&socket| self.wires.look(socket, |wire| is_it(wire))).count()
    }

    fn let_go(&self) -> u64 {
        self.turns.shard().report().tls.unwrap().let_go
    }
}

/// Sockets whose bytes lie in wires.
#[derive(Default)]
struct MemorySockets {
    to_come: VecDeque<(SocketId, SocketAddr)>,
    tokens: BTreeMap<i32, ConnectionToken>,
    news: Vec<Readiness>,
    wires: Wires,
}

impl Sockets for MemorySockets {
    type Error = Infallible;

    fn poll(&mut self, news: &mut Vec<Readiness>) -> Result<bool, Infallible> {
        news.append(&mut self.news);
        Ok(false)
    }

    fn accept(&mut self) -> Result<Accepted, Infallible> {
        let accepted = |(socket, peer)| Accepted::Client(socket, peer, ListenerKind::Tls);
        Ok(self.to_come.pop_front().map_or(Accepted::Nobody, accepted))
    }

    fn watch(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        self.tokens.insert(socket.0, token);
        true
    }

    fn watch_anew(&mut self, socket: SocketId, token: ConnectionToken) -> bool {
        self.watch(socket, token)
    }

    fn read(&mut self, socket: SocketId, buffer: &mut [u8]) -> SocketRead {
        self.wires.look(socket.0, |wire| {
            let count = wire.to_server.len().min(buffer.len());
            for (to, byte) in std::iter::zip(buffer, wire.to_server.drain(..count)) {
                *to = byte;
            }
            match count {
                0 if wire.is_cut => SocketRead::End(SocketEnd::Broken),
                0 => SocketRead::Nothing,
                count => SocketRead::Bytes(count),
            }
        })
    }

    fn shutdown_write(&mut self, _: SocketId) {}

    fn close(&mut self, socket: SocketId) {
        self.wires.look(socket.0, |wire| wire.is_closed = true);
    }

    fn release(&mut self, _: SocketId) -> Option<CarriedSocket> {
        None
    }

    fn adopt(&mut self, _: CarriedSocket) -> Option<SocketId> {
        None
    }

    fn stop_listening(&mut self) {}
}

/// What a client says first.
fn hello() -> Vec<u8> {
    let provider = Arc::new(::rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&::rustls::version::TLS13]).unwrap();
    let config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut said = Vec::new();
    client.write_tls(&mut said).unwrap();
    said
}

fn relayed(client: &str, said: &[u8]) -> Vec<u8> {
    [format!("PROXY TCP4 {client} 10.0.0.1 4711 443\r\n").as_bytes(), said].concat()
}

/// A client that breaks its handshake in the same breath has had keys exchanged, too.
#[test]
fn a_turn_does_so_many_handshakes_whatever_becomes_of_them() {
    for behind in [&b""[..], &[23, 3, 3, 0, 2, 0, 0], &[21, 3, 3, 0, 2, 2, 48], &[99; 20]] {
        let mut stage = Stage::new(2, ConnectionLimits::default());
        let hello = hello();
        let clients = stage.connect("203.0.113.1", 20, || [&hello, behind].concat());
        stage.tell(clients.clone());
        for turn in 1..=10 {
            stage.turn();
            assert_eq!(stage.count(clients.clone(), |wire| wire.to_server.is_empty()), 2 * turn, "{behind:?}");
        }
        assert_eq!(stage.count(clients, |wire| wire.to_client.first() == Some(&22)), 20, "each was answered");
    }
}

/// A byte to a record is a lot of records. Not all of them comes, so that there is no answer.
#[test]
fn a_hello_in_many_records_is_work_too() {
    let hello = hello();
    let part = hello[5..hello.len() - 1].iter().flat_map(|&byte| [22, 3, 1, 0, 1, byte]).collect::<Vec<_>>();
    for (from, said) in [("203.0.113.1", part.clone()), (BALANCER, relayed("203.0.113.1", &part))] {
        let mut stage = Stage::new(1, ConnectionLimits::default());
        let clients = stage.connect(from, 100, || said.clone());
        stage.tell(clients);
        let mut turns = 1;
        while stage.turn() {
            turns += 1;
        }
        let work_ns = 100 * 6 * part.len() as u64;
        assert!(turns >= work_ns / 2 / 119_000, "{turns} turns for {work_ns} ns, from {from}");
    }
}

#[test]
fn addresses_take_turns_also_behind_a_balancer() {
    let (hello, others) = (hello(), hello());
    for (from, many, one) in [
        ("203.0.113.1", hello.clone(), others.clone()),
        (BALANCER, relayed("203.0.113.1", &hello), relayed("203.0.113.2", &others)),
    ] {
        let mut stage = Stage::new(1, ConnectionLimits::default());
        let crowd = stage.connect(from, 30, || many.clone());
        let single = stage.connect(if from == BALANCER { from } else { "203.0.113.2" }, 1, || one.clone());
        stage.tell(crowd.clone());
        stage.tell(single.clone());
        let is_answered = |wire: &Wire| wire.to_client.first() == Some(&22);
        for _ in 0..4 {
            stage.turn();
        }
        assert_eq!(stage.count(single, is_answered), 1, "from {from}: behind one of the others at most");
        while stage.turn() {}
        assert_eq!(stage.count(crowd, is_answered), 30, "and the others in their turns");
    }
}

/// A third of a core: 2,798 handshakes a second with a key on P-256 (`docs/LIMITS.md`), and few more at once.
#[test]
fn a_client_that_shakes_hands_too_often_is_let_go_without_a_word() {
    const RATE: usize = 2_798;
    for is_relayed in [false, true] {
        let from = |client| if is_relayed { BALANCER } else { client };
        let said = |client| if is_relayed { relayed(client, b"") } else { Vec::new() };
        let mut stage = Stage::new(8, ConnectionLimits::default());
        let clients = stage.connect(from("203.0.113.1"), RATE + 10, || said("203.0.113.1"));
        stage.tell(clients.clone());
        while stage.turn() {}
        let let_go = stage.count(clients.clone(), |wire| wire.is_closed);
        assert!((1..=10).contains(&let_go), "{let_go}, {is_relayed}");
        assert_eq!(stage.count(clients, |wire| !wire.to_client.is_empty()), 0);
        assert_eq!(stage.let_go(), let_go as u64);
        let other = stage.connect(from("203.0.113.2"), 1, || said("203.0.113.2"));
        stage.tell(other.clone());
        while stage.turn() {}
        assert_eq!(stage.count(other, |wire| wire.is_closed), 0, "another has its own");
    }
}

#[test]
fn a_client_with_too_many_connections_is_let_go_without_a_word() {
    for is_relayed in [false, true] {
        let (from, said) =
            if is_relayed { (BALANCER, relayed("203.0.113.1", &hello())) } else { ("203.0.113.1", hello()) };
        let mut stage = Stage::new(8, ConnectionLimits { connections_per_ip_max: 2, ..ConnectionLimits::default() });
        let clients = stage.connect(from, 3, || said.clone());
        stage.tell(clients.clone());
        while stage.turn() {}
        assert_eq!(stage.count(clients.clone(), |wire| wire.to_client.first() == Some(&22)), 2, "{is_relayed}");
        assert_eq!(stage.count(clients, |wire| wire.is_closed && wire.to_client.is_empty()), 1, "{is_relayed}");
    }
}

/// What came with a header and could not be handled yet goes when its client goes.
#[test]
fn who_leaves_before_its_turn_leaves_nothing() {
    let mut stage = Stage::new(1, ConnectionLimits::default());
    let hello = hello();
    let clients = stage.connect(BALANCER, 3, || relayed("203.0.113.1", &hello));
    stage.tell(clients.clone());
    stage.turn();
    let last = clients.end - 1;
    stage.wires.look(last, |wire| wire.is_cut = true);
    stage.tell(last..last + 1);
    while stage.turn() {}
    assert_eq!(stage.count(clients, |wire| wire.to_client.first() == Some(&22)), 2);
    assert_eq!(stage.turns.shard().report().tls.unwrap().connections, 2);
    stage.turns.shard().check();
}
