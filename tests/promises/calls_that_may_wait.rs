//! The calls that may block a thread are those in the table of `src/lib.rs` and, for `link`, `control`, `process_lib`,
//! `fleet` and `node`, in those of these modules, and no others. On a shard's thread the broker's panic instead of
//! hanging.

use crate::support;

use pushring::{AttachOptions, Broker, BrokerHandle, ChannelFilter, Event, Here, Message, PushError};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use support::PATIENCE;

/// Code that waits for shards, for events or for threads.
const WAITS: &[&str] = &[
    "send_all(",
    ".change(",
    "attach(",
    "channel_page(",
    "Broker::start(",
    ".recv(",
    ".recv_timeout(",
    ".join()",
    "Full::Wait",
    "must_not_be_on_a_shard(",
    "away_from_shards(",
    "wait_timeout_while(",
    // The look-up of a name.
    "to_socket_addrs(",
    // Types dropped with their end set wait in their `Drop`.
    "self.end = Some",
];

/// A function of a type, with its body.
struct Function {
    is_public: bool,
    name: String,
    of: String,
    body: String,
}

impl Function {
    fn full_name(&self) -> String {
        format!("{}::{}", self.of, self.name)
    }

    /// Returns whether it waits by itself, or hands on to one of `waiting` of the same name, or of its own type.
    fn waits(&self, waiting: &BTreeSet<String>) -> bool {
        let hands_on = |call: &String| {
            let (of, name) = call.split_once("::").unwrap();
            let through = [format!("self.handle.{name}("), format!("self.handle().{name}(")];
            let own = format!("self.{name}(");
            let is_handle = matches!(of, "ProcessHandle" | "BrokerHandle");
            (is_handle && through.iter().any(|call| self.body.contains(call)))
                || (of == self.of && self.body.contains(&own))
        };
        WAITS.iter().any(|what| self.body.contains(what)) || waiting.iter().any(hands_on)
    }
}

/// The functions in `impl` blocks of a file that other files may call; those of a macro are of the order for which it
/// is called.
fn functions_of(file: &Path) -> Vec<Function> {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (mut of, mut functions) = (String::new(), Vec::new());
    for (at, line) in lines.iter().enumerate() {
        if let Some(named) = line.trim_start().strip_prefix("impl") {
            let named = named.rsplit(" for ").next().unwrap();
            let named =
                if named.starts_with('<') { named.split_once("> ").map_or(named, |(_, rest)| rest) } else { named };
            of = named.trim().chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '$')).collect();
        }
        let code = line.trim_start();
        let Some((visibility, named)) = code.split_once("fn ").filter(|(before, _)| before.starts_with("pub")) else {
            continue;
        };
        let is_public = visibility == "pub ";
        let indent = &line[..line.len() - code.len()];
        let end = lines[at..].iter().position(|line| **line == format!("{indent}}}")).unwrap_or(0);
        let body = lines[at + 1..=at + end].join("\n");
        functions.push(Function {
            is_public,
            name: named.split(['(', '<']).next().unwrap().to_owned(),
            of: of.clone(),
            body,
        });
    }
    functions
}

/// `Type::function` of all rows of the table.
fn table() -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let section = text.split("# Calls that may wait").nth(1).unwrap().split("//! # ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next());
    let mut calls = BTreeSet::new();
    for row in rows {
        let row_calls: Vec<String> = row.split('`').filter(|word| word.contains("::")).map(str::to_owned).collect();
        if row.contains("the same of [`Process`]") {
            calls.extend(row_calls.iter().map(|call| call.replace("ProcessHandle::", "Process::")));
        }
        calls.extend(row_calls);
    }
    calls
}

#[test]
fn the_table_has_all_calls_that_may_wait_and_no_others() {
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/broker")).unwrap();
    let files = files.map(|file| file.unwrap().path()).filter(|file| !file.to_str().unwrap().ends_with("tests.rs"));
    let functions: Vec<Function> = files.flat_map(|file| functions_of(&file)).collect();
    // Every order has one, and the row for it names no type.
    let (sends, functions): (Vec<_>, Vec<_>) = functions
        .into_iter()
        // The outlet of an order on a shard keeps what another shard has no room for.
        .filter(|function| function.of != "ShardOrder")
        .partition(|function| function.name == "send" && matches!(&*function.of, "$order" | "Asking" | "AskingNodes"));
    assert_eq!(sends.len(), 3, "the ends of orders are not found any more");
    let mut waiting = BTreeSet::new();
    loop {
        let found = functions.iter().filter(|function| function.waits(&waiting)).map(Function::full_name).collect();
        if found == waiting {
            break;
        }
        waiting = found;
    }
    let is_public = |call: &String| functions.iter().any(|one| one.is_public && one.full_name() == *call);
    waiting.retain(is_public);
    let table: BTreeSet<String> = table().into_iter().filter(|call| exists(&functions, call)).collect();
    let (unlisted, idle) = (waiting.difference(&table), table.difference(&waiting));
    let (unlisted, idle): (Vec<_>, Vec<_>) = (unlisted.collect(), idle.collect());
    assert!(unlisted.is_empty(), "these may wait, and the table in src/lib.rs does not say so: {unlisted:?}");
    assert!(idle.is_empty(), "the table in src/lib.rs has these, and they do not wait: {idle:?}");
}

/// The other rooms with public calls, each with code that waits there.
const ROOMS: &[(&str, &[&str])] = &[
    (
        "link",
        &[
            ".frames.send(",
            "wait_finished(",
            "shared.wait(",
            "shared.recv(",
            "PeerStream::unix(",
            "AttachedPeer::connect(",
            ".join()",
            // Dropping it waits.
            "self.0.failed = true",
        ],
    ),
    (
        "control",
        &[
            "PeerStream::unix(",
            ".join()",
            ".send()",
            "broker.reports()",
            "broker.disconnects()",
            "broker.processes()",
            "broker.channels(",
            "broker.fullest_channels(",
            "broker.drain(",
        ],
    ),
    (
        "process_lib",
        &[
            "broker.process(",
            "self.backend.send(",
            "self.backend.push(",
            "self.backend.receive(",
            "Client::connect(",
            ".send()",
            ".send_and_await_response(",
            // The process runs within the call.
            ".ended(&exit)",
        ],
    ),
    ("fleet", &["block_on("]),
    ("node", &[".join()", "Broker::start(", "stop_and_tell(", ".recv()", ".recv_timeout(", "wait_timeout_while("]),
];

/// A function of one of the other rooms: public or not, of a type or free.
struct RoomFunction {
    is_public: bool,
    of: String,
    name: String,
    body: String,
}

impl RoomFunction {
    fn full_name(&self) -> String {
        if self.of.is_empty() { self.name.clone() } else { format!("{}::{}", self.of, self.name) }
    }

    /// Returns whether it waits by itself, or calls one of `waiting`.
    fn waits(&self, waits: &[&str], waiting: &BTreeSet<String>) -> bool {
        let calls = |call: &String| match call.split_once("::") {
            Some((of, name)) => {
                (of == self.of && self.body.contains(&format!("self.{name}(")))
                    || (of == "ProcessState" && self.body.contains(&format!("state.{name}(")))
                    || self.body.contains(&format!("{call}("))
            }
            None => has_call(&self.body, call),
        };
        waits.iter().any(|what| self.body.contains(what)) || waiting.iter().any(calls)
    }
}

/// Returns whether `body` calls the free function `name`.
fn has_call(body: &str, name: &str) -> bool {
    let call = format!("{name}(");
    let calls = body.match_indices(&call).map(|(at, _)| body[..at].chars().next_back());
    calls.flatten().any(|before| !before.is_alphanumeric() && !matches!(before, '_' | '.'))
}

/// `body` without closures that run on threads of their own.
fn without_spawned(body: &str) -> String {
    let Some((before, rest)) = body.split_once(".spawn(") else { return body.to_owned() };
    let mut depth = 1;
    let end = rest.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    before.to_owned() + &without_spawned(&rest[end.unwrap_or(rest.len())..])
}

/// All functions of a file that can block: an `async` one leaves that to its awaits.
fn room_functions(file: &Path) -> Vec<RoomFunction> {
    let text = fs::read_to_string(file).unwrap();
    let lines: Vec<&str> = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines().collect();
    let (mut of, mut functions) = (String::new(), Vec::new());
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("impl") || line.starts_with("trait ") || line.starts_with("pub") && line.contains("trait ")
        {
            let named = line.rsplit(" for ").next().unwrap().trim_start_matches("impl");
            let named = match named.starts_with('<') {
                true => named.split_once("> ").map_or(named, |(_, rest)| rest),
                false => named,
            };
            of = named.trim().chars().take_while(|c| c.is_alphanumeric()).collect();
        } else if line.starts_with('}') {
            of.clear();
        }
        let code = line.trim_start();
        let Some((before, named)) = code.split_once("fn ") else { continue };
        if !matches!(before.trim(), "" | "pub" | "const" | "pub const") && !before.starts_with("pub(") {
            continue;
        }
        let indent = &line[..line.len() - code.len()];
        let end = lines[at..].iter().position(|line| **line == format!("{indent}}}")).unwrap_or(0);
        functions.push(RoomFunction {
            is_public: before == "pub ",
            of: of.clone(),
            name: named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect(),
            body: without_spawned(&lines[at + 1..=at + end].join("\n")),
        });
    }
    functions
}

fn files_below(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|file| !file.to_str().unwrap().ends_with("tests.rs"));
    files.chain(directories.iter().flat_map(|directory| files_below(directory))).collect()
}

/// `Type::function`, or the name of a free function, of all rows of a room's table.
fn room_table(room: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(room.join("mod.rs")).unwrap();
    let Some(section) = text.split("# Calls that may wait").nth(1) else { return BTreeSet::new() };
    let rows = section.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next()).skip(1);
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>());
    words.filter(|word| word != "http").map(|word| word.replace("http::server::", "").replace("http::", "")).collect()
}

#[test]
fn the_other_rooms_name_theirs_too() {
    for (room, waits) in ROOMS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(room);
        let functions: Vec<_> = files_below(&directory).iter().flat_map(|file| room_functions(file)).collect();
        assert!(functions.iter().any(|function| function.is_public), "{room} has no public calls any more");
        let mut waiting = BTreeSet::new();
        loop {
            let waits = functions.iter().filter(|function| function.waits(waits, &waiting));
            let found = waits.map(RoomFunction::full_name).collect();
            if found == waiting {
                break;
            }
            waiting = found;
        }
        waiting.retain(|call| functions.iter().any(|one| one.is_public && one.full_name() == *call));
        assert_eq!(waiting, room_table(&directory), "the calls of {room} that wait, and the table in its mod.rs");
    }
}

/// Returns whether there is such a function. A row may speak of `Process` where only its handle has one of them.
fn exists(functions: &[Function], call: &str) -> bool {
    let is_there = functions.iter().any(|function| function.full_name() == call);
    assert!(is_there || call.starts_with("Process::"), "the table in src/lib.rs names {call}, which does not exist");
    is_there
}

type Call = (&'static str, fn(&BrokerHandle, &Here<'_>));

/// Those that wait for shards.
const WAITING: &[Call] = &[
    ("process", |broker, _| drop(broker.process("other", AttachOptions::default()))),
    ("on_shards", |broker, _| drop(broker.on_shards("more", |_| |_: &mut Here<'_>, _: Event| {}))),
    ("reports", |broker, _| drop(broker.reports())),
    ("disconnects", |broker, _| drop(broker.disconnects())),
    ("processes", |broker, _| drop(broker.processes())),
    ("channels", |broker, _| drop(broker.channels(&ChannelFilter::default(), 0, 10))),
    ("fullest_channels", |broker, _| drop(broker.fullest_channels(3))),
    ("open", |broker, _| {
        let _ = broker.open();
    }),
    ("stop_and_tell", |broker, _| broker.stop_and_tell(Duration::ZERO, PATIENCE)),
    ("bind_at", |broker, here| drop(broker.acting(here.process()).unwrap().bind_at("/more"))),
    ("unbind_at", |broker, here| drop(broker.acting(here.process()).unwrap().unbind_at("/more"))),
    ("send", |broker, here| {
        let _ = broker.acting(here.process()).unwrap().broadcast(Message::text("all")).send();
    }),
];

/// Those that a handler may make as any other code.
const QUICK: &[Call] = &[
    ("try_send", |broker, here| {
        let sent: Result<(), PushError> =
            broker.acting(here.process()).unwrap().broadcast(Message::text("all")).try_send();
        sent.unwrap();
    }),
    ("is_draining", |broker, _| assert!(!broker.is_draining())),
    ("connection_limits", |broker, _| drop(broker.connection_limits())),
    ("settings", |broker, _| drop(broker.settings())),
    ("held_by_process", |broker, _| drop(broker.held_by_process())),
    ("subscribers", |broker, here| assert_eq!(broker.acting(here.process()).unwrap().subscribers("none"), 0)),
    ("presence", |broker, here| drop(broker.acting(here.process()).unwrap().presence("none"))),
];

#[test]
fn on_a_shard_they_panic_and_no_others_do() {
    let broker = Broker::builder().shards(1).driver(support::driver()).start().unwrap();
    let (told, results) = mpsc::channel();
    let (handle, told) = (broker.handle(), Arc::new(told));
    let process = broker.on_shards("handler", move |_| {
        let (handle, told) = (handle.clone(), told.clone());
        move |here: &mut Here<'_>, event: Event| {
            if !matches!(event, Event::Opened(_)) {
                return;
            }
            for (name, call) in WAITING.iter().chain(QUICK) {
                let is_refused = catch_unwind(AssertUnwindSafe(|| call(&handle, here))).is_err();
                told.send((*name, is_refused)).unwrap();
            }
            // It waits as well, and another thread does that for it.
            handle.stop(Duration::ZERO);
        }
    });
    let process = process.unwrap();
    process.handle().bind_at("/").unwrap();
    let _client = support::connect(&broker, "/");
    for (at, (expected, _)) in WAITING.iter().chain(QUICK).enumerate() {
        let (name, is_refused) = results.recv_timeout(PATIENCE).unwrap();
        assert_eq!((name, is_refused), (*expected, at < WAITING.len()), "{name} on a shard");
    }
    broker.wait().unwrap();
    drop(process);
}
