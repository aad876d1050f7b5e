//! A daemon that has run out of file descriptors goes on: existing channels are served, new clients wait in the
//! listener's backlog and are accepted once others have gone, and waiting costs next to no CPU.

use crate::support;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};
use support::daemon::Daemon;
use support::{Client, PATIENCE, driver, on_each_driver, recv, send};
use tungstenite::Message;

const ECHO: &str = "/echo:pushring:sys/";

/// User and system time of a process so far, in clock ticks of 10 ms.
fn cpu_ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.child.id())).unwrap();
    // Fields 14 and 15; the second is a name in parentheses.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn files(daemon: &Daemon) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap().count() as u64
}

fn limit_files(daemon: &Daemon, count: u64) {
    let pid = Pid::from_child(&daemon.child);
    let limit = Rlimit { current: Some(count), maximum: Some(count) };
    prlimit(Some(pid), Resource::Nofile, limit).unwrap();
}

fn is_served(client: &mut Client) {
    send(client, Message::text("still here"));
    assert_eq!(recv(client), Message::text("still here"));
}

#[test]
fn who_knocks_waits_and_comes_in_when_somebody_has_gone() {
    on_each_driver(|_| {
        let daemon = Daemon::start(&["demo", "--shards", "1", "--driver", &driver().to_string()]);
        let mut inside: Vec<Client> = (0..20).map(|_| daemon.connect(ECHO)).collect();
        // While it runs, so that it cannot know: at the start it takes no more clients than it has descriptors for.
        limit_files(&daemon, files(&daemon) + 5);
        // The system completes these connections; the daemon can take five.
        let waiting: Vec<TcpStream> = (0..40).map(|_| daemon.stream()).collect();
        let until = Instant::now() + PATIENCE;
        while files(&daemon) < 25 {
            assert!(Instant::now() < until);
            thread::sleep(Duration::from_millis(10));
        }

        let (before, started) = (cpu_ticks(&daemon), Instant::now());
        thread::sleep(Duration::from_millis(1_500));
        let spent_ms = (cpu_ticks(&daemon) - before) * 10;
        let share = spent_ms as f64 / started.elapsed().as_millis() as f64;
        assert!(share < 0.2, "{spent_ms} ms of CPU in {:?}: it spins", started.elapsed());
        inside.iter_mut().for_each(is_served);

        // One leaves, one comes in; all come in when all leave. The first to come in are still silent.
        for stream in &waiting {
            drop(inside.pop());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let url = format!("ws://{}{ECHO}", daemon.address);
        let mut inside: Vec<Client> = waiting
            .into_iter()
            .take(20)
            .map(|stream| tungstenite::client(&url, support::Patient::new(stream)).unwrap().0)
            .collect();
        inside.iter_mut().for_each(is_served);
        drop(inside);
        // And the listener accepts new clients.
        is_served(&mut daemon.connect(ECHO));

        daemon.signal("TERM");
        let (code, log) = daemon.wait();
        assert_eq!((code, log.matches("no room for more clients").count()), (Some(0), 1), "{log}");
    });
}

#[test]
fn a_daemon_that_starts_with_few_answers_whom_it_cannot_hold() {
    let mut command = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_pushring");
    command.args(["-c", "ulimit -n 100 && exec \"$0\" demo --shards 1 --listen 127.0.0.1:0 \"$@\"", program]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let daemon = Daemon::spawn(&mut command);
    let mut inside = Vec::new();
    let refused = loop {
        let stream = daemon.stream();
        match tungstenite::client(format!("ws://{}{ECHO}", daemon.address), support::Patient::new(stream)) {
            Ok((client, _)) => inside.push(client),
            Err(error) => break error.to_string(),
        }
    };
    assert!(refused.contains("503"), "{refused}");
    assert!((40..100).contains(&inside.len()), "{}", inside.len());
    inside.iter_mut().for_each(is_served);
}

#[test]
fn a_daemon_that_has_too_few_for_its_shards_says_so_and_ends() {
    let program = env!("CARGO_BIN_EXE_pushring");
    // With each of them it is another thing for which there is no descriptor, with some shards at work already. Every
    // shard needs three.
    for files in (45..=95).step_by(5) {
        let mut command = std::process::Command::new("sh");
        let script = format!("ulimit -n {files} && exec \"$0\" demo --shards 32 --listen 127.0.0.1:0");
        command.args(["-c", &script, program]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            if Instant::now() >= until {
                child.kill().unwrap();
                panic!("with {files} descriptors it neither starts nor ends");
            }
            thread::sleep(Duration::from_millis(10));
        };
        let log = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(code == Some(1) && log.contains("Too many open files"), "{files}: {code:?}: {log}");
    }
}
