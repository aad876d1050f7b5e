//! The promise: however many paths processes have bound, and while more are being bound, the daemon obeys SIGTERM: its
//! clients are told, and it ends by itself.

use crate::link_support::{Raw, frame};
use crate::support::daemon::Daemon;
use crate::support::{recv_close, send};
use serde_json::json;
use std::io::Write;

const PATHS: usize = 16_000;

/// Binds that are asked for before their answers are read.
const AT_ONCE: usize = 1_000;

fn binds(from: usize) -> Vec<u8> {
    let bind = |path: usize| frame(&json!({"bind": {"path": format!("/at/{path}"), "ask": path}}));
    (from..from + AT_ONCE).flat_map(bind).collect()
}

#[test]
fn a_daemon_with_16_000_paths_ends_at_sigterm() {
    let socket = std::env::temp_dir().join(format!("pushring-many-paths-{}.sock", std::process::id()));
    let daemon = Daemon::start(&["serve", "--shards", "2", "--link", socket.to_str().unwrap()]);
    let attach = json!({"version_min": 1, "version_max": 1, "attach": {"process": {"id": "many:test:sys"}}});
    let (mut peer, _) = Raw::attach(&socket, &attach);
    for from in (0..PATHS).step_by(AT_ONCE) {
        peer.0.write_all(&binds(from)).unwrap();
        for _ in 0..AT_ONCE {
            let (name, answer, _) = peer.next_said().unwrap();
            assert_eq!(name, "done", "{answer}");
        }
        peer.send(&json!({"ack": {"received": from + AT_ONCE}}), b"");
    }
    let mut clients = [0, PATHS - 1].map(|path| daemon.connect(&format!("/many:test:sys/at/{path}")));
    clients.iter_mut().for_each(|client| send(client, "hello"));
    // It is busy with more of them when it is told.
    peer.0.write_all(&binds(PATHS)).unwrap();
    daemon.signal("TERM");
    for client in &mut clients {
        assert_eq!(recv_close(client).0, 1001);
        while client.read().is_ok() {}
    }
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
}
