//! The settings of a link's server.

use super::frame::HEAD_BYTES_MAX;
use super::token::LinkToken;
use super::wire::LinkWindow;
use crate::broker::{PAYLOAD_BYTES_MAX, QueueLimits};
use crate::driver::peer_socket::Access;
use crate::tls::Acceptor;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How long a peer may take to say hello and to be told its channels.
pub(super) const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// The largest head of a hello: an id, a token, a key.
pub(super) const HELLO_BYTES_MAX: usize = 4 << 10;

/// Connections that ask for one session at a time: the one that has it, its successor, and as many that will be told
/// that they lost it.
pub(super) const CLAIMS_PER_SESSION_MAX: usize = 4;

/// Questions of one peer that are not answered yet: what a window of events is besides.
pub(super) const ASKS_MAX: usize = 8 * 1024;

/// The most that may be sent to a peer and not acknowledged: 8 MiB is half of the largest message, so it holds several
/// of usual size; 8 Ki frames are a millisecond of work.
pub(super) const WINDOW: LinkWindow = LinkWindow { frames: 8 * 1024, bytes: 8 << 20 };

/// The queue behind the window, for each process: as much again as one turn of a process takes.
pub(super) const QUEUE: QueueLimits = QueueLimits { messages_max: 16 * 1024, bytes_max: 8 << 20 };

/// See the module.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Where to listen with a Unix socket.
    pub path: Option<PathBuf>,
    /// The users that may open that socket.
    pub access: Access,
    /// Where to listen with TCP. Needs a token; encrypted where there is `tls`.
    pub tcp: Option<SocketAddr>,
    /// The certificates with which TCP is under TLS. None: nothing there is encrypted.
    pub tls: Option<Acceptor>,
    /// The token required of peers over TCP.
    pub token: Option<LinkToken>,
    /// How long the channels of a process that was lost live on.
    pub owner_grace: Duration,
    /// Sessions at a time. Each has three threads and up to 40 MiB of what its process did not take yet.
    pub peers_max: usize,
    /// The largest blob, in bytes: at least the largest message and body of clients.
    pub blob_bytes_max: usize,
    /// A side that has said nothing for so long says that it is there; three times that, and it is lost.
    pub beat: Duration,
}

impl Default for LinkConfig {
    /// No address, this user alone; 10 seconds of grace; 64 peers, which with 192 threads and 2.5 GiB at worst are what
    /// one machine bears; 16 MiB, the broker's own largest message; a beat every 5 seconds.
    fn default() -> Self {
        Self {
            path: None,
            access: Access::default(),
            tcp: None,
            tls: None,
            token: None,
            owner_grace: Duration::from_secs(10),
            peers_max: 64,
            blob_bytes_max: 16 << 20,
            beat: Duration::from_secs(5),
        }
    }
}

/// As good as for ever, and no clock overflows.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl LinkConfig {
    /// The same with what can be carried out.
    pub(super) fn fitting(self) -> Self {
        Self {
            blob_bytes_max: self.blob_bytes_max.min(PAYLOAD_BYTES_MAX),
            owner_grace: self.owner_grace.min(LONGEST),
            beat: self.beat.min(LONGEST),
            ..self
        }
    }

    /// How long a peer may be silent.
    pub(super) fn silence(&self) -> Duration {
        3 * self.beat
    }
}

const _: () = assert!(HELLO_BYTES_MAX <= HEAD_BYTES_MAX && super::token::TOKEN_BYTES_MAX < HELLO_BYTES_MAX / 2);

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn times_that_are_for_ever_can_be_waited_for() {
        let (beat, owner_grace) = (Duration::MAX, Duration::MAX);
        let config = LinkConfig { beat, owner_grace, ..LinkConfig::default() }.fitting();
        let now = Instant::now();
        assert!(now + config.silence() > now && now + config.owner_grace > now);
    }
}
