//! Support for promise tests: a broker with the demo processes, and blocking WebSocket clients.
#![allow(dead_code, missing_docs)]

pub mod daemon;
pub mod deflate;
pub mod hub;
pub mod log;
pub mod nats;
pub mod tls;

use pushring::ChannelId;
pub use pushring::DriverKind;
pub use pushring::Message as Push;
use pushring::internals::demo;
use pushring::internals::driver::runtime::ShardRuntime;
use pushring::{AttachOptions, Broker, Closed, Config, Event, Here, Outcome, Policy, Process, ShardProcess};
use std::cell::Cell;
use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// The node secret of the tests.
pub const SECRET: &[u8] = b"a secret that only the tests know";

/// Long enough that only a hang takes it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Client = WebSocket<Patient>;

/// A socket of a client in this process. A call with a time limit ends early when the process is stopped and continued
/// (EINTR, signal(7)); that is no end of the connection, and the call begins anew.
#[derive(Debug)]
pub struct Patient {
    pub stream: TcpStream,
    tls: Option<Box<rustls::ClientConnection>>,
}

/// One without TLS.
#[expect(non_snake_case, reason = "it is made as if it were that stream and nothing else")]
pub fn Patient(stream: TcpStream) -> Patient {
    Patient::new(stream)
}

impl Patient {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, tls: None }
    }

    /// Behind a handshake of TLS.
    pub fn over_tls(stream: TcpStream) -> std::io::Result<Self> {
        let (stream, connection) = tls::connect(stream, "localhost")?;
        Ok(Self { stream, tls: Some(Box::new(connection)) })
    }

    /// Ends the writing direction.
    pub fn say_goodbye(&mut self) -> std::io::Result<()> {
        let Some(connection) = &mut self.tls else { return Ok(()) };
        connection.send_close_notify();
        while connection.wants_write() {
            connection.write_tls(&mut self.stream)?;
        }
        Ok(())
    }

    pub fn handshake_kind(&self) -> Option<rustls::HandshakeKind> {
        self.tls.as_ref()?.handshake_kind()
    }
}

fn again<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl std::io::Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            None => again(|| self.stream.read(buffer)),
            Some(connection) => again(|| tls::read(connection, &mut self.stream, buffer)),
        }
    }
}

impl std::io::Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.tls {
            None => again(|| self.stream.write(bytes)),
            Some(connection) => again(|| tls::write(connection, &mut self.stream, bytes)),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

impl std::ops::Deref for Patient {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl std::os::fd::AsFd for Patient {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

thread_local! {
    static DRIVER: Cell<Option<DriverKind>> = const { Cell::new(None) };
    static OVER_TLS: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether the clients of this test come over TLS: in a turn of [`on_each_driver`], or all where
/// `PUSHRING_TEST_TLS` is set.
pub fn is_over_tls() -> bool {
    OVER_TLS.get() || std::env::var_os("PUSHRING_TEST_TLS").is_some()
}

/// The driver of this test's brokers: the turn of [`on_each_driver`], else the one that `PUSHRING_TEST_DRIVER` names.
pub fn driver() -> DriverKind {
    DRIVER.get().or_else(forced).unwrap_or_default()
}

fn forced() -> Option<DriverKind> {
    std::env::var("PUSHRING_TEST_DRIVER").ok().map(|driver| driver.parse().unwrap())
}

/// Runs a test on io_uring and on epoll, and once more over TLS; or only on the one that `PUSHRING_TEST_DRIVER` names.
/// Where io_uring is not to be had the test says so and runs on epoll alone: name `uring` to have that fail.
pub fn on_each_driver(test: impl Fn(DriverKind)) {
    let drivers = match forced() {
        Some(driver) => vec![driver],
        None => vec![DriverKind::Uring, DriverKind::Epoll],
    };
    for driver in drivers {
        if driver == DriverKind::Uring
            && forced().is_none()
            && let Err(why) = uring_is_there()
        {
            println!("NOT RUN ON io_uring: {why}");
            continue;
        }
        println!("on {driver}");
        DRIVER.set(Some(driver));
        test(driver);
        if driver != DriverKind::Epoll {
            println!("on {driver} over TLS");
            OVER_TLS.set(true);
            test(driver);
            OVER_TLS.set(false);
        }
        DRIVER.set(None);
    }
}

/// On a thread of its own: the kernel takes a ring down after it was dropped, and interrupts the thread that made it.
fn uring_is_there() -> Result<(), String> {
    let probe = || ShardRuntime::new(DriverKind::Uring).map(drop).map_err(|why| why.to_string());
    std::thread::spawn(probe).join().unwrap()
}

/// A broker of two shards with the demo processes.
pub fn demo(change: impl FnOnce(&mut Config)) -> Broker {
    let broker = broker(driver(), change);
    demo::start(&broker.handle()).unwrap();
    broker
}

/// A client of `path`.
pub fn connect(broker: &Broker, path: &str) -> Client {
    try_connect(broker, path).unwrap()
}

pub fn try_connect(broker: &Broker, path: &str) -> Result<Client, Box<dyn std::error::Error>> {
    let over_tls = broker.tls_address().filter(|_| is_over_tls());
    let address = over_tls.unwrap_or(broker.address());
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let (scheme, stream) = match over_tls {
        Some(_) => ("wss", Patient::over_tls(stream)?),
        None => ("ws", Patient::new(stream)),
    };
    Ok(tungstenite::client(format!("{scheme}://{address}{path}"), stream)?.0)
}

/// A client of `path` as soon as somebody has bound it: a bind in progress has reached some shards and not others, and
/// the kernel picks the shard that takes a client.
pub fn connect_once_bound(broker: &Broker, path: &str) -> Client {
    let since = Instant::now();
    loop {
        match try_connect(broker, path) {
            Ok(client) => return client,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{path} is not bound in time: {error}"),
        }
        std::thread::yield_now();
    }
}

pub fn send(client: &mut Client, message: impl Into<Message>) {
    client.send(message.into()).unwrap();
}

/// The next data message.
pub fn recv(client: &mut Client) -> Message {
    loop {
        let message = client.read().unwrap();
        if message.is_text() || message.is_binary() {
            return message;
        }
    }
}

/// The close frame with which the server ends this client's channel.
pub fn recv_close(client: &mut Client) -> (u16, String) {
    loop {
        if let Message::Close(frame) = client.read().unwrap() {
            let frame = frame.expect("a close frame with a code");
            return (frame.code.into(), frame.reason.to_string());
        }
    }
}

/// A broker of two shards without any process.
pub fn broker(driver: DriverKind, change: impl FnOnce(&mut Config)) -> Broker {
    let mut config = Config { shards: 2, driver, ..Config::default() };
    // Most promises are those of a node, whose clients may register.
    config.settings = pushring::node::settings("local.os", pushring::node::Dialect::Kinode);
    config.settings.secret = Some(pushring::internals::gateway::Secret::new(SECRET).unwrap());
    if is_over_tls() {
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(tls::server());
    }
    change(&mut config);
    Broker::start(config).unwrap()
}

/// A process of the name `NAME:test:sys`, bound open at its `/`.
pub fn process(broker: &Broker, name: &str, options: AttachOptions) -> Process {
    let process = broker.handle().process(format!("{name}:test:sys"), options).unwrap();
    process.bind("/", Default::default()).unwrap();
    process
}

/// Events that a process has received and not examined yet.
#[derive(Default)]
pub struct Inbound(VecDeque<Event>);

impl Inbound {
    /// The next event.
    pub fn next(&mut self, process: &Process) -> Event {
        if self.0.is_empty() {
            let mut events = Vec::new();
            assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "an event");
            self.0.extend(events);
        }
        self.0.pop_front().unwrap()
    }

    /// The next event, which must be Opened.
    #[track_caller]
    pub fn opened(&mut self, process: &Process) -> ChannelId {
        match self.next(process) {
            Event::Opened(opened) => opened.channel,
            other => panic!("expected Opened, got {other:?}"),
        }
    }

    /// The next event, which must be Closed.
    #[track_caller]
    pub fn closed(&mut self, process: &Process) -> Closed {
        match self.next(process) {
            Event::Closed(closed) => *closed,
            other => panic!("expected Closed, got {other:?}"),
        }
    }

    /// The next event, which must be a message of `channel`.
    #[track_caller]
    pub fn message(&mut self, process: &Process, channel: ChannelId) -> bytes::Bytes {
        match self.next(process) {
            Event::Message { channel: from, payload, .. } if from == channel => payload,
            other => panic!("expected a message of {channel}, got {other:?}"),
        }
    }

    /// Opens a channel of a process and waits until the process knows it.
    pub fn open(&mut self, broker: &Broker, process: &Process) -> (Client, ChannelId) {
        let client = connect(broker, &format!("/{}/", process.id()));
        let channel = self.opened(process);
        (client, channel)
    }
}

/// Opens clients until one of them has its channel on this shard of two.
pub fn on_shard(shard: u32, mut open: impl FnMut() -> (Client, ChannelId)) -> (Client, ChannelId) {
    let mut others = Vec::new();
    loop {
        let (client, channel) = open();
        if channel.get() % 2 == shard {
            return (client, channel);
        }
        others.push(client);
        assert!(others.len() < 1000, "clients come to both shards");
    }
}

/// Has the first of two shards do nothing for as long as a test likes: a handler waits there. To be dropped before what
/// waits for shards.
pub struct ShardHolder {
    release: Option<mpsc::Sender<()>>,
    is_held: mpsc::Receiver<()>,
    client: Client,
    _process: ShardProcess,
}

impl ShardHolder {
    /// It is not held yet.
    pub fn new(broker: &Broker) -> Self {
        let (release, released) = mpsc::channel::<()>();
        let (held, is_held) = mpsc::channel();
        let waits = Arc::new(Mutex::new(Some((released, held))));
        let process = broker.on_shards("holder", move |_shard| {
            let waits = waits.clone();
            move |here: &mut Here<'_>, event: Event| match event {
                Event::Opened(opened) => {
                    here.push(opened.channel, Push::text(opened.channel.to_string())).send().unwrap();
                }
                Event::Message { .. } => {
                    let (released, held) = waits.lock().unwrap().take().unwrap();
                    held.send(()).unwrap();
                    // An end of the test is as good.
                    let _ = released.recv();
                }
                _ => {}
            }
        });
        let process = process.unwrap();
        process.handle().bind_at("/holder").unwrap();
        let (client, _) = on_shard(0, || {
            let mut client = connect_once_bound(broker, "/holder");
            let channel = recv(&mut client).to_text().unwrap().parse().unwrap();
            (client, ChannelId::new(channel))
        });
        Self { release: Some(release), is_held, client, _process: process }
    }

    /// From now on the shard does nothing.
    pub fn hold(&mut self) {
        send(&mut self.client, "hold");
        self.is_held.recv_timeout(PATIENCE).unwrap();
    }

    /// It goes on.
    pub fn release(&mut self) {
        self.release = None;
    }
}

impl Drop for ShardHolder {
    fn drop(&mut self) {
        self.release();
    }
}

/// Asks for the outcome of one push.
#[track_caller]
pub fn push_outcome(process: &Process, channel: ChannelId, message: Push, policy: Option<Policy>) -> Outcome {
    let push = process.push(channel, message);
    let push = match policy {
        Some(policy) => push.policy(policy),
        None => push,
    };
    push.ask().try_send().unwrap().wait(PATIENCE).expect("an outcome")
}

/// Fills a client that does not read until something waits for it in the broker, so that its socket is full. Answers
/// how many messages of `bytes` bytes that took; the last of them waits.
pub fn fill(process: &Process, channel: ChannelId, bytes: usize) -> usize {
    for count in 1..100_000 {
        if push_outcome(process, channel, Push::binary(vec![0x55; bytes]), None).queued == 1 {
            return count;
        }
    }
    panic!("a socket that takes everything");
}

/// A port of loopback that was free a moment ago. The kernel assigns none of these by itself, so no other test gets it
/// meanwhile but by this.
pub fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    let begin = (std::process::id() % u32::from(COUNT)) as u16;
    loop {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
