//! Unix sockets and secrets: whether they can be created and read, and by which other users.

use super::{Finding, Level};
use crate::daemon::config::DaemonConfig;
use crate::daemon::control::NOWHERE;
use crate::daemon::doctor::facts::{Facts, PathState, SecretFile, SocketPath};
use crate::daemon::token::{SECRET_BYTES_ADVISED, SECRET_BYTES_MIN};
use std::os::unix::ffi::OsStrExt;

/// The length of a `sockaddr_un`, less the terminator (unix(7)) and the two bytes that the name is longer by until the
/// socket is renamed into place.
const PATH_BYTES_MAX: usize = 107 - 2;

/// A daemon to which no process can attach is of no use.
pub(super) fn no_link(config: &DaemonConfig) -> Option<Finding> {
    let words =
        "no process of another program can attach: neither link nor link_tcp is set (demo has processes of its own)";
    let fix = "--link /run/pushring/link.sock";
    // The hub needs none.
    let is_closed = !config.has_link() && !config.hub;
    is_closed.then(|| Finding::new(Level::Warning, "link", words, fix))
}

/// The path of a Unix socket.
pub(super) fn socket(config: &DaemonConfig, socket: &SocketPath) -> Finding {
    let SocketPath { setting, path, wanted_mode, directory, there } = socket;
    let (length, path) = (path.as_os_str().as_bytes().len(), path.display());
    let parent = socket.path.parent().unwrap_or(&socket.path).display();
    let new = |level, words: String, fix: String| Finding::new(level, setting, words, fix);
    if length > PATH_BYTES_MAX {
        let words = format!("{path} has {length} bytes, a socket's path at most {PATH_BYTES_MAX}");
        return new(Level::Problem, words, format!("a shorter --{setting}"));
    }
    let Some(directory) = directory else {
        let fix = format!("mkdir -p -m 700 {parent}, or RuntimeDirectory=pushring in the unit");
        return new(Level::Problem, format!("there is no directory {parent}"), fix);
    };
    if !directory.is_writable {
        let words = format!("this user may make nothing in {parent}");
        return new(
            Level::Problem,
            words,
            format!("chown $(id -u) {parent}, or RuntimeDirectory=pushring in the unit"),
        );
    }
    match there {
        PathState::NoSocket => {
            return new(
                Level::Problem,
                format!("{path} exists and is no socket"),
                "choose another path or remove it".into(),
            );
        }
        PathState::Socket { mode } if mode & !wanted_mode & 0o077 != 0 => {
            let words = format!("others may use {path} (mode {mode:03o})");
            return new(Level::Warning, words, format!("chmod {wanted_mode:03o} {path}"));
        }
        _ if wanted_mode & 0o002 != 0 => {
            let words = format!("every user of this machine may use {path} (mode {wanted_mode:03o})");
            return new(Level::Warning, words, format!("a --{setting}-group, and --{setting}-mode auto"));
        }
        _ if wanted_mode & 0o020 != 0 && directory.mode & 0o011 == 0 => {
            let words = format!(
                "the group {} may use {path}, and cannot reach it: {parent} has mode {:03o}",
                config.link_group, directory.mode
            );
            return new(Level::Warning, words, format!("chmod 711 {parent}, or RuntimeDirectoryMode=0711 in the unit"));
        }
        PathState::Socket { .. } | PathState::DeadSocket | PathState::Nothing => {}
    }
    // A user that may write there may replace the socket; not where only owners may remove files.
    if directory.mode & 0o022 != 0 && directory.mode & 0o1000 == 0 {
        let words = format!("others may replace what is in {parent} (mode {:03o})", directory.mode);
        return new(Level::Warning, words, format!("chmod go-w {parent}"));
    }
    match there {
        PathState::Socket { mode } => {
            let who = if mode & 0o020 == 0 { "its user" } else { "its user and a group" };
            Finding::ok(setting, format!("{path} is a running daemon's, for {who} alone"))
        }
        PathState::DeadSocket => {
            Finding::ok(setting, format!("{path} is left from a daemon that has gone; it is taken over"))
        }
        PathState::NoSocket | PathState::Nothing => Finding::ok(setting, format!("{path} can be made")),
    }
}

/// A control socket that was not forbidden, and has no place to be.
pub(super) fn no_control() -> Finding {
    let words = format!("no control socket: pushring stats and the like cannot reach this daemon: {NOWHERE}");
    Finding::new(Level::Warning, "control", words, "--control PATH, or RuntimeDirectory=pushring in the unit")
}

/// All files of secrets; and whether they go together, where each by itself is good.
pub(super) fn secrets(config: &DaemonConfig, facts: &Facts) -> Vec<Finding> {
    let others = facts.other_secrets.iter().map(|(check, file)| secret_file(check, file));
    let mut findings: Vec<_> = secret(config, facts.secret.as_ref()).into_iter().chain(others).collect();
    let is_told = findings.iter().any(|finding| finding.level == Level::Problem);
    if let Some(why) = facts.secrets_fault.as_ref().filter(|_| !is_told) {
        let fix = "(umask 077; head -c 32 /dev/urandom | base64 > FILE), and name that file";
        findings.push(Finding::new(Level::Problem, "secrets", why.clone(), fix));
    }
    findings
}

/// The file that tokens are signed with.
fn secret(config: &DaemonConfig, secret: Option<&SecretFile>) -> Option<Finding> {
    const CHECK: &str = "token secret";
    match secret {
        Some(file) => Some(secret_file(CHECK, file)),
        None if !config.may_need_logins() => None,
        None => {
            let words = "none: serve refuses requests that need a token; demo makes one up";
            let fix = "--jwt-secret-file FILE, made by: (umask 077; head -c 32 /dev/urandom > FILE)";
            Some(Finding::new(Level::Warning, CHECK, words, fix))
        }
    }
}

/// A file that holds a secret.
fn secret_file(check: &'static str, SecretFile { path, mode, bytes }: &SecretFile) -> Finding {
    let path = path.display();
    let longer = format!("(umask 077; head -c 32 /dev/urandom | base64 > {path})");
    match mode {
        Err(why) => {
            let fix = format!("name a file that is there and readable: chown $(id -u) {path}, or make it: {longer}");
            Finding::new(Level::Problem, check, format!("{path}: {why}"), fix)
        }
        Ok(_) if *bytes < SECRET_BYTES_MIN => {
            let words = format!("{path} holds {bytes} bytes, too few for a secret: at least {SECRET_BYTES_MIN}");
            Finding::new(Level::Problem, check, words, longer)
        }
        Ok(mode) if mode & 0o007 != 0 => {
            let words = format!("every user of this machine may read {path} (mode {mode:03o})");
            Finding::new(Level::Warning, check, words, format!("chmod 600 {path}"))
        }
        Ok(_) if *bytes < SECRET_BYTES_ADVISED => {
            let words = format!("{path} holds {bytes} bytes, where {SECRET_BYTES_ADVISED} or more are advised");
            Finding::new(Level::Warning, check, words, longer)
        }
        Ok(_) => Finding::ok(check, format!("{path} is for few, and long enough")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::expect;
    use super::*;
    use crate::daemon::doctor::facts::SocketDirectory;

    #[track_caller]
    fn socket_is(level: Level, words: &str, fix: &str, change: impl FnOnce(&mut SocketPath)) {
        expect(level, words, fix, |_, facts| {
            let directory = Some(SocketDirectory { is_writable: true, mode: 0o700 });
            let mut socket = SocketPath {
                setting: "link",
                path: "/run/p/link".into(),
                wanted_mode: 0o600,
                directory,
                there: PathState::Nothing,
            };
            change(&mut socket);
            facts.sockets.push(socket);
        });
    }

    #[test]
    fn sockets() {
        socket_is(Level::Ok, "can be made", "", |_| {});
        socket_is(Level::Ok, "taken over", "", |socket| socket.there = PathState::DeadSocket);
        socket_is(Level::Ok, "running daemon", "", |socket| socket.there = PathState::Socket { mode: 0o600 });
        socket_is(Level::Warning, "mode 666", "chmod 600 /run/p/link", |socket| {
            socket.there = PathState::Socket { mode: 0o666 };
        });
        socket_is(Level::Ok, "its user and a group", "", |socket| {
            (socket.there, socket.wanted_mode) = (PathState::Socket { mode: 0o660 }, 0o660);
            socket.directory.as_mut().unwrap().mode = 0o711;
        });
        socket_is(Level::Warning, "cannot reach it: /run/p has mode 700", "chmod 711 /run/p", |socket| {
            socket.wanted_mode = 0o660;
        });
        socket_is(Level::Warning, "every user of this machine", "--link-group", |socket| socket.wanted_mode = 0o666);
        socket_is(Level::Problem, "no socket", "remove", |socket| socket.there = PathState::NoSocket);
        socket_is(Level::Problem, "no directory /run/p", "mkdir -p -m 700 /run/p", |socket| socket.directory = None);
        socket_is(Level::Problem, "may make nothing in /run/p", "RuntimeDirectory", |socket| {
            socket.directory = Some(SocketDirectory { is_writable: false, mode: 0o755 });
        });
        socket_is(Level::Warning, "others may replace", "chmod go-w /run/p", |socket| {
            socket.directory = Some(SocketDirectory { is_writable: true, mode: 0o777 });
        });
        socket_is(Level::Ok, "can be made", "", |socket| {
            socket.directory = Some(SocketDirectory { is_writable: true, mode: 0o1777 });
        });
        socket_is(Level::Problem, "at most 105", "shorter --link", |socket| {
            socket.path = format!("/run/{}", "x".repeat(101)).into();
        });
    }

    #[test]
    fn no_process_can_attach() {
        expect(Level::Warning, "can attach", "--link", |config, _| config.link = "".into());
        assert_eq!(no_link(&DaemonConfig { hub: true, ..DaemonConfig::default() }), None);
    }

    #[test]
    fn a_control_socket_without_a_place() {
        expect(Level::Warning, "cannot reach this daemon", "--control PATH", |_, facts| {
            facts.control_is_homeless = true
        });
    }

    #[test]
    fn secrets() {
        expect(Level::Warning, "none", "head -c 32 /dev/urandom", |_, facts| facts.secret = None);
        for (bytes, level) in
            [(0, Level::Problem), (1, Level::Problem), (15, Level::Problem), (16, Level::Warning), (31, Level::Warning)]
        {
            let words = format!("holds {bytes} bytes");
            expect(level, &words, "head -c 32 /dev/urandom", |_, facts| facts.secret.as_mut().unwrap().bytes = bytes);
        }
        expect(Level::Problem, "holds 3 bytes", "base64", |_, facts| {
            let file = SecretFile { path: "/etc/token".into(), mode: Ok(0o600), bytes: 3 };
            facts.other_secrets.push(("link token", file));
        });
        expect(Level::Problem, "no such file", "readable", |_, facts| {
            facts.secret.as_mut().unwrap().mode = Err("no such file".to_owned());
        });
        expect(Level::Warning, "mode 644", "chmod 600", |_, facts| facts.secret.as_mut().unwrap().mode = Ok(0o644));
    }
}
