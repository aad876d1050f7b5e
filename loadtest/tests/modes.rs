//! Every mode once, tiny, against the built-in tungstenite reference: the instrument itself must count right.

use std::process::{Command, Output};

use serde_json::Value;

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().expect("the binary was built for this test")
}

/// Runs a mode against its own reference server and returns its JSON.
fn run(arguments: &[&str]) -> Value {
    let common = ["--reference", "tungstenite", "--no-spin", "--patience", "60", "--json"];
    let output = loadtest(&[arguments, &common].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("--json prints JSON and nothing else")
}

fn assert_lossless(report: &Value, expected: u64) {
    let accounting = &report["accounting"];
    assert_eq!(accounting["expected"], expected, "{report}");
    assert_eq!(accounting["delivered"], expected, "{report}");
    for fault in ["lost", "duplicated", "reordered", "corrupted", "misdelivered", "foreign", "closed"] {
        assert_eq!(accounting[fault], 0, "{fault}: {report}");
    }
    assert!(report["latency"]["p50_us"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn fanout_counts_every_delivery() {
    let report = run(&["fanout", "--clients", "20", "--messages", "50", "--in-flight", "4", "--size", "1000"]);
    assert_lossless(&report, 1000);
    assert!(report["cpu"]["us_per_unit"].as_f64().unwrap() > 0.0, "{report}");
}

/// As without, and what the certificate is checked against decides.
#[test]
fn every_mode_speaks_tls() {
    assert_lossless(&run(&["fanout", "--tls", "--clients", "20", "--messages", "50", "--in-flight", "16"]), 1000);
    assert_lossless(&run(&["fanout", "--tls", "--clients", "4", "--messages", "20", "--size", "100000"]), 80);
    assert_lossless(&run(&["echo", "--tls", "--classic", "--clients", "5", "--messages", "100"]), 500);
    let registered = ["unicast", "--tls", "--clients", "3", "--messages", "50", "--registered"];
    assert_lossless(&run(&registered), 50);
    for (flag, words) in
        [("--resumed", "TLS: 0 full handshakes, 100 resumed"), ("--registered", "TLS: 100 full handshakes, 0 resumed")]
    {
        let report = run(&["connect", "--tls", "--clients", "10", "--churn", "100", "--concurrency", "8", flag]);
        assert_eq!(report["count"], 100, "{report}");
        assert!(report["notes"].to_string().contains(words), "{report}");
    }
    let stranger = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let refused = loadtest(&["echo", "--reference", "tungstenite", "--tls", "--no-spin", "--ca", stranger]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("holds no certificate"), "{refused:?}");
}

#[test]
fn fanout_over_registered_channels_and_several_processes() {
    let report = run(&["fanout", "--clients", "30", "--messages", "20", "--processes", "3", "--registered"]);
    assert_lossless(&report, 600);
}

#[test]
fn clients_that_stop_reading_for_a_while_miss_nothing() {
    let sizes = ["--size", "70000", "--messages", "60", "--stall-messages", "20"];
    let report = run(&[&["fanout", "--clients", "8", "--stall", "4"], &sizes[..]].concat());
    assert_lossless(&report, 480);
}

#[test]
fn clients_that_read_only_after_the_last_send_get_everything() {
    let report = run(&["fanout", "--clients", "20", "--messages", "10", "--read-after"]);
    assert_eq!(report["accounting"]["delivered"], 200, "{report}");
    assert!(report["latency"].is_null() && report["seconds"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn a_client_that_is_stuck_for_good_takes_nothing_from_the_others() {
    let report = run(&["paced", "--clients", "5", "--stuck", "2", "--rate", "50", "--seconds", "0.3"]);
    assert_lossless(&report, 75);
}

#[test]
fn paced_publishes_on_time() {
    let report = run(&["paced", "--clients", "10", "--rate", "100", "--seconds", "0.3"]);
    assert_lossless(&report, 300);
}

#[test]
fn echo_returns_each_message() {
    let report = run(&["echo", "--clients", "5", "--messages", "100", "--in-flight", "8"]);
    assert_lossless(&report, 500);
}

#[test]
fn unicast_reaches_the_channel_that_was_meant() {
    assert_lossless(&run(&["unicast", "--clients", "10", "--messages", "400", "--in-flight", "16"]), 400);
    assert_lossless(&run(&["unicast", "--clients", "3", "--messages", "50", "--registered"]), 50);
}

#[test]
fn connect_measures_memory_and_rate() {
    for close in ["tcp", "reset", "handshake"] {
        let sizes = ["--clients", "50", "--processes", "2", "--churn", "100", "--concurrency", "8", "--hold", "0.05"];
        let report = run(&[&["connect", "--close", close], &sizes[..]].concat());
        assert_eq!(report["count"], 100, "{report}");
        assert_eq!(report["accounting"]["closed"], 0, "{report}");
        assert_eq!(report["memory"]["channels"], 50, "{report}");
    }
}

#[test]
fn what_cannot_work_fails_in_words() {
    let refused = loadtest(&["fanout", "--url", "ws://127.0.0.1:1", "--clients", "1"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("onnection refused"), "{refused:?}");
    let small = loadtest(&["echo", "--size", "8"]);
    assert!(String::from_utf8_lossy(&small.stderr).contains("at least 24 bytes"), "{small:?}");
    let no_path = loadtest(&["fanout", "--reference", "nothing"]);
    assert_eq!(no_path.status.code(), Some(1));
}

#[test]
fn compare_writes_a_table_json_and_a_page() {
    let directory = std::env::temp_dir().join(format!("loadtest-compare-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (json, html) = (directory.join("c.json"), directory.join("c.html"));
    let sizes = ["--runs", "2", "--seconds", "0.05", "--few", "10", "--many", "20", "--churn", "30", "--no-spin"];
    let files = ["--json", json.to_str().unwrap(), "--html", html.to_str().unwrap(), "--stuck-seconds", "0"];
    let cpus = ["--server-cpus", "0", "--client-cpus", "0", "--without-pushring"];
    let output = loadtest(&[&["compare"], &sizes[..], &files, &cpus].concat());
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("× warp") && stdout.contains("raw-ring"), "{stdout}");
    let result: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(result["subject"], "warp");
    let cells = result["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 21);
    for series in cells.iter().flat_map(|cell| cell["series"].as_array().unwrap()) {
        assert_eq!(series["failures"].as_array().unwrap().len(), 0, "{series}");
        assert_eq!(series["reports"].as_array().unwrap().len(), 2, "{series}");
        for report in series["reports"].as_array().unwrap() {
            assert_eq!(report["accounting"]["lost"], 0, "{report}");
        }
    }
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_short_soak_holds() {
    let sizes = ["--minutes", "0.05", "--steady", "20", "--churn-rate", "100", "--slow", "5", "--half-open", "5"];
    // Three seconds are too short to tell a slope from a cache that fills.
    let report = run(&[&["soak", "--growth-kib-max", "100000"], &sizes[..]].concat());
    assert_eq!(report["faults"].as_array().unwrap().len(), 0, "{report}");
    let churned = &report["churned"];
    for ending in ["fins", "resets", "handshakes", "echoed"] {
        assert!(churned[ending].as_u64().unwrap() > 0, "{ending}: {report}");
    }
    assert_eq!(report["accounting"]["lost"], 0, "{report}");
}

/// NaN is not less than any end, and what is allocated for a message is there or the program ends.
#[test]
fn amounts_and_sizes_that_cannot_be_are_refused_by_their_flags() {
    for mode in ["fanout", "paced", "echo", "unicast", "rooms", "inbound", "neighbours", "fleet", "compare"] {
        for seconds in ["nan", "inf", "1e10", "0", "-1", "soon"] {
            let refused = loadtest(&[mode, &format!("--seconds={seconds}")]);
            let told = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{mode} {seconds}: {told}");
            assert!(told.contains("--seconds"), "{mode} {seconds}: {told}");
        }
    }
    let others = [
        ("connect", "--hold=nan"),
        ("connect", "--rate=nan"),
        ("echo", "--patience=nan"),
        ("echo", "--size=99999999999999"),
        ("fleet", "--size=0"),
        ("paced", "--rate=1e300"),
        ("rooms", "--joins=nan"),
        ("soak", "--minutes=nan"),
    ];
    for (mode, argument) in others {
        let refused = loadtest(&[mode, argument]);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{mode} {argument}: {told}");
        assert!(told.contains(argument.split('=').next().unwrap()), "{mode} {argument}: {told}");
    }
}

#[test]
fn help_is_at_most_100_columns_wide() {
    let modes = ["connect", "fanout", "unicast", "soak", "fleet", "compare", "reference"];
    for arguments in modes.map(|mode| vec![mode, "--help"]).into_iter().chain([vec!["--help"]]) {
        let help = loadtest(&arguments).stdout;
        let widest = String::from_utf8_lossy(&help).lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 100), "{arguments:?}: {widest:?}");
    }
}

/// Daemons are built with the whole workspace; this program's tests alone build none.
fn pushring() -> Option<std::path::PathBuf> {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("pushring");
    let has_nats = ["/usr/sbin/nats-server", "/usr/bin/nats-server", "/usr/local/bin/nats-server"];
    let is_there = program.is_file() && has_nats.iter().any(|nats| std::path::Path::new(nats).is_file());
    if !is_there {
        println!("NOT RUN: there is no pushring beside this program, or no nats-server");
    }
    is_there.then_some(program)
}

#[test]
fn a_fleet_delivers_all_once_or_says_what_is_lost() {
    let Some(_) = pushring() else { return };
    let sizes = ["--clients", "20", "--broadcasts", "6", "--unicasts", "60", "--seconds", "2", "--json"];
    let output = loadtest(&[&["fleet"], &sizes[..]].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("--json prints JSON: {}", String::from_utf8_lossy(&output.stderr)));
    assert!(report["expected"].as_u64().unwrap() > 500 && report["wrong"] == 0, "{report}");
    // On a machine that starves a node for seconds NATS takes it for gone, and then it is told.
    let is_whole = report["missing"] == 0;
    assert!(is_whole || report["told_lost"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(output.status.success(), is_whole, "{report}");
}
