//! The memory that the broker reports as held is the memory allocated: within a quarter, whatever waits and for which
//! process.
#![allow(missing_docs)]

#[path = "held/fleet.rs"]
mod fleet;
#[path = "held/hostile.rs"]
mod hostile;
mod node_support;
#[path = "held/orders.rs"]
mod orders;
#[path = "held/services.rs"]
mod services;
mod support;

use node_support::{Node, NodeMessage, Options};
use pushring::control::{ControlAnswer, ControlRequest};
use pushring::link::{LinkConfig, LinkServer};
use pushring::{AttachOptions, Broker, ChannelId, Config, HttpRule, Message, Process, QueueLimits, WebSocketRule};
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that are allocated now, by all threads.
static ALLOCATED: AtomicIsize = AtomicIsize::new(0);

/// The tests share the count, so they take turns.
static TURN: Mutex<()> = Mutex::new(());

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract; counting is one
// atomic.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size as isize - layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Scene {
    broker: Broker,
    /// The bytes held and allocated before.
    before: usize,
    idle: isize,
}

impl Scene {
    fn new(broker: Broker) -> Self {
        // Allocations for the first client are not counted. It names a process that does not exist.
        let connections = || broker.handle().reports()[0].connections;
        let before = connections();
        let (client, status) = connect(&broker, "/nobody", UPGRADE);
        assert!(status.ends_with("404"), "{status}");
        drop(client);
        let deadline = Instant::now() + PATIENCE;
        while connections() > before {
            assert!(Instant::now() < deadline, "it has gone");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut scene = Self { broker, before: 0, idle: 0 };
        scene.begin_anew();
        scene
    }

    /// Bytes held and allocated so far no longer count.
    fn begin_anew(&mut self) {
        self.before = 0;
        (self.before, self.idle) = (self.held(), ALLOCATED.load(Ordering::Relaxed));
    }

    fn held(&self) -> usize {
        let reports = self.broker.handle().reports();
        let shards = reports.iter().map(|report| report.memory.used_bytes()).sum::<usize>();
        (reports[0].memory.kept_bytes() + shards).saturating_sub(self.before)
    }

    /// Asserts that the held bytes are at least `least` and equal the allocated ones, once they are stable.
    #[track_caller]
    fn judge(&self, what: &str, least: usize) {
        Self::judge_together(&[self], what, least);
    }

    /// The same of several brokers, which were all begun anew one after the other.
    #[track_caller]
    fn judge_together(scenes: &[&Self], what: &str, least: usize) {
        let deadline = Instant::now() + PATIENCE;
        let idle = scenes.iter().map(|scene| scene.idle).max().expect("there is one");
        loop {
            let held = scenes.iter().map(|scene| scene.held()).sum::<usize>();
            let allocated = ALLOCATED.load(Ordering::Relaxed) - idle;
            let ratio = held as f64 / allocated as f64;
            if held >= least && (0.8..=1.25).contains(&ratio) {
                return println!("{what}: {held} held, {allocated} allocated, {ratio:.2}");
            }
            assert!(Instant::now() < deadline, "{what}: {held} held, {allocated} allocated, {ratio:.2}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Waits until this is so.
#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn broker() -> Broker {
    Broker::start(Config { shards: 1, ..Config::default() }).unwrap()
}

fn attach(broker: &Broker, queue: QueueLimits) -> Process {
    attach_as(broker, "p:test:sys", queue)
}

fn attach_as(broker: &Broker, name: &str, queue: QueueLimits) -> Process {
    let options = AttachOptions { queue, ..AttachOptions::default() };
    broker.handle().process(name, options).unwrap()
}

/// A message of a client, masked with zeros.
fn message(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

/// Asks for `path`, an upgrade if it names a socket, and returns the status.
fn connect(broker: &Broker, path: &str, more: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{more}\r\n", broker.address());
    stream.write_all(request.as_bytes()).unwrap();
    // An upgrade is answered; a request may wait for a process that does not read.
    let answers_in = if more.contains("Upgrade") { PATIENCE } else { Duration::from_millis(50) };
    stream.set_read_timeout(Some(answers_in)).unwrap();
    let mut status = [0; 12];
    let read = stream.read(&mut status).unwrap_or(0);
    (stream, String::from_utf8_lossy(&status[..read]).into_owned())
}

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// Clients with long paths come and go until one is told that there is no room. Returns how many came in.
fn come_and_go(broker: &Broker, most: usize) -> usize {
    let headers = format!("{UPGRADE}X-Forwarded-For: {}\r\n", "b".repeat(7000));
    let path = format!("/p:test:sys/{}", "a".repeat(7000));
    (0..most).take_while(|_| connect(broker, &path, &headers).1.ends_with("101")).count()
}

#[test]
fn channels_of_which_a_process_does_not_read() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits { bytes_max: 4 * MIB, ..QueueLimits::default() });
    process.bind("/*rest", Default::default()).unwrap();
    let scene = Scene::new(broker);
    let came = come_and_go(&scene.broker, 2000);
    assert!((200..400).contains(&came), "{came} came before the process' queue was full");
    scene.judge("opened and closed, unread", 3 * MIB);
    let process_bytes = scene.broker.handle().held_by_process()[0].held.events;
    assert!(process_bytes > 3 * MIB && process_bytes < 6 * MIB, "{process_bytes}");
    let mut events = Vec::new();
    while scene.held() > 16 * 1024 {
        process.recv_batch(&mut events, Duration::from_millis(100)).unwrap();
    }
    assert!(events.len() >= 2 * came - 1);
    assert_eq!(come_and_go(&scene.broker, 3), 3, "and then clients are let in again");
}

#[test]
fn requests_that_a_process_does_not_read() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind_http("/", HttpRule::default()).unwrap();
    let scene = Scene::new(broker);
    let headers: String = (0..60).map(|number| format!("X-{number}: {}\r\n", "c".repeat(200))).collect();
    let clients: Vec<_> = (0..60).map(|_| connect(&scene.broker, "/p:test:sys/?q=1", &headers)).collect();
    scene.judge("heads of requests, unread", 60 * 12_000);
    drop(clients);
}

#[test]
fn static_content() {
    let _turn = take_turn();
    let broker = Broker::start(Config { shards: 1, memory_bytes_max: Some(32 * MIB), ..Config::default() }).unwrap();
    let process = attach(&broker, QueueLimits::default());
    let scene = Scene::new(broker);
    let bind = |number: usize| {
        let content = pushring::internals::http::Content::new(Some("text/plain"), vec![7; MIB].into());
        process.bind_http(&format!("/{number}"), HttpRule { content: Some(content.into()), ..HttpRule::default() })
    };
    let bound = (0..40).take_while(|&number| bind(number).is_ok()).count();
    assert!((12..=17).contains(&bound), "{bound} MiB of content in half of 32 MiB");
    scene.judge("static content", 12 * MIB);
    assert!(bind(99).unwrap_err().to_string().contains("memory_budget"));
    (0..bound).for_each(|number| process.unbind_http(&format!("/{number}")).unwrap());
    bind(100).unwrap();
}

#[test]
fn small_messages_that_a_process_does_not_read_beside_one_that_does() {
    let _turn = take_turn();
    let broker = broker();
    // So much that one client may add all of it.
    let queue = QueueLimits { messages_max: 1 << 20, bytes_max: 256 * MIB };
    let processes = ["slow:test:sys", "fast:test:sys"].map(|name| attach_as(&broker, name, queue));
    processes.iter().for_each(|process| process.bind("/", Default::default()).unwrap());
    let [slow, fast] = ["/slow:test:sys/", "/fast:test:sys/"].map(|path| {
        let (client, status) = connect(&broker, path, UPGRADE);
        assert!(status.ends_with("101"));
        client
    });
    let [unread, read] = &processes;
    let mut events = Vec::with_capacity(4096);
    let mut count = |least: usize| {
        let mut came = 0;
        while came < least {
            events.clear();
            read.recv_batch(&mut events, PATIENCE).unwrap();
            came += events.iter().filter(|event| matches!(event, pushring::Event::Message { .. })).count();
        }
    };
    let (burst, few) = (message(&[7; 20]).repeat(1500), message(&[8; 20]).repeat(20));
    (&fast).write_all(&burst).unwrap();
    count(1500);
    let scene = Scene::new(broker);
    // Often enough that what the first burst alone has left allocated counts for little.
    for _ in 0..800 {
        // Side by side, so that a turn has messages of both.
        (&slow).write_all(&few).unwrap();
        (&fast).write_all(&burst).unwrap();
        count(1500);
    }
    scene.judge("small messages, unread", 800 * 20 * 60);
    let deadline = Instant::now() + PATIENCE;
    while scene.held() >= 4096 {
        unread.recv_batch(&mut Vec::new(), Duration::ZERO).unwrap();
        assert!(Instant::now() < deadline, "{} held of nothing", scene.held());
    }
}

/// Channels of a process that is bound at `/`, and their clients.
fn open(broker: &Broker, process: &Process, count: usize) -> (Vec<TcpStream>, Vec<ChannelId>) {
    let clients: Vec<_> = (0..count).map(|_| connect(broker, "/p:test:sys/", UPGRADE).0).collect();
    let (mut events, mut channels) = (Vec::new(), Vec::new());
    while channels.len() < clients.len() {
        process.recv_batch(&mut events, PATIENCE).unwrap();
        channels.extend(events.drain(..).filter_map(|event| match event {
            pushring::Event::Opened(opened) => Some(opened.channel),
            _ => None,
        }));
    }
    (clients, channels)
}

#[test]
fn queues_of_messages_that_have_left() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", Default::default()).unwrap();
    let (clients, channels) = open(&broker, &process, 400);
    let scene = Scene::new(broker);
    let mut batch = process.batch();
    for _ in 0..20 {
        // Two messages to each channel in turn do not touch in the window.
        for &channel in channels.iter().cycle().take(2 * channels.len()) {
            batch.add(process.push(channel, Message::binary(&b"."[..])));
        }
        batch.flush().unwrap();
    }
    drop(batch);
    process.broadcast(Message::binary(&b"the last"[..])).send().unwrap();
    for mut client in &clients {
        let (mut all, mut some) = (Vec::new(), [0; 512]);
        while !all.ends_with(b"the last") {
            let read = client.read(&mut some).unwrap();
            assert!(read > 0, "a client was let go");
            all.extend_from_slice(&some[..read]);
        }
    }
    // What stays are queues that the next messages will need.
    scene.judge("spare queues", 32 * 1024);
}

#[test]
fn topics_and_who_is_subscribed() {
    let _turn = take_turn();
    let broker = broker();
    let process = attach(&broker, QueueLimits::default());
    process.bind("/", Default::default()).unwrap();
    let (clients, channels) = open(&broker, &process, 60);
    let mut events = Vec::new();
    let scene = Scene::new(broker);
    for (at, &channel) in channels.iter().enumerate() {
        // Half of them alone in their topics, half with all others.
        for topic in 0..128 {
            let name = if topic < 64 { format!("all/{topic}") } else { format!("one/{at}/{topic}") };
            process.subscribe(channel, name).send().unwrap();
        }
    }
    scene.judge("topics and subscriptions", 400 * 1024);
    drop(clients);
    let deadline = Instant::now() + PATIENCE;
    while scene.held() > 32 * 1024 {
        process.recv_batch(&mut events, Duration::from_millis(100)).unwrap();
        events.clear();
        assert!(Instant::now() < deadline, "{} bytes are held for nobody", scene.held());
    }
}

fn frame(head: &Value) -> Vec<u8> {
    let head = rmp_serde::to_vec_named(head).unwrap();
    [&(head.len() as u32).to_be_bytes()[..], &[0; 4], &head].concat()
}

/// Reads one frame's head and blob, and forgets them.
fn skip(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut prefix = [0; 8];
    stream.read_exact(&mut prefix)?;
    let lengths = [&prefix[..4], &prefix[4..]].map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()) as u64);
    std::io::copy(&mut stream.take(lengths[0] + lengths[1]), &mut std::io::sink())?;
    Ok(())
}

/// A peer over a link, and the server that it is attached to.
fn attach_link(broker: &Broker, attach: &Value) -> (LinkServer, UnixStream) {
    let socket = std::env::temp_dir().join(format!("pushring-held-{}.sock", std::process::id()));
    let config = LinkConfig { path: Some(socket.clone()), ..Default::default() };
    let server = LinkServer::start(broker.handle(), config).unwrap();
    let mut peer = UnixStream::connect(&socket).unwrap();
    peer.write_all(&frame(&json!({"hello": {"version_min": 1, "version_max": 1, "attach": attach}}))).unwrap();
    skip(&mut peer).unwrap();
    (server, peer)
}

/// A process which has bound `path`.
fn attach_peer(broker: &Broker, path: &str) -> (LinkServer, UnixStream) {
    let (server, mut peer) = attach_link(broker, &json!({"process": {"id": "p:test:sys", "policy": "close"}}));
    peer.write_all(&frame(&json!({"bind": {"path": path, "ask": 1}}))).unwrap();
    skip(&mut peer).unwrap();
    (server, peer)
}

/// The kernel of a node, which reads nothing more, and is given up where it cannot write for half a second.
fn attach_kernel(node: &str) -> (Scene, LinkServer, UnixStream) {
    let settings = pushring::node::settings(node, pushring::node::Dialect::Hyperdrive);
    let broker = Broker::start(Config { shards: 1, settings, ..Config::default() }).unwrap();
    let mut scene = Scene::new(broker);
    let (server, peer) = attach_link(&scene.broker, &json!({"kernel": {"node": node, "jwt_secret": vec![7; 32]}}));
    scene.begin_anew();
    peer.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    (scene, server, peer)
}

#[test]
fn what_a_link_keeps() {
    let _turn = take_turn();
    let broker = broker();
    let (_server, _peer) = attach_peer(&broker, "/*rest");
    let scene = Scene::new(broker);
    // Nothing is read or acknowledged: the window, and then the queue, are full.
    let came = come_and_go(&scene.broker, 4000);
    assert!((700..2500).contains(&came), "{came} came before there was no room");
    scene.judge("frames that are not acknowledged, and events behind them", 12 * MIB);
}

/// Clients with long paths come and go until one is told that there is no room. Returns how many came in.
fn come_and_go_at(address: std::net::SocketAddr, most: usize) -> usize {
    let path = format!("/p:p:test.os/{}", "a".repeat(7000));
    let headers = format!("{UPGRADE}X-Forwarded-For: {}\r\n", "b".repeat(7000));
    let comes_in = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        status.ends_with(b"101")
    };
    (0..most).take_while(|_| comes_in()).count()
}

/// The held bytes, as reported to an operator.
fn held_as_told(control: &std::path::Path) -> usize {
    let answer = pushring::control::ask(control, &ControlRequest::Stats {}).unwrap();
    let ControlAnswer::Stats(told) = answer else { panic!("{answer:?}") };
    told.shards[0].memory.kept_bytes() + told.shards.iter().map(|shard| shard.memory.used_bytes()).sum::<usize>()
}

#[test]
fn what_a_node_does_not_take() {
    let _turn = take_turn();
    let control = std::env::temp_dir().join(format!("pushring-held-node-{}.sock", std::process::id()));
    let mut options = Options { kernel_messages_max: 16_384, control: Some(control.clone()), ..Options::default() };
    options.config.shards = 1;
    let mut node = Node::start(options);
    node.bind("p:p:test.os", "/*rest");
    // The kernel takes nothing, and its queue is full: whatever comes waits in the server.
    let of_others = || NodeMessage(node_support::request(1, "other@p:p:test.os", b"", None, None));
    while node.to_kernel.try_send(of_others()).is_ok() {}
    assert_eq!(come_and_go_at(node.address, 1), 1);
    std::thread::sleep(Duration::from_millis(100));
    let (idle, before) = (ALLOCATED.load(Ordering::Relaxed), held_as_told(&control));
    let came = come_and_go_at(node.address, 4000);
    assert!((300..4000).contains(&came), "{came} came before there was no room");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (held, allocated) = (held_as_told(&control) - before, ALLOCATED.load(Ordering::Relaxed) - idle);
        let ratio = held as f64 / allocated as f64;
        if held > 8 * MIB && (0.8..=1.25).contains(&ratio) {
            break println!("events that a kernel does not take: {held} held, {allocated} allocated, {ratio:.2}");
        }
        assert!(Instant::now() < deadline, "{came} came: {held} held, {allocated} allocated, {ratio:.2}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let Node { to_server, from_server, server, .. } = node;
    drop((to_server, from_server));
    server.join().unwrap().unwrap();
}

/// Data that can be made to wait, at an amount of 1 to 3; each of some hundred KiB.
#[derive(Debug, Clone, Copy)]
enum Waits {
    SmallMessages,
    FragmentedMessages,
    Bodies,
    Heads,
    HeadsBeforeBodies,
    EventStreams,
    UnboundPaths,
    ChannelsThatCameAndWent,
    HalfSentMessages,
    SmallFrames,
    SharedPayloads,
    ConflatedValues,
    Content,
}

const WAITS: [Waits; 13] = [
    Waits::SmallMessages,
    Waits::FragmentedMessages,
    Waits::Bodies,
    Waits::Heads,
    Waits::HeadsBeforeBodies,
    Waits::EventStreams,
    Waits::UnboundPaths,
    Waits::ChannelsThatCameAndWent,
    Waits::HalfSentMessages,
    Waits::SmallFrames,
    Waits::SharedPayloads,
    Waits::ConflatedValues,
    Waits::Content,
];

/// A broker with a process that reads nothing and one that pushes to clients that read nothing.
struct Mix {
    scene: Scene,
    unread: Process,
    pushes: Process,
    clients: Vec<TcpStream>,
}

impl Mix {
    fn new() -> Self {
        let broker = broker();
        let unread = attach(&broker, QueueLimits { bytes_max: 64 * MIB, ..QueueLimits::default() });
        let pushes = attach_as(&broker, "pushes:test:sys", QueueLimits::default());
        for process in [&unread, &pushes] {
            process.bind("/*rest", Default::default()).unwrap();
            process.bind_http("/*rest", HttpRule::default()).unwrap();
        }
        pushes.bind("/stream", WebSocketRule { sse: true, ..WebSocketRule::default() }).unwrap();
        Self { scene: Scene::new(broker), unread, pushes, clients: Vec::new() }
    }

    /// A client that sends this, and stays.
    fn sends(&mut self, headers: &str, bytes: &[u8]) {
        let (client, status) = connect(&self.scene.broker, "/p:test:sys/a", headers);
        assert!(headers != UPGRADE || status.ends_with("101"), "{status}");
        (&client).write_all(bytes).unwrap();
        self.clients.push(client);
    }

    /// A client that reads nothing.
    fn slow(&mut self) -> pushring::ChannelId {
        self.slow_at("/pushes:test:sys/a", UPGRADE)
    }

    fn slow_at(&mut self, path: &str, fields: &str) -> pushring::ChannelId {
        self.clients.push(connect(&self.scene.broker, path, fields).0);
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, pushring::Event::Opened(_))) {
            self.pushes.recv_batch(&mut events, PATIENCE).unwrap();
        }
        // One before it may have been let go meanwhile.
        events.retain(|event| !matches!(event, pushring::Event::Closed(_)));
        let [pushring::Event::Opened(opened)] = &events[..] else { panic!("{events:?}") };
        // The kernel's buffers fill before anything waits in the broker.
        for _ in 0..3 {
            let fill = pushring::Message::binary(vec![0; MIB - 64]);
            self.pushes.push(opened.channel, fill).policy(pushring::Policy::DropNewest).send().unwrap();
        }
        opened.channel
    }

    fn wait(&mut self, what: Waits, amount: usize) {
        for number in 0..amount {
            match what {
                Waits::SmallMessages => self.sends(UPGRADE, &message(&[1; 30]).repeat(3000)),
                Waits::FragmentedMessages => {
                    let fragment = |first: u8, length: u16| {
                        let mut frame = vec![first, 0x80 | 126];
                        frame.extend_from_slice(&length.to_be_bytes());
                        frame.resize(frame.len() + 4 + usize::from(length), 0);
                        frame
                    };
                    let whole = [fragment(0x02, 30_000), fragment(0x00, 9_000), fragment(0x80, 50_000)].concat();
                    self.sends(UPGRADE, &whole.repeat(3));
                }
                Waits::Bodies => {
                    let chunk = [&b"6000\r\n"[..], &[b'b'; 0x6000], b"\r\n"].concat();
                    let body = [&chunk.repeat(7)[..], b"0\r\n\r\n"].concat();
                    self.sends("Transfer-Encoding: chunked\r\n", &body);
                }
                Waits::Heads => {
                    let headers: String = (0..60).map(|at| format!("X-{at}: {}\r\n", "c".repeat(200))).collect();
                    (0..12).for_each(|_| self.sends(&headers, b""));
                }
                Waits::HeadsBeforeBodies => {
                    let fields: String = (0..60).map(|at| format!("X-{at}: {}\r\n", "c".repeat(200))).collect();
                    (0..12).for_each(|_| self.sends(&format!("{fields}Content-Length: 9\r\n"), b""));
                }
                Waits::EventStreams => {
                    let channel = self.slow_at("/pushes:test:sys/stream", "Accept: text/event-stream\r\n");
                    for size in (0..2000).map(|at| 40 + at % 300) {
                        let push = self.pushes.push(channel, pushring::Message::text("x".repeat(size)));
                        push.policy(pushring::Policy::DropOldest).send().unwrap();
                    }
                }
                Waits::UnboundPaths => {
                    for at in 0..30 {
                        let path = format!("/{number}/{at}/{}", "p".repeat(4_000));
                        self.unread.unbind(&path).unwrap();
                    }
                }
                Waits::ChannelsThatCameAndWent => _ = come_and_go(&self.scene.broker, 12),
                Waits::HalfSentMessages => {
                    let mut half = vec![0; 200_000 + number * 60_000];
                    half[..10].copy_from_slice(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x40, 0, 0]);
                    self.sends(UPGRADE, &half);
                }
                Waits::SmallFrames => {
                    let channel = self.slow();
                    for size in (0..2000).map(|at| 40 + at % 300) {
                        let push = self.pushes.push(channel, pushring::Message::binary(vec![3; size]));
                        push.policy(pushring::Policy::DropOldest).send().unwrap();
                    }
                }
                Waits::SharedPayloads => {
                    let (one, other) = (self.slow(), self.slow());
                    let payload = pushring::Message::binary(vec![4; 300_000 + number]);
                    let push = self.pushes.broadcast(payload).to([one, other].to_vec());
                    push.policy(pushring::Policy::DropOldest).send().unwrap();
                }
                Waits::ConflatedValues => {
                    let channel = self.slow();
                    for key in (0..4000).map(|at| at % 1000) {
                        let push = self.pushes.push(channel, pushring::Message::binary(vec![5; 200]));
                        push.policy(pushring::Policy::Conflate { key }).send().unwrap();
                    }
                }
                Waits::Content => {
                    let content = pushring::internals::http::Content::new(Some("text/plain"), vec![7; MIB / 2].into());
                    let rule = HttpRule { content: Some(content.into()), ..HttpRule::default() };
                    self.unread.bind_http(&format!("/content/{number}"), rule).unwrap();
                }
            }
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 6, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_mix_of_what_waits(mix in proptest::sample::subsequence(&WAITS[..], 1..6), amount in 1..4usize) {
        let _turn = take_turn();
        let mut made = Mix::new();
        for &what in &mix {
            made.wait(what, amount);
        }
        made.scene.judge(&format!("{amount} times {mix:?}"), 100_000 * amount * mix.len());
    }
}
