//! The reasons why a broker, a process or a path is refused.

use crate::driver::listen::ListenError;
use crate::driver::runtime::RuntimeError;
use crate::gateway::BindError;
use crate::process_id::{ParseProcessIdError, ProcessId};

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address given to [`Builder::listen`](crate::Builder::listen).
    #[error("{0} is no address to listen on: write ADDRESS:PORT, as in 127.0.0.1:8080")]
    Address(String),
    /// The address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The driver.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// There is nowhere to listen.
    #[error("there is nowhere to listen: give an address for plain HTTP, or one for TLS and certificates")]
    Nowhere,
    /// There is an address for TLS, and no certificate.
    #[error("a listener for TLS needs certificates: give some, or no address for TLS")]
    NoCertificate,
    /// Something that the system normally grants.
    #[error("cannot start a shard: {0}")]
    Io(#[from] std::io::Error),
}

/// Why a process was not attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] ParseProcessIdError),
    /// Another process of that id is attached.
    #[error("a process {0} is attached already")]
    Taken(ProcessId),
    /// The handler of a process that was to run on the shards could not be made: its constructor panicked.
    #[error("a handler of {0} could not be made: its constructor panicked")]
    Panicked(ProcessId),
    /// The broker has stopped.
    #[error("the broker has stopped")]
    Stopped,
}

/// Why a process that the broker's own program runs (the hub, the publishing API, the demo) did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// Its id is taken, or the broker has stopped.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Its path is taken, memory is short, or the broker has stopped.
    #[error(transparent)]
    Bind(#[from] BindPathError),
    /// The system gave it no thread.
    #[error("cannot start a thread for it: {0}")]
    Thread(#[from] std::io::Error),
}

/// Why a path was not bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindPathError {
    /// The process or the path.
    #[error(transparent)]
    Refused(#[from] BindError),
    /// Paths and content bound by processes have filled their part of the memory budget: unbind some, or raise the
    /// budget.
    #[error(
        "the memory budget has no room for a route of {bytes} bytes: what is kept for processes fills half of it, or this \
         process more than half of its share (memory_budget)"
    )]
    Memory {
        /// The size of the route, its content included.
        bytes: usize,
    },
    /// The process has ended, or the broker has stopped.
    #[error("the process has ended or the broker has stopped")]
    Stopped,
}

/// A shard thread ended on its own: a bug, or a kernel that refuses what it always grants. The broker has stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("shard {shard} died: {why}")]
#[non_exhaustive]
pub struct ShardDied {
    /// The shard that failed.
    pub shard: usize,
    /// The reason that it gave.
    pub why: String,
}
