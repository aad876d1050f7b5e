//! Each clause and each attempt that docs/SECURITY.md names is shown by a test that exists.

use std::fs;
use std::path::Path;

fn tests_below(directory: &Path, found: &mut String) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_named_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for directory in ["src", "tests/promises"] {
        tests_below(&root.join(directory), &mut code);
    }
    let page = include_str!("../../docs/SECURITY.md");
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let shown_by = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        for name in shown_by.split('`').skip(1).step_by(2).filter(|name| name.contains('_')) {
            assert!(code.contains(&format!("fn {name}(")), "docs/SECURITY.md names a test that is not there: {name}");
            named += 1;
        }
    }
    assert!(named > 30, "{named} tests are named");
}
