//! The promise: what a fuzz target asserts holds of every input that was kept, so a property that breaks is seen
//! without a fuzzer. (`fleet`, `link` and `push_api` are replayed by the library's own tests.)

use crate::properties;
use std::fs;
use std::path::Path;

fn seeds() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds"))
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_kept_input_keeps_its_property() {
    for (target, holds) in properties::PROPERTIES {
        let directory = seeds().join(target);
        let names = names_in(&directory);
        assert!(names.len() > 5, "{target} has {} seeds", names.len());
        for name in names {
            println!("{target}/{name}"); // Shown when it fails.
            holds(&fs::read(directory.join(name)).unwrap());
        }
    }
}

#[test]
fn every_target_has_a_property_and_seeds() {
    let targets = names_in(&seeds().join("../targets"));
    let targets: Vec<_> = targets.iter().map(|file| file.strip_suffix(".rs").unwrap()).collect();
    let mut properties: Vec<_> =
        properties::PROPERTIES.iter().map(|(name, _)| *name).chain(["fleet", "link", "push_api"]).collect();
    properties.sort_unstable();
    assert_eq!(targets, properties);
    assert_eq!(names_in(seeds()), properties);
}
