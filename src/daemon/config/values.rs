//! The kinds of values that settings have, beside sizes and durations.

use clap::ValueEnum;
use clap::builder::PossibleValue;
use pushring::node;
use pushring::{DriverKind, Policy};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// An address and a port, or what to write instead.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
        let (host, port) = (text.rsplit_once(':').map_or("", |(host, _)| host), port.unwrap_or(8080));
        let why = match host {
            _ if text.parse::<std::net::IpAddr>().is_ok() => "is an address without a port",
            "" => "is no address and port",
            _ => "is no address with a port (names are not looked up)",
        };
        format!("{text:?} {why}: write 127.0.0.1:{port} for this machine alone, 0.0.0.0:{port} or [::]:{port} for all")
    })
}

/// The permissions of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketMode {
    /// Those that fit.
    Auto,
    /// These.
    Is(u32),
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        // The owner may always: the daemon would lock itself out.
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && mode & 0o600 == 0o600);
        mode.map(Self::Is)
            .ok_or_else(|| format!("{text:?} are no permissions of a socket: write \"0600\", \"0660\" or \"auto\""))
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Is(mode) => write!(f, "{mode:04o}"),
        }
    }
}

impl Serialize for SocketMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// See [`node::Dialect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialectValue {
    /// Kinode 1.0
    Kinode,
    /// Hyperdrive 1.9
    Hyperdrive,
}

/// See [`DriverKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverValue {
    /// io_uring where the kernel allows it, else epoll
    Auto,
    /// io_uring or nothing
    Uring,
    /// epoll
    Epoll,
}

/// Where paths for this machine alone are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Exposure {
    /// As in nodes of the dialect
    Dialect,
    /// Open
    Always,
    /// Shut
    Never,
}

/// A [`Policy`] that needs no key: what holds where a push does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PolicyValue(pub Policy);

const PLAIN_POLICIES: [PolicyValue; Policy::PLAIN.len()] = {
    let mut values = [PolicyValue(Policy::Close); Policy::PLAIN.len()];
    let mut at = 0;
    while at < values.len() {
        values[at] = PolicyValue(Policy::PLAIN[at]);
        at += 1;
    }
    values
};

impl PolicyValue {
    fn name(self) -> String {
        self.0.name().replace('_', "-")
    }
}

impl ValueEnum for PolicyValue {
    fn value_variants<'a>() -> &'a [Self] {
        &PLAIN_POLICIES
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.0.does()))
    }
}

impl Serialize for PolicyValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

impl<'de> Deserialize<'de> for PolicyValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = PLAIN_POLICIES.into_iter().find(|value| value.name() == name);
        found.ok_or_else(|| {
            de::Error::custom(format!("{name:?} is none of {}", PLAIN_POLICIES.map(Self::name).join(", ")))
        })
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Words, written with commas between them on the command line and as an array in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct WordList(pub Vec<String>);

impl FromStr for WordList {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()))
    }
}

impl From<DialectValue> for node::Dialect {
    fn from(dialect: DialectValue) -> Self {
        match dialect {
            DialectValue::Kinode => Self::Kinode,
            DialectValue::Hyperdrive => Self::Hyperdrive,
        }
    }
}

impl From<DriverValue> for DriverKind {
    fn from(driver: DriverValue) -> Self {
        match driver {
            DriverValue::Auto => Self::Auto,
            DriverValue::Uring => Self::Uring,
            DriverValue::Epoll => Self::Epoll,
        }
    }
}

/// Where the admin listener is; `None` is `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AdminListen(pub Option<SocketAddr>);

impl Default for AdminListen {
    /// Loopback, at a port that Prometheus' exporters leave free.
    fn default() -> Self {
        Self(Some(([127, 0, 0, 1], 9464).into()))
    }
}

impl FromStr for AdminListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" | "" => Ok(Self(None)),
            text => {
                let address = text.parse().map(|address| Self(Some(address)));
                address.map_err(|_| format!("{text:?} is neither off nor an address and port, as 127.0.0.1:9464"))
            }
        }
    }
}

/// Where clients come in; `None` is `off`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Listen(pub Option<SocketAddr>);

impl Listen {
    /// There.
    pub(crate) fn at(address: SocketAddr) -> Self {
        Self(Some(address))
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" | "" => Ok(Self(None)),
            text => parse_address(text).map(Self::at).map_err(|why| format!("{why}, or off")),
        }
    }
}

/// Where requests are sent on to that come without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// Nowhere.
    Off,
    /// To the port of the listener for TLS.
    On,
    /// To this one.
    To(u16),
}

impl FromStr for Redirect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            text => {
                let port = text.parse().ok().filter(|&port| port > 0).map(Self::To);
                port.ok_or_else(|| format!("{text:?} is neither on, off, nor a port, as \"443\""))
            }
        }
    }
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::To(port) => port.fmt(f),
        }
    }
}

/// As text, both ways: an address, or `off`.
macro_rules! written_as_address_or_off {
    ($($listen:ty),+) => {$(
        impl fmt::Display for $listen {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    Some(address) => address.fmt(f),
                    None => f.write_str("off"),
                }
            }
        }

        impl Serialize for $listen {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $listen {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

written_as_address_or_off!(AdminListen, Listen);

impl Serialize for Redirect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Redirect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
