//! An operator can ask a running daemon for its counts and for the reasons why channels ended, over a socket that is
//! this user's alone; where no daemon answers, the error says what is wrong.

use crate::support;

use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;
use support::daemon::{Daemon, output, pushring};
use support::{PATIENCE, recv, send};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("pushring-control-{name}-{}.sock", std::process::id()))
}

/// The stdout of `pushring`.
#[track_caller]
fn said(args: &[&str]) -> String {
    let output = output(&mut pushring(args));
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The stderr of `pushring`.
#[track_caller]
fn complained(args: &[&str]) -> String {
    let output = output(&mut pushring(args));
    assert!(!output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// Opens a channel of the demo's echo and closes it.
fn visit(daemon: &Daemon, code: u16, reason: &str) {
    let mut client = daemon.connect("/echo:pushring:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    client.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).unwrap();
    while client.read().is_ok() {}
}

#[test]
fn counts_and_ends_are_told() {
    let path = socket("told");
    let at = path.to_str().unwrap();
    // One shard, so that ends within a millisecond keep their order.
    let daemon = Daemon::start(&["demo", "--shards", "1", "--control", at]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    visit(&daemon, 1000, "bye");
    visit(&daemon, 4001, "\u{1b}[2Jgone");
    let ends = |filter: &[&str]| {
        let text = said(&[&["disconnects", "--json", "--control", at], filter].concat());
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    // The client sees its end a moment before the shard keeps it.
    let deadline = Instant::now() + PATIENCE;
    while ends(&[]).len() < 2 {
        assert!(Instant::now() < deadline, "{:?}", ends(&[]));
    }
    let all = ends(&[]);
    assert_eq!((&all[0]["code"], &all[0]["reason"], &all[0]["by"]), (&1000.into(), &"bye".into(), &"client".into()));
    assert_eq!((&all[1]["process"], &all[1]["path"]), (&"echo:pushring:sys".into(), &"/".into()));
    assert!(all[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:") && all[0]["lost_bytes"] == 0, "{all:?}");
    assert_eq!(ends(&["--code", "4001"]), all[1..]);
    assert_eq!(ends(&["--channel", &all[0]["channel"].to_string()]), all[..1]);
    assert_eq!(ends(&["--process", "echo:pushring:sys", "--last", "1"]), all[1..]);
    assert_eq!(ends(&["--process", "chat:pushring:sys"]), [0; 0]);

    let text = said(&["disconnects", "--control", at]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.len() == 3 && lines[0].starts_with("WHEN"), "{text}");
    assert!(lines[1].contains(" echo:pushring:sys ") && lines[1].ends_with(" bye"), "{text}");
    assert!(lines[2].ends_with("\\u{1b}[2Jgone"), "{text}");
    assert_eq!(said(&["disconnects", "--control", at, "--code", "1013"]), "none\n");

    let stats: Value = serde_json::from_str(&said(&["stats", "--json", "--control", at])).unwrap();
    assert_eq!(
        (&stats["about"]["address"], &stats["about"]["pid"]),
        (&(*daemon.address).into(), &daemon.child.id().into())
    );
    let count = |name: &str| -> u64 {
        stats["shards"].as_array().unwrap().iter().map(|shard| shard["stats"][name].as_u64().unwrap()).sum()
    };
    assert_eq!((count("opened"), count("received")), (2, 2), "{stats}");
    let text = said(&["stats", "--control", at]);
    assert!(text.contains(&format!("http://{}, on ", daemon.address)) && text.contains("2  opened"), "{text}");
    assert!(text.contains("2  closed_by_client"), "{text}");

    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert!(code == Some(0) && !path.exists(), "{log}");
}

/// The classic text and OpenMetrics, from the command and over HTTP.
#[test]
fn prometheus_is_told_the_same() {
    let path = socket("metrics");
    let at = path.to_str().unwrap();
    let daemon = Daemon::start(&["demo", "--shards", "2", "--control", at, "--metrics"]);
    visit(&daemon, 1000, "");
    let scrape = |accept: &str, mime: &str| {
        let told = daemon.get("/metrics:pushring:sys/", accept);
        let (head, text) = told.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains(mime), "{head}");
        text.to_owned()
    };
    let classic = scrape("Accept: */*\r\n", "content-type: text/plain; version=0.0.4");
    let asked = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";
    let open = scrape(asked, "content-type: application/openmetrics-text; version=1.0.0");
    assert!(open.ends_with("# EOF\n") && open.contains("# TYPE pushring_opened counter\n"), "{open}");
    let printed = said(&["metrics", "--control", at]);
    for text in [&classic, &printed] {
        assert!(text.contains("# TYPE pushring_opened_total counter\n") && !text.contains("# EOF"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            // The samples of a histogram are parts of it.
            let parts = ["_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
            let name = parts
                .into_iter()
                .flatten()
                .find(|name| text.contains(&format!("# TYPE {name} histogram")))
                .unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {name} ")), "each sample has a type: {line}");
        }
    }
    for text in [&classic, &open, &printed] {
        let sum = |name: &str| -> f64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
        };
        assert_eq!((sum("pushring_opened_total{shard="), sum("pushring_received_total{")), (1.0, 1.0), "{text}");
        assert!(sum("pushring_start_time_seconds") > 1.6e9 && sum("pushring_memory_budget_bytes") > 0.0, "{text}");
        assert_eq!(
            sum("pushring_responses_total{shard=\"0\",status=\"101\"}")
                + sum("pushring_responses_total{shard=\"1\",status=\"101\"}"),
            1.0,
            "{text}"
        );
        for histogram in ["turn_cpu", "push_delay"] {
            assert!(text.contains(&format!("# TYPE pushring_{histogram}_seconds histogram\n")), "{text}");
        }
        assert!(text.contains("pushring_build_info{version=\""), "{text}");
        assert!(text.contains("# TYPE pushring_build_info gauge\n"), "{text}");
        assert!(sum("process_resident_memory_bytes ") > 1e6 && sum("process_open_fds ") > 3.0, "{text}");
        assert_eq!(sum("pushring_log_lines_lost_total "), 0.0, "{text}");
        assert!(text.contains("pushring_closed_total{shard=\"0\",by=\"backpressure\"} 0\n"), "{text}");
        assert!(text.contains("pushring_held_bytes{shard=\"1\",kind=\"inbox\"} "), "{text}");
        let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect::<Vec<_>>();
        let mut once = described.clone();
        once.dedup();
        assert!(described.len() > 30 && once == described, "{described:?}");
    }
    let proxied = daemon.get("/metrics:pushring:sys/", "X-Forwarded-For: 192.0.2.1\r\n");
    assert!(!proxied.starts_with("HTTP/1.1 200 "), "{proxied}");
    assert!(Daemon::start(&["demo"]).get("/metrics:pushring:sys/", "").starts_with("HTTP/1.1 404 "), "off by default");
}

#[test]
fn it_is_found_where_user_sessions_have_their_sockets() {
    let directory = std::env::temp_dir().join(format!("pushring-session-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let daemon = Daemon::spawn(
        pushring(&["demo", "--listen", "127.0.0.1:0"])
            .env_remove("RUNTIME_DIRECTORY")
            .env("XDG_RUNTIME_DIR", &directory),
    );
    let port = daemon.address.rsplit(':').next().unwrap().to_owned();
    assert!(directory.join(format!("pushring-{port}.sock")).exists());
    let mut ask = pushring(&["stats", "--listen", &daemon.address]);
    let asked = output(ask.env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", &directory));
    assert!(asked.status.success() && asked.stdout.starts_with(b"pushring "), "{asked:?}");
    drop(daemon);
    std::fs::remove_dir_all(&directory).unwrap();
}

/// As in a root shell, in a container, and wherever else no directory for it was made.
#[test]
fn it_is_found_where_there_is_no_session() {
    let bare = |args: &[&str]| {
        let mut command = pushring(args);
        // The variables are absent: the daemon is to have its default socket.
        command.env_remove("RUNTIME_DIRECTORY").env_remove("XDG_RUNTIME_DIR");
        command
    };
    let daemon = Daemon::spawn(&mut bare(&["demo", "--listen", "127.0.0.1:0"]));
    let asked = output(&mut bare(&["stats", "--listen", &daemon.address]));
    assert!(asked.status.success() && asked.stdout.starts_with(b"pushring "), "{asked:?}");
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    let path = log.split("control socket open path=").nth(1).expect("it says where").split_whitespace().next().unwrap();
    assert!(code == Some(0) && !std::path::Path::new(path).exists(), "{log}");
}

#[test]
fn where_nobody_answers_it_is_said_why() {
    let path = socket("nobody");
    let at = path.to_str().unwrap();
    let words = complained(&["stats", "--control", at]);
    assert!(words.contains("no daemon listens at") && words.contains(at) && words.contains("--control"), "{words}");
    let mut killed = Daemon::start(&["serve", "--control", at]);
    let second = complained(&["serve", "--listen", "127.0.0.1:0", "--control", at]);
    assert!(second.contains("is the socket of a daemon that runs"), "{second}");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(path.exists(), "as it was left");
    assert!(complained(&["disconnects", "--control", at]).contains("no daemon listens at"));
    assert!(complained(&["stats", "--control", "off"]).contains("control: it is off"));
    assert!(complained(&["disconnects", "--control", at, "--process", "no id"]).contains("process: \"no id\""));
    let successor = Daemon::start(&["serve", "--control", at]);
    assert!(said(&["stats", "--control", at]).starts_with("pushring "));
    let long = "x".repeat(5000);
    for question in [&["kick", "7", "--reason", &long][..], &["channels", "--path", &long]] {
        assert!(complained(&[question, &["--control", at]].concat()).contains("at most 4096 are read"));
    }
    drop(successor);
    let _ = std::fs::remove_file(&path);
}

#[test]
fn nonsense_is_refused_and_holds_nobody_up() {
    let path = socket("nonsense");
    let daemon = Daemon::start(&["serve", "--control", path.to_str().unwrap()]);
    // Half of those that are served at a time; they say nothing.
    let silent: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
    for (question, words) in [
        (&b"{\"stats\":{}}\n"[..], "{\"stats\":{\"about\":"),
        (b"{\"quit\":{}}\n", "{\"refused\":\"no question: unknown variant `quit`"),
        (b"GET / HTTP/1.1\r\n\r\n", "{\"refused\":\"no question: "),
        (b"\xff\xfe\n", "{\"refused\":\"no question: "),
        (b"\n", "{\"refused\":\"no question: "),
        (&[b'['; 5000], "{\"refused\":\"no question: "),
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(question).unwrap();
        let mut answer = Vec::new();
        // The unread rest of an endless question makes its end a reset, after the answer.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(words) && answer.ends_with('\n'), "{answer}");
    }
    let more: Vec<_> = (0..8).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut last = more.last().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    last.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "{\"refused\":\"too many ask at the same time: ask again\"}\n");
    drop((silent, more));
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, Some(0));
}

/// A program that reads lines of JSON gets nothing else, and can tell whether it has all.
#[test]
fn json_is_lines_of_json_and_says_whether_there_are_more() {
    let path = socket("json");
    let at = path.to_str().unwrap();
    let daemon = Daemon::start(&["demo", "--shards", "1", "--control", at]);
    let _clients = [daemon.connect("/echo:pushring:sys/"), daemon.connect("/echo:pushring:sys/")];
    let lines = |args: &[&str]| -> Vec<Value> {
        let text = said(&[args, &["--json", "--control", at]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{args:?}: {line}"))).collect()
    };
    let echo = ["channels", "--process", "echo:pushring:sys"];
    assert_eq!(lines(&echo).len(), 2);
    let first = lines(&[&echo[..], &["--limit", "1"]].concat());
    let next = first[1]["next"].to_string();
    let second = lines(&[&echo[..], &["--after", &next]].concat());
    assert_eq!((first.len(), second.len()), (2, 1), "{first:?} {second:?}");
    assert_ne!(first[0]["channel"], second[0]["channel"]);
    let [looked, _] = &lines(&["top", "--count", "2", "--every", "1ms"])[..] else { panic!("a line each time") };
    for part in ["stats", "channels", "processes", "disconnects"] {
        assert!(looked.get(part).is_some(), "{part}: {looked}");
    }
}
