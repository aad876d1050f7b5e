//! The real program, started and stopped by tests.

use super::{Client, PATIENCE};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Instant;

pub fn pushring(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushring"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PUSHRING_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// A running daemon; killed when a test fails.
pub struct Daemon {
    pub child: Child,
    pub address: String,
}

impl Daemon {
    pub fn start(args: &[&str]) -> Self {
        Self::spawn(pushring(args).args(["--listen", "127.0.0.1:0"]))
    }

    /// A command that serves.
    pub fn spawn(command: &mut Command) -> Self {
        let has_control = command.get_args().any(|arg| arg.to_str().is_some_and(|arg| arg.starts_with("--control")))
            || command.get_envs().any(|(name, _)| name == "XDG_RUNTIME_DIR");
        if !has_control {
            // Of a daemon that is killed the socket would stay, in a directory of the whole machine.
            command.env("PUSHRING_CONTROL", "off");
        }
        let mut child = command.arg("--no-pin").spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").and_then(|url| url.split_once("://"));
        let (_, address) = address.expect("the first line says where");
        Self { address: address.to_owned(), child }
    }

    pub fn stream(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn get(&self, path: &str, headers: &str) -> String {
        let mut stream = self.stream();
        let host = &self.address;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }

    pub fn connect(&self, path: &str) -> Client {
        tungstenite::client(format!("ws://{}{path}", self.address), super::Patient::new(self.stream())).unwrap().0
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// What it logs up to the first line with these words, which comes in time. Then the rest of it is lost.
    pub fn log_until(&mut self, words: &str) -> String {
        let (tell, lines) = channel();
        let log = BufReader::new(self.child.stderr.take().unwrap());
        // To its end, so that the daemon can go on to write.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| drop(tell.send(line))));
        let (mut log, until) = (String::new(), Instant::now() + PATIENCE);
        while !log.contains(words) {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => log += &(line + "\n"),
                Err(_) => panic!("it does not say {words:?}: {log}"),
            }
        }
        log
    }

    /// Its exit code and its log.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that goes with the test.
pub struct TemporaryFile(pub PathBuf);

impl TemporaryFile {
    pub fn new(name: &str, content: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pushring-test-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
