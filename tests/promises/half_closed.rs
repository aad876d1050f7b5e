//! A client that has sent all its requests and ends its side is answered each of them, and then its connection ends at
//! once: it says so by the end of TCP, over TLS by close_notify (RFC 8446 6.1), and hears the same.

use crate::support;

use pushring::{AttachOptions, Broker};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use support::{Inbound, PATIENCE, on_each_driver, tls};

/// Nothing ends by its time here.
fn started() -> Broker {
    support::demo(|config| {
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(tls::server());
        config.shard.http_idle_timeout_ms = 3_600_000;
        config.shard.head_timeout_ms = 3_600_000;
    })
}

/// Requests of which some are answered by the broker, and some by a process.
fn requests(count: usize) -> String {
    let answered_by = |number: usize| if number.is_multiple_of(2) { "/nowhere" } else { "/echo:pushring:sys/" };
    let request = |number| format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", answered_by(number));
    (0..count).map(request).collect()
}

fn stream(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn heard(said: &[u8]) -> usize {
    String::from_utf8_lossy(said).matches("HTTP/1.1 ").count()
}

#[test]
fn each_request_before_the_end_is_answered() {
    on_each_driver(|_| {
        let broker = started();
        for count in [1, 2, 3, 9] {
            for behind in ["", "GET /unfin"] {
                let said = requests(count) + behind;
                let mut plain = stream(broker.address());
                plain.write_all(said.as_bytes()).unwrap();
                plain.shutdown(Shutdown::Write).unwrap();
                let mut answers = Vec::new();
                plain.read_to_end(&mut answers).unwrap();
                assert_eq!(heard(&answers), count, "{behind:?}");

                let (mut tcp, mut sealed) = tls::connect(stream(broker.tls_address().unwrap()), "localhost").unwrap();
                sealed.writer().write_all(said.as_bytes()).unwrap();
                sealed.send_close_notify();
                // All of it in one piece.
                let mut bytes = Vec::new();
                while sealed.wants_write() {
                    sealed.write_tls(&mut bytes).unwrap();
                }
                tcp.write_all(&bytes).unwrap();
                let (mut answers, mut buffer) = (Vec::new(), [0; 4096]);
                // An end without close_notify would be an error.
                loop {
                    match tls::read(&mut sealed, &mut tcp, &mut buffer).unwrap() {
                        0 => break,
                        count => answers.extend_from_slice(&buffer[..count]),
                    }
                }
                assert_eq!(heard(&answers), count, "over TLS, {behind:?}");
            }
        }
    });
}

/// A WebSocket behind other requests is one whose client has left.
#[test]
fn a_channel_that_is_asked_for_before_the_end_ends_with_it() {
    on_each_driver(|driver| {
        let broker = support::broker(driver, |_| {});
        let process = support::process(&broker, "left", AttachOptions::default());
        let mut inbound = Inbound::default();
        for before in 0..3 {
            let mut plain = stream(broker.address());
            let upgrade = "GET /left:test:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
                           Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
            plain.write_all((requests(before) + upgrade).as_bytes()).unwrap();
            plain.shutdown(Shutdown::Write).unwrap();
            inbound.opened(&process);
            assert_eq!(inbound.closed(&process).code, 1006, "behind {before}");
        }
    });
}

/// What is wrong with what a client has sent is said, though nothing more comes of it.
#[test]
fn whoever_is_refused_hears_why_before_the_end() {
    on_each_driver(|driver| {
        let broker = support::broker(driver, |config| {
            config.tls_listen = Some(([127, 0, 0, 1], 0).into());
            config.shard.tls = Some(tls::server());
        });
        let _process = support::process(&broker, "left", AttachOptions::default());
        let upgrade =
            b"GET /left:test:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let (plain, over_tls) = (broker.address(), broker.tls_address().unwrap());
        // Not masked: the code 1002 of a close frame. No ClientHello: an alert in the plain.
        for (address, said, told) in [
            (plain, [&upgrade[..], &[0x81, 1, b'x']].concat(), vec![0x03, 0xea]),
            (over_tls, vec![22, 3, 1, 0, 4, 2, 0, 0, 0], vec![21, 3, 3, 0, 2, 2]),
        ] {
            for _ in 0..20 {
                let mut stream = stream(address);
                stream.write_all(&said).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                let is_told = heard.windows(told.len()).any(|bytes| bytes == told);
                assert!(is_told, "{}", heard.escape_ascii());
            }
        }
    });
}
