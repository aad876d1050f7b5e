//! The path of a daemon's control socket: given, or found in the same way by the daemon and the commands that ask it.

use super::systemd;
use anyhow::Context;
use pushring::control::{ControlServer, Operator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ControlPath {
    /// `pushring-PORT.sock` in the first of [`homes`] that fits.
    Auto,
    /// None.
    Off,
    /// There.
    At(PathBuf),
}

impl FromStr for ControlPath {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "off" | "" => Self::Off,
            path => Self::At(path.into()),
        })
    }
}

impl fmt::Display for ControlPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::At(path) => path.display().fmt(f),
        }
    }
}

impl Serialize for ControlPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ControlPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Ok(path) = String::deserialize(deserializer)?.parse();
        Ok(path)
    }
}

/// The directory of a service, as others see it.
const RUN: &str = "/run/pushring";

/// The directory of a socket at `path`, if it is not there and the daemon makes it: that of a service, where this user
/// may.
pub(crate) fn made_for(path: &Path) -> Option<SocketHome> {
    let home = SocketHome { path: RUN.into(), is_made: true };
    (path.parent() == Some(&home.path) && !home.path.exists() && home.is_usable()).then_some(home)
}

/// A directory in which the control socket may be.
pub(crate) struct SocketHome {
    /// The directory.
    pub path: PathBuf,
    /// Whether a missing one is created; if so, it must belong to this user.
    is_made: bool,
}

/// Where sockets of running programs belong, the first that fits: what systemd gives a service, what it gives a user,
/// the directory of a service as others see it, and one of this user's own.
fn homes() -> Vec<SocketHome> {
    let given = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(systemd::directory);
    let own = format!("/tmp/pushring-{}", rustix::process::geteuid().as_raw());
    let made = [RUN.into(), PathBuf::from(own)];
    let home = |is_made: bool| move |path: PathBuf| SocketHome { path, is_made };
    given.map(home(false)).chain(made.map(home(true))).collect()
}

impl SocketHome {
    /// Returns whether this user may make a socket in it.
    fn is_usable(&self) -> bool {
        match self.path.symlink_metadata() {
            Ok(metadata) => self.is_trusted(&metadata) && is_writable(&self.path),
            Err(_) => self.is_made && self.path.parent().is_some_and(is_writable),
        }
    }

    /// Any user may create entries in `/tmp`.
    fn is_trusted(&self, metadata: &fs::Metadata) -> bool {
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
        !(self.is_made && self.path.starts_with("/tmp")) || (is_ours && metadata.is_dir())
    }

    /// Makes it, unless it is there.
    pub(crate) fn make(&self) -> io::Result<()> {
        // A link in it may be for others: each socket has permissions of its own.
        let mode = if self.path == Path::new(RUN) { 0o711 } else { 0o700 };
        match self.path.is_dir() {
            true => Ok(()),
            false => fs::DirBuilder::new().mode(mode).create(&self.path),
        }
    }
}

/// Why there is no place for it, and what to do.
pub(crate) const NOWHERE: &str = "no directory of $RUNTIME_DIRECTORY, $XDG_RUNTIME_DIR, /run/pushring and /tmp can be written: \
                           set control (--control PATH), or RuntimeDirectory=pushring in the unit";

fn name(port: u16) -> String {
    format!("pushring-{port}.sock")
}

impl ControlPath {
    /// Where a daemon on `port` has its socket; none where it is to have none, or was told nothing and can have no
    /// directory for it.
    pub(crate) fn place(&self, port: u16) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
            Self::Auto => homes().iter().find(|home| home.is_usable()).map(|home| home.path.join(name(port))),
        }
    }

    /// The listener of a daemon that listens on `port`. One that was not asked for may be missing.
    ///
    /// # Errors
    /// It was asked for and cannot be opened.
    pub(crate) fn open(&self, port: u16, operator: Operator) -> anyhow::Result<Option<ControlServer>> {
        let is_asked_for = *self != Self::Auto;
        let Some(path) = self.place(port) else {
            if !is_asked_for {
                tracing::warn!("no control socket: `pushring stats` and the like cannot reach this daemon: {NOWHERE}");
            }
            return Ok(None);
        };
        let home = homes().into_iter().find(|home| !is_asked_for && path.starts_with(&home.path));
        let made =
            home.map_or(Ok(()), |home| home.make()).with_context(|| format!("no directory for {}", path.display()));
        match made.and_then(|()| open(operator, &path)) {
            Err(error) if !is_asked_for => {
                tracing::warn!(error = format!("{error:#}"), "no control socket");
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// Where the daemon on `port` is asked; when it is unknown, the place to name in an error.
    pub(crate) fn find(&self, port: u16) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
            Self::Auto => {
                let homes = homes();
                let is_there = |home: &&SocketHome| {
                    let is_trusted = home.path.symlink_metadata().is_ok_and(|metadata| home.is_trusted(&metadata));
                    is_trusted && home.path.join(name(port)).symlink_metadata().is_ok()
                };
                homes.iter().find(is_there).or(homes.first()).map(|home| home.path.join(name(port)))
            }
        }
    }
}

fn open(operator: Operator, path: &Path) -> anyhow::Result<ControlServer> {
    let server = ControlServer::for_operator(operator, path)?;
    tracing::info!(path = %path.display(), "control socket open");
    Ok(server)
}

fn is_writable(directory: &Path) -> bool {
    directory.is_dir() && rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_paths() {
        for (text, path) in
            [("auto", ControlPath::Auto), ("off", ControlPath::Off), ("/run/x", ControlPath::At("/run/x".into()))]
        {
            assert_eq!(text.parse::<ControlPath>().unwrap(), path);
            assert_eq!(path.to_string(), text);
        }
        assert_eq!(ControlPath::At("/run/x".into()).find(80), Some("/run/x".into()));
        assert_eq!(ControlPath::Off.find(80), None);
        assert!(ControlPath::Auto.find(80).unwrap().ends_with("pushring-80.sock"));
    }
}
