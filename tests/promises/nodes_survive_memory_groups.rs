//! In a control group that leaves little memory, a node with the drop-in at its defaults is never killed for memory,
//! whatever clients do whose processes push to them, and its login page is served meanwhile.
//!
//! The node is this test's own program, started again in the group. Where no control group can be made this is said,
//! and nothing is tried.

use crate::memory_groups_are_survived::Group;
use crate::node_support::support::PATIENCE;
use crate::node_support::{Node, NodeMessage, Options, push, request};

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Set where this program is the node.
const IS_NODE: &str = "PUSHRING_TEST_NODE_IN_GROUP";

const APP: &str = "p:p:test.os";

/// More than is held of 30 KB each, whatever the group leaves.
const PUSHES: usize = 12_000;

/// The node: prints its address, pushes to all that came on a command, and stops taking messages on another.
#[test]
fn the_node_of_the_other_tests() {
    if std::env::var_os(IS_NODE).is_none() {
        return;
    }
    // As many as a node's own channel has room for.
    let mut node = Node::start(Options { kernel_messages_max: 1_000, ..Options::default() });
    node.bind(APP, "/*rest");
    println!("\nlistens at {}", node.address);
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || std::io::stdin().lines().try_for_each(|line| tell.send(line)));
    let mut channels = Vec::new();
    let (mut from_server, to_server) = (node.from_server, node.to_server.unwrap());
    let mut take = |channels: &mut Vec<u64>| {
        while let Ok(message) = from_server.try_recv() {
            let event: serde_json::Value = serde_json::from_slice(message.0.message.body()).unwrap_or_default();
            channels.extend(event["WebSocketOpen"]["channel_id"].as_u64());
        }
    };
    while told.recv_timeout(Duration::from_millis(5)).is_err() {
        take(&mut channels);
    }
    for at in 0..PUSHES {
        let order = push(channels[at % channels.len()]);
        let message = request(1, &format!("fake.os@{APP}"), order.as_bytes(), Some(&[b'x'; 30_000]), None);
        to_server.blocking_send(NodeMessage(message)).unwrap();
        take(&mut channels);
    }
    println!("\npushed");
    while told.recv_timeout(Duration::from_millis(5)).is_err() {
        take(&mut channels);
    }
    println!("\ntakes nothing");
    // Until it is ended.
    loop {
        thread::park();
    }
}

struct Scene {
    node: Child,
    lines: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
    group: Group,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

impl Scene {
    fn new(mib: usize) -> Option<Self> {
        let group = match Group::new(&format!("node-{mib}"), mib) {
            Ok(group) => group,
            Err(why) => {
                println!("skipped: no control group can be made here: {why}");
                return None;
            }
        };
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ >"$0"; exec "$@""#]).arg(group.path.join("cgroup.procs"));
        command.arg(std::env::current_exe().unwrap());
        command.args(["nodes_survive_memory_groups::the_node_of_the_other_tests", "--exact", "--nocapture"]);
        command.env(IS_NODE, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut node = command.spawn().unwrap();
        let mut lines = BufReader::new(node.stdout.take().unwrap());
        let address = said(&mut lines, "listens at ").parse().unwrap();
        let scene = Self { node, lines, address, group };
        if !scene.group.holds(scene.node.id()) {
            println!("skipped: the node could not be put into {}", scene.group.path.display());
            return None;
        }
        Some(scene)
    }

    /// A client that never reads; none where it is refused or cut.
    fn open(&self, path: &str, headers: &str) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET /{APP}{path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).ok()?;
        status.ends_with(b"101").then_some(stream)
    }

    /// Has the node do something, and waits until it says so.
    fn tell(&mut self, what: &str, answer: &str) {
        writeln!(self.node.stdin.as_mut().unwrap(), "{what}").unwrap();
        said(&mut self.lines, answer);
    }

    fn serves_the_login_page(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return false };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut status = [0; 12];
        stream.write_all(b"GET /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").is_ok()
            && stream.read_exact(&mut status).is_ok()
            && status.ends_with(b"200")
    }

    fn survives(&mut self, what: &str) {
        assert_eq!(self.group.kills(), 0, "{what}: killed for memory");
        assert!(self.node.try_wait().unwrap().is_none(), "{what}: the node is gone");
        let deadline = Instant::now() + PATIENCE;
        while !self.serves_the_login_page() {
            assert!(Instant::now() < deadline, "{what}: the login page is not served");
            thread::sleep(Duration::from_millis(50));
        }
        println!("{what}: {} MiB at most", self.group.peak_mib());
    }
}

/// The text after `what` in a line of the node's.
fn said(lines: &mut impl BufRead, what: &str) -> String {
    for line in lines.lines() {
        if let Some(rest) = line.unwrap().strip_prefix(what) {
            return rest.to_owned();
        }
    }
    panic!("it has not said {what:?}");
}

fn node_in(mib: usize) {
    let Some(mut scene) = Scene::new(mib) else { return };
    let clients: Vec<_> = (0..200).filter_map(|_| scene.open("/slow", "")).collect();
    assert!(clients.len() > 50, "{} came in", clients.len());
    scene.tell("push", "pushed");
    scene.survives(&format!("{} clients that do not read, in {mib} MiB", clients.len()));
    scene.tell("take nothing", "takes nothing");
    let (path, headers) = (format!("/{}", "a".repeat(7000)), format!("X-Forwarded-For: {}\r\n", "b".repeat(7000)));
    let came = (0..1500).filter(|_| scene.open(&path, &headers).is_some()).count();
    scene.survives(&format!("{came} clients came and went while nothing was taken, in {mib} MiB"));
    drop(clients);
}

#[test]
fn a_node_in_256_mib() {
    node_in(256);
}

#[test]
fn a_node_in_128_mib() {
    node_in(128);
}
