//! The drop-in's cost of a push: a KernelMessage in, a frame out, beside the same push through a `Pusher`.
//!
//! `cargo bench --bench node` measures, the two in turn in one run, and prints the server's CPU time per delivered
//! frame (the submitting thread, those between, the shard, the send) and the ratio; `cargo test` runs it once, tiny.
//! Every frame goes to another channel, so that no two leave in one send, and a round waits for all of its frames.

#[allow(dead_code)]
#[path = "../examples/node_backend.rs"]
mod node_backend;

use node_backend::adapter::{MyNode, NodeMessage};
use node_backend::kernel::{KEYFILE, NODE, SECRET};
use pushring::ChannelId;
use pushring::node::Dialect;
use pushring::node::{self, Address, KernelMessage, LazyLoadBlob, Request, http_server_process};
use pushring::{Broker, Config, Event, Message, Process};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel as std_channel};
use std::time::Duration;
use tokio::sync::mpsc;

const PROCESS: &str = "bench:bench:sys";
const CHANNELS: usize = 64;
const PAYLOAD_BYTES: usize = 128;
/// The threads whose CPU time is not the server's.
const CLIENTS: &str = "bench-clients";

/// Clients that take what comes, and say when a round is complete.
struct Clients {
    rounds: Receiver<()>,
}

impl Clients {
    fn start(address: SocketAddr) -> Self {
        let streams: Vec<TcpStream> = (0..CHANNELS).map(|_| open(address)).collect();
        let (done, rounds): (Sender<()>, _) = std_channel();
        std::thread::Builder::new().name(CLIENTS.into()).spawn(move || take(streams, &done)).unwrap();
        Self { rounds }
    }

    fn await_round(&self) {
        self.rounds.recv_timeout(Duration::from_secs(20)).expect("all frames of a round");
    }
}

fn open(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET /{PROCESS}/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    stream
}

/// Keeps this thread, and those that it starts, on one core: the server's and the clients' do not compete.
fn stay_on(core: usize) {
    if let Err(error) = pushring::internals::driver::sys::pin_to_core(core) {
        println!("not kept on core {core} ({error}): expect noise");
    }
}

/// Reads one frame of each client, again and again.
fn take(mut streams: Vec<TcpStream>, done: &Sender<()>) {
    stay_on(1);
    let mut frame = [0; 4 + PAYLOAD_BYTES];
    loop {
        for stream in &mut streams {
            if stream.read_exact(&mut frame).is_err() {
                return; // The server has stopped.
            }
            assert_eq!(frame[..4], [0x81, 126, 0, PAYLOAD_BYTES as u8]);
        }
        if done.send(()).is_err() {
            return;
        }
    }
}

/// CPU time in ns: of the submitting thread (this one), of the threads between, of the shards.
#[derive(Clone, Copy, Default)]
struct Cpu([u64; 3]);

impl Cpu {
    /// Of all threads of this process but the clients'.
    fn spent() -> Self {
        let mut cpu = Self::default();
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let path = task.unwrap().path();
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            let spent = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            let ns = spent.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
            let is_main = path.file_name().is_some_and(|id| id.to_string_lossy() == std::process::id().to_string());
            match name.trim() {
                CLIENTS => {}
                _ if is_main => cpu.0[0] += ns,
                name if name.starts_with("shard-") => cpu.0[2] += ns,
                _ => cpu.0[1] += ns,
            }
        }
        cpu
    }

    fn since(self, before: Self) -> Self {
        let mut spent = self;
        spent.0.iter_mut().zip(before.0).for_each(|(now, before)| *now -= before);
        spent
    }

    fn all(self) -> f64 {
        self.0.iter().sum::<u64>() as f64
    }
}

/// One way to push a frame to each channel.
trait Way {
    /// Makes what so many rounds hand over; not measured.
    fn prepare(&mut self, rounds: usize);
    /// Hands over what one round is made of, and waits for the frames.
    fn round(&mut self);
}

struct ThroughPusher {
    _broker: Broker,
    process: Process,
    channels: Vec<ChannelId>,
    prepared: Vec<Message>,
    clients: Clients,
}

impl ThroughPusher {
    fn start() -> Self {
        let broker = Broker::start(Config { shards: 1, ..Config::default() }).unwrap();
        let process = broker.process(PROCESS).unwrap();
        process.bind("/", Default::default()).unwrap();
        let clients = Clients::start(broker.address());
        let (mut events, mut channels) = (Vec::new(), Vec::new());
        while channels.len() < CHANNELS {
            process.recv_batch(&mut events, Duration::from_secs(20)).unwrap();
            channels.extend(events.drain(..).filter_map(|event| match event {
                Event::Opened(opened) => Some(opened.channel),
                _ => None,
            }));
        }
        Self { _broker: broker, process, channels, prepared: Vec::new(), clients }
    }
}

impl Way for ThroughPusher {
    fn prepare(&mut self, rounds: usize) {
        let message = || Message::text_bytes(vec![b'x'; PAYLOAD_BYTES]).unwrap();
        self.prepared = (0..rounds * CHANNELS).map(|_| message()).collect();
    }

    fn round(&mut self) {
        let from = self.prepared.len() - CHANNELS;
        for (channel, message) in self.channels.iter().zip(self.prepared.drain(from..)) {
            self.process.push(*channel, message).send().unwrap();
        }
        self.clients.await_round();
    }
}

struct ThroughDropIn {
    to_server: mpsc::Sender<NodeMessage>,
    _from_server: mpsc::Receiver<NodeMessage>,
    channels: Vec<u64>,
    prepared: Vec<NodeMessage>,
    clients: Clients,
}

impl ThroughDropIn {
    fn start() -> Self {
        let (to_server, from_kernel) = mpsc::channel(32);
        let (to_kernel, mut from_server) = mpsc::channel(100_000);
        let (prints, mut printed) = mpsc::channel(32);
        let parts = node::NodeParts {
            host: MyNode,
            our_node: NODE.into(),
            dialect: Dialect::Hyperdrive,
            listen: ([127, 0, 0, 1], 0).into(),
            keyfile: KEYFILE.to_vec(),
            jwt_secret: SECRET.to_vec(),
            from_kernel,
            to_kernel,
            prints,
            expose_local: false,
            control: None,
            config: Config { shards: 1, ..Config::default() },
        };
        std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(node::http_server(parts))
        });
        let line: String = printed.blocking_recv().unwrap();
        let bind = br#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
        to_server.blocking_send(request(1, bind.to_vec(), Some(5), None)).unwrap();
        assert_eq!(from_server.blocking_recv().unwrap().0.message.body(), br#"{"Ok":null}"#);
        let clients = Clients::start(line.rsplit(' ').next().unwrap().parse().unwrap());
        let mut opened = || {
            let body: serde_json::Value =
                serde_json::from_slice(from_server.blocking_recv().unwrap().0.message.body()).unwrap();
            body["WebSocketOpen"]["channel_id"].as_u64().unwrap()
        };
        let channels = (0..CHANNELS).map(|_| opened()).collect();
        Self { to_server, _from_server: from_server, channels, prepared: Vec::new(), clients }
    }
}

fn request(id: u64, body: Vec<u8>, expects_response: Option<u64>, blob: Option<LazyLoadBlob>) -> NodeMessage {
    NodeMessage(KernelMessage {
        id,
        source: Address::new(NODE, PROCESS.parse::<node::ProcessId>().unwrap()),
        target: Address::new(NODE, http_server_process()),
        rsvp: None,
        message: node::Message::Request(Request { body, expects_response, ..Request::default() }),
        lazy_load_blob: blob,
    })
}

impl Way for ThroughDropIn {
    fn prepare(&mut self, rounds: usize) {
        let message = |channel| {
            let body = format!(r#"{{"WebSocketPush":{{"channel_id":{channel},"message_type":"Text"}}}}"#);
            request(7, body.into(), None, Some(LazyLoadBlob { mime: None, bytes: vec![b'x'; PAYLOAD_BYTES] }))
        };
        self.prepared = (0..rounds).flat_map(|_| self.channels.iter().map(message)).collect();
    }

    fn round(&mut self) {
        for message in self.prepared.drain(self.prepared.len() - CHANNELS..) {
            self.to_server.blocking_send(message).unwrap();
        }
        self.clients.await_round();
    }
}

/// The server's CPU time over some rounds.
fn measure(way: &mut dyn Way, rounds: usize) -> Cpu {
    way.prepare(rounds);
    let before = Cpu::spent();
    for _ in 0..rounds {
        way.round();
    }
    Cpu::spent().since(before)
}

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (runs, rounds) = if is_bench { (9, 300) } else { (1, 3) };
    stay_on(0);
    let (mut pusher, mut drop_in) = (ThroughPusher::start(), ThroughDropIn::start());
    measure(&mut pusher, rounds);
    measure(&mut drop_in, rounds);
    let mut pairs: Vec<(Cpu, Cpu)> =
        (0..runs).map(|_| (measure(&mut pusher, rounds), measure(&mut drop_in, rounds))).collect();
    let ratio = |pair: &(Cpu, Cpu)| pair.1.all() / pair.0.all();
    pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    println!("CPU us per frame: who hands over + threads between + shard");
    let frames = (rounds * CHANNELS) as f64;
    let shown = |cpu: Cpu| {
        let [from, between, shard] = cpu.0.map(|ns| ns as f64 / 1000.0 / frames);
        format!("{:.2} ({from:.2} + {between:.2} + {shard:.2})", cpu.all() / 1000.0 / frames)
    };
    for pair in &pairs {
        println!("pusher {}, drop-in {}: x {:.2}", shown(pair.0), shown(pair.1), ratio(pair));
    }
    println!("median of {runs}: x {:.2}; {CHANNELS} channels, {PAYLOAD_BYTES} B", ratio(&pairs[runs / 2]));
}
