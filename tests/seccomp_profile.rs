//! The seccomp profile that the documentation gives to containers is enough for the daemon, on io_uring; and where a
//! profile forbids io_uring, as containers' own do, the daemon serves on epoll and the doctor names the cause.
#![allow(missing_docs)]

mod support;

use pushring::internals::driver::runtime::{DriverKind, ShardRuntime};
use seccompiler::BpfProgram;
use serde_json::{Value, json};
use std::process::{Command, Output};
use support::daemon::{Daemon, output, pushring};
use support::{recv, recv_close, send};
use tungstenite::Message;

const RING_CALLS: [&str; 3] = ["io_uring_setup", "io_uring_enter", "io_uring_register"];

fn profile() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pushring-seccomp.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The names that an entry of the profile allows, and the rules for their arguments.
fn entries(profile: &Value) -> impl Iterator<Item = (&str, &Value)> {
    profile["syscalls"].as_array().unwrap().iter().flat_map(|entry| {
        assert_eq!(entry["action"], "SCMP_ACT_ALLOW");
        entry["names"].as_array().unwrap().iter().map(move |name| (name.as_str().unwrap(), &entry["args"]))
    })
}

/// A filter as a container's runtime makes of the profile, without `forbidden`.
fn filter(forbidden: &[&str]) -> BpfProgram {
    let profile = profile();
    let arch = std::env::consts::ARCH.try_into().expect("an architecture that has seccomp");
    let compile = |rules: Vec<Value>| {
        let filter = json!({ "daemon": {
            "mismatch_action": { "errno": profile["defaultErrnoRet"] }, "match_action": "allow", "filter": rules,
        }});
        seccompiler::compile_from_json(filter.to_string().as_bytes(), arch).map(|mut all| all.remove("daemon").unwrap())
    };
    let rule = |(name, args): (&str, &Value)| match args.as_array() {
        None => json!({ "syscall": name }),
        Some(args) => {
            let [arg] = &args[..] else { panic!("one argument: {args:?}") };
            assert_eq!(arg["op"], "SCMP_CMP_MASKED_EQ");
            let op = json!({ "masked_eq": arg["value"] });
            json!({ "syscall": name, "args": [
                { "index": arg["index"], "type": "qword", "op": op, "val": arg["valueTwo"] },
            ]})
        }
    };
    let rules = entries(&profile).filter(|(name, _)| !forbidden.contains(name)).map(rule);
    // Runtimes pass over names that this architecture, or their library, does not know.
    compile(rules.filter(|rule| compile(vec![rule.clone()]).is_ok()).collect()).unwrap()
}

/// As it runs under a filter. In a build that looks for leaks at its end, it does not: that takes ptrace.
fn held(args: &[&str]) -> Command {
    let mut command = pushring(args);
    command.env("ASAN_OPTIONS", "detect_leaks=0");
    command
}

/// Runs `start` on a thread that the filter holds, and with it all that the thread starts.
fn under<T: Send>(filter: &BpfProgram, start: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            seccompiler::apply_filter(filter).unwrap();
            start()
        });
        started.join().unwrap()
    })
}

fn has_uring() -> bool {
    ShardRuntime::new(DriverKind::Uring).inspect_err(|why| println!("NOT RUN ON io_uring: {why}")).is_ok()
}

/// The doctor's finding on io_uring.
fn of_uring(doctor: &Output) -> Value {
    let text = String::from_utf8_lossy(&doctor.stdout);
    let mut findings = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    findings.find(|finding| finding["check"] == "io_uring").unwrap_or_else(|| panic!("{doctor:?}"))
}

/// A channel, a page, an operator's question, and a gentle end.
fn serves(daemon: Daemon, control: &str) -> String {
    assert!(daemon.get("/", "").starts_with("HTTP/1.1 200 "));
    let mut client = daemon.connect("/echo:pushring:sys/");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    let asked = output(&mut pushring(&["stats", "--control", control]));
    assert!(asked.status.success(), "{asked:?}");
    daemon.signal("TERM");
    assert_eq!(recv_close(&mut client).0, 1001);
    while client.read().is_ok() {}
    let (code, log) = daemon.wait();
    assert_eq!(code, Some(0), "{log}");
    log
}

fn control(name: &str) -> String {
    let path = std::env::temp_dir().join(format!("pushring-seccomp-{name}-{}.sock", std::process::id()));
    path.to_str().unwrap().to_owned()
}

#[test]
fn it_names_each_call_once_and_forbids_the_rest() {
    let profile = profile();
    assert_eq!((&profile["defaultAction"], &profile["defaultErrnoRet"]), (&"SCMP_ACT_ERRNO".into(), &38.into()));
    let mut names: Vec<_> = entries(&profile).map(|(name, _)| name).collect();
    assert!(RING_CALLS.iter().all(|call| names.contains(call)));
    for dangerous in ["clone3", "unshare", "setns", "mount", "ptrace", "bpf", "keyctl", "init_module", "reboot"] {
        assert!(!names.contains(&dangerous), "{dangerous}");
    }
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn it_is_enough_on_either_driver() {
    let filter = filter(&[]);
    for driver in ["uring", "epoll"].into_iter().filter(|driver| *driver == "epoll" || has_uring()) {
        let (at, link) = (control(driver), control(&format!("link-{driver}")));
        let args = ["demo", "--driver", driver, "--control", &at, "--link", &link, "--deflate"];
        let daemon = under(&filter, || Daemon::spawn(held(&args).args(["--listen", "127.0.0.1:0"])));
        serves(daemon, &at);
        let doctor = under(&filter, || output(&mut held(&["doctor", "--json", "--driver", driver])));
        assert_ne!(of_uring(&doctor)["level"], "problem", "{doctor:?}");
    }
}

#[test]
fn without_io_uring_it_serves_on_epoll_and_the_doctor_says_why() {
    let filter = filter(&RING_CALLS);
    let at = control("none");
    let daemon = under(&filter, || Daemon::spawn(&mut held(&["demo", "--control", &at, "--listen", "127.0.0.1:0"])));
    let log = serves(daemon, &at);
    assert!(log.contains("no io_uring here: epoll serves") && log.contains("driver=epoll"), "{log}");

    let doctor = |driver: &str| under(&filter, || output(&mut held(&["doctor", "--json", "--driver", driver])));
    let (auto, demanded) = (doctor("auto"), doctor("uring"));
    let finding = of_uring(&auto);
    assert_eq!((&finding["level"], auto.status.code() >= Some(1)), (&"warning".into(), true), "{finding}");
    assert_eq!((&of_uring(&demanded)["level"], demanded.status.code()), (&"problem".into(), Some(2)));
    if has_uring() {
        let (found, fix) = (finding["found"].as_str().unwrap(), finding["fix"].as_str().unwrap());
        assert!(found.contains("seccomp") && fix.contains("pushring-seccomp.json"), "{finding}");
    }
    let refused = under(&filter, || output(&mut held(&["demo", "--driver", "uring", "--listen", "127.0.0.1:0"])));
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && words.contains("no io_uring here"), "{words}");
}
