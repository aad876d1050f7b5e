//! The doctor on this machine: what it prints is for people or for tools, and its exit code is the worst finding.

use crate::support;

use serde_json::Value;
use std::collections::BTreeSet;
use std::net::TcpListener;
use support::daemon::{Daemon, TemporaryFile, output, pushring};

/// Its exit code and its findings.
fn examine(args: &[&str]) -> (i32, Vec<Value>) {
    let examined = output(pushring(&["doctor", "--json"]).args(args));
    let text = String::from_utf8(examined.stdout).unwrap();
    let findings = text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    (examined.status.code().unwrap(), findings)
}

fn finding<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check}: {findings:?}"))
}

#[test]
fn the_exit_code_is_the_worst_finding() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (listen, port) = (taken.local_addr().unwrap().to_string(), taken.local_addr().unwrap().port());
    // Settings that ask little of a machine, so that any machine is good enough but for the port.
    let modest = ["--shards", "1", "--connections-max", "100", "--memory-budget", "16MiB", "--driver", "epoll"];
    let (code, findings) = examine(&[&modest[..], &["--listen", &listen]].concat());
    let listener = finding(&findings, "listener");
    assert_eq!((code, &listener["level"]), (2, &"problem".into()), "{findings:?}");
    let pid = std::process::id();
    let found = listener["found"].as_str().unwrap();
    assert!(
        found.contains(&format!(":{port} is in use by ")) && found.ends_with(&format!(", process {pid}")),
        "{listener}"
    );

    let (code, findings) = examine(&[&modest[..], &["--listen", "127.0.0.1:0"]].concat());
    let levels: BTreeSet<_> = findings.iter().map(|finding| finding["level"].as_str().unwrap()).collect();
    assert_eq!(code, if levels.contains("warning") { 1 } else { 0 }, "{findings:?}");
    assert_eq!(finding(&findings, "memory")["level"], "ok");
    assert!(findings.iter().all(|finding| finding["fix"].is_string() != (finding["level"] == "ok")), "{findings:?}");

    let (code, findings) = examine(&["--listen", "127.0.0.1:0", "--ping-interval", "0", "--driver", "epoll"]);
    assert_eq!((code.max(1), &finding(&findings, "idle timeouts")["level"]), (code, &"warning".into()), "{findings:?}");

    let (code, findings) = examine(&["--config", "/no/such/file"]);
    assert_eq!((code, findings.len()), (2, 0), "settings that cannot be read");
    let (code, findings) = examine(&["--listen", "127.0.0.1:0", "--deflate-level", "0"]);
    assert_eq!((code, &finding(&findings, "settings")["level"]), (2, &"problem".into()));
}

#[test]
fn a_daemon_of_ours_is_no_problem() {
    let path = std::env::temp_dir().join(format!("pushring-doctor-{}.sock", std::process::id()));
    let at = path.to_str().unwrap();
    let daemon = Daemon::start(&["serve", "--control", at]);
    // Known by what it runs where it tells nothing.
    let (_, findings) = examine(&["--listen", &daemon.address, "--control", "off"]);
    assert_eq!(finding(&findings, "listener")["level"], "ok", "{findings:?}");
    let (_, findings) = examine(&["--listen", &daemon.address, "--control", at]);
    let listener = finding(&findings, "listener");
    assert_eq!(listener["level"], "ok");
    assert!(listener["found"].as_str().unwrap().ends_with(&format!("process {}", daemon.child.id())), "{listener}");
    assert!(finding(&findings, "control")["found"].as_str().unwrap().contains("a running daemon's"));
    drop(daemon);
    let _ = std::fs::remove_file(&path);
}

#[test]
fn people_read_what_was_found_and_how_to_mend_it() {
    let examined = output(&mut pushring(&["doctor", "--listen", "127.0.0.1:0", "--ping-interval", "90s"]));
    let text = String::from_utf8(examined.stdout).unwrap();
    assert!(text.contains("WARNING  idle timeouts") && text.contains("fix: --ping-interval 25s"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("problems: "), "{text}");
    assert!(examined.stderr.is_empty());
    let help = String::from_utf8(output(&mut pushring(&["doctor", "--help"])).stdout).unwrap();
    assert!(help.contains("The exit status is 0 if all is well, 1 with warnings, 2"), "{help}");
}

/// The daemon starts, and does without.
#[test]
fn a_listener_that_is_for_others_than_clients_is_looked_at_too() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let token = TemporaryFile::new("api-token", &"x".repeat(32));
    for (check, flags) in [
        ("admin listener", &["--admin-listen", &at][..]),
        ("API listener", &["--api-listen", &at, "--api-token-file", token.path()]),
    ] {
        let (_, findings) = examine(&[&["--listen", "127.0.0.1:0"], flags].concat());
        let listener = finding(&findings, check);
        let found = listener["found"].as_str().unwrap();
        assert!(listener["level"] == "warning" && found.contains("is in use by "), "{listener}");
        assert!(listener["fix"].as_str().unwrap().contains(flags[0]), "{listener}");
    }
    let (_, findings) = examine(&["--listen", "127.0.0.1:0", "--admin-listen", "off", "--api-listen", &at]);
    let is_served = |check: &str| findings.iter().any(|finding| finding["check"] == check);
    assert!(
        !is_served("admin listener") && !is_served("API listener"),
        "without a token there is no API: {findings:?}"
    );
}

/// A daemon with one of these does not start.
#[test]
fn each_secret_that_the_daemon_reads_is_looked_at() {
    let file = |bytes: usize| TemporaryFile::new(&format!("secret-of-{bytes}"), &"x".repeat(bytes));
    let (short, of_20) = (file(9), file(20));
    for (check, flag, file) in [
        ("token secret", "--jwt-secret-file", &short),
        ("second token secret", "--jwt-second-secret-file", &short),
        ("link token", "--link-token-file", &short),
        ("hub's secret", "--hub-secret-file", &short),
        ("webhook secret", "--hub-webhook-secret-file", &short),
        ("webhook secret", "--hub-webhook-secret-file", &of_20),
        ("admin token", "--admin-token-file", &short),
        ("API token", "--api-token-file", &short),
    ] {
        let (code, findings) = examine(&["--listen", "127.0.0.1:0", flag, file.path()]);
        assert_eq!((code, &finding(&findings, check)["level"]), (2, &"problem".into()), "{flag}: {findings:?}");
    }
    let both = file(32);
    let flags = ["--listen", "127.0.0.1:0", "--jwt-secret-file", both.path(), "--hub-secret-file", both.path()];
    let (code, findings) = examine(&flags);
    let is_told = |finding: &Value| finding["found"].as_str().unwrap().contains("the secret of logins");
    assert!(code == 2 && findings.iter().any(is_told), "one secret for two: {findings:?}");
}

/// The settings of docs/QUICKSTART.md.
#[test]
fn a_hub_needs_neither_a_link_nor_logins() {
    let hub = ["--hub", "--hub-open"];
    let (_, findings) = examine(&[&["--listen", "127.0.0.1:0"], &hub[..]].concat());
    let is_asked_for = |check: &str| findings.iter().any(|finding| finding["check"] == check);
    assert!(!is_asked_for("link") && !is_asked_for("token secret"), "{findings:?}");
    // What else may be warned of is of the machine.
    let modest = ["serve", "--connections-max", "100", "--driver", "epoll", "--admin-listen", "off"];
    let daemon = Daemon::start(&[&modest[..], &hub].concat());
    daemon.signal("TERM");
    let (_, log) = daemon.wait();
    assert!(!log.contains("WARN"), "{log}");
}
