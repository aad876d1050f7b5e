//! Samples of the time that pushes take from their call to the kernel: the wait in an inbox and in a turn.
//!
//! A shard asks for one sample a tick; the next producer sends the time after its order. So a push costs a look at a
//! flag that is rarely changed, and a sample costs a second order. Invariant: at most one sample is on its way for each
//! time that one was asked for.

use super::clock::Clock;
use crate::shard::command::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// See the module. One for each shard.
pub struct Probe {
    clock: Clock,
    is_wanted: AtomicBool,
}

impl Probe {
    /// A probe by the broker's clock.
    pub fn new(clock: Clock) -> Self {
        Self { clock, is_wanted: AtomicBool::new(false) }
    }

    /// The next push is to be sampled.
    pub fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
    }

    /// `command`, with the time behind it if that is wanted and it is a push.
    pub fn ride_on(&self, command: Command) -> Command {
        if !self.is_wanted.load(Ordering::Relaxed)
            || !command.is_push()
            || !self.is_wanted.swap(false, Ordering::Relaxed)
        {
            return command;
        }
        let probe = Command::Probe { asked_us: self.clock.now_us() };
        match command {
            Command::Batch(mut commands) => {
                commands.push(probe);
                Command::Batch(commands)
            }
            one => Command::Batch(vec![one, probe]),
        }
    }

    /// How long ago `asked_us` was.
    pub fn passed_us(&self, asked_us: u64) -> u64 {
        self.clock.now_us().saturating_sub(asked_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::ChannelId;
    use crate::proto::MessageKind;
    use crate::shard::command::{PushCommand, PushFrame, PushKind, ReportTo};

    fn push() -> Command {
        let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload: bytes::Bytes::new() };
        Command::Push(PushCommand {
            channel: ChannelId::new(1),
            owner: None,
            frame,
            policy: None,
            asked: ReportTo::Nobody,
        })
    }

    #[test]
    fn one_push_is_sampled_each_time_that_it_is_wanted() {
        let probe = Probe::new(Clock::start());
        assert!(matches!(probe.ride_on(push()), Command::Push(_)));
        probe.want();
        let (drain, _) = crossbeam_channel::bounded(1);
        assert!(matches!(probe.ride_on(Command::Disconnects(drain)), Command::Disconnects(_)), "no push");
        let Command::Batch(sampled) = probe.ride_on(push()) else { panic!("not sampled") };
        assert!(matches!(sampled[..], [Command::Push(_), Command::Probe { .. }]));
        assert!(matches!(probe.ride_on(push()), Command::Push(_)), "once");
        probe.want();
        let Command::Batch(sampled) = probe.ride_on(Command::Batch(vec![push()])) else { panic!("not sampled") };
        assert!(matches!(sampled[..], [Command::Push(_), Command::Probe { .. }]), "batches hold no batches");
    }
}
