//! The connection of a client that leaves is released, whatever it was waiting for, and takes no place from others:
//! over real sockets, in every way in which a client can leave.

use crate::support;
use pushring::{AttachOptions, Broker, Event, HttpRule, Policy, Process, QueueLimits};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::{PATIENCE, Push, connect, on_each_driver, process, recv, recv_close, send, try_connect};

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn broker(driver: support::DriverKind, change: impl FnOnce(&mut pushring::Config)) -> Broker {
    support::broker(driver, |config| {
        // No answer comes, and no ping finds out, within the patience of this test.
        config.settings.response_timeout_s = 600;
        config.shard.ping_interval_ms = 0;
        config.shard.close_timeout_ms = 500;
        change(config);
    })
}

fn connections(broker: &Broker) -> usize {
    broker.handle().reports().iter().map(|report| report.connections).sum()
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A client that has asked for `path`; with the status of the answer, if it waits for one.
fn ask(broker: &Broker, path: &str, headers: &str, waits: bool) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").unwrap();
    let mut status = [0; 12];
    if waits {
        stream.read_exact(&mut status).unwrap();
    }
    (stream, String::from_utf8_lossy(&status[9..]).into_owned())
}

/// Leaves in one of the ways in which clients do.
fn leave(mut client: TcpStream, how: usize) {
    match how % 3 {
        0 => {}
        // With a reset.
        1 => socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap(),
        // With a close frame whose answer is not read.
        _ => client.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).unwrap(),
    }
}

/// A process that reads nothing and has room for a few messages.
fn deaf(broker: &Broker) -> Process {
    let queue = QueueLimits { messages_max: 16, ..QueueLimits::default() };
    process(broker, "deaf", AttachOptions { queue, ..AttachOptions::default() })
}

#[test]
fn a_thousand_that_leave_while_their_process_is_full() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let _deaf = deaf(&broker);
        let other = process(&broker, "other", AttachOptions::default());
        let messages = [&[0x82, 0x81, 0, 0, 0, 0, 7][..]; 20].concat();
        for round in 0..5 {
            let mut clients: Vec<_> = (0..200).map(|_| ask(&broker, "/deaf:test:sys/", UPGRADE, true).0).collect();
            // More than there is room for: from now on they are not read.
            clients.iter_mut().for_each(|client| client.write_all(&messages).unwrap());
            wait_until("all are connected", || connections(&broker) == 200);
            clients.into_iter().enumerate().for_each(|(at, client)| leave(client, at + round));
            wait_until("all were let go", || connections(&broker) == 0);
        }
        let mut client = connect(&broker, "/other:test:sys/");
        send(&mut client, "served");
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, Event::Message { .. })) {
            other.recv_batch(&mut events, PATIENCE).unwrap();
        }
    });
}

#[test]
fn those_that_leave_while_a_process_is_asked() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let asked = process(&broker, "asked", AttachOptions::default());
        asked.bind_http("/", HttpRule::default()).unwrap();
        let clients: Vec<_> = (0..300).map(|_| ask(&broker, "/asked:test:sys/", "", false).0).collect();
        let mut events = Vec::new();
        while events.len() < clients.len() {
            asked.recv_batch(&mut events, PATIENCE).unwrap();
        }
        for client in &clients {
            leave(client.try_clone().unwrap(), 1);
        }
        drop(clients);
        wait_until("all were let go", || connections(&broker) == 0);
        // A late answer is dropped, and does no harm.
        for event in events {
            let Event::Http(request) = event else { panic!("{event:?}") };
            asked.respond(request.id, 200).body("too late").send().unwrap();
        }
        assert_eq!(ask(&broker, "/nobody", "", true).1, "404");
    });
}

#[test]
fn a_process_has_so_many_connections_and_others_have_theirs() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.admission.connections_per_process_max = 5);
        let full = process(&broker, "full", AttachOptions::default());
        full.bind_http("/http", HttpRule::default()).unwrap();
        let _other = process(&broker, "other", AttachOptions::default());
        // Channels and requests count alike.
        let mut kept: Vec<_> = (0..3).map(|_| ask(&broker, "/full:test:sys/", UPGRADE, true)).collect();
        assert!(kept.iter().all(|(_, status)| status == "101"));
        kept.extend((0..2).map(|_| ask(&broker, "/full:test:sys/http", "", false)));
        let mut events = Vec::new();
        while events.len() < 5 {
            full.recv_batch(&mut events, PATIENCE).unwrap();
        }
        assert_eq!(ask(&broker, "/full:test:sys/", UPGRADE, true).1, "503");
        assert_eq!(ask(&broker, "/full:test:sys/http", "", true).1, "503");
        assert!(try_connect(&broker, "/other:test:sys/").is_ok());
        // A client that leaves makes room, as a channel or a request.
        kept.into_iter().for_each(|(client, _)| leave(client, 1));
        wait_until("there is room again", || ask(&broker, "/full:test:sys/", UPGRADE, true).1 == "101");
    });
}

#[test]
fn a_stop_is_told_under_a_broadcast_that_never_ends() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| {
            config.shard.close_timeout_ms = 30_000;
            config.shard.outbound_bytes_max = 64 * 1024;
        });
        // A reader that is behind stays.
        let policy = Policy::DropNewest;
        let loud = process(&broker, "loud", AttachOptions { policy, ..AttachOptions::default() });
        let mut clients: Vec<_> = (0..50).map(|_| connect(&broker, "/loud:test:sys/")).collect();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let (loud, is_over) = (&loud, &is_over);
            scope.spawn(move || {
                let message = Push::binary(vec![7; 200]);
                while !is_over.load(Ordering::Relaxed) && loud.broadcast(message.clone()).send().is_ok() {}
            });
            let readers: Vec<_> = clients
                .iter_mut()
                .map(|client| {
                    scope.spawn(move || {
                        recv(client);
                        recv_close(client).0
                    })
                })
                .collect();
            // The broadcast is under way.
            wait_until("it is pushed", || broker.handle().reports().iter().map(|r| r.stats.pushed).sum::<u64>() > 5000);
            broker.handle().stop(PATIENCE);
            let codes: Vec<u16> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(codes, [1001; 50]);
        });
    });
}
