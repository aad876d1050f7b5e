//! A node of a fleet that says as much as NATS lets it (in a million names, of a million audiences) is bounded, counted
//! and told; and other nodes go on. `PUSHRING_FLEET_SUBJECTS` says how many.

use super::fleet::{Node, topic};
use pushring::Outcome;
use pushring::fleet::{Name, Options};

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
