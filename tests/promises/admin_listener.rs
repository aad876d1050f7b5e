//! The promise: operators, probes and collectors are answered beside the clients and never in their way; nothing but
//! probes and metrics on loopback is told without the token; no page of another site is told, or does, anything.

use crate::support::daemon::{Daemon, TemporaryFile, output, pushring};
use crate::support::{PATIENCE, recv, recv_close, send};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use tungstenite::Message;

const TOKEN: &str = "the token of a test";

/// A port that was free a moment ago, at an address of this test's own.
fn free(address: &str) -> String {
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().to_string()
}

struct Admin(String);

impl Admin {
    /// Status and body of what `method path` is answered with these header fields, each with its line end.
    fn ask(&self, method: &str, path: &str, fields: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.0).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = if fields.contains("Host:") { String::new() } else { format!("Host: {}\r\n", self.0) };
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\n{host}{fields}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "", "")
    }

    fn told(&self, path: &str) -> Value {
        let (status, body) = self.ask("GET", path, &authorization(), "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.ask("POST", path, &(authorization() + "Content-Type: application/json\r\n"), body)
    }
}

fn authorization() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

fn start(address: &str, args: &[&str]) -> (Daemon, Admin, TemporaryFile) {
    let token = TemporaryFile::new(&format!("admin-token-{address}"), TOKEN);
    let admin = free(address);
    let options = ["demo", "--shards", "2", "--admin-listen", &admin, "--admin-token-file", token.path()];
    (Daemon::start(&[&options[..], args].concat()), Admin(admin), token)
}

#[test]
fn probes_and_metrics_are_open_on_loopback_and_all_else_needs_the_token() {
    let (_daemon, admin, _token) = start("127.0.41.1", &[]);
    assert_eq!(admin.get("/livez"), (200, "alive\n".to_owned()));
    assert_eq!(admin.get("/readyz"), (200, "ready\n".to_owned()));
    let (status, text) = admin.get("/readyz?verbose");
    assert!(status == 200 && text.contains("[+] accepting: 2 shards") && text.ends_with("\nready\n"), "{text}");
    let (status, metrics) = admin.get("/metrics");
    assert!(status == 200 && metrics.contains("\npushring_connections{shard=\"1\"} "), "{metrics}");
    for path in ["/", "/stats.json", "/channels", "/disconnects", "/processes", "/nothing"] {
        assert_eq!(admin.get(path).0, 401, "{path}");
        assert_eq!(admin.ask("GET", path, "Authorization: Bearer the token of a tesu\r\n", "").0, 401, "{path}");
    }
    for path in ["/channels/close", "/drain", "/reload"] {
        assert_eq!(admin.ask("POST", path, "Content-Type: application/json\r\n", "{}").0, 401, "{path}");
    }
    // A client without a token gets the page to enter one, and nothing else.
    let (status, page) = admin.ask("GET", "/", "Accept: text/html\r\n", "");
    assert!(status == 401 && page.starts_with("<!doctype html>"), "{status} {page}");
    assert_eq!(admin.ask("GET", "/nothing", &authorization(), "").0, 404);
    assert_eq!(admin.ask("GET", "/drain", &authorization(), "").0, 405);
}

#[test]
fn pages_of_other_sites_and_other_names_are_told_nothing() {
    let (_daemon, admin, _token) = start("127.0.41.2", &[]);
    for fields in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
    ] {
        assert_eq!(admin.ask("GET", "/livez", fields, "").0, 403, "{fields}");
        let fields = authorization() + "Content-Type: application/json\r\n" + fields;
        assert_eq!(admin.ask("POST", "/drain", &fields, "{}").0, 403, "{fields}");
    }
    assert_eq!(admin.ask("GET", "/metrics", "Host: rebound.example\r\n", "").0, 421);
    for mime in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let fields = format!("{}Content-Type: {mime}\r\n", authorization());
        assert_eq!(admin.ask("POST", "/drain", &fields, "{}").0, 415, "{mime}");
    }
    assert_eq!(admin.get("/readyz").0, 200, "nothing has begun to drain");
}

#[test]
fn channels_are_listed_page_by_page_and_closed() {
    let (daemon, admin, _token) = start("127.0.41.3", &[]);
    let mut clients: Vec<_> = (0..5).map(|_| daemon.connect("/echo:pushring:sys/")).collect();
    for client in &mut clients {
        send(client, "hello");
        assert_eq!(recv(client), Message::text("hello"));
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = admin.told(&format!("/channels?process=echo:pushring:sys&limit=2{after}"));
        let channels = page["channels"].as_array().unwrap().clone();
        assert!(channels.len() <= 2 && channels.iter().all(|channel| channel["path"] == "/"), "{page}");
        seen.extend(channels.iter().map(|channel| channel["channel"].as_u64().unwrap()));
        match page["next"].as_u64() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 5);
    assert_eq!(admin.told("/channels?path=/nowhere")["channels"], Value::Array(Vec::new()));
    assert_eq!(admin.told("/channels?address=127.0.0.1")["channels"].as_array().unwrap().len(), 5);
    assert_eq!(admin.told("/channels?address=10.0.0.0/8")["channels"].as_array().unwrap().len(), 0);
    assert_eq!(admin.ask("GET", "/channels?proces=x", &authorization(), "").0, 400);
    let processes = admin.told("/processes");
    let echo = processes.as_array().unwrap().iter().find(|process| process["process"] == "echo:pushring:sys").unwrap();
    assert_eq!(echo["channels"], 5);

    let (status, body) = admin.post("/channels/close", &format!(r#"{{"channel":{}}}"#, seen[0]));
    assert_eq!(status, 200, "{body}");
    let deadline = Instant::now() + PATIENCE;
    while admin.told("/disconnects?code=1008").as_array().unwrap().is_empty() {
        assert!(Instant::now() < deadline);
        for client in &mut clients {
            client.get_mut().set_read_timeout(Some(Duration::from_millis(10))).unwrap();
            let _ = client.read();
        }
    }
    assert_eq!(admin.told("/disconnects?code=1008")[0]["channel"], seen[0]);
    assert_eq!(admin.post("/channels/close", &format!(r#"{{"channel":{}}}"#, seen[0])).0, 409);
    assert_eq!(admin.post("/channels/close", r#"{"chanel":1}"#).0, 400);
}

#[test]
fn a_kicked_client_is_told_by_whom_and_the_command_line_asks_the_same() {
    let control = std::env::temp_dir().join(format!("pushring-kick-{}.sock", std::process::id()));
    let control = control.to_str().unwrap();
    let (daemon, _admin, _token) = start("127.0.41.4", &["--control", control]);
    let mut client = daemon.connect("/echo:pushring:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    let said = |args: &[&str]| {
        let output = output(&mut pushring(&[args, &["--control", control]].concat()));
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let listed: Value = serde_json::from_str(&said(&["channels", "--json"])).unwrap();
    let channel = listed["channel"].to_string();
    assert!(said(&["top", "--count", "1"]).contains("echo:pushring:sys"));
    assert!(said(&["processes"]).contains("echo:pushring:sys"));
    assert_eq!(said(&["channels", "--fullest"]), "none\n");
    assert_eq!(said(&["kick", &channel, "--reason", "enough"]), format!("channel {channel} is being closed\n"));
    assert_eq!(recv_close(&mut client), (1008, "enough".to_owned()));
    drop(client);
    let gone = output(&mut pushring(&["kick", "4", "--control", control]));
    assert!(!gone.status.success() && String::from_utf8_lossy(&gone.stderr).contains("no channel 4"));
}

#[test]
fn a_full_or_taken_admin_listener_delays_no_client_and_stops_no_daemon() {
    let (daemon, admin, _token) = start("127.0.41.5", &[]);
    let silent: Vec<_> = (0..80).map(|_| TcpStream::connect(&admin.0).unwrap()).collect();
    assert_eq!(admin.get("/livez").0, 200, "silent connections keep no probe out");
    let mut client = daemon.connect("/echo:pushring:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    drop(silent);
    let second = Daemon::start(&["demo", "--shards", "1", "--admin-listen", &admin.0]);
    let mut client = second.connect("/echo:pushring:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    second.signal("TERM");
    let (code, log) = second.wait();
    assert!(code == Some(0) && log.contains("admin_listen") && log.contains(&admin.0), "{log}");
}

#[test]
fn a_daemon_that_needs_a_link_is_not_ready_without_one() {
    let (_daemon, admin, _token) = start("127.0.41.6", &["--ready-needs", "link"]);
    let (status, text) = admin.get("/readyz?verbose");
    assert!(status == 503 && text.contains("[-] link: no link is set"), "{text}");
    assert_eq!(admin.get("/livez").0, 200);
}

#[test]
fn a_token_that_others_can_read_on_the_network_is_warned_of() {
    for (address, is_warned) in [("127.0.0.1:0", false), ("0.0.0.0:0", true)] {
        let daemon = Daemon::start(&["serve", "--admin-listen", address]);
        daemon.signal("TERM");
        let (_, log) = daemon.wait();
        assert_eq!(log.contains("the admin listener is not encrypted"), is_warned, "{address}: {log}");
    }
}
