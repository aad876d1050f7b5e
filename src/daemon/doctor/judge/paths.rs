//! Unix sockets and secrets: whether they can be had, and by whom else.

use super::{Finding, Level};
use crate::daemon::doctor::facts::{SecretFile, SocketPath, There};
use std::os::unix::ffi::OsStrExt;

/// What a `sockaddr_un` holds, less the end of the string (unix(7)) and the two bytes by which the name is longer until
/// it is taken.
const PATH_BYTES_MAX: usize = 107 - 2;

/// The path of a Unix socket.
pub fn socket(socket: &SocketPath) -> Finding {
    let SocketPath { setting, path, directory, there } = socket;
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
        There::NoSocket => {
            return new(
                Level::Problem,
                format!("{path} exists and is no socket"),
                "choose another path or remove it".into(),
            );
        }
        There::Socket { mode } if mode & 0o077 != 0 => {
            let words = format!("others may use {path} (mode {mode:03o})");
            return new(Level::Warning, words, format!("chmod 600 {path}"));
        }
        There::Socket { .. } | There::DeadSocket | There::Nothing => {}
    }
    // Whoever may write there may put a socket of their own in its place; not where only owners may remove.
    if directory.mode & 0o022 != 0 && directory.mode & 0o1000 == 0 {
        let words = format!("others may replace what is in {parent} (mode {:03o})", directory.mode);
        return new(Level::Warning, words, format!("chmod go-w {parent}"));
    }
    match there {
        There::Socket { .. } => Finding::ok(setting, format!("{path} is a running daemon's, for its user alone")),
        There::DeadSocket => {
            Finding::ok(setting, format!("{path} is left from a daemon that has gone; it is taken over"))
        }
        There::NoSocket | There::Nothing => Finding::ok(setting, format!("{path} can be made")),
    }
}

/// A control socket that was not forbidden, and has no place to be.
pub fn no_control() -> Finding {
    let words = "no control socket, so pushring stats and disconnects reach nobody: there is neither XDG_RUNTIME_DIR nor /run/pushring";
    let fix = "--control PATH, mkdir -m 700 /run/pushring, or RuntimeDirectory=pushring in the unit";
    Finding::new(Level::Note, "control", words, fix)
}

/// The file that tokens are signed with.
pub fn secret(secret: Option<&SecretFile>) -> Finding {
    const CHECK: &str = "token secret";
    let Some(SecretFile { path, mode }) = secret else {
        let words = "none: serve refuses whatever needs a token; demo makes one up";
        let fix = "--jwt-secret-file FILE, made by: (umask 077; head -c 32 /dev/urandom > FILE)";
        return Finding::new(Level::Note, CHECK, words, fix);
    };
    let path = path.display();
    match mode {
        Err(why) => Finding::new(
            Level::Problem,
            CHECK,
            format!("{path}: {why}"),
            format!("make it readable: chown $(id -u) {path}"),
        ),
        Ok(mode) if mode & 0o007 != 0 => {
            let words = format!("anyone on this machine may read {path} (mode {mode:03o})");
            Finding::new(Level::Warning, CHECK, words, format!("chmod 600 {path}"))
        }
        Ok(_) => Finding::ok(CHECK, format!("{path} is for few")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::expect;
    use super::*;
    use crate::daemon::doctor::facts::Directory;

    #[track_caller]
    fn socket_is(level: Level, words: &str, fix: &str, change: impl FnOnce(&mut SocketPath)) {
        expect(level, words, fix, |_, facts| {
            let directory = Some(Directory { is_writable: true, mode: 0o700 });
            let mut socket =
                SocketPath { setting: "link", path: "/run/p/link".into(), directory, there: There::Nothing };
            change(&mut socket);
            facts.sockets.push(socket);
        });
    }

    #[test]
    fn sockets() {
        socket_is(Level::Ok, "can be made", "", |_| {});
        socket_is(Level::Ok, "taken over", "", |socket| socket.there = There::DeadSocket);
        socket_is(Level::Ok, "running daemon", "", |socket| socket.there = There::Socket { mode: 0o600 });
        socket_is(Level::Warning, "mode 666", "chmod 600 /run/p/link", |socket| {
            socket.there = There::Socket { mode: 0o666 };
        });
        socket_is(Level::Problem, "no socket", "remove", |socket| socket.there = There::NoSocket);
        socket_is(Level::Problem, "no directory /run/p", "mkdir -p -m 700 /run/p", |socket| socket.directory = None);
        socket_is(Level::Problem, "may make nothing in /run/p", "RuntimeDirectory", |socket| {
            socket.directory = Some(Directory { is_writable: false, mode: 0o755 });
        });
        socket_is(Level::Warning, "others may replace", "chmod go-w /run/p", |socket| {
            socket.directory = Some(Directory { is_writable: true, mode: 0o777 });
        });
        socket_is(Level::Ok, "can be made", "", |socket| {
            socket.directory = Some(Directory { is_writable: true, mode: 0o1777 });
        });
        socket_is(Level::Problem, "at most 105", "shorter --link", |socket| {
            socket.path = format!("/run/{}", "x".repeat(101)).into();
        });
    }

    #[test]
    fn a_control_socket_without_a_place() {
        expect(Level::Note, "reach nobody", "--control PATH", |_, facts| facts.control_is_homeless = true);
    }

    #[test]
    fn secrets() {
        expect(Level::Note, "none", "head -c 32 /dev/urandom", |_, facts| facts.secret = None);
        expect(Level::Problem, "no such file", "readable", |_, facts| {
            facts.secret.as_mut().unwrap().mode = Err("no such file".to_owned());
        });
        expect(Level::Warning, "mode 644", "chmod 600", |_, facts| facts.secret.as_mut().unwrap().mode = Ok(0o644));
    }
}
