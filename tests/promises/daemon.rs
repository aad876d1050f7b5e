//! The daemon as its operator meets it: the real program, its output, its signals.

use crate::support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use support::daemon::{Daemon, TemporaryFile, output, pushring};
use support::{Client, recv, recv_close, send};
use tungstenite::Message;

fn register(client: &mut Client, token: &str, process: &str) {
    send(client, Message::text(serde_json::json!({ "auth_token": token, "target_process": process }).to_string()));
}

#[test]
fn the_demo_serves_its_page_and_processes_and_stops_at_sigterm() {
    let daemon = Daemon::start(&["demo"]);
    let page = daemon.get("/", "");
    assert!(
        page.starts_with("HTTP/1.1 200 ") && page.contains("content-security-policy: default-src 'none'"),
        "{page}"
    );
    assert!(page.contains("data-cookie=\"kinode-auth_local.os\""), "{page}");
    for file in ["/demo/page.js", "/demo/page.css", "/favicon.svg"] {
        assert!(page.contains(&format!("\"{file}\"")) && daemon.get(file, "").starts_with("HTTP/1.1 200 "), "{file}");
    }

    let mut echo = daemon.connect("/echo:pushring:sys/");
    send(&mut echo, Message::text("hello"));
    assert_eq!(recv(&mut echo), Message::text("hello"));

    // The page's cookie is the token that its script registers with.
    let cookie = page.split("set-cookie: kinode-auth_local.os=").nth(1).expect("a cookie").split(';').next().unwrap();
    let mut registered = daemon.connect("/");
    register(&mut registered, cookie, "echo:pushring:sys");
    assert!(recv(&mut registered).to_text().unwrap().starts_with("{\"channel_id\":"));
    send(&mut registered, Message::binary(vec![1, 2, 3]));
    assert_eq!(recv(&mut registered), Message::binary(vec![1, 2, 3]));

    daemon.signal("TERM");
    for mut client in [echo, registered] {
        assert_eq!(recv_close(&mut client).0, 1001);
        // The answer to the close goes out with the next read.
        while client.read().is_ok() {}
    }
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
}

/// Without being told it takes no port that a daemon beside it may have.
#[test]
fn the_demo_has_an_admin_listener_where_it_is_told_to_though_it_be_the_usual_one() {
    for (flags, is_told) in [(&[][..], false), (&["--admin-listen", "127.0.0.1:9464"], true)] {
        let daemon = Daemon::start(&[&["demo"], flags].concat());
        daemon.signal("TERM");
        let (_, log) = daemon.wait();
        // The address may be in use.
        assert_eq!(log.contains("admin listener"), is_told, "{flags:?}: {log}");
    }
}

#[test]
fn the_demo_logs_nobody_in_from_elsewhere() {
    let daemon = Daemon::start(&["demo"]);
    let page = daemon.get("/", "X-Forwarded-For: 192.0.2.1\r\n");
    assert!(page.starts_with("HTTP/1.1 200 ") && !page.contains("set-cookie"), "{page}");
    drop(daemon);
    let mut child = pushring(&["demo", "--listen", "0.0.0.0:0", "--no-pin"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim_end().rsplit(':').next().unwrap();
    let daemon = Daemon { child, address: format!("127.0.0.1:{port}") };
    let page = daemon.get("/", "");
    assert!(page.starts_with("HTTP/1.1 200 ") && !page.contains("set-cookie"), "{page}");
}

#[test]
fn stopping_is_bounded_and_a_second_signal_ends_at_once() {
    let daemon = Daemon::start(&["demo", "--stop-timeout", "200ms", "--log-format", "json"]);
    // A client that answers nothing.
    let silent = daemon.connect("/echo:pushring:sys/");
    daemon.signal("INT");
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON");
    }
    drop(silent);

    let daemon = Daemon::start(&["demo", "--stop-timeout", "1h", "--close-timeout", "1h"]);
    let mut silent = daemon.connect("/echo:pushring:sys/");
    daemon.signal("TERM");
    assert!(matches!(silent.read().unwrap(), Message::Close(_)), "the first signal has been seen");
    daemon.signal("TERM");
    assert_eq!(daemon.wait().0, Some(128 + 15));
}

/// The signals of terminals, service managers and log rotation end no channel without a close frame.
#[test]
fn other_signals_end_nothing_without_a_word() {
    let daemon = Daemon::start(&["demo"]);
    let mut client = daemon.connect("/echo:pushring:sys/");
    for name in ["HUP", "USR1", "USR2"] {
        daemon.signal(name);
        send(&mut client, Message::text(name));
        assert_eq!(recv(&mut client), Message::text(name));
    }
    daemon.signal("QUIT");
    assert_eq!(recv_close(&mut client).0, 1001);
    while client.read().is_ok() {}
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("SIGHUP") && log.contains("SIGUSR2"), "{log}");
}

#[test]
fn a_level_by_another_name_is_that_level() {
    for level in ["warning", "WARN"] {
        let daemon = Daemon::start(&["serve", "--log", level, "--driver", "epoll", "--connections-max", "100"]);
        daemon.signal("TERM");
        let (code, log) = daemon.wait();
        assert!(code == Some(0) && log.contains("no token secret") && !log.contains("INFO"), "{log}");
    }
    let refused = output(&mut pushring(&["serve", "--log", "loud"]));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && words.contains("\"loud\" is no level"), "{words}");
}

#[test]
fn serve_without_a_secret_warns_once_and_refuses_tokens() {
    // With few connections and the driver that any machine has: so nothing else is to be warned of.
    let daemon = Daemon::start(&["serve", "--driver", "epoll", "--connections-max", "100"]);
    assert!(daemon.get("/", "").starts_with("HTTP/1.1 404 "));
    let mut client = daemon.connect("/");
    register(&mut client, "x.y.z", "echo:pushring:sys");
    let (code, reason) = recv_close(&mut client);
    assert_eq!((code, reason.as_str()), (4401, "auth_token: this server has no token secret"));
    drop(client);
    daemon.signal("TERM");
    let (code, log) = daemon.wait();
    assert_eq!((code, log.matches("no token secret").count()), (Some(0), 1), "{log}");
}

#[test]
fn a_printed_token_opens_a_channel() {
    let secret = TemporaryFile::new("secret", "a secret for this test\n");
    let args = ["--node", "alice.os", "--jwt-secret-file", secret.path()];
    let printed = output(pushring(&["token", "--ttl", "60"]).args(args));
    let token = String::from_utf8(printed.stdout).unwrap();
    let daemon = Daemon::start(&[&["demo"], &args[..]].concat());
    let mut client = daemon.connect("/");
    register(&mut client, token.trim_end(), "echo:pushring:sys");
    let reply: serde_json::Value = serde_json::from_str(recv(&mut client).to_text().unwrap()).unwrap();
    assert!(reply["channel_id"].as_u64().is_some_and(|id| id > 0) && reply.as_object().unwrap().len() == 1, "{reply}");
    drop(client);
    daemon.signal("TERM");
    let (_, log) = daemon.wait();
    assert!(!log.contains("a secret for this test") && !log.contains(token.trim_end()), "{log}");
}

#[test]
fn secrets_that_protect_nothing() {
    let empty = TemporaryFile::new("empty", "\n");
    let refused = output(&mut pushring(&["token", "--jwt-secret-file", empty.path()]));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && words.contains("holds 0 bytes") && words.contains("at least 16"), "{words}");
    let missing = output(&mut pushring(&["serve", "--jwt-secret-file", "/no/such/file"]));
    assert!(!missing.status.success());
    assert!(String::from_utf8(missing.stderr).unwrap().contains("/no/such/file"));

    // Each file by the setting that names it, and by no other.
    for (setting, flags) in [
        ("jwt_secret_file", &["--jwt-secret-file"][..]),
        ("jwt_second_secret_file", &["--jwt-second-secret-file"]),
        ("hub_secret_file", &["--hub", "--hub-secret-file"]),
    ] {
        for file in [empty.path(), "/no/such/file"] {
            let refused = output(pushring(&["serve", "--listen", "127.0.0.1:0"]).args(flags).arg(file));
            let words = String::from_utf8(refused.stderr).unwrap();
            let named = words.matches("secret_file: ").count();
            assert!(words.contains(&format!("{setting}: {file}")) && named == 1, "{setting}: {words}");
        }
    }

    let short = TemporaryFile::new("short", "sixteen bytes !!");
    let warned = output(&mut pushring(&["token", "--jwt-secret-file", short.path()]));
    let words = String::from_utf8(warned.stderr).unwrap();
    assert!(warned.status.success() && words.contains("secret is short") && words.contains("bytes=16"), "{words}");

    let readable = TemporaryFile::new("readable", "a key of at least thirty-two bytes");
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&readable.0, std::fs::Permissions::from_mode(mode)).unwrap();
        let said = output(&mut pushring(&["token", "--jwt-secret-file", readable.path()]));
        assert!(said.status.success());
        assert_eq!(String::from_utf8(said.stderr).unwrap().contains("chmod 600"), warned, "{mode:o}");
    }
}

/// As `pushring … | head` is.
#[test]
fn who_reads_no_more_of_what_is_printed_is_no_error() {
    let path = std::env::temp_dir().join(format!("pushring-unread-{}.sock", std::process::id()));
    let control = path.to_str().unwrap();
    let _daemon = Daemon::start(&["serve", "--hub", "--hub-open", "--admin-listen", "off", "--control", control]);
    for command in [
        &["config"][..],
        &["completions", "bash"],
        &["stats", "--control", control],
        &["top", "--json", "--every", "1ms", "--control", control],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let printed = pushring(command).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&printed.stderr);
        assert!(printed.status.success() && said.is_empty(), "{command:?}: {:?} {said}", printed.status);
    }
    let _ = std::fs::remove_file(&path);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let printed = pushring(&["config"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&printed.stderr);
    assert!(printed.status.code() == Some(1) && said.contains("No space left"), "{said}");
}

#[test]
fn flags_win_over_the_environment_which_wins_over_the_file() {
    let file = TemporaryFile::new("settings", "node = \"file.os\"\nshards = 1\npolicy = \"drop-oldest\"\n");
    let mut command = pushring(&["config", "--config", file.path(), "--node", "flag.os"]);
    command.env("PUSHRING_NODE", "variable.os").env("PUSHRING_SHARDS", "2");
    let printed = String::from_utf8(output(&mut command).stdout).unwrap();
    let table: toml::Table = printed.parse().unwrap();
    assert_eq!(table["node"].as_str(), Some("flag.os"));
    assert_eq!(table["shards"].as_integer(), Some(2));
    assert_eq!(table["policy"].as_str(), Some("drop-oldest"));
    assert_eq!(table["head_timeout"].as_str(), Some("10s"));

    // The output is a file with the same settings and their descriptions.
    assert!(
        printed.contains("## Deadlines\n\n# How long a request head may take.\nhead_timeout = \"10s\"\n"),
        "{printed}"
    );
    let defaults = String::from_utf8(output(&mut pushring(&["config", "--defaults"])).stdout).unwrap();
    assert!(defaults.contains("\n#head_timeout = \"10s\"\n") && defaults.parse::<toml::Table>().unwrap().is_empty());
    let help = String::from_utf8(output(&mut pushring(&["serve", "--help"])).stdout).unwrap();
    assert!(help.contains("\nDeadlines:\n") && help.contains("\nProcesses of other programs:\n"), "{help}");
    let again = TemporaryFile::new("printed", &printed);
    let reprinted = output(&mut pushring(&["config", "--config", again.path()]));
    assert_eq!(String::from_utf8(reprinted.stdout).unwrap(), printed);
}

/// In the file, as a flag and as a variable; and the answer says what to write instead.
#[test]
fn a_setting_has_effect_under_its_old_name() {
    let file = TemporaryFile::new("old-name", "tls = true\n");
    let mut by_variable = pushring(&["config"]);
    by_variable.env("PUSHRING_TLS", "true");
    for (mut command, words) in [
        (pushring(&["config", "--config", file.path()]), "tls is an old name, which still works: write behind_tls"),
        (pushring(&["config", "--tls"]), "--tls is an old name, which still works: write --behind-tls"),
        (pushring(&["config", "--tls=true"]), "write --behind-tls"),
        (by_variable, "PUSHRING_TLS is an old name, which still works: write PUSHRING_BEHIND_TLS"),
    ] {
        let told = output(&mut command);
        let said = String::from_utf8(told.stderr).unwrap();
        let printed: toml::Table = String::from_utf8(told.stdout).unwrap().parse().unwrap();
        assert_eq!(printed["behind_tls"].as_bool(), Some(true), "{words}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
    }
    let both = TemporaryFile::new("both-names", "tls = true\nbehind_tls = false\n");
    let refused = output(&mut pushring(&["config", "--config", both.path()]));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("remove tls"), "{said}");
}

#[test]
fn what_cannot_be_obeyed_is_refused_by_name() {
    let file = TemporaryFile::new("wrong", "shrads = 1\n");
    let refused = output(&mut pushring(&["serve", "--config", file.path()]));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && words.contains("shrads") && words.contains(file.path()), "{words}");
    for (variable, value, words) in [
        ("PUSHRING_HEAD_TIMEOUT", "10", &["250ms", "environment variable PUSHRING_HEAD_TIMEOUT"][..]),
        ("PUSHRING_CONNECTIONS_MAX", "0", &["in the variable PUSHRING_CONNECTIONS_MAX: connections_max"]),
        ("PUSHRING_POLCY", "close", &["PUSHRING_POLCY sets nothing: did you mean PUSHRING_POLICY?"]),
        ("PUSHRING_JWT_SECRET_FILE", "", &["PUSHRING_JWT_SECRET_FILE is set and empty"]),
        ("RUST_LOG", "loud", &["in the variable RUST_LOG: log: \"loud\" is no level"]),
    ] {
        let refused = output(pushring(&["config"]).env(variable, value));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && words.iter().all(|words| said.contains(words)), "{variable}: {said}");
    }
    for (flags, words) in [
        (&["--listen", "9000"][..], "write 127.0.0.1:9000 for this machine alone"),
        (&["--listen", "localhost:9000"], "names are not looked up"),
        (&["--connections-max", "0"], "at --connections-max: connections_max: must be more than 0"),
        (&["--polcy", "close"], "--policy"),
    ] {
        let refused = output(pushring(&["config"]).args(flags));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(words), "{flags:?}: {said}");
    }
    let file = TemporaryFile::new("wrong-span", "shards = 1\nhead_timeout = 10\n");
    let refused = output(&mut pushring(&["config", "--config", file.path()]));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains(&format!("{}:2: head_timeout = 10", file.path())) && words.contains("\"10s\""), "{words}");
    // A variable of another program is none of ours, and help is to be had whatever is set.
    assert!(output(pushring(&["config"]).env("PUSHRING_PORT", "tcp://10.0.0.1:8080")).status.success());
    assert!(output(pushring(&["config", "--help"]).env("PUSHRING_POLCY", "x")).status.success());
    let refused = output(&mut pushring(&["serve", "--listen", "192.0.2.1:0"]));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(refused.status.code() == Some(1) && words.contains("no address of this machine"), "{words}");
}
