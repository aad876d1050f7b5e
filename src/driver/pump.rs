//! One shard's thread at work: turn after turn, and asleep when there is nothing to do.
//!
//! When idle, the pump arms the inbox's wake flag and sleeps in its ready set, which holds the eventfd of the inbox,
//! the listener and all connections: one place to wait, and no task per connection. It sleeps for one tick at most, and
//! the call returns the events that ended the sleep: awaited through the runtime, each wake would go through a ring and
//! then be asked for again. [`crate::shard::turn`] is the turn; the clock is read here and nowhere below.

use super::clock::{Clock, thread_cpu_ns, unix_ms};
use super::kernel_sockets::{KernelSockets, Listeners};
use super::probe::Probe;
use super::wake::WakeFd;
use crate::queue::orders::Inbox;
use crate::shard::command::Command;
use crate::shard::turn::{Inboxes, TurnLimits, Turns};
use crate::shard::{Shard, TICK_MS};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// See the module.
pub struct Pump {
    turns: Turns<KernelSockets>,
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
        listeners: Listeners,
        wake: &WakeFd,
        clock: Clock,
        probe: Arc<Probe>,
    ) -> io::Result<Self> {
        let sockets = KernelSockets::new(listeners, wake, clock)?;
        let turns = Turns::new(shard, inbox, sockets, TurnLimits::default(), clock.now_ms(), unix_ms());
        Ok(Self { turns, clock, probe })
    }

    /// The same among other shards: see [`Turns::among`].
    #[must_use]
    pub fn among(self, inboxes: Inboxes) -> Self {
        Self { turns: self.turns.among(inboxes), ..self }
    }

    /// Runs until the shard has been told to stop and has let go of its last connection.
    ///
    /// # Errors
    /// The kernel refused what a healthy process never is: the shard cannot go on.
    pub fn run(mut self) -> io::Result<()> {
        const TICK: Duration = Duration::from_millis(TICK_MS);
        // Read once between two turns, and once more behind a sleep.
        let mut now_ns = self.clock.now_ns();
        let (mut meter, mut ticked_ms) = (TurnMeter::start(now_ns), now_ns / NS_PER_MS);
        loop {
            let now_ms = now_ns / NS_PER_MS;
            let is_busy = self.turns.turn(now_ms, unix_ms)?;
            now_ns = self.clock.now_ns();
            self.turns.note_turn(meter.end_turn(now_ns));
            self.turns.timings().note_push_delay(|asked_us| self.probe.passed_us(asked_us));
            if self.turns.is_over() {
                return Ok(());
            }
            if !is_busy && self.turns.prepare_sleep() {
                self.turns.sockets().wait(TICK)?;
                self.turns.awake();
                now_ns = self.clock.now_ns();
                meter.begin_turn(now_ns);
            }
            if now_ms >= ticked_ms + TICK_MS {
                ticked_ms = now_ms;
                self.probe.want();
            }
        }
    }
}

/// How long turns are, in time of this thread's own.
///
/// Asking the kernel for that time costs as much as the rest of a short turn, and where little can be merged nearly all
/// turns are short. So a turn that was short by the clock on the wall, which can be read without asking, counts as it
/// was short there, which is an upper bound; the kernel is asked about the longer ones, in which the thread may have
/// been kept from its core.
struct TurnMeter {
    began_ns: u64,
    /// The thread's own time when the kernel was last asked, and what was counted since.
    asked_ns: u64,
    counted_ns: u64,
}

const NS_PER_MS: u64 = 1_000_000;

/// A turn shorter than this neither shows whether work is more expensive here than counted, nor delays clients.
const SHORT_NS: u64 = 100_000;

impl TurnMeter {
    fn start(now_ns: u64) -> Self {
        Self { began_ns: now_ns, asked_ns: thread_cpu_ns(), counted_ns: 0 }
    }

    /// A turn begins, behind a sleep.
    fn begin_turn(&mut self, now_ns: u64) {
        self.began_ns = now_ns;
    }

    /// A turn ends, and the next one begins. Returns how long it was.
    fn end_turn(&mut self, now_ns: u64) -> u64 {
        let turn_ns = now_ns - std::mem::replace(&mut self.began_ns, now_ns);
        if turn_ns <= SHORT_NS {
            self.counted_ns += turn_ns;
            return turn_ns;
        }
        let own_ns = thread_cpu_ns();
        let since_ns = (own_ns - std::mem::replace(&mut self.asked_ns, own_ns)).saturating_sub(self.counted_ns);
        self.counted_ns = 0;
        since_ns.min(turn_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::clock::monotonic_ns;

    #[test]
    fn turns_are_as_long_as_the_thread_worked_and_never_longer_than_they_lasted() {
        let mut meter = TurnMeter::start(monotonic_ns());
        let spin = |ns: u64| {
            let until_ns = monotonic_ns() + ns;
            while monotonic_ns() < until_ns {}
        };
        let before_ns = thread_cpu_ns();
        let mut sum_ns = 0;
        for _ in 0..200 {
            spin(1_000);
            sum_ns += meter.end_turn(monotonic_ns());
        }
        spin(3_000_000);
        let long_ns = meter.end_turn(monotonic_ns());
        sum_ns += long_ns;
        // A turn that waited: its time was others'.
        std::thread::sleep(Duration::from_millis(20));
        let slept_ns = meter.end_turn(monotonic_ns());
        let worked_ns = thread_cpu_ns() - before_ns;
        assert!(slept_ns < 10_000_000, "{slept_ns}");
        assert!(sum_ns <= worked_ns + 200 * SHORT_NS && long_ns > 0, "{sum_ns} of {worked_ns}");
        // Behind a sleep a turn begins anew.
        std::thread::sleep(Duration::from_millis(20));
        meter.begin_turn(monotonic_ns());
        assert!(meter.end_turn(monotonic_ns()) < 10_000_000);
    }
}
