//! A killed daemon harms no one else: its clients see the close at once, the next start has the port at once and
//! serves, and nothing can be corrupt because nothing was on disk.

use crate::support;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use support::daemon::{Daemon, pushring};
use support::{Client, PATIENCE, driver, free_port, on_each_driver, recv, send};
use tungstenite::{Error, Message};

/// An empty directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pushring-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Files that hold bytes: a control socket does not, and the next daemon replaces it.
    fn files(&self) -> usize {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries.filter(|entry| !entry.as_ref().unwrap().file_type().unwrap().is_socket()).count()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon with the demo processes that has nowhere else to write.
fn start(listen: &str, directory: &Directory) -> Daemon {
    let mut command = pushring(&["demo", "--listen", listen, "--driver", &driver().to_string()]);
    for variable in ["HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"] {
        command.env(variable, &directory.0);
    }
    Daemon::spawn(command.current_dir(&directory.0))
}

fn connect(address: &str, path: &str) -> Client {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    tungstenite::client(format!("ws://{address}{path}"), support::Patient::new(stream)).unwrap().0
}

/// Returns whether the client was told, rather than left waiting.
fn is_closed(error: &Error) -> bool {
    match error {
        Error::Io(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(_) => true,
        _ => false,
    }
}

/// Echoes as fast as it can until the connection ends.
fn work(mut client: Client, at_work: &Barrier) {
    let message = Message::binary(vec![0x55; 3_000]);
    for round in 0.. {
        match client.send(message.clone()).and_then(|()| client.read()) {
            Ok(echo) => assert_eq!(echo, message, "round {round}"),
            Err(error) => return assert!(is_closed(&error) && round > 0, "round {round}: {error}"),
        }
        if round == 0 {
            at_work.wait();
        }
    }
}

#[test]
fn it_is_followed_at_once_by_the_next() {
    const WORKERS: usize = 6;
    on_each_driver(|driver| {
        let directory = Directory::new(&driver.to_string());
        // Nobody else is given it while no daemon listens.
        let address = format!("127.0.0.1:{}", free_port());
        let mut daemon = start(&address, &directory);
        for _ in 0..3 {
            let at_work = Barrier::new(WORKERS + 1);
            let mut idle: Vec<Client> = (0..50).map(|_| connect(&address, "/relay:pushring:sys/")).collect();
            // It reads nothing, so the daemon dies with bytes queued for it.
            let mut stalled = connect(&address, "/echo:pushring:sys/");
            for _ in 0..8 {
                send(&mut stalled, Message::binary(vec![1; 100_000]));
            }
            thread::scope(|scope| {
                for _ in 0..WORKERS {
                    let client = connect(&address, "/echo:pushring:sys/");
                    scope.spawn(|| work(client, &at_work));
                }
                at_work.wait();
                daemon.child.kill().unwrap();
                daemon.child.wait().unwrap();
            });
            for client in &mut idle {
                let error = client.read().expect_err("nobody is there to say anything");
                assert!(is_closed(&error), "{error}");
            }
            let error = loop {
                if let Err(error) = stalled.read() {
                    break error;
                }
            };
            assert!(is_closed(&error), "{error}");
            assert_eq!(directory.files(), 0, "nothing was on disk");

            // The old connections' ports linger in the kernel, which concerns only the kernel.
            daemon = start(&address, &directory);
            assert_eq!(daemon.address, address);
            let mut client = connect(&address, "/echo:pushring:sys/");
            send(&mut client, Message::text("again"));
            assert_eq!(recv(&mut client), Message::text("again"));
        }
    });
}
