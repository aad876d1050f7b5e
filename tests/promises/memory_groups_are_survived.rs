//! In a control group that leaves little memory, with every setting at its default, the daemon is never killed for
//! memory, whatever its clients and processes do, and serves others meanwhile.
//!
//! Clients that cost memory may be refused or cut at any moment; those asked to retry do, and are served. Where no
//! control group can be made (not as root, or not in a container) this is said, and nothing is tried.

use crate::support;

use pushring::link::{Client, ClientOptions};
use pushring::{Audience, Event, HttpRule, Message};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::daemon::{Daemon, pushring};

const MIB: usize = 1024 * 1024;

/// A control group of this test's own. It goes with the test.
pub struct Group {
    pub path: PathBuf,
    is_second: bool,
}

impl Group {
    /// One with so much memory, or why there is none.
    pub fn new(name: &str, mib: usize) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let is_second = root.join("cgroup.controllers").exists();
        let parent = if is_second { root.to_owned() } else { root.join("memory") };
        let path = parent.join(format!("pushring-{name}-{}", std::process::id()));
        let limit = path.join(if is_second { "memory.max" } else { "memory.limit_in_bytes" });
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let group = Self { path, is_second };
        fs::write(&limit, (mib * MIB).to_string()).map_err(|error| format!("{}: {error}", limit.display()))?;
        let counts_kills = fs::read_to_string(group.events()).is_ok_and(|text| text.contains("oom_kill "));
        if counts_kills { Ok(group) } else { Err("the kernel does not count who is killed".to_owned()) }
    }

    /// Where the kernel counts what happens in it.
    fn events(&self) -> PathBuf {
        self.path.join(if self.is_second { "memory.events" } else { "memory.oom_control" })
    }

    /// How many have been killed in it.
    pub fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.events()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the kernel counts them").trim().parse().unwrap()
    }

    /// Returns whether this process is in it.
    pub fn holds(&self, pid: u32) -> bool {
        let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        pids.lines().any(|line| line.trim().parse() == Ok(pid))
    }

    /// The most that it has held, in MiB.
    pub fn peak_mib(&self) -> usize {
        let file = self.path.join(if self.is_second { "memory.peak" } else { "memory.max_usage_in_bytes" });
        fs::read_to_string(file).map_or(0, |text| text.trim().parse::<usize>().unwrap() / MIB)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its former members may take a moment to be gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A daemon in a group of its own, and processes that are attached to it.
struct Scene {
    daemon: Daemon,
    innocent: Client,
    link: PathBuf,
    group: Group,
}

impl Scene {
    /// None where there are no control groups.
    fn new(name: &str, mib: usize) -> Option<Self> {
        let group = match Group::new(name, mib) {
            Ok(group) => group,
            Err(why) => {
                println!("skipped: no control group can be made here: {why}");
                return None;
            }
        };
        let link = std::env::temp_dir().join(format!("pushring-group-{name}-{}.sock", std::process::id()));
        let served = pushring(&["serve", "--listen", "127.0.0.1:0", "--link", link.to_str().unwrap()]);
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0"; exec "$@""#]).arg(group.path.join("cgroup.procs"));
        command.arg(served.get_program()).args(served.get_args());
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let daemon = Daemon::spawn(&mut command);
        if !group.holds(daemon.child.id()) {
            println!("skipped: the daemon could not be put into {}", group.path.display());
            return None;
        }
        let innocent = attach(&link, "innocent");
        innocent.bind("/", Default::default()).unwrap();
        Some(Self { daemon, innocent, link, group })
    }

    /// One message to the innocent process and back. A client that is told to come again comes again.
    fn serves_others(&self) {
        let deadline = Instant::now() + support::PATIENCE;
        while !self.echoes(deadline).unwrap_or(false) {
            assert!(Instant::now() < deadline, "the innocent process was not served");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// None: its client was refused, or cut.
    fn echoes(&self, deadline: Instant) -> Option<bool> {
        let url = format!("ws://{}/innocent:test:sys/", self.daemon.address);
        let stream = support::Patient::new(connect(&self.daemon)?);
        let mut client = tungstenite::client(url, stream).ok()?.0;
        let said = tungstenite::Message::text(format!("said {:?}", Instant::now()));
        client.send(said.clone()).ok()?;
        let mut events = Vec::new();
        while Instant::now() < deadline {
            self.innocent.recv_batch(&mut events, Duration::from_millis(100)).unwrap();
            for event in events.drain(..) {
                // Of a client before, too.
                if let Event::Message { channel, payload, .. } = event {
                    let is_this = payload == said.clone().into_data();
                    self.innocent.push(channel, Message::binary(payload), None, None).unwrap();
                    if is_this {
                        return Some(client.read().ok()?.into_data() == said.into_data());
                    }
                }
            }
        }
        Some(false)
    }

    fn survives(&mut self, what: &str) {
        assert_eq!(self.group.kills(), 0, "{what}: killed for memory");
        assert!(self.daemon.child.try_wait().unwrap().is_none(), "{what}: the daemon is gone");
        self.serves_others();
        println!("{what}: {} MiB at most", self.group.peak_mib());
    }
}

fn attach(link: &Path, name: &str) -> Client {
    Client::connect(link, &format!("{name}:test:sys").parse().unwrap(), ClientOptions::default()).unwrap()
}

/// Returns whether a connection ended, which the daemon may do to clients that cost it memory.
fn is_end(error: &std::io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

/// The value of this; none where the connection has ended. No client is left hanging, so a time-out is a failure.
#[track_caller]
fn unless_ended<T>(done: std::io::Result<T>) -> Option<T> {
    match done {
        Ok(value) => Some(value),
        Err(error) if is_end(&error) => None,
        Err(error) => panic!("{error}"),
    }
}

fn connect(daemon: &Daemon) -> Option<TcpStream> {
    let stream = unless_ended(TcpStream::connect(&daemon.address))?;
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    Some(stream)
}

/// A WebSocket client that never reads; none where it is refused or cut.
fn open(daemon: &Daemon, path: &str, headers: &str) -> Option<TcpStream> {
    let mut stream = connect(daemon)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n",
        daemon.address
    );
    unless_ended(stream.write_all(request.as_bytes()))?;
    let mut status = [0; 12];
    unless_ended(stream.read_exact(&mut status))?;
    status.ends_with(b"101").then_some(stream)
}

/// Tries until it comes to that: what was let go of before may not be back yet.
#[track_caller]
fn in_the_end<T>(what: &str, attempt: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// So many bytes wait for each of so many clients, as long as memory lasts.
fn slow_readers(mib: usize) {
    const CLIENTS: usize = 600;
    let Some(mut scene) = Scene::new(&format!("readers-{mib}"), mib) else { return };
    let hog = attach(&scene.link, "hog");
    hog.bind("/", Default::default()).unwrap();
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| in_the_end("a client", || open(&scene.daemon, "/hog:test:sys/", ""))).collect();
    // The kernel's buffers, and then twice the budget.
    let pushes = (300 * 1024 + mib * MIB / CLIENTS) / 4000;
    let message = Message::binary(vec![7; 4000]);
    let mut events = Vec::new();
    let (mut queued, mut closed) = (0, 0);
    for number in 1..=pushes as u64 {
        hog.push_many(Audience::Process, &[], message.clone(), None, Some(number)).unwrap();
        // Asking for each outcome waits for each: no faster than the shards.
        let is_told = |events: &[Event]| events.iter().any(|event| matches!(event, Event::Outcome { .. }));
        while !is_told(&events) {
            hog.recv_batch(&mut events, support::PATIENCE).unwrap();
        }
        for event in events.drain(..) {
            match event {
                Event::Outcome { outcome, .. } => queued += outcome.queued,
                Event::Closed(_) => closed += 1,
                _ => {}
            }
        }
    }
    scene.survives(&format!("{pushes} pushes to {CLIENTS} clients that do not read, in {mib} MiB"));
    assert!(queued > CLIENTS && closed > 0, "{queued} were queued and {closed} closed: memory was not short");
    drop(clients);
}

#[test]
fn clients_that_do_not_read_in_256_mib() {
    slow_readers(256);
}

#[test]
fn clients_that_do_not_read_in_128_mib() {
    slow_readers(128);
}

#[test]
fn processes_that_do_not_read_content_and_links_in_128_mib() {
    let Some(mut scene) = Scene::new("unread", 128) else { return };
    let long = "a".repeat(7000);
    let forwarded = format!("X-Forwarded-For: {}\r\n", "b".repeat(7000));
    // Channels come and go, and requests are asked, of processes that read nothing.
    let unread: Vec<_> = ["one", "two", "three"].map(|name| attach(&scene.link, name)).into();
    for process in &unread {
        process.bind("/*rest", Default::default()).unwrap();
        process.bind_http("/*rest", HttpRule::default()).unwrap();
    }
    let mut refused = 0;
    let mut asked = Vec::new();
    for number in 0..1500 {
        let name = ["one", "two", "three"][number % 3];
        let path = format!("/{name}:test:sys/{long}");
        refused += usize::from(open(&scene.daemon, &path, &forwarded).is_none());
        if number % 4 == 0 {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{forwarded}\r\n", scene.daemon.address);
            let stream = connect(&scene.daemon);
            asked.extend(stream.filter(|mut stream| unless_ended(stream.write_all(head.as_bytes())).is_some()));
        }
    }
    scene.survives("1,500 channels that came and went, and 375 requests, unread");
    drop((asked, unread));
    // Content, until there is no room for more.
    let holder = attach(&scene.link, "holder");
    let bind = |number: usize| {
        let content = pushring::internals::http::Content::new(Some("text/plain"), vec![7; 4 * MIB].into());
        holder.bind_http(&format!("/{number}"), HttpRule { content: Some(content.into()), ..HttpRule::default() })
    };
    in_the_end("content has room once what was unread has gone", || bind(0).ok());
    let bound = 1 + (1..40).take_while(|&number| bind(number).is_ok()).count();
    assert!(bound < 40, "{bound} times 4 MiB of content");
    // And messages that never end, of a third process.
    let halved = attach(&scene.link, "halved");
    halved.bind("/", Default::default()).unwrap();
    let mut halves = vec![in_the_end("a client", || open(&scene.daemon, "/halved:test:sys/", ""))];
    halves.extend((1..40).filter_map(|_| open(&scene.daemon, "/halved:test:sys/", "")));
    let mut half = vec![0; 4 * MIB];
    half[..10].copy_from_slice(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x80, 0, 0]);
    for mut stream in &halves {
        stream.set_nonblocking(true).unwrap();
        // Data that does not go at once, or is cut, is allowed here.
        match stream.write(&half) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => assert!(is_end(&error), "{error}"),
            _ => {}
        }
    }
    let opened = halves.len();
    scene.survives(&format!(
        "{bound} times 4 MiB of content, and {opened} messages half sent; {refused} were refused before"
    ));
    drop(halves);
}
