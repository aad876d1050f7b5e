//! The compose file of docs/FLEET.md begins a fleet: its settings of NATS are such, and with its commands, as they
//! stand but for the addresses of this machine, three daemons find each other.

use crate::support::PATIENCE;
use crate::support::daemon::{Daemon, output, pushring};
use crate::support::nats::Nats;
use pushring::FleetReport;
use std::time::Instant;

const PAGE: &str = include_str!("../../docs/FLEET.md");

#[test]
fn the_compose_file_begins_a_fleet() {
    let file = PAGE.split("```yaml\n").nth(1).and_then(|rest| rest.split("\n```").next()).unwrap();
    let settings: String =
        file.split("content: |\n").nth(1).unwrap().lines().map(|line| format!("{}\n", line.trim())).collect();
    let Some(nats) = Nats::start(&settings) else { return };
    let commands = file.lines().filter_map(|line| line.trim().strip_prefix("command: "));
    let commands: Vec<Vec<String>> = commands.map(|command| serde_json::from_str(command).unwrap()).collect();
    let daemons: Vec<_> = commands
        .iter()
        .filter(|command| command[0] == "demo")
        .enumerate()
        .map(|(number, command)| {
            let here =
                |word: &String| word.replace("0.0.0.0:8080", "127.0.0.1:0").replace("nats://nats:4222", &nats.url());
            let control = std::env::temp_dir().join(format!("pushring-compose-{}-{number}.sock", std::process::id()));
            let control = control.to_str().unwrap().to_owned();
            let words: Vec<String> =
                command.iter().map(here).chain(["--control".to_owned(), control.clone()]).collect();
            let words: Vec<&str> = words.iter().map(String::as_str).chain(["--shards", "1"]).collect();
            (Daemon::spawn(&mut pushring(&words)), control)
        })
        .collect();
    assert_eq!(daemons.len(), 3);
    let since = Instant::now();
    for (_, control) in &daemons {
        loop {
            let shown = output(&mut pushring(&["fleet", "--control", control, "--json"]));
            let report: FleetReport = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            if report.nodes.iter().filter(|node| !node.is_gone).count() == 2 && report.payload_bytes_max >= 8_000_000 {
                break;
            }
            assert!(since.elapsed() < PATIENCE, "{report:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
