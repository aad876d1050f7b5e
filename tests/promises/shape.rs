//! The shape of the code: files of a room do not import each other in a circle, parts of a shard share few fields, a
//! type has a name of its own and derefs to nothing but bytes, functions fit a screen, `unsafe` is only in the listed
//! files, and every file is named as a module.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms whose files do not stand in an order yet. In all others none imports, however indirectly, one that imports it.
/// This list only gets shorter.
const CIRCULAR_ROOMS: &[&str] = &["src/broker", "src/daemon", "src/fleet"];

/// The parts of a shard: its fields of these names, and the directories whose files may touch what is private to them.
const PARTS: &[&str] = &["intake", "memory", "out", "owners", "table"];

/// Fields of `Shard` beside its parts that the files of more than one part may name.
const SHARED_FIELDS_MAX: usize = 10;

/// Names that types of several files have, each with its reason. This list only gets shorter.
const NAMES_OF_SEVERAL: &[(&str, &str)] = &[
    ("HttpServerError", "the node contract's, and what the process library of today's nodes makes of it"),
    ("Message", "RFC 6455's, the node contract's and the process library's"),
    ("Request", "the node contract's, and the process library's builder of one"),
    ("Response", "likewise"),
];

/// It stands in the place of other files in a build without TLS, with their names.
const STAND_IN: &str = "tls/without.rs";

/// The lines of a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// The files that may hold `unsafe`, each with its proofs: system calls, and the ring that borrows memory for one call.
const UNSAFE_FILES: &[&str] = &["driver/flush_uring.rs", "driver/malloc.rs", "driver/sys.rs"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn source() -> PathBuf {
    repository().join("src")
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty());
    files
}

fn name(file: &Path) -> String {
    file.strip_prefix(source()).unwrap().to_str().unwrap().to_owned()
}

fn is_test(file: &Path) -> bool {
    file.file_stem().unwrap().to_str().unwrap().ends_with("tests")
}

/// The code without comments, and without the tests at its end.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = match text.find("#[cfg(test)]\nmod tests {") {
        Some(at) => &text[..at],
        None => &text,
    };
    let lines = text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line });
    lines.collect::<Vec<_>>().join("\n").replace("(in crate::", "(in ")
}

/// The code, with what stands in modules within the file written as it would be outside of them.
fn flattened(code: &str) -> String {
    let mut is_inside = false;
    let lines = code.lines().map(|line| {
        let begins = line.ends_with('{') && line.split(' ').any(|word| word == "mod") && !line.starts_with(' ');
        is_inside = (is_inside || begins) && line != "}";
        if is_inside { line.replace("super::", "self::") } else { line.to_owned() }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `src/shard/table/mod.rs` is `shard::table`, with `src` as its root.
fn module_of(file: &Path, root: &Path) -> Vec<String> {
    let name = file.strip_prefix(root).unwrap().to_str().unwrap();
    let mut module: Vec<String> = name.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// All paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        return vec![tree.split(" as ").next().unwrap().trim().to_owned()];
    };
    let (stem, inside) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut branches, mut depth) = (vec![String::new()], 0);
    for c in inside.chars() {
        match c {
            ',' if depth == 0 => branches.push(String::new()),
            c => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                branches.last_mut().unwrap().push(c);
            }
        }
    }
    let full = branches.iter().filter(|branch| !branch.trim().is_empty()).flat_map(|branch| expand(branch));
    full.map(|path| format!("{stem}{path}")).collect()
}

/// Every path that the code names from the crate's root, its own module or the one around it.
fn paths_of(code: &str) -> Vec<String> {
    let (mut paths, mut rest) = (Vec::new(), code);
    while let Some(at) = rest.find("use ") {
        let (before, from) = rest.split_at(at);
        paths.extend(inline_paths(before));
        let end = from.find(';').unwrap_or(from.len());
        let line = before.rsplit('\n').next().unwrap_or_default().trim();
        let is_statement = line.is_empty() || line.starts_with("pub");
        if is_statement {
            paths.extend(expand(&from[4..end]));
        }
        rest = &from[if is_statement { end } else { 4 }..];
    }
    paths.extend(inline_paths(rest));
    paths
}

fn inline_paths(code: &str) -> Vec<String> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = code.split(|c: char| !is_path(c));
    let from_root = |word: &&str| ["crate::", "super::", "self::"].iter().any(|root| word.starts_with(root));
    words.filter(from_root).map(str::to_owned).collect()
}

/// The file, if any, of the longest part of `path` that is a module.
fn file_of<'a>(path: &str, module: &[String], files: &'a BTreeMap<Vec<String>, PathBuf>) -> Option<&'a PathBuf> {
    let mut segments: Vec<String> = path.split("::").map(|segment| segment.trim().to_owned()).collect();
    let ups = segments.iter().take_while(|segment| *segment == "super").count();
    let base = match segments[0].as_str() {
        "crate" => &[],
        "super" => &module[..module.len() - ups],
        _ => module,
    };
    segments.drain(..ups.max(usize::from(matches!(segments[0].as_str(), "crate" | "self"))));
    let full: Vec<String> = base.iter().cloned().chain(segments).collect();
    (1..=full.len()).rev().find_map(|len| files.get(&full[..len]))
}

#[test]
fn paths_are_found_however_they_are_written() {
    assert_eq!(expand("a::{b, c::{d as e, f}}"), ["a::b", "a::c::d", "a::c::f"]);
    let code = "use super::x::Y;\nfn f(z: crate::shard::Z) { self::g() }\n";
    assert_eq!(paths_of(code), ["super::x::Y", "crate::shard::Z", "self::g"]);
}

#[test]
fn no_files_of_a_room_import_each_other_in_a_circle() {
    let directories = fs::read_dir(source()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let rooms = directories.map(|room| format!("src/{}", room.file_name().unwrap().to_str().unwrap()));
    for room in rooms.chain(["loadtest/src".to_owned()]) {
        let room = room.as_str();
        let root = repository().join(if room.starts_with("src") { "src" } else { room });
        let files = files_below(&repository().join(room)).into_iter();
        let files: Vec<_> = files.filter(|file| !is_test(file) && !file.ends_with("main.rs")).collect();
        let by_module: BTreeMap<_, _> = files.iter().map(|file| (module_of(file, &root), file.clone())).collect();
        let mut imports: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = BTreeMap::new();
        for file in &files {
            let module = module_of(file, &root);
            let named = paths_of(&flattened(&code_of(file)));
            let named = named.iter().filter_map(|path| file_of(path, &module, &by_module));
            let others = named.filter(|other| *other != file && !other.ends_with(STAND_IN));
            if !file.ends_with(STAND_IN) {
                imports.insert(file, others.collect());
            }
        }
        // A file that imports none of those that are left stands on the floor below; in the end none is left.
        while let Some(file) = imports.iter().find(|(_, of)| of.is_empty()).map(|(file, _)| *file) {
            imports.remove(file);
            imports.values_mut().for_each(|of| {
                of.remove(file);
            });
        }
        let circle: Vec<_> = imports.iter().map(|(file, of)| format!("{} imports {of:?}", file.display())).collect();
        let is_known = CIRCULAR_ROOMS.contains(&room);
        assert!(!is_known || !circle.is_empty(), "{room} has no circle any more: take it from the list");
        assert!(is_known || circle.is_empty(), "{room}: these import each other, or such that do: {circle:#?}");
    }
}

#[test]
fn parts_of_a_shard_share_few_fields() {
    let code = code_of(&source().join("shard/core.rs"));
    let from = &code[code.find("pub struct Shard {").unwrap()..];
    let fields = from[..from.find("\n}").unwrap()].lines().skip(1);
    let fields: Vec<&str> = fields.filter_map(|line| line.split(':').next()?.split_whitespace().last()).collect();
    assert!(PARTS.iter().all(|part| fields.contains(part)), "{fields:?}");
    let mut named_by: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for part in PARTS {
        for file in files_below(&source().join("shard").join(part)).iter().filter(|file| !is_test(file)) {
            let code = code_of(file);
            let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').collect();
            for field in fields.iter().filter(|field| !PARTS.contains(field)) {
                let is_named = ["self", "shard"].iter().any(|shard| {
                    let whole = format!("{shard}.{field}");
                    words.contains(&*whole) || words.iter().any(|word| word.starts_with(&format!("{whole}.")))
                });
                if is_named {
                    named_by.entry(field).or_default().insert(part);
                }
            }
        }
    }
    let shared: Vec<_> = named_by.iter().filter(|(_, parts)| parts.len() > 1).collect();
    assert!(
        shared.len() <= SHARED_FIELDS_MAX,
        "{} fields of Shard are named by several parts: {shared:?}",
        shared.len()
    );
}

#[test]
fn a_type_has_a_name_of_its_own() {
    let mut files_of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let files = files_below(&source());
    for file in files.iter().filter(|file| !is_test(file) && name(file) != STAND_IN) {
        for line in code_of(file).lines() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let is_alias = words.contains(&"type") && !line.starts_with(' ');
            let kind = words.iter().position(|word| matches!(*word, "struct" | "enum" | "trait" | "union"));
            let kind = kind.or(words.iter().position(|word| *word == "type").filter(|_| is_alias));
            let named = kind.filter(|at| {
                words[..*at].iter().all(|word| matches!(*word, "" | "pub" | "crate" | "super" | "in" | "shard"))
            });
            if let Some(named) = named.and_then(|at| words.get(at + 1)) {
                files_of.entry((*named).to_owned()).or_default().insert(name(file));
            }
        }
    }
    assert!(files_of.len() > 500, "types are not found any more");
    files_of.retain(|_, files| files.len() > 1);
    let is_known = |name: &String| NAMES_OF_SEVERAL.iter().any(|(known, _)| known == name);
    let unknown: Vec<_> = files_of.iter().filter(|(name, _)| !is_known(name)).collect();
    assert!(unknown.is_empty(), "these are types of several files: give each its own name: {unknown:#?}");
    let is_used = |(known, _): &(&str, &str)| files_of.contains_key(*known);
    assert!(NAMES_OF_SEVERAL.iter().all(is_used), "the list has names that only one file has");
}

#[test]
fn functions_fit_a_screen() {
    for file in files_below(&source()).iter().filter(|file| !is_test(file)) {
        let code = code_of(file);
        let lines: Vec<&str> = code.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let indent = &line[..line.len() - line.trim_start().len()];
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let Some(function) = words.iter().position(|word| *word == "fn").map(|fn_at| words[fn_at + 1]) else {
                continue;
            };
            let end = format!("{indent}}}");
            let starts = line.trim_start().starts_with(['f', 'p', 'a', 'c', 'u']) && !line.contains(';');
            // One without a body has none that could be long.
            let signature_end =
                lines[at..].iter().map(|line| line.trim_end()).find(|line| line.ends_with(['{', ';', '}']));
            let has_body = signature_end.is_some_and(|line| line.ends_with('{'));
            let length = lines[at..].iter().position(|line| **line == end).filter(|_| starts && has_body);
            let Some(length) = length else { continue };
            assert!(length < FUNCTION_LINES_MAX, "{}: {function} has {} lines: split it", name(file), length + 1);
        }
    }
}

#[test]
fn unsafe_stands_in_named_files_only() {
    for file in files_below(&source()) {
        let code = code_of(&file);
        let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code)"]
            .iter()
            .any(|pattern| code.contains(pattern));
        let is_named = UNSAFE_FILES.contains(&name(&file).as_str());
        assert_eq!(is_unsafe, is_named, "{}: the list of files with unsafe code is not true", name(&file));
    }
}

#[test]
fn what_derefs_is_bytes() {
    // `Deref` is for types that are bytes by another owner, and for guards of a lock; never a way to inherit methods.
    for file in files_below(&source()) {
        let code = code_of(&file);
        let is_guard = |block: &&str| block.split('<').next().is_some_and(|name| name.ends_with("Guard"));
        for block in code.split("Deref for ").skip(1).filter(|block| !is_guard(block)) {
            let target = block.split_once("type Target = ").map(|(_, target)| target.split(';').next().unwrap());
            assert_eq!(target, Some("[u8]"), "{}: a type derefs to another", name(&file));
        }
    }
}

#[test]
fn every_file_is_named_by_a_module() {
    let files = files_below(&source());
    let named: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    for file in &files {
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let stem = if stem == "mod" { file.parent().unwrap().file_name().unwrap().to_str().unwrap() } else { stem };
        let declared = [format!("mod {stem};"), format!("\"{}\"]", file.file_name().unwrap().to_str().unwrap())];
        let is_named = named.iter().any(|text| declared.iter().any(|declaration| text.contains(declaration)));
        assert!(is_named || matches!(stem, "lib" | "main"), "{}: no module names it", name(file));
    }
}
