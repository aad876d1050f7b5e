//! The settings with which a broker is started.

use crate::admission;
#[cfg(feature = "tls")]
use crate::driver::clock;
use crate::driver::runtime::DriverKind;
use crate::driver::sys::TcpOptions;
use crate::gateway::Settings;
use crate::queue::orders as inbox;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

/// The settings of a broker.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen. Port 0 picks a free one. Default 127.0.0.1:0.
    pub listen: SocketAddr,
    /// Whether the broker listens for plain HTTP at `listen`. Default: yes.
    pub listens_plain: bool,
    /// Where to listen for TLS too, with the certificates of `shard.tls`. Default nowhere.
    pub tls_listen: Option<SocketAddr>,
    /// A listener opened elsewhere, by a service manager for instance; `listen` is then ignored. All shards share the
    /// socket. Default none: each shard opens its own.
    pub listener: Option<Arc<TcpListener>>,
    /// Whether clients wait in the listener's backlog until the broker is told to [open](super::BrokerHandle::open), so
    /// that none of them comes before the paths are bound. Default: no.
    pub opens_later: bool,
    /// Threads, 256 at most; 0 is one for each core that this process may use.
    pub shards: usize,
    /// Whether each shard stays on a core of its own. Default off: a library does not own the machine.
    pub pin: bool,
    /// io_uring or epoll.
    pub driver: DriverKind,
    /// The rules of entry.
    pub settings: Settings,
    /// How many may connect to all shards together.
    pub admission: admission::ConnectionLimits,
    /// The most memory that clients and processes may make the broker hold, in bytes (of whole MiB, at least 4 for each
    /// shard): frames and responses that wait, messages and requests that have not wholly arrived, orders and events
    /// that were not read. Connections themselves, and the allocator's share, come on top. Default none: a library does
    /// not know what else lives on the machine.
    pub memory_bytes_max: Option<usize>,
    /// The settings of each shard.
    pub shard: crate::shard::ShardConfig,
    /// The limits of each shard's inbox.
    pub inbox: inbox::InboxLimits,
    /// Options of client sockets.
    pub tcp: TcpOptions,
}

impl Default for Config {
    /// 16 Ki commands: some 2 MB of slots a shard. 64 MiB of payloads: four of the largest messages, and a quarter of
    /// it for one process is one of them.
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 0).into(),
            listens_plain: true,
            tls_listen: None,
            listener: None,
            opens_later: false,
            shards: 0,
            pin: false,
            driver: DriverKind::Auto,
            settings: Settings::default(),
            admission: admission::ConnectionLimits::default(),
            memory_bytes_max: None,
            shard: crate::shard::ShardConfig::default(),
            inbox: inbox::InboxLimits { commands_max: 16 * 1024, bytes_max: 64 * 1024 * 1024 },
            tcp: TcpOptions { notsent_lowat_bytes: 128 * 1024, user_timeout_ms: 75_000 },
        }
    }
}

#[cfg(feature = "tls")]
impl Config {
    /// Speaks TLS 1.3 at `address` with these certificates; clients that name no host, or an unknown one, get the
    /// first. `listen` goes on to speak plain HTTP as long as [`listens_plain`](Self::listens_plain) is set.
    #[must_use]
    pub fn with_tls(
        mut self,
        address: SocketAddr,
        certificates: impl IntoIterator<Item = crate::tls::Certificate>,
    ) -> Self {
        self.set_certificates(certificates);
        self.tls_listen = Some(address);
        self
    }

    pub(super) fn set_certificates(&mut self, certificates: impl IntoIterator<Item = crate::tls::Certificate>) {
        self.shard.tls = crate::tls::TlsServer::new(certificates.into_iter().collect(), clock::unix_s()).ok();
    }
}
