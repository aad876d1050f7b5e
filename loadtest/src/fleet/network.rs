//! Where the parts of a fleet are: each node in a network namespace of its own, connected by a bridge to that of NATS,
//! or all on this machine's loopback, where namespaces cannot be made.
//!
//! Invariants: what is made here goes away with its owner; within a namespace everything talks to its loopback or to
//! NATS.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::sys;

/// See the module.
pub(super) enum Network {
    /// All on 127.0.0.1.
    Loopback,
    /// `PREFIXhub` and `PREFIX0`, `PREFIX1` … are the namespaces' names.
    Namespaces {
        /// The prefix of the names.
        prefix: String,
        /// How many nodes there are.
        nodes: usize,
    },
}

/// A place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Where NATS is.
    Hub,
    /// A node's.
    Node(usize),
}

/// The address of the hub, within the namespaces alone.
const HUB: &str = "10.203.0.254";

impl Network {
    /// Namespaces for so many nodes, or loopback where this user or this system makes none.
    pub(super) fn make(nodes: usize) -> Self {
        let made = Self::Namespaces { prefix: format!("fleet{}-", std::process::id()), nodes };
        match made.connect() {
            Ok(()) => made,
            Err(error) => {
                eprintln!("loadtest: no network namespaces ({error:#}): all nodes are on loopback");
                Self::Loopback
            }
        }
    }

    fn connect(&self) -> anyhow::Result<()> {
        let Self::Namespaces { nodes, .. } = self else { return Ok(()) };
        let hub = self.name(Place::Hub);
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} addr add {HUB}/24 dev bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for node in 0..*nodes {
            let name = self.name(Place::Node(node));
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {hub} link add node{node} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {hub} link set node{node} master bridge up"))?;
            ip(&format!("-n {name} addr add 10.203.0.{}/24 dev eth0", node + 1))?;
            ip(&format!("-n {name} link set eth0 up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(())
    }

    fn name(&self, place: Place) -> String {
        match (self, place) {
            (Self::Loopback, _) => String::new(),
            (Self::Namespaces { prefix, .. }, Place::Hub) => format!("{prefix}hub"),
            (Self::Namespaces { prefix, .. }, Place::Node(node)) => format!("{prefix}{node}"),
        }
    }

    /// Its name in reports.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::Loopback => "on loopback",
            Self::Namespaces { .. } => "in network namespaces",
        }
    }

    /// Where NATS listens.
    pub(super) fn hub(&self) -> &'static str {
        match self {
            Self::Loopback => "127.0.0.1",
            Self::Namespaces { .. } => HUB,
        }
    }

    /// Moves this thread there, and what it starts from now on.
    pub(super) fn enter(&self, place: Place) -> anyhow::Result<()> {
        if let Self::Namespaces { .. } = self {
            let path = Path::new("/run/netns").join(self.name(place));
            let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
            sys::enter_network(&file).context("entering a network namespace")?;
        }
        Ok(())
    }

    /// Does something there, on a thread that ends with it.
    pub(super) fn inside<T: Send>(
        &self,
        place: Place,
        act: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let there = scope.spawn(|| self.enter(place).and_then(|()| act()));
            there.join().map_err(|_| anyhow::anyhow!("a thread of the fleet panicked"))?
        })
    }

    /// Cuts a node off, or connects it again.
    pub(super) fn cut(&self, node: usize, is_cut: bool) -> anyhow::Result<()> {
        ensure!(matches!(self, Self::Namespaces { .. }), "a node is cut off in network namespaces only");
        let (hub, to) = (self.name(Place::Hub), if is_cut { "down" } else { "up" });
        ip(&format!("-n {hub} link set node{node} {to}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Self::Namespaces { nodes, .. } = self else { return };
        for place in (0..*nodes).map(Place::Node).chain([Place::Hub]) {
            // One that was not made is not there.
            let _ = ip(&format!("netns del {}", self.name(place)));
        }
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let found = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].into_iter().find(|program| Path::new(program).is_file());
    let program = found.context("there is no ip (iproute2)")?;
    let done = Command::new(program).args(words.split(' ')).stdin(Stdio::null()).output()?;
    ensure!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}
