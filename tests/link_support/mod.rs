//! Support for tests of links: a broker with a link, and a peer that speaks in raw frames.
#![allow(dead_code, missing_docs)]

use crate::support;
use pushring::Broker;
use pushring::link::{self, Client, ClientOptions, LinkServer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tungstenite::Message;

/// Sends so many messages to a process that sends them back, two hundred at a time: each comes once, and in order.
pub fn exchange(client: &mut support::Client, messages: u32) {
    let (mut sent, mut next) = (0_u32, 0_u32);
    while next < messages {
        while sent < messages && sent < next + 200 {
            client.write(Message::binary([&sent.to_le_bytes()[..], &[7; 500]].concat())).unwrap();
            sent += 1;
        }
        client.flush().unwrap();
        while next < sent {
            assert_eq!(support::recv(client).into_data()[..4], next.to_le_bytes());
            next += 1;
        }
    }
}

/// A broker without processes, and a link to it.
pub struct Linked {
    pub server: Option<LinkServer>,
    pub broker: Broker,
    pub path: PathBuf,
    directory: Directory,
}

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Linked {
    pub fn start(name: &str, change: impl FnOnce(&mut link::LinkConfig)) -> Self {
        let driver =
            std::env::var("PUSHRING_TEST_DRIVER").map_or(support::DriverKind::Auto, |name| name.parse().unwrap());
        Self::at(support::broker(driver, |_| {}), name, change)
    }

    pub fn at(broker: Broker, name: &str, change: impl FnOnce(&mut link::LinkConfig)) -> Self {
        let directory = std::env::temp_dir().join(format!("pushring-link-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("link");
        let mut config = link::LinkConfig { path: Some(path.clone()), ..link::LinkConfig::default() };
        change(&mut config);
        let server = Some(LinkServer::start(broker.handle(), config).unwrap());
        Self { server, broker, path, directory: Directory(directory) }
    }

    /// Stops the broker, then the link, as the daemon does.
    pub fn stop(self) {
        self.broker.stop(std::time::Duration::from_secs(1)).unwrap();
        drop(self.server);
    }
}

/// Stands between processes and a broker, and cuts connections when it is told.
pub struct Cutter {
    pub path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Cutter {
    pub fn start(linked: &Linked) -> Self {
        let (path, to) = (linked.path.with_extension("cut"), linked.path.clone());
        let listener = UnixListener::bind(&path).unwrap();
        let open: Arc<Mutex<Vec<UnixStream>>> = Arc::default();
        let streams = open.clone();
        std::thread::spawn(move || {
            for here in listener.incoming() {
                let (here, there) = (here.unwrap(), UnixStream::connect(&to).unwrap());
                streams.lock().unwrap().extend([here.try_clone().unwrap(), there.try_clone().unwrap()]);
                for (mut from, mut into) in [(here.try_clone().unwrap(), there.try_clone().unwrap()), (there, here)] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        Self { path, open }
    }

    /// Cuts them again and again until `done`, three times at least.
    pub fn cut_until(&self, done: &AtomicBool) {
        let mut cuts = 0;
        while !done.load(Ordering::SeqCst) || cuts < 3 {
            std::thread::sleep(std::time::Duration::from_millis(15));
            cuts += u32::from(self.cut());
        }
    }

    /// Cuts all that are open. Returns whether there were any.
    pub fn cut(&self) -> bool {
        let streams = std::mem::take(&mut *self.open.lock().unwrap());
        streams.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        !streams.is_empty()
    }
}

/// Is set when it is dropped, even by a panic: others wait for it.
#[derive(Default)]
pub struct Done(pub Arc<AtomicBool>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A process of the name `NAME:test:sys`.
pub fn attach(path: &Path, name: &str) -> Client {
    Client::connect(path, &format!("{name}:test:sys").parse().unwrap(), ClientOptions::default()).unwrap()
}

/// The bytes of a frame without blob.
pub fn frame(head: &Value) -> Vec<u8> {
    frame_with(head, b"")
}

/// The bytes of a frame.
pub fn frame_with(head: &Value, blob: &[u8]) -> Vec<u8> {
    let head = rmp_serde::to_vec_named(head).unwrap();
    [&(head.len() as u32).to_be_bytes()[..], &(blob.len() as u32).to_be_bytes(), &head, blob].concat()
}

/// The frame that attaches a process.
pub fn hello(id: &str) -> Vec<u8> {
    frame(&json!({"hello": {"version_min": 1, "version_max": 1, "attach": {"process": {"id": id}}}}))
}

/// A peer that knows nothing of windows, numbers and beats but what a test says.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        stream.set_write_timeout(Some(support::PATIENCE)).unwrap();
        Self(stream)
    }

    /// Attaches a process; answers the welcome.
    pub fn attach(path: &Path, hello: &Value) -> (Self, Value) {
        let mut raw = Self::connect(path);
        raw.send(&json!({"hello": hello}), b"");
        let (name, welcome, _) = raw.next().unwrap();
        assert_eq!(name, "welcome", "{welcome}");
        (raw, welcome)
    }

    /// As [`attach`](Self::attach), as soon as the broker has noticed that the connection before is gone.
    pub fn attach_again(path: &Path, hello: &Value) -> (Self, Value) {
        loop {
            let mut raw = Self::connect(path);
            raw.send(&json!({"hello": hello}), b"");
            let (name, fields, _) = raw.next().unwrap();
            match name.as_str() {
                "welcome" => return (raw, fields),
                _ => assert_eq!(fields["code"], "taken"),
            }
            std::thread::yield_now();
        }
    }

    pub fn send(&mut self, head: &Value, blob: &[u8]) {
        self.0.write_all(&frame_with(head, blob)).unwrap();
    }

    /// The next frame: its name, its fields, its blob. None at the end.
    pub fn next(&mut self) -> Option<(String, Value, Vec<u8>)> {
        let mut prefix = [0; 8];
        self.0.read_exact(&mut prefix).ok()?;
        let length = |at: usize| u32::from_be_bytes(prefix[at..at + 4].try_into().unwrap()) as usize;
        let (mut head, mut blob) = (vec![0; length(0)], vec![0; length(4)]);
        self.0.read_exact(&mut head).ok()?;
        self.0.read_exact(&mut blob).ok()?;
        let Shown(Value::Object(head)) = rmp_serde::from_slice(&head).unwrap() else { panic!("a head is a map") };
        let (name, fields) = head.into_iter().next().unwrap();
        Some((name, fields, blob))
    }

    /// The next frame that is no beat and no acknowledgement.
    pub fn next_said(&mut self) -> Option<(String, Value, Vec<u8>)> {
        loop {
            let next = self.next()?;
            if next.0 != "beat" && next.0 != "ack" {
                return Some(next);
            }
        }
    }
}

/// MessagePack as JSON, bytes as text.
struct Shown(Value);

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShownVisitor).map(Self)
    }
}

struct ShownVisitor;

impl<'de> Visitor<'de> for ShownVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MessagePack")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Value, E> {
        Ok(String::from_utf8_lossy(value).into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Shown(value)) = sequence.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some((name, Shown(value))) = map.next_entry()? {
            values.insert(name, value);
        }
        Ok(values.into())
    }
}

/// With which code a first frame is refused; the connection ends behind it.
pub fn refusal(path: &Path, bytes: &[u8]) -> String {
    let mut raw = Raw::connect(path);
    raw.0.write_all(bytes).unwrap();
    let (name, fields, _) = raw.next().unwrap();
    assert_eq!(name, "refused", "{fields}");
    assert!(!fields["reason"].as_str().unwrap().is_empty() && fields["version_max"] == 1);
    assert!(raw.next().is_none());
    fields["code"].as_str().unwrap().to_owned()
}

/// The example in Python; killed when a test fails.
pub struct Python {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Python {
    pub fn start(args: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/link_client.py");
        let mut command = Command::new("python3");
        let command = command.arg("-B").arg(script).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads until a line that begins so.
    pub fn until(&mut self, beginning: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "it ended before it said {beginning:?}");
            if line.starts_with(beginning) {
                return line;
            }
        }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns whether there is a Python to run the example with, 3.9 or later.
pub fn has_python() -> bool {
    let version = Command::new("python3").args(["-c", "import sys; sys.exit(sys.version_info < (3, 9))"]).status();
    let is_there = version.is_ok_and(|status| status.success());
    if !is_there {
        eprintln!("skipped: there is no python3, 3.9 or later, to run the client with");
    }
    is_there
}
