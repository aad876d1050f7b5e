//! The daemon's link as its operator meets it: a socket for this user alone, never taken from a living daemon and
//! always from a dead one, gone at the end; a token over TCP that is never shown; and a client in another language that
//! speaks the protocol from its specification.

use crate::link_support;
use crate::support;

use link_support::{Python, attach, has_python, hello, refusal};
use pushring::link::{Client, Endpoint, LinkToken};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use support::daemon::{Daemon, TemporaryFile, output, pushring};
use support::{free_port, recv, recv_close, send};
use tungstenite::Message;

/// An unused path for a socket.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("pushring-daemon-{name}-{}.sock", std::process::id()))
}

fn start(path: &Path) -> Daemon {
    Daemon::start(&["serve", "--link", path.to_str().unwrap()])
}

#[test]
fn the_socket_is_its_users_alone_and_goes_with_the_daemon() {
    let path = socket("mode");
    let daemon = start(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let process = attach(&path, "p");
    process.bind("/", Default::default()).unwrap();
    let mut client = daemon.connect("/p:test:sys/");
    send(&mut client, "hello");

    let other = output(&mut pushring(&["serve", "--listen", "127.0.0.1:0", "--link", path.to_str().unwrap()]));
    let words = String::from_utf8(other.stderr).unwrap();
    assert!(!other.status.success() && words.contains("is the socket of a daemon that runs"), "{words}");
    send(&mut client, "still there");

    daemon.signal("TERM");
    assert_eq!(recv_close(&mut client).0, 1001);
    while client.read().is_ok() {}
    let mut events = Vec::new();
    while process.recv_batch(&mut events, support::PATIENCE).is_ok() {}
    assert!(matches!(events.last(), Some(pushring::Event::Closed(_))), "it is told of the end: {events:?}");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(!path.exists());
}

#[test]
fn the_socket_may_be_opened_to_a_group() {
    use std::os::unix::fs::MetadataExt;
    let path = socket("group");
    let at = path.to_str().unwrap();
    // A group that this user is in: any may be given to its members.
    let group = std::fs::metadata("/proc/self").unwrap().gid();
    for (mode, bits) in [("auto", 0o660), ("0620", 0o620)] {
        let daemon = Daemon::start(&["serve", "--link", at, "--link-group", &group.to_string(), "--link-mode", mode]);
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (bits, group), "{mode}");
        attach(&path, "p");
        daemon.signal("TERM");
        assert_eq!(daemon.wait().0, Some(0));
    }
    let refused = output(&mut pushring(&["serve", "--link", at, "--link-group", "no such group"]));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && words.contains("at --link-group: link_group"), "{words}");
}

#[test]
fn a_killed_daemons_socket_is_taken_over() {
    let path = socket("killed");
    let mut killed = start(&path);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(path.exists());
    let daemon = start(&path);
    attach(&path, "p");
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, Some(0));
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_obeyed_is_refused_by_name() {
    let file = TemporaryFile::new("no-socket", "precious");
    for (args, words) in [
        (&["--link", file.path()][..], "is no socket"),
        (&["--link", "/no/such/directory/link"], "/no/such/directory/link"),
        (&["--link-tcp", "127.0.0.1:0"], "link_token_file"),
        (&["--link-tcp", "127.0.0.1:0", "--link-token-file", file.path()], "16"),
    ] {
        let refused = output(pushring(&["serve", "--listen", "127.0.0.1:0"]).args(args));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(words), "{args:?}: {said}");
    }
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "precious");
}

#[test]
fn over_tcp_a_token_lets_in_and_is_never_shown() {
    let secret = "a token that only this test knows";
    let file = TemporaryFile::new("link-token", &format!("{secret}\n"));
    let path = socket("tcp");
    let address = format!("127.0.0.1:{}", free_port());
    let args = ["serve", "--link", path.to_str().unwrap(), "--link-tcp", &address, "--link-token-file", file.path()];
    let daemon = Daemon::start(&[&args[..], &["--log", "trace"]].concat());
    // On the socket no token is required.
    drop(attach(&path, "p"));
    let connect = |token: &str| {
        let endpoint = Endpoint::Tcp { address: address.clone(), token: LinkToken::new(token).unwrap() };
        Client::connect(endpoint, &"p:test:sys".parse().unwrap(), Default::default())
    };
    assert!(connect("a token that somebody has guessed").is_err());
    drop(connect(secret).unwrap());
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0));
    assert!(log.contains("attach over TCP") && log.contains(&format!("address={address}")), "{log}");
    assert!(!log.contains(secret) && !log.contains("has guessed"), "{log}");
}

#[test]
fn a_client_in_python_speaks_it() {
    if !has_python() {
        return;
    }
    let path = socket("python");
    let daemon = start(&path);
    let mut python = Python::start(&[path.to_str().unwrap()]);
    assert_eq!(python.until("attached"), "attached to local.os\n");
    assert_eq!(refusal(&path, &hello("room:python:sys")), "taken");
    let mut clients = [daemon.connect("/room:python:sys/"), daemon.connect("/room:python:sys/")];
    for client in &mut clients {
        python.until("opened");
        for message in [Message::text("grüß dich"), Message::binary(vec![0; 200_000]), Message::binary(vec![])] {
            send(client, message.clone());
            assert_eq!(recv(client), message);
        }
    }
    send(&mut clients[0], "all:hello");
    for client in &mut clients {
        assert_eq!(recv(client), Message::text("hello"));
    }
    let response = daemon.get("/room:python:sys/hello?a=b", "");
    assert!(
        response.starts_with("HTTP/1.1 200") && response.contains("hello from Python, GET {'a': 'b'}"),
        "{response}"
    );

    // Killed in the middle; what its clients say meanwhile waits for the next one.
    drop(python);
    send(&mut clients[1], "while nobody was there");
    let mut python = Python::start(&[path.to_str().unwrap()]);
    python.until("still open");
    python.until("still open");
    // What it had done when it was killed, and not acknowledged, is done again.
    let mut heard = recv(&mut clients[1]);
    while heard == Message::text("hello") {
        heard = recv(&mut clients[1]);
    }
    assert_eq!(heard, Message::text("while nobody was there"));

    let [mut first, second] = clients;
    drop(second);
    python.until("closed");
    send(&mut first, "bye");
    assert_eq!(recv_close(&mut first).0, 1001);
    assert!(python.child.wait().unwrap().success());
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, Some(0));
}

#[test]
fn a_client_in_python_speaks_it_over_tcp() {
    if !has_python() {
        return;
    }
    let file = TemporaryFile::new("python-token", "a token for the client in Python\n");
    let wrong = TemporaryFile::new("python-wrong", "some other token, just as long..\n");
    let address = format!("127.0.0.1:{}", free_port());
    let daemon = Daemon::start(&["serve", "--link-tcp", &address, "--link-token-file", file.path()]);
    let mut refused = Python::start(&[&address, "--token-file", wrong.path()]);
    assert!(!refused.child.wait().unwrap().success());
    let mut python = Python::start(&[&address, "--token-file", file.path()]);
    python.until("attached");
    let mut client = daemon.connect("/room:python:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, Some(0));
}
