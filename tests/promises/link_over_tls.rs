//! Over TCP a link can use TLS. Processes and node kernels continue only with a broker whose certificate they were
//! given, show their token to no other, and are served as over a Unix socket, also when the connection is cut.

use crate::link_support::{Linked, Python, has_python};
use crate::node_support::{self, Node};
use crate::support::daemon::{Daemon, TemporaryFile, output, pushring};
use crate::support::{self, PATIENCE, free_port, recv, send, tls};
use pushring::Message as Payload;
use pushring::link::{Acceptor, Client, ClientOptions, ConnectError, Endpoint, LinkToken, RefusedCode, Trust};
use pushring::node::Dialect;
use pushring::{Broker, Config, Event, WebSocketRule};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use tungstenite::Message;

const TOKEN: &str = "a token that only this test knows";

fn linked(name: &str) -> (Linked, SocketAddr) {
    linked_at(support::broker(support::driver(), |_| {}), name)
}

fn linked_at(broker: Broker, name: &str) -> (Linked, SocketAddr) {
    let linked = Linked::at(broker, name, |config| {
        config.tcp = Some(([127, 0, 0, 1], 0).into());
        config.token = Some(LinkToken::new(TOKEN).unwrap());
        config.tls = Some(Acceptor::new(vec![tls::certificate(tls::pair())]).unwrap());
    });
    let address = linked.server.as_ref().unwrap().tcp_address().unwrap();
    (linked, address)
}

fn trust(pair: &tls::Pair) -> Trust {
    Trust::from_pem(pair.chain.as_bytes()).unwrap()
}

fn endpoint(address: impl ToString, trust: Trust) -> Endpoint {
    Endpoint::Tls { address: address.to_string(), token: LinkToken::new(TOKEN).unwrap(), trust }
}

fn connect(endpoint: Endpoint) -> Result<Client, ConnectError> {
    Client::connect(endpoint, &"p:test:sys".parse().unwrap(), ClientOptions::default())
}

/// The next event of a process.
fn next(process: &Client, events: &mut Vec<Event>) -> Event {
    while events.is_empty() {
        process.recv_batch(events, PATIENCE).unwrap();
    }
    events.remove(0)
}

#[test]
fn a_process_is_served_and_its_bytes_arrive() {
    let (linked, address) = linked("tls-process");
    let process = connect(endpoint(address, trust(tls::pair()))).unwrap();
    process.bind("/", WebSocketRule::default()).unwrap();
    let mut client = support::connect(&linked.broker, "/p:test:sys/");
    let mut events = Vec::new();
    let Event::Opened(opened) = next(&process, &mut events) else { panic!("no Opened") };
    for bytes in [0, 1, 16_384, 16_385, 3 << 20] {
        let payload: Vec<u8> = (0..bytes).map(|at| (at * 7) as u8).collect();
        send(&mut client, Message::binary(payload.clone()));
        let Event::Message { payload: message, .. } = next(&process, &mut events) else { panic!("no message") };
        assert!(message == payload, "{bytes} bytes came in");
        process.push(opened.channel, Payload::binary(payload.clone()), None, None).unwrap();
        assert!(recv(&mut client) == Message::binary(payload), "{bytes} bytes went out");
    }
    linked.stop();
}

#[test]
fn who_is_not_trusted_hears_no_token_and_who_has_none_is_refused() {
    let (linked, address) = linked("tls-refused");
    let stranger = tls::make(&["127.0.0.1"]);
    let error = connect(endpoint(address, trust(&stranger))).err().unwrap().to_string();
    assert!(error.contains("certificate"), "{error}");
    let wrong = LinkToken::new("a token that somebody has guessed").unwrap();
    let wrong = Endpoint::Tls { address: address.to_string(), token: wrong, trust: trust(tls::pair()) };
    let refused = connect(wrong);
    assert!(matches!(refused, Err(ConnectError::Refused(refused)) if refused.code == RefusedCode::Token));
    // Plaintext is refused in either direction.
    let plain = Endpoint::Tcp { address: address.to_string(), token: LinkToken::new(TOKEN).unwrap() };
    assert!(connect(plain).is_err());

    // An impostor in the broker's place, with a certificate of its own.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = Acceptor::new(vec![tls::certificate(&stranger)]).unwrap();
    let heard = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let (mut duplex, mut heard, mut buffer) = (impostor.accept().unwrap(), Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let mut at = 0;
            while at < count {
                let Ok(taken) = duplex.take_in(&buffer[at..count]) else { return heard };
                at += taken;
                let mut said = [0; 4096];
                while let Ok(Some(count @ 1..)) = duplex.read(&mut said) {
                    heard.extend_from_slice(&said[..count]);
                }
            }
            let mut out = Vec::new();
            duplex.take_out(&mut out);
            stream.write_all(&out).unwrap();
        }
        heard
    });
    assert!(connect(endpoint(address, trust(tls::pair()))).is_err());
    assert!(heard.join().unwrap().is_empty());
    linked.stop();
}

/// Something between a peer and its broker that can be cut.
struct Relay {
    address: SocketAddr,
    connections: Receiver<[TcpStream; 2]>,
}

impl Relay {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, connections) = mpsc::channel();
        thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                let there = TcpStream::connect(to).unwrap();
                let copies = [here.try_clone().unwrap(), there.try_clone().unwrap()];
                for (mut from, mut to) in [(here.try_clone(), there.try_clone()), (Ok(there), Ok(here))]
                    .map(|(from, to)| (from.unwrap(), to.unwrap()))
                {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                if sender.send(copies).is_err() {
                    return;
                }
            }
        });
        Self { address, connections }
    }

    /// Cuts what was connected first of those that are left.
    fn cut(&self) {
        for end in self.connections.recv_timeout(PATIENCE).unwrap() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_connection_that_is_cut_comes_back_and_nothing_is_lost() {
    let (linked, address) = linked("tls-cut");
    let relay = Relay::start(address);
    let process = connect(endpoint(relay.address, trust(tls::pair()))).unwrap();
    process.bind("/", WebSocketRule::default()).unwrap();
    let mut client = support::connect(&linked.broker, "/p:test:sys/");
    let mut events = Vec::new();
    let Event::Opened(opened) = next(&process, &mut events) else { panic!("no Opened") };
    for round in 0..3 {
        relay.cut();
        for number in 0..10 {
            let text = format!("{round} {number}");
            process.push(opened.channel, Payload::text(&text), None, None).unwrap();
            send(&mut client, text.as_str());
        }
        for number in 0..10 {
            let text = format!("{round} {number}");
            assert_eq!(recv(&mut client), Message::text(text.as_str()));
            let Event::Message { payload: message, .. } = next(&process, &mut events) else { panic!("no message") };
            assert_eq!(message, text.as_bytes());
        }
    }
    linked.stop();
}

#[test]
fn a_nodes_kernel_is_served() {
    let settings = pushring::node::settings(node_support::NODE, Dialect::Hyperdrive);
    let config = Config { settings, shards: 2, driver: support::driver(), ..Config::default() };
    let broker = Broker::start(Config { listen: ([127, 0, 0, 1], 0).into(), ..config }).unwrap();
    let (linked, address) = linked_at(broker, "tls-kernel");
    let (mut node, mut prints) = Node::attach_through(endpoint(address, trust(tls::pair())));
    node.address = node_support::listening(&mut prints);
    node.bind("app:app:test.os", "/");
    let (mut client, channel) = node.open("/app:app:test.os/");
    node.tell(1, "our@app:app:test.os", &node_support::push(channel), Some(b"sealed twice"));
    assert_eq!(recv(&mut client), Message::text("sealed twice"));
    linked.stop();
}

/// A daemon whose link is under TLS.
struct Served {
    daemon: Daemon,
    link: String,
    token: TemporaryFile,
    chain: TemporaryFile,
    key: TemporaryFile,
    control: String,
}

impl Served {
    fn start(name: &str, pair: &tls::Pair) -> Self {
        let file = |what: &str, text: &str| TemporaryFile::new(&format!("link-tls-{name}-{what}"), text);
        let (token, chain, key) = (file("token", TOKEN), file("chain", &pair.chain), file("key", &pair.key));
        let certs = format!("{}:{}", chain.path(), key.path());
        let control = std::env::temp_dir().join(format!("pushring-link-tls-{name}-{}.sock", std::process::id()));
        let control = control.to_str().unwrap().to_owned();
        // A port that was free a moment ago.
        let link = format!("127.0.0.1:{}", free_port());
        let args = ["serve", "--link-tcp", &link, "--link-token-file", token.path(), "--link-tls-certs", &certs];
        let daemon = Daemon::start(&[&args[..], &["--control", &control]].concat());
        Self { daemon, link, token, chain, key, control }
    }
}

#[test]
fn a_daemon_reads_the_links_certificates_again() {
    let (first, second) = (tls::make(&["127.0.0.1"]), tls::make(&["127.0.0.1"]));
    let served = Served::start("reload", &first);
    let process = connect(endpoint(&served.link, trust(&first))).unwrap();
    std::fs::write(&served.chain.0, &second.chain).unwrap();
    std::fs::write(&served.key.0, &second.key).unwrap();
    let reload = || {
        let said = output(&mut pushring(&["reload", "--json", "--control", &served.control]));
        assert!(said.status.success(), "{said:?}");
        String::from_utf8(said.stdout).unwrap()
    };
    let said = reload();
    // Its watch may have been first.
    assert!(said.contains("link_tls_certs") || !said.contains("tls"), "{said}");
    drop(process);
    assert!(connect(endpoint(&served.link, trust(&first))).is_err());
    drop(connect(endpoint(&served.link, trust(&second))).unwrap());
    // A mismatched pair leaves the previous one in force.
    std::fs::write(&served.key.0, &first.key).unwrap();
    reload();
    drop(connect(endpoint(&served.link, trust(&second))).unwrap());
    served.daemon.signal("TERM");
    let (code, log) = served.daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("link_tls_certs: ") && !log.contains(TOKEN), "{log}");
}

#[test]
fn a_client_in_python_speaks_it() {
    if !has_python() {
        return;
    }
    let (pair, stranger) = (tls::make(&["127.0.0.1"]), tls::make(&["127.0.0.1"]));
    let served = Served::start("python", &pair);
    let untrusted = TemporaryFile::new("link-tls-stranger", &stranger.chain);
    let start = |trust: &TemporaryFile| {
        Python::start(&[&served.link, "--token-file", served.token.path(), "--trust", trust.path()])
    };
    let mut refused = start(&untrusted);
    assert!(!refused.child.wait().unwrap().success());
    let mut python = start(&served.chain);
    python.until("attached");
    let mut client = served.daemon.connect("/room:python:sys/");
    for payload in [vec![1; 5], vec![2; 200_000]] {
        send(&mut client, Message::binary(payload.clone()));
        assert_eq!(recv(&mut client), Message::binary(payload));
    }
    served.daemon.signal("TERM");
    assert_eq!(served.daemon.wait().0, Some(0));
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    let token = TemporaryFile::new("link-tls-settings", TOKEN);
    for (args, words) in [
        (&["--link-tls-certs", "a.pem:b.pem"][..], "link_tcp"),
        (&["--link-tcp", "127.0.0.1:0", "--link-tls-certs", "a.pem"], "CHAIN.pem:KEY.pem"),
        (&["--link-tcp", "127.0.0.1:0", "--link-tls-certs", "/no/such:/no/such"], "link_tls_certs: /no/such"),
    ] {
        let args = [&["serve", "--listen", "127.0.0.1:0", "--link-token-file", token.path()], args].concat();
        let refused = output(&mut pushring(&args));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(words), "{args:?}: {said}");
    }
}
