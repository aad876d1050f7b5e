//! Clients that send as slowly as they can, a byte at a time, are cut when the time for what they send is up, however
//! many bytes still come: in a head, in a body, in the registration. Others are served meanwhile.

use crate::support;

use pushring::AttachOptions;
use pushring::internals::gateway::HttpRule;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};
use support::{Inbound, PATIENCE, Push, broker, on_each_driver, process, recv, send};
use tungstenite::Message;

const DEADLINE_MS: u64 = 1_000;

/// Slow clients of each kind.
const EACH: usize = 40;

const HEAD: &str = "GET /slow:test:sys/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
const BODY: &str = "POST /slow:test:sys/form HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
const REGISTRATION: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Sends `start`, then `rest` for ever, a byte at a time, until the server ends the connection. Returns what it said
/// and how long that took, from the connect on: the server counts from there.
fn dawdle(mut stream: TcpStream, started: Instant, start: &[u8], rest: u8) -> (Vec<u8>, Duration) {
    stream.write_all(start).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (mut said, mut chunk) = (Vec::new(), [0; 1024]);
    loop {
        assert!(started.elapsed() < PATIENCE, "never cut");
        // Once cut, this fails sooner or later.
        let _ = stream.write_all(&[rest]);
        match stream.read(&mut chunk) {
            Ok(0) => return (said, started.elapsed()),
            Ok(count) => said.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            // The answer was read before.
            Err(_) => return (said, started.elapsed()),
        }
    }
}

#[test]
fn each_is_cut_at_its_deadline() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| {
            config.shard.head_timeout_ms = DEADLINE_MS;
            config.shard.body_timeout_ms = DEADLINE_MS;
            config.shard.register_timeout_ms = DEADLINE_MS;
            config.shard.linger_ms = 100;
        });
        let process = process(&broker, "slow", AttachOptions::default());
        process.bind_http("/form", HttpRule::default()).unwrap();
        let mut inbound = Inbound::default();
        let (mut witness, channel) = inbound.open(&broker, &process);
        // The header of a masked Text frame of 100 bytes, which a registration may be; its key is zeros.
        let register = [REGISTRATION.as_bytes(), &[0x81, 0x80 | 100, 0, 0, 0, 0]].concat();
        let kinds: [(&[u8], u8); 3] = [(HEAD.as_bytes(), b'y'), (BODY.as_bytes(), b'y'), (&register, b' ')];
        thread::scope(|scope| {
            let dawdlers = kinds.iter().cycle().take(3 * EACH).map(|(start, rest)| {
                let started = Instant::now();
                let stream = TcpStream::connect(broker.address()).unwrap();
                scope.spawn(move || dawdle(stream, started, start, *rest))
            });
            let dawdlers: Vec<_> = dawdlers.collect();
            let mut rounds = 0;
            while dawdlers.iter().any(|dawdler| !dawdler.is_finished()) {
                send(&mut witness, Message::text("still here"));
                assert_eq!(inbound.message(&process, channel), "still here");
                process.push(channel, Push::text("so are we")).try_send().unwrap();
                assert_eq!(recv(&mut witness), Message::text("so are we"));
                rounds += 1;
                thread::sleep(Duration::from_millis(5));
            }
            assert!(rounds > 10);
            for (at, dawdler) in dawdlers.into_iter().enumerate() {
                let (said, took) = dawdler.join().unwrap();
                let is_told = match at % 3 {
                    2 => said.windows(4).any(|frame| frame[0] == 0x88 && frame[2..] == 4408_u16.to_be_bytes()),
                    _ => said.starts_with(b"HTTP/1.1 408 "),
                };
                assert!(is_told, "{}", String::from_utf8_lossy(&said));
                assert!(took >= Duration::from_millis(DEADLINE_MS / 2), "{took:?}");
            }
        });
    });
}
