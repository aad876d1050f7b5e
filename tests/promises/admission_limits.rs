//! Limits on the number of connections, in all and from one address, and on their rate: a client over a limit gets a
//! 503 with Retry-After at once, and others are not affected. The address that a client claims counts only from a
//! trusted proxy.

use crate::support;
use pushring::{AttachOptions, Broker, Stats};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use support::{Client, DriverKind, Inbound, PATIENCE, broker, connect, on_each_driver, process, recv, send};
use tungstenite::Message;

/// A connection from an address of our choice; all of 127.0.0.0/8 is this machine.
fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The answer to an upgrade request.
enum Answer {
    Open(Box<Client>),
    /// The whole response.
    Refused(String),
}

impl Answer {
    #[track_caller]
    fn open(self) -> Client {
        match self {
            Self::Open(client) => *client,
            Self::Refused(response) => panic!("refused: {response}"),
        }
    }

    /// Asserts that it is a 503 in words, after which the server closes.
    #[track_caller]
    fn refused(self, retry_after_s: u32, words: &str) {
        let Self::Refused(response) = self else { panic!("opened, although over a limit") };
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert!(response.contains(&format!("\r\nretry-after: {retry_after_s}\r\n")), "{response}");
        assert!(response.contains(words), "{response}");
    }
}

/// Asks for a WebSocket on `stream`, with more header fields, each ended by CR LF.
fn upgrade(stream: TcpStream, path: &str, fields: &str) -> Answer {
    let mut stream = support::Patient::new(stream);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
    );
    // A client that is turned away may have been told so already.
    let _ = stream.write_all(head.as_bytes());
    let mut response = Vec::new();
    let mut byte = [0];
    while !response.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        response.push(byte[0]);
    }
    if response.starts_with(b"HTTP/1.1 101 ") {
        let role = tungstenite::protocol::Role::Client;
        let client = tungstenite::WebSocket::from_raw_socket(stream, role, None);
        return Answer::Open(Box::new(client));
    }
    stream.read_to_end(&mut response).unwrap();
    Answer::Refused(String::from_utf8(response).unwrap())
}

fn stats(broker: &Broker, of: impl Fn(&Stats) -> u64) -> u64 {
    broker.handle().reports().iter().map(|report| of(&report.stats)).sum()
}

/// Waits until the broker has let go of all but `count` connections.
fn wait_for_connections(broker: &Broker, count: usize) {
    let until = Instant::now() + PATIENCE;
    while broker.handle().reports().iter().map(|report| report.connections).sum::<usize>() > count {
        assert!(Instant::now() < until, "connections stay");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_limit_of_connections_holds_for_all_shards_together() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| {
            config.shards = 3;
            config.admission.connections_max = 40;
        });
        let process = process(&broker, "limits", AttachOptions::default());
        let mut inbound = Inbound::default();
        let mut clients: Vec<_> = (0..40).map(|_| inbound.open(&broker, &process).0).collect();
        for _ in 0..30 {
            let stream = connect_from([127, 0, 0, 1], broker.address());
            upgrade(stream, "/limits:test:sys/", "").refused(5, "as many connections as it takes");
        }
        assert_eq!(stats(&broker, |stats| stats.turned_away), 30);
        for client in &mut clients {
            client.send(Message::Ping("still here".into())).unwrap();
            assert_eq!(client.read().unwrap(), Message::Pong("still here".into()));
        }
        // As many places are free as clients have gone, whichever shards they were on.
        clients.truncate(33);
        wait_for_connections(&broker, 33);
        clients.extend((0..7).map(|_| connect(&broker, "/limits:test:sys/")));
        let stream = connect_from([127, 0, 0, 1], broker.address());
        upgrade(stream, "/limits:test:sys/", "").refused(5, "as many connections as it takes");
    });
}

#[test]
fn those_that_are_turned_away_are_bounded_themselves() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| {
            config.admission.connections_max = 1;
            config.admission.turned_away_max = 8;
        });
        let process = process(&broker, "limits", AttachOptions::default());
        let (mut witness, _) = Inbound::default().open(&broker, &process);
        // They neither read nor close: each that is answered holds its place for as long as we linger.
        let crowd: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(broker.address()).unwrap()).collect();
        let mut answered = 0;
        for mut stream in crowd {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut response = String::new();
            // A client closed without an answer may see a reset.
            let _ = stream.read_to_string(&mut response);
            assert!(response.is_empty() || response.starts_with("HTTP/1.1 503 "), "{response}");
            answered += usize::from(!response.is_empty());
        }
        assert!((8..64).contains(&answered), "{answered} of 64 were answered");
        assert_eq!(stats(&broker, |stats| stats.let_go), 64 - answered as u64);
        wait_for_connections(&broker, 1);
        witness.send(Message::Ping("a".into())).unwrap();
        assert_eq!(witness.read().unwrap(), Message::Pong("a".into()));
    });
}

#[test]
fn one_address_cannot_take_the_places_of_others() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.admission.connections_per_ip_max = 5);
        let _process = process(&broker, "limits", AttachOptions::default());
        let open = |from| upgrade(connect_from(from, broker.address()), "/limits:test:sys/", "");
        let mut clients: Vec<_> = (0..5).map(|_| open([127, 0, 0, 2]).open()).collect();
        open([127, 0, 0, 2]).refused(5, "from your address");
        let _neighbour = open([127, 0, 0, 3]).open();
        assert_eq!(stats(&broker, |stats| stats.turned_away_per_ip), 1);
        // HTTP connections that ask for nothing take places too, until they are gone.
        clients.pop();
        wait_for_connections(&broker, 5);
        let silent = connect_from([127, 0, 0, 2], broker.address());
        let until = Instant::now() + PATIENCE;
        while stats(&broker, |stats| stats.accepted) < 8 {
            assert!(Instant::now() < until);
        }
        open([127, 0, 0, 2]).refused(5, "from your address");
        drop(silent);
        wait_for_connections(&broker, 5);
        open([127, 0, 0, 2]).open();
    });
}

#[test]
fn one_ipv6_network_is_one_client() {
    // ::1 is all of IPv6 that loopback has; that a /64 counts as one is `admission::prefix`'s test.
    let broker = broker(DriverKind::Auto, |config| {
        config.listen = "[::1]:0".parse().unwrap();
        config.admission.connections_per_ip_max = 2;
    });
    let _process = process(&broker, "limits", AttachOptions::default());
    let open = || upgrade(TcpStream::connect(broker.address()).unwrap(), "/limits:test:sys/", "");
    let _clients = [open().open(), open().open()];
    open().refused(5, "from your address");
}

#[test]
fn handshakes_of_one_address_are_limited_by_the_second() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.admission.handshakes_per_ip_per_s_max = 10);
        let _process = process(&broker, "limits", AttachOptions::default());
        let open = |from| upgrade(connect_from(from, broker.address()), "/limits:test:sys/", "");
        let started = Instant::now();
        let mut opened = 0;
        let mut refused = 0;
        while refused == 0 {
            match open([127, 0, 0, 2]) {
                Answer::Open(_) => opened += 1,
                answer => {
                    answer.refused(1, "per second from your address");
                    refused += 1;
                }
            }
        }
        let most = 10.0 + started.elapsed().as_secs_f64() * 10.0;
        assert!(opened >= 10 && f64::from(opened) <= most, "{opened} in {:?}", started.elapsed());
        // A path that refuses all clients costs a handshake too.
        let mut neighbour = (0..20).map(|_| upgrade(connect_from([127, 0, 0, 3], broker.address()), "/", "X-Y: 1\r\n"));
        assert!(neighbour.any(|answer| matches!(answer, Answer::Refused(response) if response.contains(" 503 "))));
        // A tenth of a second later one more may.
        std::thread::sleep(Duration::from_millis(200));
        open([127, 0, 0, 2]).open();
        assert!(stats(&broker, |stats| stats.handshakes_refused) >= 2);
    });
}

#[test]
fn exempt_addresses_have_no_limits_of_their_own() {
    let broker = broker(DriverKind::Auto, |config| {
        config.admission.connections_per_ip_max = 1;
        config.admission.handshakes_per_ip_per_s_max = 1;
        config.admission.per_ip_exempt = vec!["127.0.0.2".parse().unwrap()];
    });
    let _process = process(&broker, "limits", AttachOptions::default());
    let open = |from| upgrade(connect_from(from, broker.address()), "/limits:test:sys/", "");
    let _clients: Vec<_> = (0..10).map(|_| open([127, 0, 0, 2]).open()).collect();
    let _first = open([127, 0, 0, 3]).open();
    open([127, 0, 0, 3]).refused(5, "from your address");
}

#[test]
fn a_claim_of_an_untrusted_client_changes_nothing() {
    let broker = broker(DriverKind::Auto, |config| {
        config.admission.connections_per_ip_max = 2;
        config.settings.trusted_proxies = vec!["127.0.0.9".parse().unwrap()];
    });
    let process = process(&broker, "limits", AttachOptions::default());
    let open = |claim: &str| {
        let fields = format!("X-Forwarded-For: {claim}\r\nX-Real-IP: {claim}\r\nForwarded: for={claim}\r\n");
        upgrade(connect_from([127, 0, 0, 2], broker.address()), "/limits:test:sys/", &fields)
    };
    let _clients = [open("198.51.100.1").open(), open("198.51.100.2").open()];
    open("198.51.100.3").refused(5, "from your address");
    // Nor does it take anything from the one that it names.
    let mut victim = upgrade(connect_from([127, 0, 0, 3], broker.address()), "/limits:test:sys/", "").open();
    send(&mut victim, Message::text("hello"));
    let mut inbound = Inbound::default();
    let channel = (0..3).map(|_| inbound.opened(&process)).last().unwrap();
    assert_eq!(inbound.message(&process, channel), "hello");
}

#[test]
fn behind_a_trusted_proxy_the_client_is_whom_the_last_proxy_saw() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| {
            config.admission.connections_per_ip_max = 2;
            config.admission.handshakes_per_ip_per_s_max = 10_000;
            config.settings.trusted_proxies = vec!["127.0.0.9".parse().unwrap(), "10.0.0.0/8".parse().unwrap()];
        });
        let _process = process(&broker, "limits", AttachOptions::default());
        let open = |forwarded: &str| {
            let fields = format!("X-Forwarded-For: {forwarded}\r\n");
            upgrade(connect_from([127, 0, 0, 9], broker.address()), "/limits:test:sys/", &fields)
        };
        // Right-most untrusted: what the client itself wrote stands further left, our own proxies further right.
        let clients = [open("6.6.6.6, 203.0.113.7").open(), open("7.7.7.7, 203.0.113.7, 10.1.1.1").open()];
        open("8.8.8.8, 203.0.113.7").refused(5, "from your address");
        open("203.0.113.7").refused(5, "from your address");
        let _neighbour = open("203.0.113.7, 203.0.113.8").open();
        // An IPv6 /64 is one client.
        let _v6 = [open("2001:db8::1").open(), open("[2001:db8::2]:443").open()];
        open("2001:db8:0:0:3::").refused(5, "from your address");
        let _other_v6 = open("2001:db8:0:1::1").open();
        // The proxy itself, and requests for which it names no client, are not counted.
        let _health: Vec<_> = (0..5)
            .map(|_| upgrade(connect_from([127, 0, 0, 9], broker.address()), "/limits:test:sys/", "").open())
            .chain((0..5).map(|_| open("10.2.2.2").open()))
            .collect();
        // Places come back.
        let before = broker.handle().reports().iter().map(|report| report.connections).sum::<usize>();
        drop(clients);
        wait_for_connections(&broker, before - 2);
        let _again = [open("203.0.113.7").open(), open("203.0.113.7").open()];
        open("203.0.113.7").refused(5, "from your address");
    });
}

#[test]
fn a_proxys_connection_carries_requests_of_many_clients() {
    let broker = broker(DriverKind::Auto, |config| {
        config.admission.connections_per_ip_max = 1;
        config.admission.handshakes_per_ip_per_s_max = 1;
        config.settings.trusted_proxies = vec!["127.0.0.9".parse().unwrap()];
    });
    let process = process(&broker, "limits", AttachOptions::default());
    let mut inbound = Inbound::default();
    let mut stream = connect_from([127, 0, 0, 9], broker.address());
    for client in 1..=5 {
        write!(stream, "HEAD /nothing HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.{client}\r\n\r\n")
            .unwrap();
        let mut response = Vec::new();
        let mut byte = [0];
        while !response.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            response.push(byte[0]);
        }
        assert!(response.starts_with(b"HTTP/1.1 404 "));
    }
    // It becomes the WebSocket of its last client, and is counted as that.
    let mut client = upgrade(stream, "/limits:test:sys/", "X-Forwarded-For: 203.0.113.6\r\n").open();
    let channel = inbound.opened(&process);
    process.push(channel, support::Push::text("hello")).try_send().unwrap();
    assert_eq!(recv(&mut client), Message::text("hello"));
    std::thread::sleep(Duration::from_millis(1100));
    let again = connect_from([127, 0, 0, 9], broker.address());
    upgrade(again, "/limits:test:sys/", "X-Forwarded-For: 203.0.113.6\r\n").refused(5, "from your address");
    let other = connect_from([127, 0, 0, 9], broker.address());
    upgrade(other, "/limits:test:sys/", "X-Forwarded-For: 203.0.113.5\r\n").open();
}
