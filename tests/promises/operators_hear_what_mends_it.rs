//! Events that shut clients out are logged: at once, then at most once a minute and kind, with a count, the latest
//! example, and the setting that fixes it. Text chosen by clients is escaped.

use crate::support::daemon::Daemon;
use crate::support::{Client, recv, send};
use std::io::{Read, Write};
use tungstenite::Message;

/// The lines of a log that hold all of `words`.
fn lines<'l>(log: &'l str, words: &[&str]) -> Vec<&'l str> {
    log.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
}

fn get(daemon: &Daemon, host: &str, fields: &str) -> String {
    let mut stream = daemon.stream();
    write!(stream, "GET /nothing HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn a_foreign_host_and_an_untrusted_proxy_are_named_once_with_their_setting() {
    let daemon = Daemon::start(&["demo"]);
    for at in 0..5 {
        assert!(get(&daemon, &format!("evil-{at}.example"), "").starts_with("HTTP/1.1 421 "));
        assert!(get(&daemon, "localhost", "X-Forwarded-For: 192.0.2.7\r\n").starts_with("HTTP/1.1 404 "));
    }
    // A body that is to come is judged by its head alone.
    let mut stream = daemon.stream();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    daemon.signal("TERM");
    let (_, log) = daemon.wait();
    for words in [["421", "`hosts`", "evil-0.example"], ["X-Forwarded-For", "`trusted_proxies`", "127.0.0.1"]] {
        let said = lines(&log, &words);
        assert!(said.len() == 1 && said[0].contains("WARN") && said[0].contains("count=1"), "{words:?}: {log}");
        assert_eq!(lines(&log, &words[..2]).len(), 1, "{log}");
    }
}

#[test]
fn clients_that_a_trusted_proxy_names_are_no_news() {
    let daemon = Daemon::start(&["demo", "--trusted-proxies", "127.0.0.1"]);
    assert!(get(&daemon, "localhost", "X-Forwarded-For: 192.0.2.7\r\n").starts_with("HTTP/1.1 404 "));
    daemon.signal("TERM");
    let (_, log) = daemon.wait();
    assert_eq!(lines(&log, &["X-Forwarded-For"]), Vec::<&str>::new(), "{log}");
}

#[test]
fn limits_of_connections_and_handshakes_are_named() {
    for (flag, setting, status) in [
        ("--connections-per-ip-max", "`connections_per_ip_max`", "HTTP/1.1 503 "),
        ("--connections-max", "`connections_max`", "HTTP/1.1 503 "),
    ] {
        let daemon = Daemon::start(&["demo", flag, "1"]);
        let mut held = daemon.connect("/echo:pushring:sys/");
        for _ in 0..3 {
            let mut response = String::new();
            daemon.stream().read_to_string(&mut response).unwrap();
            assert!(response.starts_with(status), "{response}");
        }
        send(&mut held, "still here");
        assert_eq!(recv(&mut held), Message::text("still here"));
        drop(held);
        daemon.signal("TERM");
        let (_, log) = daemon.wait();
        assert_eq!(lines(&log, &["WARN", setting, "count=1", "127.0.0.1"]).len(), 1, "{setting}: {log}");
    }
    let daemon = Daemon::start(&["demo", "--handshakes-per-ip-per-s-max", "1"]);
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    while !get(&daemon, "localhost", upgrade).starts_with("HTTP/1.1 503 ") {}
    daemon.signal("TERM");
    assert_eq!(lines(&daemon.wait().1, &["WARN", "`handshakes_per_ip_per_s_max`"]).len(), 1);
}

#[test]
fn clients_that_do_not_keep_up_are_named() {
    let daemon = Daemon::start(&["demo", "--outbound-bytes-max", "16KiB", "--tcp-notsent-lowat", "16KiB"]);
    let slow: Vec<Client> = (0..3).map(|_| daemon.connect("/relay:pushring:sys/")).collect();
    let mut fast = daemon.connect("/relay:pushring:sys/");
    let mut echo = daemon.connect("/echo:pushring:sys/");
    // Until the sockets of the clients that do not read are full, and one beyond that.
    for _ in 0..400 {
        send(&mut fast, Message::binary(vec![0; 64 * 1024]));
    }
    send(&mut echo, "done");
    assert_eq!(recv(&mut echo), Message::text("done"));
    drop((slow, fast, echo));
    daemon.signal("TERM");
    let (_, log) = daemon.wait();
    assert_eq!(lines(&log, &["WARN", "1013", "`outbound_bytes_max`"]).len(), 1, "{log}");
}
