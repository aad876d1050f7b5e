//! TLS of our own: clients with any library that speaks TLS 1.3 are served as without it; each kind of end is sent and
//! reported as such; and anything but TLS 1.3 is refused with the right alert.

use crate::support;

use pushring::{AttachOptions, Broker, Event};
use rustls::{ClientConnection, HandshakeKind};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::daemon::Daemon;
use support::{Client, DriverKind, Inbound, PATIENCE, Patient, Push, driver, recv, send, tls};
use tungstenite::Message;

const ECHO: &str = "/echo:pushring:sys/";

/// The demo over TLS alone.
fn start() -> Broker {
    support::demo(|config| {
        config.listens_plain = false;
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(tls::server());
    })
}

fn stream(broker: &Broker) -> TcpStream {
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn connect(broker: &Broker, path: &str) -> Client {
    let stream = Patient::over_tls(stream(broker)).unwrap();
    tungstenite::client(format!("wss://localhost:{}{path}", broker.address().port()), stream).unwrap().0
}

fn echoes(client: &mut Client) {
    for len in [0, 1, 125, 126, 16_383, 16_384, 16_385, 70_000, 1_000_000] {
        let message = Message::binary(vec![len as u8; len]);
        send(client, message.clone());
        assert_eq!(recv(client), message, "{len}");
    }
}

#[test]
fn a_client_is_echoed_and_http_is_answered() {
    let broker = start();
    assert_eq!(Some(broker.address()), broker.tls_address());
    echoes(&mut connect(&broker, ECHO));
    let mut stream = Patient::over_tls(stream(&broker)).unwrap();
    stream.write_all(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\nGET /elsewhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answers = String::new();
    // An end without close_notify would be an error here.
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 2, "{answers}");
}

#[test]
fn sixteen_pushes_come_in_order_whole_and_merged() {
    let broker = start();
    let process = support::process(&broker, "tls", AttachOptions::default());
    let mut client = connect(&broker, "/tls:test:sys/");
    let channel = Inbound::default().opened(&process);
    for number in 0..5_000_u32 {
        process.push(channel, Push::binary(number.to_be_bytes().repeat(32))).send().unwrap();
    }
    for number in 0..5_000_u32 {
        assert_eq!(recv(&mut client), Message::binary(number.to_be_bytes().repeat(32)));
    }
}

/// Keys are renewed by the client, again and again, and by an own record layer that answers.
#[test]
fn a_client_may_renew_its_keys() {
    let broker = start();
    let (mut stream, mut connection) = tls::connect(stream(&broker), "localhost").unwrap();
    let upgrade = format!(
        "GET {ECHO} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    connection.writer().write_all(upgrade.as_bytes()).unwrap();
    let mut got = read_until(&mut connection, &mut stream, |got| got.ends_with(b"\r\n\r\n"));
    assert!(got.starts_with(b"HTTP/1.1 101"));
    for round in 0..9_u8 {
        connection.refresh_traffic_keys().unwrap();
        // A text of one byte, masked with zeros.
        connection.writer().write_all(&[0x81, 0x81, 0, 0, 0, 0, b'a' + round]).unwrap();
        got = read_until(&mut connection, &mut stream, |got| got.len() == 3);
        assert_eq!(got, [0x81, 1, b'a' + round]);
    }
}

fn read_until(connection: &mut ClientConnection, stream: &mut TcpStream, done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut got = Vec::new();
    while !done(&got) {
        let mut buffer = [0; 4096];
        let count = rustls::Stream::new(connection, stream).read(&mut buffer).unwrap();
        assert!(count > 0, "an end behind {got:?}");
        got.extend_from_slice(&buffer[..count]);
    }
    got
}

/// A broker with one process, which hears of its channels.
fn with_process() -> (Broker, pushring::Process) {
    let broker = start();
    let process = support::process(&broker, "ends", AttachOptions::default());
    (broker, process)
}

#[test]
fn an_end_without_close_notify_is_told_from_one_with_it() {
    let (broker, process) = with_process();
    let mut inbound = Inbound::default();
    for (says_goodbye, reason) in
        [(true, ""), (false, "the client ended TLS without close_notify: what it said last may be lost")]
    {
        let mut client = connect(&broker, "/ends:test:sys/");
        inbound.opened(&process);
        if says_goodbye {
            client.get_mut().say_goodbye().unwrap();
            // It is answered in kind: an end without it would be an error.
            assert_eq!(client.get_mut().read_to_end(&mut Vec::new()).unwrap(), 0);
        }
        drop(client);
        let closed = inbound.closed(&process);
        assert_eq!((closed.code, &*closed.reason), (1006, reason));
    }
    // By an alert that says an error.
    let mut client = connect(&broker, "/ends:test:sys/");
    inbound.opened(&process);
    // An invalid record: our answer is an alert, and the end.
    client.get_mut().stream.write_all(b"\x17\x03\x03\x00\x20nothing that could ever be opened").unwrap();
    let closed = inbound.closed(&process);
    assert_eq!((closed.code, &*closed.reason), (1006, "the client broke TLS: bad_record_mac (20)"));
    let error = client.read().unwrap_err().to_string();
    assert!(error.contains("BadRecordMac"), "{error}");
    let counts = tls_counts(&broker);
    assert_eq!((counts.full + counts.resumed, counts.truncated), (3, 1));
    assert_eq!(counts.alerts_sent, [(20, 1)].into());
    assert!(counts.certificates_end_unix_s.is_some());
}

fn tls_counts(broker: &Broker) -> pushring::internals::shard::tls_counts::TlsCounts {
    let mut sum = pushring::internals::shard::tls_counts::TlsCounts::default();
    for report in broker.handle().reports() {
        let counts = report.tls.unwrap();
        sum.full += counts.full;
        sum.resumed += counts.resumed;
        sum.connections += counts.connections;
        sum.refused += counts.refused;
        sum.given_up += counts.given_up;
        sum.timed_out += counts.timed_out;
        sum.let_go += counts.let_go;
        sum.truncated += counts.truncated;
        counts.alerts_sent.into_iter().for_each(|(alert, count)| *sum.alerts_sent.entry(alert).or_default() += count);
        sum.certificates_end_unix_s = counts.certificates_end_unix_s;
    }
    sum
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_client_that_comes_again_takes_up_where_it_was() {
    let broker = start();
    let kind = || {
        let mut stream = Patient::over_tls(stream(&broker)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        stream.handshake_kind()
    };
    assert_eq!(kind(), Some(HandshakeKind::Full));
    // On whichever shard.
    for _ in 0..6 {
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
    }
}

fn answer(broker: &Broker, said: &[u8]) -> Vec<u8> {
    let mut stream = stream(broker);
    stream.write_all(said).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn what_is_no_tls_is_told_so_and_let_go() {
    let broker = start();
    let told = answer(&broker, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let told = String::from_utf8(told).unwrap();
    assert!(told.starts_with("HTTP/1.1 400") && told.contains("speaks TLS"), "{told}");
    assert_eq!(answer(&broker, b"SSH-2.0-OpenSSH_9.2\r\n"), [21, 3, 3, 0, 2, 2, 50]);
    // A ClientHello without supported_versions is one of TLS 1.2.
    let mut hello = vec![22, 3, 1, 0, 55, 1, 0, 0, 51, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    assert_eq!(answer(&broker, &hello), [21, 3, 3, 0, 2, 2, 70]);
    // A message begun, and another record in the middle of it.
    let begun = [&[22, 3, 1, 0, 20], &hello[5..25], &[23, 3, 3, 0, 1, 0]].concat();
    assert_eq!(answer(&broker, &begun), [21, 3, 3, 0, 2, 2, 10]);
    let counts = tls_counts(&broker);
    assert_eq!((counts.refused, counts.alerts_sent), (4, [(10, 1), (50, 1), (70, 1)].into()));
    // Each ends in one way: who was refused has not given up.
    wait_until(|| tls_counts(&broker).connections == 0);
    assert_eq!((tls_counts(&broker).refused, tls_counts(&broker).given_up), (4, 0));
    stream(&broker).write_all(&hello[..20]).unwrap();
    wait_until(|| tls_counts(&broker).given_up == 1);
    // And others are served.
    echoes(&mut connect(&broker, ECHO));
}

#[test]
fn a_handshake_has_a_deadline() {
    let broker = support::demo(|config| {
        config.listens_plain = false;
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(tls::server());
        config.shard.tls_handshake_timeout_ms = 1_000;
    });
    let mut silent = stream(&broker);
    let mut slow = stream(&broker);
    slow.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    let began = Instant::now();
    for stream in [&mut silent, &mut slow] {
        assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0, "let go without a word");
    }
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(tls_counts(&broker).timed_out, 2);
}

/// A client that is behind meets its policy, and sees whole frames in order.
#[test]
fn what_a_full_socket_has_left_behind_is_subject_to_policy() {
    support::on_each_driver(|driver| {
        let broker = support::broker(driver, |config| {
            config.listens_plain = false;
            config.tls_listen = Some(([127, 0, 0, 1], 0).into());
            config.shard.tls = Some(tls::server());
            config.shard.outbound_bytes_max = 200_000;
        });
        let options = AttachOptions { policy: pushring::Policy::DropOldest, ..AttachOptions::default() };
        let process = support::process(&broker, "behind", options);
        let mut client = connect(&broker, "/behind:test:sys/");
        let channel = Inbound::default().opened(&process);
        let filled = support::fill(&process, channel, 5_000);
        for number in 0..200_u32 {
            process.push(channel, Push::binary(number.to_be_bytes().repeat(1_000))).send().unwrap();
        }
        process.push(channel, Push::text("end")).send().unwrap();
        let (mut filling, mut last) = (0, None);
        loop {
            match recv(&mut client) {
                Message::Binary(bytes) if bytes.len() == 5_000 => filling += 1,
                Message::Binary(bytes) => {
                    let number = u32::from_be_bytes(*bytes.first_chunk().unwrap());
                    assert_eq!(bytes, number.to_be_bytes().repeat(1_000));
                    assert!(last.is_none_or(|last| last < number), "in order");
                    last = Some(number);
                }
                Message::Text(text) if text == "end" => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(last, Some(199), "the newest are kept");
        assert!(filling <= filled);
        // And it is as good as any.
        process.push(channel, Push::text("on")).send().unwrap();
        assert_eq!(recv(&mut client), Message::text("on"));
    });
}

/// Files for programs, removed with this.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("pushring-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("ca.pem"), &tls::pair().chain).unwrap();
        Self(directory)
    }

    fn ca(&self) -> String {
        self.0.join("ca.pem").display().to_string()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The output of a program, or `None` where it is not installed.
fn program(name: &str, arguments: &[&str], input: &[u8]) -> Option<String> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("NOT RUN: there is no {name} here");
            return None;
        }
        Err(error) => panic!("{name}: {error}"),
    };
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// The demo makes its own certificate, which is self-signed.
#[test]
fn a_demo_over_tls_needs_no_certificate() {
    let daemon = Daemon::start(&["demo", "--tls", "--shards", "1"]);
    let url = format!("https://{}/", daemon.address);
    if let Some(said) = program("curl", &["-sS", "-k", "--http1.1", &url], b"") {
        assert!(said.contains("<title>"), "{said}");
    }
    daemon.signal("HUP");
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(
        log.contains("the certificate is self-signed") && !log.contains("an old name") && !log.contains(" ERROR "),
        "{log}"
    );
}

/// A client of java.net.http, as it stands in the JDK.
#[test]
fn java_is_served() {
    let (broker, files) = (start(), Files::new("java"));
    let source = files.0.join("Echo.java");
    std::fs::write(&source, include_str!("tls_is_spoken/Echo.java")).unwrap();
    let url = format!("wss://localhost:{}{ECHO}", broker.address().port());
    if let Some(said) = program("java", &[source.to_str().unwrap(), &files.ca(), &url], b"") {
        assert!(said.contains("heard from Java"), "{said}");
    }
}

#[test]
fn curl_openssl_and_python_are_served() {
    let (broker, files) = (start(), Files::new("programs"));
    let (port, ca) = (broker.address().port().to_string(), files.ca());
    let url = format!("https://localhost:{port}/nowhere");
    if let Some(said) = program("curl", &["-sS", "-i", "--http1.1", "--cacert", &ca, &url, &url], b"") {
        assert_eq!(said.matches("HTTP/1.1 404").count(), 2, "{said}");
    }
    let to = format!("localhost:{port}");
    let request = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let arguments = ["s_client", "-connect", &to, "-CAfile", &ca, "-servername", "localhost", "-alpn", "h2,http/1.1"];
    if let Some(said) = program("openssl", &[&arguments[..], &["-ign_eof"]].concat(), request) {
        for part in ["HTTP/1.1 404", "TLSv1.3", "Verify return code: 0 (ok)", "ALPN protocol: http/1.1"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    if let Some(said) = program("openssl", &[&arguments[..7], &["-tls1_2"]].concat(), b"") {
        assert!(said.contains("alert protocol version"), "{said}");
    }
    let script = format!(
        "import socket, ssl\n\
         context = ssl.create_default_context(cafile={ca:?})\n\
         raw = socket.create_connection(('localhost', {port}))\n\
         tls = context.wrap_socket(raw, server_hostname='localhost', suppress_ragged_eofs=False)\n\
         tls.sendall(b'GET /nowhere HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n')\n\
         got = b''\n\
         while part := tls.recv(4096): got += part\n\
         print(tls.version(), got.split(b'\\r\\n')[0], 'and', tls.unwrap() is not None)\n"
    );
    if let Some(said) = program("python3", &["-"], script.as_bytes()) {
        assert!(said.contains("TLSv1.3 b'HTTP/1.1 404 Not Found' and True"), "{said}");
    }
}

#[test]
fn a_handshake_split_at_every_byte_is_one() {
    let broker = start();
    let mut stream = stream(&broker);
    let mut connection = tls::connection(&tls::client(), "localhost");
    while connection.is_handshaking() {
        let mut sent = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut sent).unwrap();
        }
        for byte in sent {
            stream.write_all(&[byte]).unwrap();
        }
        if connection.is_handshaking() {
            connection.read_tls(&mut stream).unwrap();
            connection.process_new_packets().unwrap();
        }
    }
    connection.writer().write_all(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut sent = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut sent).unwrap();
    }
    for byte in sent {
        stream.write_all(&[byte]).unwrap();
    }
    let got = read_until(&mut connection, &mut stream, |got| got.len() > 12);
    assert!(got.starts_with(b"HTTP/1.1 404"));
}

#[test]
fn a_stop_says_goodbye_inside_and_outside() {
    let (broker, process) = with_process();
    let mut client = connect(&broker, "/ends:test:sys/");
    Inbound::default().opened(&process);
    let stopping = std::thread::spawn(move || broker.stop(Duration::from_secs(10)));
    assert_eq!(support::recv_close(&mut client).0, 1001);
    let _ = client.flush();
    // tungstenite says that it is over; an end without close_notify would be an error of the stream.
    let mut rest = Vec::new();
    client.get_mut().read_to_end(&mut rest).unwrap();
    drop(client);
    stopping.join().unwrap().unwrap();
    drop(process);
}

/// The addresses printed for both listeners.
#[test]
fn both_doors_lead_to_the_same_channels() {
    let broker = support::broker(DriverKind::Auto, |config| {
        config.tls_listen = Some(([127, 0, 0, 1], 0).into());
        config.shard.tls = Some(tls::server());
        config.driver = driver();
    });
    let process = support::process(&broker, "both", AttachOptions::default());
    let mut inbound = Inbound::default();
    let mut plain = support::connect(&broker, "/both:test:sys/");
    inbound.opened(&process);
    let address = broker.tls_address().unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let url = format!("wss://{address}/both:test:sys/");
    let mut sealed = tungstenite::client(url, Patient::over_tls(stream).unwrap()).unwrap().0;
    inbound.opened(&process);
    let outcome = process.broadcast(Push::text("to all")).ask().send().unwrap().wait(PATIENCE).unwrap();
    assert_eq!(outcome.sent, 2);
    for client in [&mut plain, &mut sealed] {
        assert_eq!(recv(client), Message::text("to all"));
        send(client, "heard");
        assert!(matches!(inbound.next(&process), Event::Message { .. }));
    }
}
