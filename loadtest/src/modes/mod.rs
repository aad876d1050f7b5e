//! The modes: what the clients do, and what is counted.
//!
//! Invariants: every mode counts each message exactly, takes the server's CPU time only over the messages that count,
//! and gives up by itself when nothing arrives any more.

pub(crate) mod broadcast;
pub(crate) mod connect;
pub(crate) mod echo;
pub(crate) mod fanout;
pub(crate) mod inbound;
pub(crate) mod rooms;
mod tally;
pub(crate) mod unicast;

use crate::payload::STAMP_BYTES;
use crate::proc::{self, CpuTime, CpuUse};
use crate::server::Server;
use crate::sys;

/// A number that tells the messages of this run from those of others.
pub(crate) fn run_number() -> u32 {
    (sys::now_ns() as u32) ^ std::process::id().rotate_left(16)
}

/// The largest message: far more than servers take, and still allocated without a thought.
const SIZE_MAX: usize = 1 << 30;
/// The most seconds or things a second: nanoseconds of them still fit a number.
const AMOUNT_MAX: f64 = 1e9;

/// A payload size as an argument: at least a stamp.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let size: usize = text.parse().map_err(|error| format!("{error}"))?;
    if size < STAMP_BYTES {
        return Err(format!("a message carries its number and time and so has at least {STAMP_BYTES} bytes"));
    }
    if size > SIZE_MAX {
        return Err(format!("a message has at most {SIZE_MAX} bytes"));
    }
    Ok(size)
}

/// How long or how often, where none is none.
pub(crate) fn parse_amount(text: &str) -> Result<f64, String> {
    let amount: f64 = text.parse().map_err(|error| format!("{error}"))?;
    // NaN is in no range.
    if (0.0..=AMOUNT_MAX).contains(&amount) { Ok(amount) } else { Err(format!("a number from 0 to {AMOUNT_MAX}")) }
}

/// How long or how often, where none would measure nothing.
pub(crate) fn parse_positive(text: &str) -> Result<f64, String> {
    let amount = parse_amount(text)?;
    if amount > 0.0 { Ok(amount) } else { Err("it must be more than 0".to_owned()) }
}

/// The CPU time of the server, where its processes are known (with that of the kernel's `ksoftirqd` on the CPUs to
/// which it is pinned), and of this process over a stretch of a run.
pub(crate) struct CpuMeter {
    pids: Vec<u32>,
    server: Option<CpuTime>,
    own: CpuTime,
    machine_busy_us: f64,
}

/// A measurement of [`CpuMeter`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    /// The server.
    pub server: Option<CpuUse>,
    /// Everything on this machine but the server and this process, in microseconds; `None` where the server is unknown.
    pub others_us: Option<f64>,
}

impl CpuMeter {
    /// Starts now.
    pub(crate) fn start(server: &Server) -> anyhow::Result<Self> {
        let is_known = !server.pids.is_empty();
        let pids = [&*server.pids, &*server.softirq_pids].concat();
        Ok(Self {
            server: if is_known { Some(CpuTime::of(&pids)?) } else { None },
            pids,
            own: CpuTime::of(&[std::process::id()])?,
            machine_busy_us: proc::machine_busy_us()?,
        })
    }

    /// The CPU time used since.
    pub(crate) fn stop(self) -> anyhow::Result<Used> {
        let server = match self.server {
            Some(start) => Some(CpuTime::of(&self.pids)?.since(&start)),
            None => None,
        };
        let own = CpuTime::of(&[std::process::id()])?.since(&self.own);
        let busy_us = proc::machine_busy_us()? - self.machine_busy_us;
        Ok(Used { server, others_us: server.map(|server| busy_us - server.total_us - own.total_us) })
    }
}
