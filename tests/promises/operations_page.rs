//! `docs/OPERATIONS.md` says what is so: its commands and settings exist, its unit has no misspelt key, and its file of
//! settings is executed.

use crate::support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use support::daemon::{TemporaryFile, output, pushring};

fn page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md")).unwrap()
}

/// The blocks of the page in `language`.
fn blocks(language: &str) -> Vec<String> {
    let (page, fence) = (page(), format!("```{language}\n"));
    let blocks = page.split(&*fence).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned());
    let blocks: Vec<_> = blocks.collect();
    assert!(!blocks.is_empty(), "{language}");
    blocks
}

fn help(command: &str) -> String {
    String::from_utf8(output(&mut pushring(&[command, "--help"])).stdout).unwrap()
}

#[test]
fn its_commands_and_flags_exist() {
    let page = page();
    let words: BTreeSet<&str> = page.split(|c: char| c.is_whitespace() || "`(),;:".contains(c)).collect();
    let commands = [
        "serve",
        "demo",
        "doctor",
        "stats",
        "disconnects",
        "metrics",
        "config",
        "init",
        "completions",
        "channels",
        "processes",
        "fleet",
        "top",
        "kick",
        "reload",
        "drain",
    ];
    let helps: String = commands.iter().map(|command| help(command)).collect();
    let known: BTreeSet<&str> = helps.split(|c: char| c.is_whitespace() || "[=,".contains(c)).collect();
    // Those of other programs.
    let others = [
        "--append",
        "--format",
        "--groups",
        "--now",
        "--path",
        "--system",
        "--security-opt",
        "--ulimit",
        "--read-only",
        "--tmpfs",
        "--cap-drop",
        "--memory",
        "--cpus",
    ];
    for flag in words.iter().filter(|word| word.starts_with("--") && !others.contains(word)) {
        assert!(known.contains(flag.trim_end_matches('.')), "{flag}");
    }
    let shells = blocks("sh").join("\n");
    for line in shells.lines().filter_map(|line| line.trim().strip_prefix("pushring ")) {
        let command = line.split(' ').next().unwrap();
        assert!(commands.contains(&command), "{line}");
        let parsed = output(pushring(&line.split(' ').collect::<Vec<_>>()).arg("--help"));
        assert!(parsed.status.success(), "{line}");
    }
    let settings = String::from_utf8(output(&mut pushring(&["config"])).stdout).unwrap();
    let settings: toml::Table = settings.parse().unwrap();
    for name in ["stop_timeout", "ping_interval", "outbound_bytes_max", "register_timeout", "trusted_proxies"] {
        assert!(settings.contains_key(name) && page.contains(name), "{name}");
    }
}

#[test]
fn its_file_of_settings_is_executed() {
    let file = TemporaryFile::new("operations", &blocks("toml").join("\n"));
    let examined = output(&mut pushring(&["config", "--config", file.path()]));
    assert!(examined.status.success(), "{}", String::from_utf8_lossy(&examined.stderr));
}

/// Files that packages ship stand on the page as they are.
#[test]
fn its_files_are_those_of_the_packages() {
    let shipped = |name: &str| {
        let path = format!("{}/packaging/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap().trim_end().to_owned()
    };
    let expected = ["pushring.service", "pushring.socket", "notify-reload.conf"].map(shipped);
    assert_eq!(blocks("ini"), expected);
    assert_eq!(blocks("sysctl"), ["60-pushring.conf"].map(shipped));
}

/// systemd's own judgement of the units, where it is installed.
#[test]
fn systemd_finds_nothing_wrong_with_its_units() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("NOT RUN: there is no systemd-analyze");
        return;
    };
    assert!(version.status.success());
    // Programs that a unit names must be there.
    let directory = std::env::temp_dir().join(format!("pushring-units-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let [service, socket] = ["pushring.service", "pushring.socket"].map(|name| {
        let path = format!("{}/packaging/{name}", env!("CARGO_MANIFEST_DIR"));
        let unit = std::fs::read_to_string(path).unwrap();
        let unit = unit.replace("/usr/bin/pushring", env!("CARGO_BIN_EXE_pushring"));
        // Its manual page is not installed here.
        let unit = unit.replace("Documentation=man:pushring(1)\n", "");
        let path = directory.join(name);
        std::fs::write(&path, unit).unwrap();
        path
    });
    let verified = Command::new("systemd-analyze").arg("verify").args([&service, &socket]).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    std::fs::remove_dir_all(&directory).unwrap();
    // It speaks of the machine's other units too.
    assert!(!said.lines().any(|line| line.contains("pushring")), "{said}");
}

#[test]
fn its_unit_gives_time_and_files_enough() {
    let unit = &blocks("ini")[0];
    // The unit gives the daemon more time to stop than it takes, and a file limit that fits its connections.
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(&format!("{key}="))).unwrap().to_owned();
    let settings: toml::Table = String::from_utf8(output(&mut pushring(&["config"])).stdout).unwrap().parse().unwrap();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let setting = |key: &str| seconds(settings[key].as_str().unwrap());
    let drain = seconds(&value("Environment=PUSHRING_DRAIN_OVER")) + setting("drain_grace") + setting("stop_timeout");
    assert!(seconds(&value("TimeoutStopSec")) > drain);
    let files: i64 = value("LimitNOFILE").parse().unwrap();
    assert!(files > settings["connections_max"].as_integer().unwrap());
    for (key, file) in [("JWT_SECRET_FILE", "jwt-secret"), ("ADMIN_TOKEN_FILE", "admin-token")] {
        assert_eq!(value(&format!("Environment=PUSHRING_{key}")), format!("%d/{file}"));
    }
}

#[test]
fn a_reload_changes_what_the_page_says() {
    const WHEN: [&str; 3] = ["at once", "for new connections", "after a restart"];
    let printed = String::from_utf8(output(&mut pushring(&["config"])).stdout).unwrap();
    let (mut settings, mut when) = (BTreeMap::new(), WHEN[0]);
    for line in printed.lines() {
        match line {
            "# A reload changes it for new connections." => when = WHEN[1],
            "# A change of it needs a restart." => when = WHEN[2],
            line if line.starts_with('#') => {}
            line => {
                if let Some((key, _)) = line.split_once(" = ") {
                    settings.insert(key, std::mem::replace(&mut when, WHEN[0]));
                }
            }
        }
    }
    assert!(WHEN.iter().all(|when| settings.values().any(|of| of == when)), "{settings:?}");
    let page = page();
    let mut named: BTreeMap<&str, &str> = BTreeMap::new();
    for row_of in WHEN {
        let row = page.lines().find(|line| line.starts_with(&format!("| {row_of} |"))).expect(row_of);
        // One that ends in `…` stands for all that begin so.
        for name in row.split('`').skip(1).step_by(2) {
            let beginning = name.strip_suffix('…');
            let is_meant = |key: &str| beginning.map_or(key == name, |beginning| key.starts_with(beginning));
            let meant: Vec<_> = settings.iter().filter(|(key, _)| is_meant(key)).collect();
            assert!(!meant.is_empty() && meant.iter().all(|(_, when)| **when == row_of), "{row_of}: {name}: {meant:?}");
            named.extend(meant.iter().map(|(key, when)| (**key, **when)));
        }
    }
    // The first row has all others.
    settings.retain(|key, when| *when != WHEN[0] && !named.contains_key(key));
    assert!(settings.is_empty(), "in no row: {settings:?}");
}
