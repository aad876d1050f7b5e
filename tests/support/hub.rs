//! A daemon with the hub and the API, in a directory of its own, and what reads programs out of pages.

use super::daemon::{Daemon, pushring};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ChildStderr;

pub struct Hub {
    pub daemon: Daemon,
    pub directory: PathBuf,
    /// Where backends publish: address and port.
    pub api: String,
    pub token: String,
    _log: BufReader<ChildStderr>,
}

impl Hub {
    /// With an open hub, and whatever else.
    pub fn start(name: &str, more: &[&str]) -> Self {
        Self::prepared(
            name,
            |directory| std::fs::write(directory.join("api-token"), "a token of the tests\n").unwrap(),
            more,
        )
    }

    /// `prepare` makes the file `api-token`.
    pub fn prepared(name: &str, prepare: impl FnOnce(&Path), more: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(format!("pushring-hub-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        prepare(&directory);
        let mut command = pushring(&["serve", "--hub", "--hub-open", "--api-token-file", "api-token"]);
        command.args(["--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--admin-listen", "off"]);
        let mut daemon = Daemon::spawn(command.args(more).current_dir(&directory));
        let mut log = BufReader::new(daemon.child.stderr.take().unwrap());
        let api = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it says where backends publish");
            if line.contains("publish at") {
                break between(&line, "http://", "/api/push").to_owned();
            }
        };
        let token = std::fs::read_to_string(directory.join("api-token")).unwrap().trim().to_owned();
        Self { daemon, directory, api, token, _log: log }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The blocks of a page in this language.
pub fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.match_indices(&fence).map(|(at, _)| page[at + fence.len()..].split("\n```").next().unwrap()).collect()
}

/// The text between two others of a page.
pub fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let rest = &text[text.find(before).unwrap_or_else(|| panic!("no {before}")) + before.len()..];
    &rest[..rest.find(after).unwrap()]
}
