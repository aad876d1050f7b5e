//! Clients behind a balancer that sends PROXY headers are known by the address in the header, everywhere: in events of
//! the process, in limits per client, among channels and ends. The header is required from those addresses and not read
//! from others; it may arrive in any pieces; any other first bytes end the connection and nothing more.

use crate::support;

use pushring::{AttachOptions, Broker, ChannelId, Event, Process};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{DriverKind, Inbound, PATIENCE, broker, free_port, on_each_driver, process, recv, send};
use tungstenite::Message;

const UPGRADE: &str = "GET /seen:test:sys/ HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// A balancer's address; others of loopback are none.
const BALANCER: &str = "127.0.0.7";

fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family, 0, block.len() as u8][..], block].concat()
}

fn started(driver: DriverKind, change: impl FnOnce(&mut pushring::Config)) -> (Broker, Process) {
    let broker = broker(driver, |config| {
        config.settings.proxy_protocol_from = vec![BALANCER.parse().unwrap()];
        change(config);
    });
    let process = process(&broker, "seen", AttachOptions::default());
    (broker, process)
}

fn connect(from: &str, broker: &Broker) -> TcpStream {
    connect_to(from, broker.address())
}

fn connect_to(from: &str, to: SocketAddr) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The server's bytes until it ends the connection, or until the end of a head.
fn answer(stream: &mut TcpStream) -> String {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1..) => said.push(byte[0]),
            Ok(0) => break,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "never cut");
                break;
            }
        }
    }
    String::from_utf8(said).unwrap()
}

/// The next channel, and the address that the process was told of its client.
fn opened(inbound: &mut Inbound, process: &Process) -> (ChannelId, SocketAddr) {
    loop {
        match inbound.next(process) {
            Event::Opened(opened) => return (opened.channel, opened.source),
            // Of clients before.
            Event::Closed(_) => {}
            other => panic!("expected Opened, got {other:?}"),
        }
    }
}

fn told(inbound: &mut Inbound, process: &Process) -> SocketAddr {
    opened(inbound, process).1
}

fn refused(broker: &Broker) -> u64 {
    broker.handle().reports().iter().map(|report| report.stats.proxy_headers_refused).sum()
}

#[test]
fn its_address_is_the_clients_in_whatever_pieces_it_comes() {
    on_each_driver(|driver| {
        let (broker, process) = started(driver, |_| {});
        let mut inbound = Inbound::default();
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 0x04, 0x01, 0xbb];
        let padded = [&v4[..], &[4, 0, 200], &[0; 200]].concat();
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n".to_vec(), "203.0.113.9:4711"),
            (b"PROXY TCP6 2001:db8::9 ::1 4711 443\r\n".to_vec(), "[2001:db8::9]:4711"),
            (binary(0x21, 0x11, &v4), "203.0.113.7:56324"),
            (binary(0x21, 0x11, &padded), "203.0.113.7:56324"),
        ] {
            let (client, stream) = (client.parse::<SocketAddr>().unwrap(), [&header, UPGRADE.as_bytes()].concat());
            // At every split of the header, and all of it in single bytes.
            for split in (0..=header.len()).step_by(if header.len() > 100 { 37 } else { 9 }) {
                let mut connection = connect(BALANCER, &broker);
                connection.write_all(&stream[..split]).unwrap();
                wait_until_read(&broker, split);
                connection.write_all(&stream[split..]).unwrap();
                assert!(answer(&mut connection).starts_with("HTTP/1.1 101 "), "{split}");
                assert_eq!(told(&mut inbound, &process), client);
            }
            let mut connection = connect(BALANCER, &broker);
            for byte in stream {
                connection.write_all(&[byte]).unwrap();
            }
            assert!(answer(&mut connection).starts_with("HTTP/1.1 101 "));
            assert_eq!(told(&mut inbound, &process), client);
        }
        assert_eq!(refused(&broker), 0);
    });
}

/// Until the shards have read so much more, or for a moment: which pieces are read at once is up to the kernel.
fn wait_until_read(broker: &Broker, bytes: usize) {
    let read = || broker.handle().reports().iter().map(|report| report.stats.received_bytes).sum::<u64>();
    let (before, until) = (read(), Instant::now() + Duration::from_millis(20));
    while read() < before + bytes as u64 && Instant::now() < until {
        std::thread::yield_now();
    }
}

/// Memory held for a header is given back with it, also if no bytes follow it yet.
#[test]
fn a_long_one_is_counted_as_long_as_it_is_held() {
    let (broker, process) = started(DriverKind::Auto, |_| {});
    let mut inbound = Inbound::default();
    let block = [&[203, 0, 113, 7, 10, 0, 0, 1, 0, 1, 0, 1][..], &[4, 0x0b, 0xb8], &[0; 3000]].concat();
    let length = u16::try_from(block.len()).unwrap().to_be_bytes();
    let header = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &length, &block].concat();
    let mut connection = connect(BALANCER, &broker);
    for piece in [&header[..2000], &header[2000..], UPGRADE.as_bytes()] {
        connection.write_all(piece).unwrap();
        wait_until_read(&broker, piece.len());
    }
    assert!(answer(&mut connection).starts_with("HTTP/1.1 101 "));
    assert_eq!(told(&mut inbound, &process), "203.0.113.7:1".parse().unwrap());
}

#[test]
fn who_has_no_address_keeps_the_sockets() {
    let (broker, process) = started(DriverKind::Auto, |_| {});
    let mut inbound = Inbound::default();
    for header in
        [b"PROXY UNKNOWN\r\n".to_vec(), binary(0x20, 0, &[]), binary(0x21, 0, &[]), binary(0x20, 0x11, &[9; 20])]
    {
        let mut connection = connect(BALANCER, &broker);
        connection.write_all(&[&header, UPGRADE.as_bytes()].concat()).unwrap();
        assert!(answer(&mut connection).starts_with("HTTP/1.1 101 "));
        assert_eq!(told(&mut inbound, &process), connection.local_addr().unwrap());
    }
}

#[test]
fn from_a_balancer_it_is_required_and_from_others_it_is_not_read() {
    on_each_driver(|driver| {
        let (broker, process) = started(driver, |_| {});
        let mut inbound = Inbound::default();
        let hostile: [&[u8]; 7] = [
            UPGRADE.as_bytes(),
            b"\x16\x03\x01\x00\x05hello",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\nGET / HTTP/1.1\r\n\r\n",
            &[b'P'; 200],
            &[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
            &binary(0x31, 0x11, &[0; 12]),
            &[&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 4096]].concat(),
        ];
        for (number, bytes) in hostile.into_iter().enumerate() {
            let mut connection = connect(BALANCER, &broker);
            connection.write_all(bytes).unwrap();
            assert_eq!(answer(&mut connection), "", "{number}");
            assert_eq!(refused(&broker), number as u64 + 1);
        }
        // From elsewhere it is what comes first on an HTTP connection: no request.
        let mut connection = connect("127.0.0.8", &broker);
        connection.write_all(format!("PROXY TCP4 203.0.113.9 10.0.0.1 1 1\r\n{UPGRADE}").as_bytes()).unwrap();
        assert!(answer(&mut connection).starts_with("HTTP/1.1 400 "));
        let mut connection = connect("127.0.0.8", &broker);
        connection.write_all(UPGRADE.as_bytes()).unwrap();
        assert!(answer(&mut connection).starts_with("HTTP/1.1 101 "));
        assert_eq!(told(&mut inbound, &process), connection.local_addr().unwrap());
    });
}

#[test]
fn one_that_does_not_come_in_time_ends_the_connection() {
    let (broker, _process) = started(DriverKind::Auto, |config| config.shard.head_timeout_ms = 500);
    for start in [&b""[..], b"PROXY TCP4 1.2", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x01"] {
        let mut connection = connect(BALANCER, &broker);
        connection.write_all(start).unwrap();
        assert_eq!(answer(&mut connection), "");
    }
}

/// A balancer on this machine, or the header's contents, make no client a local one.
#[test]
fn who_is_relayed_is_not_on_this_machine() {
    let (broker, process) = started(DriverKind::Auto, |config| config.settings.expose_local = true);
    let rule = pushring::internals::gateway::HttpRule { local_only: true, ..Default::default() };
    process.bind_http("/secret", rule).unwrap();
    let status = |from: &str, header: &[u8]| {
        let mut connection = connect(from, &broker);
        connection.write_all(header).unwrap();
        connection.write_all(b"GET /seen:test:sys/secret HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        answer_of_process_or_refusal(&process, connection)
    };
    for header in
        ["PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n", "PROXY UNKNOWN\r\n", "PROXY TCP4 203.0.113.1 1.1.1.1 1 1\r\n"]
    {
        assert_eq!(status(BALANCER, header.as_bytes()), "403", "{header}");
    }
    assert_eq!(status("127.0.0.8", b""), "asked");
    assert_eq!(status(BALANCER, &binary(0x20, 0, &[])), "asked", "the balancer itself is on this machine");
}

fn answer_of_process_or_refusal(process: &Process, mut connection: TcpStream) -> String {
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut head = [0; 12];
    while Instant::now() < until {
        let mut events = Vec::new();
        process.recv_batch(&mut events, Duration::ZERO).unwrap();
        if events.iter().any(|event| matches!(event, Event::Http(_))) {
            return "asked".to_owned();
        }
        if connection.read_exact(&mut head).is_ok() {
            return String::from_utf8_lossy(&head[9..]).into_owned();
        }
    }
    panic!("no answer");
}

#[test]
fn limits_and_records_are_by_its_address() {
    on_each_driver(|driver| {
        let (broker, process) = started(driver, |config| config.admission.connections_per_ip_max = 2);
        let mut inbound = Inbound::default();
        let open = |client: &str| {
            let mut connection = connect(BALANCER, &broker);
            connection.write_all(format!("PROXY TCP4 {client} 10.0.0.1 1 1\r\n{UPGRADE}").as_bytes()).unwrap();
            let said = answer(&mut connection);
            (said, connection)
        };
        let clients = [open("203.0.113.1"), open("203.0.113.1")];
        assert!(clients.iter().all(|(said, _)| said.starts_with("HTTP/1.1 101 ")));
        assert!(open("203.0.113.1").0.starts_with("HTTP/1.1 503 "), "its third");
        assert!(open("203.0.113.2").0.starts_with("HTTP/1.1 101 "), "another's first");
        for client in ["203.0.113.1", "203.0.113.1", "203.0.113.2"] {
            assert_eq!(told(&mut inbound, &process).ip(), client.parse::<IpAddr>().unwrap());
        }
        // Places come back.
        drop(clients);
        let until = Instant::now() + PATIENCE;
        while !open("203.0.113.1").0.starts_with("HTTP/1.1 101 ") {
            assert!(Instant::now() < until, "its places do not come back");
        }
        let ends = broker.handle().disconnects();
        assert!(ends.iter().any(|end| end.peer.ip().to_string() == "203.0.113.1"), "{ends:?}");
    });
}

/// TLS begins behind it, whatever a read brings of both.
#[test]
fn on_the_listener_of_tls_it_comes_before_tls() {
    on_each_driver(|driver| {
        let (broker, process) = started(driver, |config| {
            config.tls_listen = Some(([127, 0, 0, 1], 0).into());
            config.shard.tls = Some(support::tls::server());
        });
        let mut inbound = Inbound::default();
        for pieces in [vec![43], vec![10, 33], vec![1; 43]] {
            let mut connection = connect_to(BALANCER, broker.tls_address().unwrap());
            let mut header = &b"PROXY TCP4 203.0.113.9 10.0.0.1 4711 443\r\n"[..];
            for piece in pieces {
                let (now, later) = header.split_at(piece.min(header.len()));
                connection.write_all(now).unwrap();
                header = later;
            }
            connection.write_all(header).unwrap();
            let mut sealed = support::Patient::over_tls(connection).unwrap();
            sealed.write_all(UPGRADE.as_bytes()).unwrap();
            let mut status = [0; 12];
            sealed.read_exact(&mut status).unwrap();
            assert_eq!(&status, b"HTTP/1.1 101");
            assert_eq!(told(&mut inbound, &process), "203.0.113.9:4711".parse().unwrap());
        }
        // A client without a header is disconnected, also if it speaks TLS.
        let connection = connect_to(BALANCER, broker.tls_address().unwrap());
        assert!(support::Patient::over_tls(connection).is_err());
        assert_eq!(refused(&broker), 1);
    });
}

/// A program that ends with the test.
struct Running(Child, PathBuf);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(&self.1);
    }
}

/// Starts `program` with the file of settings that `config` writes for a port and a directory; `None`: it is not here.
fn balancer(program: &str, args: &[&str], config: impl Fn(u16, &Path) -> String) -> Option<(u16, Running)> {
    let port = free_port();
    let directory = std::env::temp_dir().join(format!("pushring-{program}-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = directory.join("settings");
    std::fs::write(&file, config(port, &directory)).unwrap();
    let paths = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.env("PATH", paths).args(args).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(child) = command.spawn() else {
        println!("NOT RUN: there is no {program}");
        return None;
    };
    let mut running = Running(child, directory);
    let until = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(running.0.try_wait().unwrap().is_none(), "{program} does not start");
        assert!(Instant::now() < until, "{program} does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Some((port, running))
}

/// A client through the balancer at `port` is told by its own address, and talks with the process.
fn talks_through(port: u16, broker: &Broker, process: &Process) {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let own = stream.local_addr().unwrap();
    let url = format!("ws://localhost:{}/seen:test:sys/", broker.address().port());
    let (mut client, _) = tungstenite::client(url, support::Patient::new(stream)).unwrap();
    let mut inbound = Inbound::default();
    let (channel, source) = opened(&mut inbound, process);
    assert_eq!(source, own);
    send(&mut client, Message::text("through"));
    assert_eq!(inbound.message(process, channel), "through");
    process.push(channel, support::Push::text("back")).try_send().unwrap();
    assert_eq!(recv(&mut client), Message::text("back"));
    drop(client);
    inbound.closed(process);
}

#[test]
fn haproxy_sends_both_versions() {
    let (broker, process) = started(DriverKind::Auto, |config| {
        config.settings.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()];
    });
    for send in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority"] {
        let config = |port: u16, _: &Path| {
            format!(
                "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
                 frontend f\n bind 127.0.0.1:{port}\n unique-id-format %pid-%rt\n default_backend b\n\
                 backend b\n server one {} {send} check inter 200ms check-send-proxy\n",
                broker.address()
            )
        };
        let Some((port, _running)) = balancer("haproxy", &["-f"], config) else { return };
        talks_through(port, &broker, &process);
        // Its checks begin with a header too, which says that they are its own.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(refused(&broker), 0, "{send}");
    }
}

#[test]
fn nginx_sends_a_line() {
    let named = std::env::var("NGINX_STREAM_MODULE").ok();
    let module = named.unwrap_or_else(|| "/usr/lib/nginx/modules/ngx_stream_module.so".to_owned());
    if !Path::new(&module).exists() {
        println!("NOT RUN: nginx has no stream module at {module} (NGINX_STREAM_MODULE names another)");
        return;
    }
    let (broker, process) = started(DriverKind::Auto, |config| {
        config.settings.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()];
    });
    let config = |port: u16, directory: &Path| {
        format!(
            "load_module {module};\ndaemon off;\npid {0}/pid;\nerror_log {0}/log;\nevents {{ }}\nstream {{\n\
             server {{ listen 127.0.0.1:{port}; proxy_pass {1}; proxy_protocol on; }}\n}}\n",
            directory.display(),
            broker.address()
        )
    };
    let Some((port, _running)) = balancer("nginx", &["-c"], config) else { return };
    talks_through(port, &broker, &process);
    assert_eq!(refused(&broker), 0);
}
