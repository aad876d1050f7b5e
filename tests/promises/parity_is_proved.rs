//! `docs/PARITY.md` names a proof in every row, and every proof that it names is there: tests, files of tests,
//! recordings; and every recording proves something.

use pushring::node::HttpServerAction;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../../docs/PARITY.md");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names of all tests below a directory.
fn tests_below(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            let behind = text.split("#[test]").skip(1).filter_map(|rest| rest.split("fn ").nth(1));
            names.extend(behind.filter_map(|name| name.split('(').next()).map(str::to_owned));
        }
    }
}

fn recordings() -> BTreeSet<String> {
    let names = fs::read_dir(root().join("tests/golden")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.to_str()?.strip_suffix(".json").map(str::to_owned)).collect()
}

/// Cells of a table's row.
fn rows() -> Vec<Vec<&'static str>> {
    let rows = PAGE
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| What |") && !line.starts_with("| | |"));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Recordings that a pattern with `*` at its end names.
fn named(pattern: &str, recordings: &BTreeSet<String>) -> BTreeSet<String> {
    match pattern.strip_suffix('*') {
        Some(beginning) => recordings.iter().filter(|name| name.starts_with(beginning)).cloned().collect(),
        None => recordings.iter().filter(|name| *name == pattern).cloned().collect(),
    }
}

#[test]
fn every_row_has_a_proof_and_every_proof_is_there() {
    let mut tests = BTreeSet::new();
    tests_below(&root().join("src"), &mut tests);
    tests_below(&root().join("tests"), &mut tests);
    let recordings = recordings();
    let rows = rows();
    assert!(rows.len() > 60, "{} rows", rows.len());
    let mut proved = BTreeSet::new();
    for row in rows {
        let proof = row.last().unwrap();
        let code: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        let golden: Vec<&str> = proof
            .split("golden: ")
            .skip(1)
            .flat_map(|rest| rest.split([';', '`']).next().unwrap().split(", "))
            .collect();
        assert!(row.len() == 3 && !(code.is_empty() && golden.is_empty()), "no proof: {row:?}");
        for name in code {
            let is_there = if name.starts_with("tests/") { root().join(name).exists() } else { tests.contains(name) };
            assert!(is_there, "{name} is nowhere: {row:?}");
        }
        for pattern in golden.into_iter().map(str::trim).filter(|pattern| !pattern.is_empty()) {
            let found = named(pattern.trim_end_matches(','), &recordings);
            assert!(!found.is_empty(), "no recording {pattern}: {row:?}");
            proved.extend(found);
        }
    }
    let missing: Vec<_> = recordings.difference(&proved).collect();
    assert!(missing.is_empty(), "recordings that prove nothing: {missing:?}");
}

#[test]
fn every_action_has_a_row() {
    // Serde names the variants where a name is none of them.
    let error = serde_json::from_str::<HttpServerAction>("\"none\"").unwrap_err().to_string();
    let (_, variants) = error.split_once("expected one of ").expect("the names of all actions");
    let variants: Vec<&str> = variants.split('`').skip(1).step_by(2).collect();
    assert!(variants.len() > 15, "{error}");
    for variant in variants {
        assert!(PAGE.contains(&format!("`{variant}`")), "the action {variant} is not in docs/PARITY.md");
    }
}
