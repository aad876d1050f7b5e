//! A broker's settings by name, for a program that embeds one.

use super::{Broker, Config, StartError};
use crate::driver::runtime::DriverKind;
use crate::gateway::HostPolicy;
use std::net::{SocketAddr, ToSocketAddrs};

/// Settings of a [`Broker`] by name: made by [`Broker::builder`]. What has no call of its own here is set in the
/// [`Config`] that [`config`](Self::config) hands out.
///
/// ```
/// # fn main() -> Result<(), pushring::StartError> {
/// let broker = pushring::Broker::builder().listen("127.0.0.1:0").shards(1).memory_bytes_max(64 << 20).start()?;
/// assert!(broker.address().port() != 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a broker runs once `start` is called"]
pub struct Builder {
    config: Config,
    /// Where to listen, as it was given, where that is no address.
    no_address: Option<String>,
    /// Certificates were given.
    speaks_tls: bool,
}

impl Builder {
    pub(super) fn new() -> Self {
        Self { config: Config::default(), no_address: None, speaks_tls: false }
    }

    /// Where to listen: `127.0.0.1:8080`, `localhost:8080` or a [`SocketAddr`]. Port 0 picks a free one. Default
    /// 127.0.0.1:0. A name is looked up, which blocks the thread.
    pub fn listen(mut self, address: impl ToSocketAddrs + std::fmt::Debug) -> Self {
        let found: Option<SocketAddr> = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        self.no_address = found.is_none().then(|| format!("{address:?}"));
        self.config.listen = found.unwrap_or(self.config.listen);
        self
    }

    /// Threads, 256 at most; 0 is one for each core that this process may use, and the default.
    pub fn shards(mut self, shards: usize) -> Self {
        self.config.shards = shards;
        self
    }

    /// Keeps each shard on a core of its own. Default off.
    pub fn pin(mut self, pin: bool) -> Self {
        self.config.pin = pin;
        self
    }

    /// Speaks TLS 1.3 with these certificates; clients that name no host, or an unknown one, get the first. The address
    /// is [`tls_listen`](Self::tls_listen), or else that of [`listen`](Self::listen), which then speaks nothing but
    /// TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, certificates: impl IntoIterator<Item = crate::tls::Certificate>) -> Self {
        self.config.set_certificates(certificates);
        self.speaks_tls = true;
        self
    }

    /// Where to listen for TLS, beside plain HTTP at the address of [`listen`](Self::listen).
    #[cfg(feature = "tls")]
    pub fn tls_listen(mut self, address: SocketAddr) -> Self {
        self.config.tls_listen = Some(address);
        self
    }

    /// io_uring or epoll. Default: io_uring where it is to be had.
    pub fn driver(mut self, driver: DriverKind) -> Self {
        self.config.driver = driver;
        self
    }

    /// The most memory that clients and processes may make the broker hold, in bytes. See
    /// [`Config::memory_bytes_max`].
    pub fn memory_bytes_max(mut self, bytes: usize) -> Self {
        self.config.memory_bytes_max = Some(bytes);
        self
    }

    /// Clients that may be connected at a time.
    pub fn connections_max(mut self, connections: usize) -> Self {
        self.config.admission.connections_max = connections;
        self
    }

    /// For which hosts requests are answered. Default: on a loopback address for this machine's names, elsewhere for
    /// all.
    pub fn hosts(mut self, hosts: HostPolicy) -> Self {
        self.config.settings.hosts = hosts;
        self
    }

    /// Changes anything else of the [`Config`].
    pub fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    fn with_listeners(self) -> Config {
        let mut config = self.config;
        if self.speaks_tls && config.tls_listen.is_none() {
            (config.tls_listen, config.listens_plain) = (Some(config.listen), false);
        }
        config
    }

    /// Starts the shards and listens.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub fn start(self) -> Result<Broker, StartError> {
        match self.no_address {
            Some(text) => Err(StartError::Address(text)),
            None => Broker::start(self.with_listeners()),
        }
    }
}
