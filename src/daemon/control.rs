//! Where the control socket of a daemon is: told, or found in the same way by the daemon and by those who ask it.

use pushring::control::{Operator, Server};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlPath {
    /// `pushring-PORT.sock` in the first of [`directories`] that is there.
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

/// Where sockets of running programs belong: what systemd gives a service, what it gives a user, and the directory of
/// a service as others see it.
fn directories() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    [variable("RUNTIME_DIRECTORY"), variable("XDG_RUNTIME_DIR"), Some("/run/pushring".into())]
        .into_iter()
        .flatten()
        .collect()
}

fn name(port: u16) -> String {
    format!("pushring-{port}.sock")
}

impl ControlPath {
    /// Where a daemon on `port` has its socket; none where it is to have none, or was told nothing and there is no
    /// directory for it.
    pub fn place(&self, port: u16) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
            Self::Auto => {
                let directory = directories().into_iter().find(|directory| is_writable(directory));
                directory.map(|directory| directory.join(name(port)))
            }
        }
    }

    /// The door of a daemon that listens on `port`. One that was not asked for may be missing.
    ///
    /// # Errors
    /// It was asked for and cannot be opened.
    pub fn open(&self, port: u16, operator: Operator) -> anyhow::Result<Option<Server>> {
        let is_asked_for = *self != Self::Auto;
        let Some(path) = self.place(port) else {
            if !is_asked_for {
                tracing::debug!(
                    "no control socket: there is neither XDG_RUNTIME_DIR nor /run/pushring; choose --control"
                );
            }
            return Ok(None);
        };
        match open(operator, &path) {
            Err(error) if !is_asked_for => {
                tracing::warn!(error = format!("{error:#}"), "no control socket");
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// Where the daemon on `port` is asked; when it is unknown, the place to name in an error.
    pub fn find(&self, port: u16) -> Option<PathBuf> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path.clone()),
            Self::Auto => {
                let paths = directories().into_iter().map(|directory| directory.join(name(port)));
                let paths: Vec<_> = paths.collect();
                paths.iter().find(|path| path.symlink_metadata().is_ok()).or(paths.first()).cloned()
            }
        }
    }
}

fn open(operator: Operator, path: &Path) -> anyhow::Result<Server> {
    let server = Server::for_operator(operator, path)?;
    tracing::info!(path = %path.display(), "operators may ask");
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
