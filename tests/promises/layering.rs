//! The allowed imports: a part of the crate never imports from a part to its right, and some things are done in one
//! place only.

use std::fs;
use std::path::{Path, PathBuf};

/// From left to right. Parts of one row may know each other.
const ROWS: &[&[&str]] = &[
    &["words", "channel", "process_id"],
    &["proto", "http", "resume", "sse"],
    &["gateway", "admission", "jwks", "tls"],
    &["shard", "queue"],
    &["driver"],
    &["broker"],
    &["demo", "control", "fleet", "hub", "push_api"],
    &["node"],
    &["link"],
    &["process_lib"],
    &["daemon", "main"],
];

const LINES_MAX: usize = 800;

/// Of a line of a comment.
const COLUMNS_MAX: usize = 120;

fn row(part: &str) -> usize {
    ROWS.iter()
        .position(|row| row.contains(&part))
        .unwrap_or_else(|| panic!("{part} has no place in the order of the crate's parts: give it one in this test"))
}

fn files_in(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "{directory} has no sources");
    files
}

/// `src/shard/push.rs` is of `shard`.
fn part_of(file: &Path) -> String {
    let below = file.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = below.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn is_test(file: &Path) -> bool {
    file.file_stem().unwrap().to_str().unwrap().ends_with("tests")
}

/// The code without comments, and without the tests at its end.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    let lines = text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
    lines.collect::<Vec<_>>().join("\n")
}

/// The parts of the crate that `code` names: `crate::a`, `crate::{a, b::{c, d}}`.
fn imports(code: &str) -> Vec<String> {
    let mut parts = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let rest = &code[at + found.len()..];
        let mut depth = 0;
        let mut name = String::new();
        let mut names_part = true;
        for c in rest.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                c if names_part && (c.is_alphanumeric() || c == '_') => name.push(c),
                ',' if depth == 1 => {
                    parts.push(std::mem::take(&mut name));
                    names_part = true;
                    continue;
                }
                c if c.is_whitespace() => names_part &= name.is_empty(),
                _ => names_part = false,
            }
            if depth == 0 && !(c.is_alphanumeric() || c == '_') {
                break;
            }
        }
        parts.push(name);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[test]
fn imports_are_found_however_they_are_written() {
    assert_eq!(imports("use crate::http;"), ["http"]);
    assert_eq!(imports("use crate::{http, proto::{self, Opcode},\n  gateway as g};"), ["http", "proto", "gateway"]);
    assert_eq!(imports("fn f(x: crate::shard::Config) -> crate::proto::X {}"), ["shard", "proto"]);
}

#[test]
fn left_never_imports_right() {
    let mut wrong = Vec::new();
    for file in files_in("src").iter().filter(|file| !is_test(file)) {
        let part = part_of(file);
        if part == "lib" {
            continue;
        }
        for import in imports(&code_of(file)) {
            // A macro or a re-export of the crate's root has no place.
            if import.starts_with(char::is_uppercase) || import == part {
                continue;
            }
            if row(&import) > row(&part) {
                wrong.push(format!("{} imports {import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_broker_by_itself_knows_no_node() {
    for pattern in ["Dialect", "Kinode", "Hyperdrive", "hyperware-", "distro:sys"] {
        let why = "node systems are `node`'s to know; what the gateway needs of them is data in its Settings";
        banned(pattern, why, |_, part| matches!(part, "node" | "link" | "process_lib" | "daemon" | "lib"));
    }
}

/// Asserts that `pattern` stands nowhere in the library but in files that `allowed` lets pass.
#[track_caller]
fn banned(pattern: &str, why: &str, allowed: impl Fn(&Path, &str) -> bool) {
    for file in files_in("src").iter().filter(|file| !is_test(file)) {
        let at = code_of(file).lines().position(|line| line.contains(pattern));
        if let Some(line) = at {
            assert!(allowed(file, &part_of(file)), "{}:{}: {pattern}: {why}", file.display(), line + 1);
        }
    }
}

#[test]
fn the_clock_is_read_in_the_driver() {
    for pattern in ["Instant::now", "SystemTime"] {
        let why =
            "time is an argument everywhere but in the driver, the daemon, and what blocks threads beside the shards";
        banned(pattern, why, |file, part| {
            // The drop-in is a node's own async task, with timers of its own, and so is what serves a kernel.
            // So is what speaks with a fleet.
            ["node/server.rs", "node/calls.rs", "node/prints.rs", "fleet/engine.rs", "fleet/probe.rs"]
                .iter()
                .any(|own| file.ends_with(own))
                || matches!(
                    part,
                    "control" | "driver" | "daemon" | "demo" | "hub" | "push_api" | "link" | "main" | "process_lib"
                )
        });
    }
}

#[test]
fn the_directory_is_not_gone_through_under_its_lock() {
    let why = "pushes, binds and clients that register wait for it: go through a clone, which shares everything";
    banned("directory().owners.values()", why, |_, _| false);
}

#[test]
fn no_end_waits_for_the_look_up_of_a_name() {
    let why = "dropping a runtime waits for the names that it looks up: take driver::background, which does not";
    // One looks no name up, and one is shut down in the same way.
    let others = ["link/kernel_client.rs", "daemon/admin/mod.rs"];
    banned("runtime::Builder", why, |file, _| others.iter().any(|other| file.ends_with(other)));
    banned("Builder::new_current_thread", why, |file, _| {
        file.ends_with("driver/background.rs") || others.iter().any(|other| file.ends_with(other))
    });
}

#[test]
fn queues_are_bounded() {
    // The process queue is bounded by its own count of messages and bytes, which crossbeam's bound cannot express.
    banned("unbounded", "a queue without a bound", |file, _| file.ends_with("queue/events.rs"));
}

#[test]
fn the_library_neither_prints_nor_has_gaps() {
    for pattern in ["println!", "eprintln!", "print!("] {
        banned(pattern, "the library logs, it does not print", |_, part| matches!(part, "daemon" | "main"));
    }
    for pattern in ["dbg!", "todo!", "unimplemented!"] {
        banned(pattern, "left from development", |_, _| false);
    }
}

#[test]
fn files_are_short_enough_to_read() {
    for directory in ["src", "tests", "benches", "loadtest/src"] {
        for file in files_in(directory) {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines: split it", file.display());
            let is_wide = |line: &str| line.chars().count() > COLUMNS_MAX;
            // rustfmt wraps code, not comments; a row of a table cannot be wrapped.
            let is_text = |line: &str| line.trim_start().starts_with("//") && !line.contains("//! |");
            let wide = text.lines().position(|line| is_wide(line) && is_text(line));
            assert!(wide.is_none(), "{}:{}: wrap this comment", file.display(), wide.unwrap_or_default() + 1);
        }
    }
}
