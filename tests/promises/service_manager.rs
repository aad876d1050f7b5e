//! systemd's protocol with the daemon, with a test in systemd's place: the daemon reports when it serves, reads its
//! settings again, and stops; it takes the listener that a socket unit has opened, and clients that connect while it
//! restarts are served by the next.

use crate::support::daemon::{Daemon, output, pushring};
use crate::support::{PATIENCE, recv, send};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tungstenite::Message;

/// Where a service tells how it is.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pushring-notify-{name}-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// Waits for a message with this line; tells all of it.
    fn told(&self, line: &str) -> String {
        let mut seen = Vec::new();
        loop {
            let mut message = [0; 4096];
            let count =
                self.socket.recv(&mut message).unwrap_or_else(|error| panic!("{line}: {error}, after {seen:?}"));
            let text = String::from_utf8(message[..count].to_vec()).unwrap();
            if text.lines().any(|told| told == line) {
                return text;
            }
            seen.push(text);
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The command, with `socket` as its third descriptor and what systemd says of it.
fn activated(args: &[&str], socket: OwnedFd) -> Command {
    // A shell makes the descriptor the third and knows its own number, which the program inherits.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@""#]);
    command.arg(pushring(args).get_program()).args(args).stdin(socket).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn it_is_told_of_start_reload_and_stop() {
    let manager = Manager::new("states");
    let mut command = pushring(&["demo", "--listen", "127.0.0.1:0", "--shards", "2"]);
    let daemon = Daemon::spawn(command.env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "200000"));
    assert!(manager.told("READY=1").contains(&format!("STATUS=serving at {}", daemon.address)));
    let mut client = daemon.connect("/echo:pushring:sys/");
    manager.told("STATUS=1 channels, 1 connections on 2 shards");
    manager.told("WATCHDOG=1");
    daemon.signal("HUP");
    let reloading = manager.told("RELOADING=1");
    let since = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("when it began");
    assert!(since.parse::<u64>().unwrap() > 0);
    manager.told("READY=1");
    send(&mut client, Message::text("still there"));
    assert_eq!(recv(&mut client), Message::text("still there"));
    daemon.signal("TERM");
    manager.told("STOPPING=1");
    while client.read().is_ok() {}
    assert_eq!(daemon.wait().0, Some(0));
}

#[test]
fn its_listener_outlives_the_daemon() {
    let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = theirs.local_addr().unwrap().to_string();
    let start = || Daemon::spawn(&mut activated(&["demo", "--shards", "2"], theirs.try_clone().unwrap().into()));
    let daemon = start();
    assert_eq!(daemon.address, address, "it listens where the other does, whatever its settings say");
    // Enough that both shards are met.
    let mut clients: Vec<_> = (0..32).map(|_| daemon.connect("/echo:pushring:sys/")).collect();
    for client in &mut clients {
        send(client, Message::text("hello"));
        assert_eq!(recv(client), Message::text("hello"));
    }
    daemon.signal("TERM");
    for mut client in clients {
        while client.read().is_ok() {}
    }
    assert_eq!(daemon.wait().0, Some(0));
    // No daemon serves, and no client is refused.
    let mut early = TcpStream::connect(&address).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(early, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let next = start();
    let mut page = String::new();
    early.read_to_string(&mut page).unwrap();
    // Perhaps before its page was there.
    assert!(page.starts_with("HTTP/1.1 200 ") || page.starts_with("HTTP/1.1 404 "), "{page}");
    assert_eq!(next.address, address);
}

#[test]
fn what_is_no_listener_is_refused() {
    let (socket, _other) = UnixDatagram::pair().unwrap();
    let refused = output(&mut activated(&["serve"], socket.into()));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && words.contains("no TCP listener"), "{words}");
}
