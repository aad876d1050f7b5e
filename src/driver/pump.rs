//! One shard's thread at work: turn after turn, and asleep when there is nothing to do.
//!
//! With nothing to do the pump arms the inbox's wake flag and sleeps in monoio until its ready set reports: the eventfd
//! of the inbox, the listener and all connections are in that one set, so there is one place to wait and no task per
//! connection. What a turn is stands in [`crate::shard::turn`]; the clock is read here and nowhere below.

use super::clock::{Clock, thread_cpu_ns};
use super::kernel_sockets::KernelSockets;
use super::probe::Probe;
use super::wake::WakeFd;
use crate::queue::orders::{Inbox, Wake};
use crate::shard::command::Command;
use crate::shard::turn::{Inboxes, TurnLimits, Turns};
use crate::shard::{Shard, TICK_MS};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// See the module.
pub struct Pump {
    turns: Turns<KernelSockets>,
    wake: Arc<WakeFd>,
    clock: Clock,
    probe: Arc<Probe>,
}

impl Pump {
    /// A pump for `shard`, which has just been made on `clock`.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new(
        shard: Shard,
        inbox: Inbox<Command>,
        listener: TcpListener,
        wake: Arc<WakeFd>,
        clock: Clock,
        probe: Arc<Probe>,
    ) -> io::Result<Self> {
        let sockets = KernelSockets::new(listener, &wake, clock)?;
        let turns = Turns::new(shard, inbox, sockets, TurnLimits::default(), clock.now_ms(), unix_ms());
        Ok(Self { turns, wake, clock, probe })
    }

    /// The same among other shards: see [`Turns::among`].
    #[must_use]
    pub fn among(self, inboxes: Inboxes) -> Self {
        Self { turns: self.turns.among(inboxes), ..self }
    }

    /// Runs until the shard has been told to stop and has let go of its last connection. Inside a monoio runtime.
    ///
    /// # Errors
    /// The kernel refused what a healthy process never is: the shard cannot go on.
    pub async fn run(mut self) -> io::Result<()> {
        let waiter = self.turns.sockets().waiter()?;
        let (wake, probe) = (self.wake.clone(), self.probe.clone());
        // While the pump sleeps, this is its clock.
        let ticker = async move {
            loop {
                monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
                probe.want();
                wake.wake();
            }
        };
        monoio::spawn(ticker);
        // One look at a turn's end is the beginning of the next: falling asleep and waking is a part of it.
        let mut before_ns = thread_cpu_ns();
        loop {
            let is_busy = self.turns.turn(self.clock.now_ms(), unix_ms)?;
            let now_ns = thread_cpu_ns();
            let timings = self.turns.timings();
            timings.note_turn(now_ns - std::mem::replace(&mut before_ns, now_ns));
            timings.note_push_delay(|asked_us| self.probe.passed_us(asked_us));
            if self.turns.is_over() {
                return Ok(());
            }
            if !is_busy && self.turns.prepare_sleep() {
                waiter.ready().await?;
                self.turns.awake();
            }
        }
    }
}

fn unix_ms() -> u64 {
    // A clock before 1970 only makes tokens look valid that expired long ago; it is the operator's to set.
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
