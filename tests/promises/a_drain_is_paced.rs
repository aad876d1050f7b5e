//! The promise: a drain closes channels one after another with 1012 and a time to come back in, so that clients come
//! back evenly; what was pushed before arrives first; then the daemon ends by itself.

use crate::support::daemon::{Daemon, TemporaryFile, output, pushring};
use crate::support::{recv, recv_close, send};
use serde_json::Value;
use tungstenite::Message;

const ECHO: &str = "/echo:pushring:sys/";

fn connect(daemon: &Daemon, count: usize) -> Vec<crate::support::Client> {
    let mut clients: Vec<_> = (0..count).map(|_| daemon.connect(ECHO)).collect();
    for client in &mut clients {
        send(client, "hello");
        assert_eq!(recv(client), Message::text("hello"));
    }
    clients
}

fn assert_told_to_come_back(clients: &mut [crate::support::Client]) {
    for client in clients {
        let (code, reason) = recv_close(client);
        let reason: Value = serde_json::from_str(&reason).unwrap();
        assert!(code == 1012 && reason["retry_ms"].as_u64().is_some_and(|ms| ms < 1000), "{code} {reason}");
    }
}

#[test]
fn every_client_is_told_when_to_come_back_and_the_daemon_ends() {
    let control = std::env::temp_dir().join(format!("pushring-drain-{}.sock", std::process::id()));
    let control = control.to_str().unwrap();
    let daemon = Daemon::start(&["demo", "--shards", "2", "--control", control]);
    let mut clients = connect(&daemon, 100);
    let told = output(&mut pushring(&["drain", "--grace", "0s", "--over", "2s", "--json", "--control", control]));
    assert!(told.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&told.stdout).unwrap()["over_ms"], 2000);
    assert_told_to_come_back(&mut clients);
    drop(clients);
    let (code, log) = daemon.wait();
    assert!(code == Some(0) && log.contains("draining"), "{log}");
}

#[test]
fn sigterm_drains_where_drain_over_is_set_and_responses_end_their_connections_meanwhile() {
    let file = TemporaryFile::new("drain.toml", "drain_over = \"1s\"\ndrain_grace = \"30s\"\n");
    let daemon = Daemon::start(&["demo", "--shards", "1", "--config", file.path()]);
    let mut clients = connect(&daemon, 3);
    daemon.signal("TERM");
    // In its grace it takes clients as before, but keeps no connection for another request.
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    let keep = || {
        let mut stream = daemon.stream();
        std::io::Write::write_all(&mut stream, b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 1024];
        let count = std::io::Read::read(&mut stream, &mut answer).unwrap();
        String::from_utf8_lossy(&answer[..count]).to_lowercase()
    };
    while !keep().contains("connection: close") {
        assert!(std::time::Instant::now() < deadline);
    }
    clients.extend(connect(&daemon, 2));
    // A second signal demands the end now.
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert!(code == Some(128 + 15) && log.contains("drain_over"), "{code:?} {log}");
}
