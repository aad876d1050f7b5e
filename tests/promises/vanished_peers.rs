//! Peers that vanish without a close (a phone in a tunnel, a cut line) are gone in time, thousands at once, in whatever
//! state they were, and others are not affected.

use crate::support;
use pushring::{AttachOptions, Broker, ClosedBy, Config, Event};
use socket2::SockFilter;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{DriverKind, Inbound, PATIENCE, Push, broker, on_each_driver, process, recv, send};
use tungstenite::Message;

const UPGRADE: &str = "GET /ghosts:test:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Half-open connections: 10,000 descriptors, or what the system lets this test have.
fn ghosts_max() -> usize {
    let files = pushring::internals::driver::sys::raise_open_files().unwrap();
    usize::try_from(files.saturating_sub(300) / 2).unwrap().min(5_000)
}

/// From now on nothing reaches the client any more, so nothing is acknowledged either, and it says nothing.
fn vanish(stream: &TcpStream) {
    // "Return 0": take no byte of any packet.
    const DROP_ALL: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];
    socket2::SockRef::from(stream).attach_filter(&DROP_ALL).unwrap();
}

/// A client that has sent `bytes`, has seen the answer to them if it `waits` for one, and has vanished.
fn ghost(broker: &Broker, bytes: &str, waits: bool) -> TcpStream {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let (mut response, mut chunk) = (Vec::new(), [0; 512]);
    while waits && !response.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&response));
        response.extend_from_slice(&chunk[..count]);
    }
    assert!(!waits || response.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&response));
    vanish(&stream);
    stream
}

fn connections(broker: &Broker) -> usize {
    broker.handle().reports().iter().map(|report| report.connections).sum()
}

/// A second stands for 25.
fn quick(config: &mut Config) {
    config.shard.ping_interval_ms = 1_000;
    config.shard.head_timeout_ms = 1_000;
    config.shard.body_timeout_ms = 1_000;
    config.shard.register_timeout_ms = 1_000;
}

#[test]
fn thousands_of_half_open_connections_are_gone_in_time() {
    let broker = broker(DriverKind::Auto, quick);
    let ghosts = process(&broker, "ghosts", AttachOptions::default());
    let echo = process(&broker, "echo", AttachOptions::default());
    let mut inbound = Inbound::default();
    let (mut witness, _) = inbound.open(&broker, &echo);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // It answers the pings by reading, and is answered all the time.
        let talk = scope.spawn(|| {
            let mut rounds = 0;
            while !ended.load(Ordering::Relaxed) {
                send(&mut witness, Message::text(rounds.to_string()));
                let Event::Message { channel, payload, .. } = inbound.next(&echo) else {
                    panic!("the witness is gone")
                };
                echo.push(channel, Push::text_bytes(payload).unwrap()).try_send().unwrap();
                assert_eq!(recv(&mut witness), Message::text(rounds.to_string()));
                rounds += 1;
                thread::sleep(Duration::from_millis(2));
            }
            rounds
        });
        let states = [
            (UPGRADE, true),
            (UPGRADE, true),
            (UPGRADE, true),
            ("", false),
            ("GET / HTTP/1.1\r\nHost: local", false),
            ("POST /ghosts:test:sys/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc", false),
        ];
        let states = states.iter().cycle().take(ghosts_max());
        let vanished: Vec<TcpStream> = states.map(|(bytes, waits)| ghost(&broker, bytes, *waits)).collect();
        let channels = (0..vanished.len()).filter(|at| at % 6 < 3).count();
        let mut told = Inbound::default();
        let mut closed = 0;
        while closed < channels {
            match told.next(&ghosts) {
                Event::Opened(_) => {}
                Event::Closed(end) => {
                    assert_eq!((end.by, end.code), (ClosedBy::Timeout, 1001), "{end:?}");
                    closed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        let until = Instant::now() + PATIENCE;
        while connections(&broker) > 1 {
            assert!(Instant::now() < until, "{} stay", connections(&broker));
            thread::sleep(Duration::from_millis(20));
        }
        ended.store(true, Ordering::Relaxed);
        assert!(talk.join().unwrap() > 100, "the witness was served all along");
        println!("{} had vanished, {channels} of them with a channel", vanished.len());
    });
}

#[test]
fn bytes_that_nobody_acknowledges_end_a_connection_without_pings() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| {
            config.shard.ping_interval_ms = 0;
            config.tcp.user_timeout_ms = 1_000;
        });
        let process = process(&broker, "ghosts", AttachOptions::default());
        let mut inbound = Inbound::default();
        let _ghost = ghost(&broker, UPGRADE, true);
        let channel = inbound.opened(&process);
        process.push(channel, Push::text("are you there?")).try_send().unwrap();
        let closed = inbound.closed(&process);
        assert_eq!((closed.by, closed.code), (ClosedBy::Connection, 1006), "{closed:?}");
    });
}
