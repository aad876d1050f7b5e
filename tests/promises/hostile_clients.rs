//! Hostile clients of a real daemon, one kind after another and all at once: each is closed with the right code, or not
//! read; none makes the daemon grow; no other client waits or loses a message.

use crate::support;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::daemon::Daemon;
use support::deflate::{DeflateClient, bomb};
use support::{Client, driver, recv, recv_close, send};
use tungstenite::Message;

const ECHO: &str = "/echo:pushring:sys/";
const MIB: usize = 1 << 20;

/// A masking key of zeros leaves payloads as they are.
const KEY: [u8; 4] = [0; 4];

fn start() -> Daemon {
    Daemon::start(&["demo", "--deflate", "--shards", "2", "--driver", &driver().to_string()])
}

/// A line of `/proc/PID/status`, in bytes: what is resident (`VmRSS`), or was at most (`VmHWM`).
fn resident(daemon: &Daemon, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// From now on `VmHWM` counts anew.
fn forget_peak(daemon: &Daemon) {
    std::fs::write(format!("/proc/{}/clear_refs", daemon.child.id()), "5").unwrap();
}

/// The daemon has not grown by `bytes_max` over `idle` since [`forget_peak`], or since it began.
fn assert_grown_less(daemon: &Daemon, idle: usize, bytes_max: usize, what: &str) {
    let grown = resident(daemon, "VmHWM").saturating_sub(idle);
    println!("{what}: {} KiB over idle at most", grown / 1024);
    // Under a sanitizer, resident memory is mostly its shadow memory and its quarantine.
    assert!(grown < bytes_max || cfg!(sanitized), "{what}: {} MiB over idle", grown / MIB);
}

/// Sets the flag when the test ends, however it ends: other threads wait for it.
struct SaysWhenOver<'a>(&'a AtomicBool);

impl Drop for SaysWhenOver<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn header(first: u8, payload_bytes: u64) -> Vec<u8> {
    let length = payload_bytes.to_be_bytes();
    match payload_bytes {
        ..126 => [&[first, 0x80 | payload_bytes as u8][..], &KEY].concat(),
        126..65_536 => [&[first, 0x80 | 126][..], &length[6..], &KEY].concat(),
        _ => [&[first, 0x80 | 127][..], &length, &KEY].concat(),
    }
}

/// Sends as a client without checking whether the bytes are read, and returns how its channel ended.
fn told(daemon: &Daemon, bytes: &[u8]) -> u16 {
    let mut client = daemon.connect(ECHO);
    let _ = client.get_mut().write_all(bytes);
    recv_close(&mut client).0
}

fn breaks_the_protocol(daemon: &Daemon) {
    assert_eq!(told(daemon, b"\x82\x05hello"), 1002);
    assert_eq!(told(daemon, &header(0xb2, 0)), 1002);
    assert_eq!(told(daemon, &header(0x8b, 0)), 1002);
    assert_eq!(told(daemon, &header(0x09, 0)), 1002);
    assert_eq!(told(daemon, &header(0x80, 1)), 1002);
    assert_eq!(told(daemon, &[header(0x81, 2), vec![0xc3, 0x28]].concat()), 1007);
    for code in [999_u16, 1005, 1006, 5000] {
        assert_eq!(told(daemon, &[header(0x88, 2), code.to_be_bytes().to_vec()].concat()), 1002);
    }
    assert_eq!(told(daemon, &[header(0x88, 3), vec![3, 0xe8, 0xff]].concat()), 1007);
}

fn announces_too_much(daemon: &Daemon) {
    assert_eq!(told(daemon, &header(0x82, 1 << 63)), 1002);
    assert_eq!(told(daemon, &[header(0x82, 2 << 30), vec![0; MIB / 2]].concat()), 1009);
}

/// Many clients that announce as much as they may, send next to nothing of it, and stay.
fn announces_and_stays(daemon: &Daemon) {
    let mut clients: Vec<Client> = (0..100).map(|_| daemon.connect(ECHO)).collect();
    for client in &mut clients {
        client.get_mut().write_all(&[header(0x82, 16 << 20), vec![0; 2_000]].concat()).unwrap();
    }
    // They have all been read when one that came later is answered.
    echoes(&mut daemon.connect(ECHO));
}

fn fragments_without_end(daemon: &Daemon) {
    let most = pushring::internals::proto::MessageLimits::default().fragments_max as usize;
    let empty = [header(0x02, 0), header(0x00, 0).repeat(most)].concat();
    assert_eq!(told(daemon, &empty), 1009);
    let single = [header(0x02, 0), [header(0x00, 1), vec![7]].concat().repeat(most)].concat();
    assert_eq!(told(daemon, &single), 1009);
}

fn floods_with_pings(daemon: &Daemon) {
    assert_eq!(told(daemon, &[header(0x89, 5), b"pings".to_vec()].concat().repeat(5_000)), 1008);
}

/// It sends until no more is taken, and never reads.
fn never_reads(daemon: &Daemon) {
    let mut client = daemon.connect(ECHO);
    let stream = client.get_mut();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let message = [header(0x82, 60_000), vec![7; 60_000]].concat();
    let mut sent_bytes = 0;
    while sent_bytes < 64 * MIB {
        match stream.write(&message[sent_bytes % message.len()..]) {
            Ok(count) => sent_bytes += count,
            Err(_) => return,
        }
    }
    panic!("{sent_bytes} bytes were taken of a client that reads nothing");
}

fn sends_a_bomb(daemon: &Daemon, bomb: &[u8]) {
    let mut client = DeflateClient::connect_to(&*daemon.address, ECHO, "permessage-deflate");
    client.send_frame(0xc2, bomb);
    assert_eq!(client.recv_close().0, 1009);
}

fn abuses_http(daemon: &Daemon) {
    let refused = |request: String, status: &str| {
        let mut stream = daemon.stream();
        let _ = stream.write_all(request.as_bytes());
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response);
        assert!(response.starts_with(status.as_bytes()), "{}", String::from_utf8_lossy(&response));
    };
    let start = "GET / HTTP/1.1\r\nHost: localhost\r\n";
    refused(format!("{start}X: {}", "x".repeat(17_000)), "HTTP/1.1 431 ");
    refused(format!("{start}{}\r\n", "X: x\r\n".repeat(101)), "HTTP/1.1 431 ");
    refused(format!("{start}Content-Length: 99999999999\r\n\r\n"), "HTTP/1.1 413 ");
    refused("\0\x01\x02 nonsense\r\n\r\n".into(), "HTTP/1.1 400 ");
}

fn echoes(client: &mut Client) {
    send(client, Message::text("hello"));
    assert_eq!(recv(client), Message::text("hello"));
}

/// Pings until told to end, and answers how long each pong took, shortest first.
fn ping_until(mut client: Client, ended: &AtomicBool) -> Vec<Duration> {
    let mut took = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let asked = Instant::now();
        client.send(Message::Ping("p".into())).unwrap();
        assert_eq!(client.read().unwrap(), Message::Pong("p".into()));
        took.push(asked.elapsed());
        thread::sleep(Duration::from_millis(15));
    }
    took.sort();
    took
}

type Attack<'a> = (&'a str, Box<dyn Fn(&Daemon) + Sync + 'a>);

fn attacks(bomb: &[u8]) -> Vec<Attack<'_>> {
    vec![
        ("breaks the protocol", Box::new(breaks_the_protocol)),
        ("announces too much", Box::new(announces_too_much)),
        ("announces and stays", Box::new(announces_and_stays)),
        ("fragments without end", Box::new(fragments_without_end)),
        ("floods with pings", Box::new(floods_with_pings)),
        ("never reads", Box::new(never_reads)),
        ("sends a bomb", Box::new(|daemon| sends_a_bomb(daemon, bomb))),
        ("abuses HTTP", Box::new(abuses_http)),
    ]
}

#[test]
fn each_kind_is_told_and_costs_neither_memory_nor_anybodys_time() {
    let daemon = start();
    let bomb = bomb();
    let witness = daemon.connect(ECHO);
    echoes(&mut daemon.connect(ECHO));
    let idle = resident(&daemon, "VmRSS");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let over = SaysWhenOver(&ended);
        let pings = scope.spawn(|| ping_until(witness, &ended));
        for (name, attack) in attacks(&bomb) {
            forget_peak(&daemon);
            attack(&daemon);
            assert_grown_less(&daemon, idle, 64 * MIB, name);
        }
        drop(over);
        let took = pings.join().unwrap();
        let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{} pings of another channel: {median:?} in the middle, {longest:?} at most", took.len());
        // The longest tells of the machine as much as of the daemon: other tests run beside this one.
        assert!(took.len() >= 10 && median < Duration::from_millis(100), "{median:?} of {}", took.len());
    });
    assert_eq!(daemon_ends_well(daemon), Some(0));
}

#[test]
fn a_bomb_costs_at_most_the_limit_of_a_message() {
    let daemon = start();
    let bomb = bomb();
    echoes(&mut daemon.connect(ECHO));
    let idle = resident(&daemon, "VmRSS");
    forget_peak(&daemon);
    sends_a_bomb(&daemon, &bomb);
    // Beside the 16 MiB: the bomb itself, as it arrives, and the inflater.
    assert_grown_less(&daemon, idle, (16 + 4) * MIB, "a bomb");
    assert_eq!(daemon_ends_well(daemon), Some(0));
}

#[test]
fn clients_that_never_read_cost_at_most_their_budgets() {
    const DEAF: usize = 20;
    let daemon = start();
    let connect = || daemon.connect("/relay:pushring:sys/");
    let (mut speaker, mut witness) = (connect(), connect());
    let deaf: Vec<Client> = (0..DEAF).map(|_| connect()).collect();
    send(&mut speaker, Message::text("hello"));
    assert_eq!(recv(&mut witness), Message::text("hello"));
    let idle = resident(&daemon, "VmRSS");
    forget_peak(&daemon);
    // More than any socket holds.
    for number in 0..800_u32 {
        let message = Message::binary([&number.to_le_bytes()[..], &[7; 16 * 1024]].concat());
        send(&mut speaker, message.clone());
        assert!(recv(&mut witness) == message);
    }
    // A MiB each, which is also the shard's window, and 16 KiB on its way.
    assert_grown_less(&daemon, idle, (DEAF + 6) * MIB, "clients that never read");
    for mut client in deaf {
        assert_eq!(recv_close(&mut client).0, 1013);
    }
    assert_eq!(daemon_ends_well(daemon), Some(0));
}

/// The daemon has not panicked, and nothing hangs.
fn daemon_ends_well(daemon: Daemon) -> Option<i32> {
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert!(!log.contains("panicked"), "{log}");
    code
}

#[test]
fn under_all_attacks_at_once_a_hundred_channels_lose_nothing() {
    const GOOD: usize = 100;
    let daemon = start();
    let bomb = bomb();
    let attacks = attacks(&bomb);
    let done: Vec<AtomicU64> = attacks.iter().map(|_| AtomicU64::new(0)).collect();
    let mut good: Vec<Client> = (0..GOOD).map(|_| daemon.connect("/relay:pushring:sys/")).collect();
    let idle = resident(&daemon, "VmRSS");
    let ended = AtomicBool::new(false);
    let mut rounds = 0_u32;
    thread::scope(|scope| {
        let _over = SaysWhenOver(&ended);
        for ((_, attack), done) in std::iter::zip(&attacks, &done) {
            let (daemon, ended) = (&daemon, &ended);
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    attack(daemon);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        // Each says one thing to all others in a round; until every attack has been made, and for 3 seconds at least.
        while started.elapsed() < Duration::from_secs(3)
            || (done.iter().any(|done| done.load(Ordering::Relaxed) == 0) && started.elapsed() < support::PATIENCE)
        {
            for (name, client) in good.iter_mut().enumerate() {
                send(client, Message::text(format!("{rounds} {name}")));
            }
            for (name, client) in good.iter_mut().enumerate() {
                let mut heard = [false; GOOD];
                for _ in 1..GOOD {
                    let message = recv(client).into_text().unwrap();
                    let (round, from) = message.split_once(' ').unwrap();
                    assert_eq!(round.parse(), Ok(rounds));
                    assert!(!std::mem::replace(&mut heard[from.parse::<usize>().unwrap()], true), "{message} twice");
                }
                assert!(!heard[name], "its own");
            }
            rounds += 1;
        }
    });
    println!("{rounds} rounds of {GOOD} × {} messages", GOOD - 1);
    for ((name, _), done) in std::iter::zip(&attacks, &done) {
        println!("{name}: {} times", done.load(Ordering::Relaxed));
        assert!(done.load(Ordering::Relaxed) > 0, "{name}");
    }
    assert!(rounds > 0);
    assert_grown_less(&daemon, idle, 64 * MIB, "all at once");
    assert_eq!(daemon_ends_well(daemon), Some(0));
}
