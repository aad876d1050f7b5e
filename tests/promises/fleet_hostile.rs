//! A node of a fleet that says as much as NATS lets it (in a million names, of a million audiences) is bounded, counted
//! and told; and other nodes go on. `PUSHRING_FLEET_SUBJECTS` says how many. A server that is none of NATS' is left.

use super::fleet::{Node, topic};
use pushring::Outcome;
use pushring::fleet::{Name, Options};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::nats::Nats;

/// Places that a node has here for audiences and for numbers.
const SUBJECTS_MAX: usize = 32;

/// Nodes that a roster has room for.
const NODES_MAX: usize = 1024;

/// One name of so many makes noise.
const NOISE_EVERY: usize = 100;

/// Names in one connection of the hostile node.
const AT_A_TIME: usize = 10_000;

fn subjects() -> usize {
    std::env::var("PUSHRING_FLEET_SUBJECTS").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000)
}

/// A message of a node of this name: its kind, what it is about, and its payload.
fn message(source: &str, kind: u8, process: &str, channel: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'P', 1, kind, 0, 0, source.len() as u8];
    bytes.extend((process.len() as u16).to_be_bytes());
    bytes.extend(u16::from(channel.is_some()).to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend(1u32.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend([0; 16]);
    bytes.extend_from_slice(source.as_bytes());
    bytes.extend_from_slice(process.as_bytes());
    bytes.extend(channel.into_iter().flat_map(u32::to_be_bytes));
    bytes.extend_from_slice(payload);
    bytes
}

/// A node's messages under one of its names: an announcement, a push to a channel, a count of an audience, and
/// sometimes noise.
fn said(number: usize) -> Vec<(String, Vec<u8>)> {
    let source = format!("g{number}");
    let subject = |rest: &str| format!("pushring.v1.main.{source}.{rest}");
    let mut tails = vec![0; 16];
    tails.push(0);
    tails.extend((number as u128).to_be_bytes());
    tails.extend([0; 4 + 8 + 8]);
    let mut said = vec![
        (subject("node.all"), message(&source, 4, "", None, b"{}")),
        (subject("channels.a"), message(&source, 3, "chat:test:sys", Some(7), b"x")),
        (subject("tails.all"), message(&source, 5, "", None, &tails)),
    ];
    if number.is_multiple_of(NOISE_EVERY) {
        said.push((subject("node.all"), message(&source, 4, "", None, &[b' '; 5_000])));
    }
    said
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn who_says_too_much_is_bounded_and_told() {
    let Some(nats) = Nats::start("max_payload: 65536\n") else { return };
    let node = |name: &str| {
        let options = Options::new(Name::new(name).unwrap());
        Node::with(Options { servers: vec![nats.url()], subjects_max: SUBJECTS_MAX, ..options })
    };
    let (mut a, b) = (node("a"), node("b"));
    a.joined(1);
    b.joined(1);
    let before_kib = resident_kib();
    let count = subjects();
    for from in (0..count).step_by(AT_A_TIME) {
        let messages: Vec<_> = (from..(from + AT_A_TIME).min(count)).flat_map(said).collect();
        nats.publish(r#"{"verbose":false}"#, &messages);
        // NATS disconnects clients that leave too much unread, which is another promise.
        let so_far = (from + AT_A_TIME).min(count) as u64;
        crate::fleet::wait_for(&a.broker, "it is judged", |report| report.counts.received >= so_far);
        // Its client answers the pings meanwhile, and none of that has reached it.
        assert!(a.recv_all().is_empty());
    }
    let report = crate::fleet::wait_for(&a.broker, "all of it is judged", |report| {
        report.counts.refused_malformed >= count.div_ceil(NOISE_EVERY) as u64
    });
    println!("{count} names: {report:?}, {} KiB more", resident_kib().saturating_sub(before_kib));
    assert!(report.nodes.len() <= NODES_MAX && report.counts_in <= SUBJECTS_MAX as u64, "{report:?}");
    assert!(report.losses.len() <= 100 && report.listens <= SUBJECTS_MAX as u64);
    assert!(report.counts.gaps_unknown > 0, "what was forgotten is told: {:?}", report.counts);
    // A message larger than NATS takes never leaves a node.
    let too_large = b.send(&topic("nobody"), &"x".repeat(70_000));
    assert_eq!(too_large, Outcome { fleet_too_large: 1, ..Outcome::default() });

    // Its own clients may ask for as many audiences: those that find no place are told, and the others are heard.
    let mut full = 0;
    for number in 0..2 * SUBJECTS_MAX {
        full += a.subscribe_outcome(&format!("room {number}")).fleet_full;
    }
    assert!(full > 0 && a.report().listens <= SUBJECTS_MAX as u64, "{:?}", a.report());
    b.send(&pushring::Audience::Process, "and goes on");
    while a.recv() != "and goes on" {}
}

/// What an imposter says once a client has come: words, and zeros behind them without end, if it does not stop.
#[derive(Clone, Copy)]
struct Imposture {
    words: &'static str,
    is_endless: bool,
}

/// Answers the first client at `listener` as a server of NATS does, says this to it, and tells how many bytes it has
/// taken; passes the later ones on to a server.
fn impose(listener: TcpListener, port: u16, imposture: Imposture, taken: &mpsc::Sender<usize>) {
    let (first, _) = listener.accept().unwrap();
    // Who has left takes nothing more, and lets go once it is connected elsewhere.
    first.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut stream = &first;
    let info = r#"{"server_id":"x","version":"2.10.0","host":"127.0.0.1","port":1,"max_payload":1048576,"proto":1}"#;
    write!(stream, "INFO {info}\r\n").unwrap();
    let mut lines = BufReader::new(&first).lines();
    assert!(lines.any(|line| line.unwrap() == "PING"), "a client asks");
    write!(stream, "PONG\r\n{}", imposture.words).unwrap();
    let (mut bytes, zeros) = (0, vec![0; 1 << 20]);
    while imposture.is_endless && stream.write_all(&zeros).is_ok() {
        bytes += zeros.len();
        // As fast as a network: the memory of the machine is not this test's.
        std::thread::sleep(Duration::from_millis(10));
    }
    // Its client leaves by itself who does not answer its pings, seconds later. Until it has left:
    while lines.next().is_some_and(|line| line.is_ok()) {}
    taken.send(bytes).unwrap();
    for client in listener.incoming() {
        let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
        let copy = |mut from: TcpStream, mut to: TcpStream| {
            std::thread::spawn(move || {
                // Either end may be the end.
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Both);
            })
        };
        copy(client.try_clone().unwrap(), server.try_clone().unwrap());
        copy(server, client);
    }
}

#[test]
fn a_server_that_is_none_is_left_and_kept_no_more_of_than_a_message_may_have() {
    let Some(nats) = Nats::start("") else { return };
    let b = Node::with(Options { servers: vec![nats.url()], ..Options::new(Name::new("b").unwrap()) });
    for (number, imposture) in [
        Imposture { words: "MSG a 1 1099511627776\r\n", is_endless: true },
        Imposture { words: "MSG ", is_endless: true },
        // What its client is not made for.
        Imposture { words: "MSG a 1 18446744073709551615\r\n", is_endless: false },
        Imposture { words: "-ERR\r\n", is_endless: false },
    ]
    .into_iter()
    .enumerate()
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let ((taken, was_taken), port) = (mpsc::channel(), nats.port);
        std::thread::spawn(move || impose(listener, port, imposture, &taken));
        let name = Name::new(&format!("a{number}")).unwrap();
        let mut a = Node::with(Options { servers: vec![url], ..Options::new(name) });
        let bytes = was_taken.recv_timeout(crate::support::PATIENCE).expect("it is left");
        assert!(bytes < 192 << 20, "{bytes} bytes were taken of {:?}", imposture.words);
        // NATS is away, perhaps with the client of it, and what a channel asks for now is heard later.
        a.subscribe_outcome("early");
        // The next is a real one, and all is as if it had been the first.
        crate::fleet::wait_for(&a.broker, "it is there", |report| {
            report.connected && report.nodes.iter().any(|node| node.node == "b" && !node.is_gone)
        });
        a.subscribe("room");
        b.send(&topic("room"), "a message");
        assert_eq!(a.recv(), "a message", "{:?}", imposture.words);
        let since = Instant::now();
        while a.recv_all().is_empty() {
            assert!(since.elapsed() < crate::support::PATIENCE, "{:?}", imposture.words);
            b.send(&topic("early"), "one more");
        }
    }
}
