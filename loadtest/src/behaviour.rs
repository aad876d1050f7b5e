//! How the clients of a run behave, whatever the mode.

use std::time::Duration;

use crate::client::engine::Pace;
use crate::client::tls::TlsOptions;
use crate::sys;

/// How the clients of a run behave, whatever the mode.
#[derive(Debug, Clone)]
pub(crate) struct ClientBehaviour {
    /// Spin or block.
    pub pace: Pace,
    /// The CPUs of the load tester; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Give up after this long without an arrival.
    pub patience: Duration,
    /// Source addresses.
    pub sources: u8,
    /// The token of registered channels; none: channels are bound to a path.
    pub token: Option<String>,
    /// The clients ask for channels that outlive their connections.
    pub resumable: bool,
    /// How TLS is spoken, where it is.
    pub tls_options: TlsOptions,
}

impl ClientBehaviour {
    /// Spinning is only for as many processes as have a CPU to themselves.
    pub(crate) fn pace_of(&self, processes: usize) -> anyhow::Result<Pace> {
        let room = if self.cpus.is_empty() { sys::allowed_cpus()?.len().saturating_sub(1) } else { self.cpus.len() };
        Ok(if processes > room.max(1) { Pace::Block } else { self.pace })
    }
}

/// The CPUs to pin worker number `worker` to.
pub(crate) fn cpus_of_worker(cpus: &[usize], worker: usize) -> Vec<usize> {
    if cpus.is_empty() { Vec::new() } else { vec![cpus[worker % cpus.len()]] }
}
