//! `docs/LIMITS.md` is the daemon's configuration in words: every limit and deadline stands there with the default that
//! is in force, nothing stands there that cannot be set, and no setting is there that nothing reads.

use crate::support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::daemon::{output, pushring};

const PAGE: &str = include_str!("../../docs/LIMITS.md");

/// Settings with a number that bounds nothing.
const NO_LIMITS: [&str; 1] = ["shards"];

/// The output of `pushring config`, each value as people write it.
fn settings() -> BTreeMap<String, String> {
    let printed = String::from_utf8(output(&mut pushring(&["config"])).stdout).unwrap();
    let table: toml::Table = printed.parse().unwrap();
    let text = |value: toml::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    table.into_iter().map(|(key, value)| (key, text(value))).collect()
}

/// Setting and default of every row of the page's tables, without their backticks.
fn rows() -> BTreeMap<String, String> {
    let mut rows = BTreeMap::new();
    for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, setting, default, why, at_the_limit, _] = cells[..] else { panic!("a row of four cells: {line}") };
        assert!(!why.is_empty(), "no reason: {line}");
        assert!(!at_the_limit.is_empty() || setting.starts_with("`deflate_"), "what happens at it? {line}");
        let before = rows.insert(setting.replace('`', ""), default.replace('`', ""));
        assert_eq!(before, None, "twice: {line}");
    }
    rows
}

/// Returns whether it is a number, of things, bytes or time: digits and perhaps a unit.
fn is_number(value: &str) -> bool {
    let unit = value.trim_start_matches(|c: char| c.is_ascii_digit());
    unit.len() < value.len() && unit.chars().all(|c| c.is_ascii_alphabetic())
}

#[test]
fn what_the_page_says_can_be_set_and_is_the_default() {
    let settings = settings();
    let rows = rows();
    assert!(rows.len() > 30, "{rows:?}");
    for (setting, default) in rows {
        assert_eq!(settings.get(&setting), Some(&default), "{setting}");
    }
}

#[test]
fn every_limit_and_deadline_is_on_the_page() {
    let rows = rows();
    for (setting, default) in settings() {
        let is_limit = is_number(&default) && !NO_LIMITS.contains(&&*setting);
        assert!(!is_limit || rows.contains_key(&setting), "{setting} is not in docs/LIMITS.md");
    }
}

/// All pages for users, with their names.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let others = ["README.md", "clients/js/README.md", "clients/python/README.md"].map(|name| root.join(name));
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")).chain(others);
    pages.map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap())).collect()
}

/// A default that stands behind its setting in brackets, as `ping_interval` [25 s], or a number in parentheses.
#[test]
fn defaults_that_other_pages_repeat_are_those_in_force() {
    let bare = |text: &str| text.replace(['`', ' ', ',', '"', '[', ']'], "");
    let mut count = 0;
    for (key, default) in settings() {
        for (page, text) in pages() {
            for (opening, closing) in [('[', ']'), ('(', ')')] {
                for said in text.split(&format!("`{key}` {opening}")).skip(1) {
                    let said = bare(&said.split(closing).next().unwrap().replace("nothing", ""));
                    if opening == '[' || is_number(&said) {
                        assert_eq!(said, bare(&default), "{key} in {page}");
                        count += 1;
                    }
                }
            }
        }
    }
    assert!(count > 20, "they are not found any more: {count}");
}

#[test]
fn numbers_are_known_when_seen() {
    assert!(["10", "0", "25s", "1m", "250ms", "16MiB", "0B"].into_iter().all(is_number));
    assert!(["", "auto", "127.0.0.1:8080", "true", "local.os", "[]", "info"].into_iter().all(|text| !is_number(text)));
}

#[test]
fn what_can_wait_is_on_the_page_by_all_kinds_that_are_counted() {
    let (_, table) = PAGE.split_once("| What | Where | Its own limit |").expect("the table of what can wait");
    let rows: Vec<&str> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    for kind in pushring::internals::admission::HeldAs::ALL {
        let named = format!("`{}` |", kind.name());
        assert!(rows.iter().any(|row| row.ends_with(&named)), "nothing is counted as {named}");
    }
}

/// The daemon's sources, in one text.
fn sources() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut open, mut text) = (vec![root.join("daemon")], fs::read_to_string(root.join("main.rs")).unwrap());
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => {
                    text.push_str(&fs::read_to_string(path).unwrap());
                }
                false => {}
            }
        }
    }
    text
}

#[test]
fn every_setting_does_something() {
    let sources = sources();
    for setting in settings().keys() {
        let field = format!(".{setting}");
        let is_read = sources.match_indices(&field).any(|(at, _)| {
            let next = sources[at + field.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
        });
        assert!(is_read, "{setting} is declared, and nothing reads it");
    }
}
