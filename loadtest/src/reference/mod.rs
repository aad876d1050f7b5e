//! Reference servers: other ways to push, measured beside pushring in the same run. They speak the paths of
//! `pushring demo` (`/relay…`, `/echo…`, `/unicast…`) and, where it says so, registration at `/`.

pub(crate) mod link;
pub(crate) mod node;
pub(crate) mod raw;
mod raw_accept;
mod raw_ring;
pub(crate) mod tungstenite;
pub(crate) mod warp;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::ensure;
use clap::{Args, ValueEnum};

/// Which reference server to run, and where.
#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    /// Its shape.
    #[arg(value_enum)]
    pub kind: Kind,
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// Speak TLS 1.3 with the certificate chain and key in this PEM file (tungstenite only).
    #[arg(long, value_name = "FILE")]
    pub tls: Option<PathBuf>,
}

/// The shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// tokio-tungstenite, one thread: payloads shared, a queue per connection, what waits leaves in one write.
    Tungstenite,
    /// A node as it is today: warp, a map of bounded queues behind a lock, a loop that awaits each push, a copy of each
    /// payload.
    Warp,
    /// The same node and processes with pushring in place of the node's server: what unchanged apps gain.
    Node,
    /// The demo's processes attached to a broker over a link, both in this OS process.
    Link,
    /// The lower bound of a push: io_uring sends in batches of 256 and nothing else.
    RawRing,
    /// The same with `send(2)`.
    RawSend,
    /// The lower bound of a handshake: accept, recv, send, close.
    RawAccept,
    /// The lower bound of a connection that its client closes: the same, with epoll, an answer to the close frame, and
    /// the end.
    RawSession,
}

/// Runs the server until it is ended by a signal.
pub(crate) fn run(args: &ReferenceArgs) -> anyhow::Result<()> {
    crate::sys::descriptors_max()?;
    ensure!(args.tls.is_none() || args.kind == Kind::Tungstenite, "--tls: {:?} speaks no TLS", args.kind);
    match args.kind {
        Kind::Tungstenite => tungstenite::serve(args.listen, args.tls.as_deref()),
        Kind::Warp => warp::serve(args.listen),
        Kind::Node => node::serve(args.listen),
        Kind::Link => link::serve(args.listen),
        Kind::RawRing => raw::serve(args.listen, raw_ring::Ring::new()?),
        Kind::RawSend => raw::serve(args.listen, raw::Loop),
        Kind::RawAccept => raw_accept::serve_accepts(args.listen),
        Kind::RawSession => raw_accept::serve_sessions(args.listen),
    }
}

/// The behaviour of a path of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Each message goes to every other connection of this role.
    Relay,
    /// Each message goes back.
    Echo,
    /// Each message goes to the connection its first four bytes name.
    Unicast,
    /// The first message says which.
    Registration,
}

impl Role {
    /// The role of an upgrade request's path.
    pub(crate) fn of_path(path: &str) -> Option<Self> {
        match path.trim_matches('/') {
            "" => Some(Self::Registration),
            name => Self::of_process(name),
        }
    }

    /// The role of a demo process.
    pub(crate) fn of_process(process: &str) -> Option<Self> {
        match process.split(':').next()? {
            "relay" => Some(Self::Relay),
            "echo" => Some(Self::Echo),
            "unicast" => Some(Self::Unicast),
            _ => None,
        }
    }

    /// The role that a registration's first message asks for. The token is not looked at.
    pub(crate) fn of_registration(text: &str) -> Option<Self> {
        let message: serde_json::Value = serde_json::from_str(text).ok()?;
        Self::of_process(message.get("target_process")?.as_str()?)
    }
}

/// The Text that tells a client its channel id.
pub(crate) fn greeting(id: u32) -> String {
    format!("{{\"channel_id\":{id}}}")
}
