//! The client for JavaScript holds what its page promises, against the daemon and against a broker that misbehaves: the
//! stream goes on however often the network is cut. Run where Node is there; where it is not, the test says so.

use crate::support::daemon::Daemon;
use crate::support::hub::Hub;
use std::process::Command;

#[test]
fn the_stream_goes_on_in_javascript() {
    let node = Command::new("node").arg("--version").output();
    let Some(version) = node.ok().filter(|node| node.status.success()) else {
        println!("NOT RUN: there is no Node");
        return;
    };
    println!("Node {}", String::from_utf8_lossy(&version.stdout));
    let daemon = Daemon::start(&["demo"]);
    let hub = Hub::start("js", &["--hub-open-publish", "public.*", "--hub-sse"]);
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/js/test/");
    // A test that fails may leave a client that goes on for ever.
    let ran = Command::new("timeout")
        .args(["120", "node", "--experimental-websocket", "--test"])
        .args(["client", "faults", "hostile"].map(|name| format!("{tests}{name}.test.mjs")))
        .env("PUSHRING_URL", format!("http://{}", daemon.address))
        .env("PUSHRING_HUB_URL", format!("ws://{}/hub", hub.daemon.address))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}\n{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
}
