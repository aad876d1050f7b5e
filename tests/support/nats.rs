//! A nats-server, started and killed by tests, and a client of it that says what it likes.

use super::PATIENCE;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server, on a port that it keeps when it begins anew.
pub struct Nats {
    program: &'static str,
    child: Option<Child>,
    pub port: u16,
    config: Option<super::daemon::TemporaryFile>,
}

impl Nats {
    /// Starts one; none, with a line that says so, where there is no nats-server.
    pub fn start(settings: &str) -> Option<Self> {
        // Debian's package puts it where not every user looks.
        let places = ["nats-server", "/usr/sbin/nats-server"];
        let is_there = |program: &&&str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
        let Some(program) = places.iter().find(is_there) else {
            println!("NOT RUN: no nats-server: apt-get install nats-server");
            return None;
        };
        let port = super::free_port();
        let config =
            (!settings.is_empty()).then(|| super::daemon::TemporaryFile::new(&format!("nats-{port}.conf"), settings));
        let mut nats = Self { program, child: None, port, config };
        nats.run();
        Some(nats)
    }

    /// Runs it, and waits until it answers.
    pub fn run(&mut self) {
        let mut command = Command::new(self.program);
        command.args(["-a", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some(config) = &self.config {
            command.args(["-c", config.path()]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let since = Instant::now();
        while !self.answers() {
            assert!(since.elapsed() < PATIENCE, "nats-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
            // A connection that is on its way out may have its port for a moment.
            if child.try_wait().unwrap().is_some() {
                child = command.spawn().unwrap();
            }
        }
        self.child = Some(child);
    }

    /// Whether what listens there is a NATS server.
    fn answers(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok_and(|mut stream| {
            let mut first = [0; 5];
            stream.set_read_timeout(Some(PATIENCE)).is_ok()
                && stream.read_exact(&mut first).is_ok()
                && &first == b"INFO "
        })
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let process = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &process]).status().unwrap().success());
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// A client that publishes these, and returns when the server has taken them.
    pub fn publish(&self, connect: &str, messages: &[(String, Vec<u8>)]) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "CONNECT {connect}\r\n").unwrap();
        for (subject, payload) in messages {
            write!(stream, "PUB {subject} {}\r\n", payload.len()).unwrap();
            stream.write_all(payload).unwrap();
            stream.write_all(b"\r\n").unwrap();
        }
        stream.write_all(b"PING\r\n").unwrap();
        let mut lines = BufReader::new((&stream).take(1 << 20)).lines();
        assert!(lines.any(|line| line.unwrap() == "PONG"), "the server has taken it");
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}
