//! The log can neither kill nor stop a daemon: its reader may be gone, its disk full, or its reader may stand still.
//! And it cannot be forged: what peers say starts no line of its own and steers no terminal.
use crate::link_support::{Raw, attach, frame, hello};
use crate::support::daemon::{Daemon, TemporaryFile, output, pushring};
use crate::support::{PATIENCE, send};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tungstenite::Message;

/// A path for a socket of this test.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("pushring-log-{name}-{}.sock", std::process::id()))
}

/// A command for a daemon that says everything it can.
fn loquacious(link: &Path) -> Command {
    let args = ["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--log", "trace", "--control", "off", "--link"];
    let mut command = pushring(&args);
    command.arg(link);
    command
}

/// How it ended, where it ends by itself in time.
fn end(daemon: &mut Daemon) -> Option<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = daemon.child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Attaches processes, lets a shard warn, and stops at a signal, whatever the log does.
fn lives_and_stops(mut daemon: Daemon, link: &Path) {
    for name in ["first", "second"] {
        let process = attach(link, name);
        process.bind("/", Default::default()).unwrap();
        let mut client = daemon.connect(&format!("/{name}:test:sys/"));
        send(&mut client, Message::text("hello"));
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, pushring::Event::Message { .. })) {
            process.recv_batch(&mut events, PATIENCE).unwrap();
        }
    }
    // No descriptor is left: the shard that cannot accept says so.
    let pid = daemon.child.id().to_string();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let limit = format!("--nofile={open}:");
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    let waiting: Vec<_> = (0..8).map(|_| daemon.stream()).collect();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=1024:"]).status().unwrap().success());
    drop(waiting);
    let process = attach(link, "third");
    process.bind("/", Default::default()).unwrap();
    daemon.connect("/third:test:sys/");
    daemon.signal("TERM");
    assert_eq!(end(&mut daemon).and_then(|status| status.code()), Some(0));
}

#[test]
fn its_reader_may_be_gone() {
    let link = socket("gone");
    let (reader, writer) = std::io::pipe().unwrap();
    let daemon = Daemon::spawn(loquacious(&link).stderr(OwnedFd::from(writer)));
    drop(reader);
    lives_and_stops(daemon, &link);
}

#[test]
fn its_disk_may_be_full() {
    let link = socket("full");
    let full = File::options().write(true).open("/dev/full").unwrap();
    lives_and_stops(Daemon::spawn(loquacious(&link).stderr(full)), &link);
}

#[test]
fn its_file_may_have_reached_its_limit() {
    let (link, file) = (socket("limit"), TemporaryFile::new("log-limit", ""));
    let log = File::options().append(true).open(&file.0).unwrap();
    let mut command = Command::new("prlimit");
    command.arg("--fsize=512").arg(loquacious(&link).get_program()).args(loquacious(&link).get_args());
    lives_and_stops(Daemon::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log)), &link);
    assert_eq!(std::fs::read(&file.0).unwrap().len(), 512);
}

/// A pipe without a reader is full after 64 KiB: the start fills it with what it was given before.
#[test]
fn its_reader_may_stand_still() {
    let link = socket("still");
    let (_reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'\n'; 65_536 - 16]).unwrap();
    lives_and_stops(Daemon::spawn(loquacious(&link).stderr(OwnedFd::from(writer))), &link);
}

#[test]
fn what_could_not_be_written_is_counted() {
    let control = socket("counted");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = pushring(&["demo", "--listen", "127.0.0.1:0", "--control"]);
    let daemon = Daemon::spawn(command.arg(&control).stderr(full));
    let until = Instant::now() + PATIENCE;
    loop {
        let metrics = output(pushring(&["metrics", "--control"]).arg(&control));
        let metrics = String::from_utf8(metrics.stdout).unwrap();
        let count = |name: &str| {
            let line = metrics.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        if count("pushring_log_lines_lost_total ") > 0 && count("pushring_log_write_errors_total ") > 0 {
            break;
        }
        assert!(Instant::now() < until, "{metrics}");
    }
    let stats = String::from_utf8(output(pushring(&["stats", "--control"]).arg(&control)).stdout).unwrap();
    assert!(stats.contains("lines of the log were lost"), "{stats}");
    drop(daemon);
}

/// Everything that steers a terminal or ends a line.
const HOSTILE: &str = "a\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}31m\u{7}\u{8}\u{7f}\u{202e}\u{2028}";

/// Lets peers and clients say hostile things wherever the daemon listens to text; tells its log.
fn log_of_hostile_peers(name: &str, format: &str) -> String {
    let link = socket(name);
    let mut command = loquacious(&link);
    let daemon = Daemon::spawn(command.args(["--log-format", format]));
    let kernel = |node: &str| serde_json::json!({"hello": {"version_min": 1, "version_max": 1, "attach": {"kernel": {"node": node}}}});
    for bytes in [hello(HOSTILE), frame(&kernel(HOSTILE))] {
        let mut raw = Raw::connect(&link);
        raw.0.write_all(&bytes).unwrap();
        assert!(raw.next().is_some(), "welcome or not, it is answered");
    }
    let (mut peer, _) = Raw::attach(
        &link,
        &serde_json::json!({"version_min": 1, "version_max": 1, "attach": {"process": {"id": "p:test:sys"}}}),
    );
    peer.send(&serde_json::json!({ HOSTILE: {} }), b"");
    while peer.next().is_some() {}
    let mut stream = daemon.stream();
    let path: String = HOSTILE.chars().filter(|c| !c.is_whitespace()).collect();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {path}\r\nUpgrade: {path}\r\n\r\n").unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    log
}

#[test]
fn nobody_outside_can_forge_a_line() {
    let log = log_of_hostile_peers("forged", "text");
    assert!(log.contains("2026-01-01T00:00:00Z ERROR forged"), "it was said: {log}");
    for line in log.lines() {
        let is_plain = line.chars().all(|c| !c.is_control() && !matches!(c, '\u{202e}' | '\u{2028}'));
        // A line begins with when it was written.
        assert!(is_plain && line.starts_with("20") && !line.starts_with("2026-01-01T00:00:00Z"), "{line:?}");
    }
    let log = log_of_hostile_peers("forged-json", "json");
    assert!(log.contains("ERROR forged"), "it was said: {log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line is one object");
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    assert!(log.chars().all(|c| c == '\n' || !c.is_control()), "{log:?}");
}

#[test]
fn the_end_is_said_in_the_logs_format() {
    for args in
        [&["--listen", "192.0.2.1:0"][..], &["--config", "/no/such/file"], &["--jwt-secret-file", "/no/such/secret"]]
    {
        let refused = output(pushring(&["serve", "--log-format", "json"]).args(args));
        let log = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{log}");
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).expect("JSON");
        assert_eq!(last["level"], "ERROR", "{log}");
        // Even where nothing else is to be logged.
        let silent = output(pushring(&["serve", "--log", "off"]).args(args));
        assert!(String::from_utf8(silent.stderr).unwrap().starts_with("pushring: "), "{args:?}");
    }
}

/// A daemon whose stderr is a terminal; what it writes there until it has stopped.
fn on_a_terminal(environment: &[(&str, &str)]) -> String {
    let mut command = Command::new("script");
    let program = env!("CARGO_BIN_EXE_pushring");
    let serve = format!("{program} serve --listen 192.0.2.1:0 --log debug");
    command.args(["--quiet", "--return", "--command", &serve, "/dev/null"]).env("TERM", "xterm");
    // Each of these decides about colours too, and builds set some.
    for other in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
        command.env_remove(other);
    }
    command.envs(environment.iter().copied()).process_group(0);
    String::from_utf8(output(command.stdin(Stdio::null())).stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    assert!(on_a_terminal(&[]).contains("\u{1b}["));
    for environment in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
        let log = on_a_terminal(&environment);
        assert!(log.contains("no address of this machine") && !log.contains('\u{1b}'), "{environment:?}: {log:?}");
    }
}
