//! Bugs that are planted around the shard, where it meets network, processes and clock; the oracle must find each.

use pushring::internals::shard::ShardConfig;
use pushring::internals::shard::event::{ClosedBy, Event};
use pushring::internals::shard::process_queue::QueueLimits;

/// See each. "Now and then" is every so many of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    None,
    /// A short send is reported as a whole one.
    LosesTail,
    /// Now and then bytes go to the neighbour.
    WrongSocket,
    /// Now and then the end of a send arrives twice.
    Duplicates,
    /// Now and then a short send is reported as shorter than it was.
    SendsAgain,
    /// Now and then a push does not reach its shard.
    LosesOrder,
    /// Orders of a batch are executed from the last to the first.
    ReversesBatch,
    /// Now and then Closed is not told.
    ForgetsClosed,
    /// Now and then Closed is told twice.
    DoublesClosed,
    /// Closed blames the client for what others did.
    BlamesClient,
    /// Now and then a client's message is not told.
    LosesMessage,
    /// A sent push is reported as queued, and the other way round.
    LiesAboutOutcome,
    /// A socket that the shard wants closed stays open.
    KeepsSocket,
    /// A connection that was ready and not read at once is never read again, until it has news.
    ForgetsRead,
    /// A client's departure is not reported, unless it is read.
    HidesHangups,
    /// A socket that takes bytes again is not reported.
    ForgetsWritable,
    /// The shard's clock ticks at a tenth of its pace.
    SlowTicks,
    /// The queue of a process holds ten times what it may.
    WideQueue,
    /// The bytes waiting for a channel may be ten times as many.
    WideBudget,
    /// No client is pinged.
    NoPings,
    /// Clients that do not register may stay.
    NoRegistrationTimeout,
}

impl Plant {
    pub const ALL: [Self; 20] = [
        Self::LosesTail,
        Self::WrongSocket,
        Self::Duplicates,
        Self::SendsAgain,
        Self::LosesOrder,
        Self::ReversesBatch,
        Self::ForgetsClosed,
        Self::DoublesClosed,
        Self::BlamesClient,
        Self::LosesMessage,
        Self::LiesAboutOutcome,
        Self::KeepsSocket,
        Self::ForgetsRead,
        Self::HidesHangups,
        Self::ForgetsWritable,
        Self::SlowTicks,
        Self::WideQueue,
        Self::WideBudget,
        Self::NoPings,
        Self::NoRegistrationTimeout,
    ];

    /// The shards' settings, which differ from those that the oracle believes.
    pub fn config(self, config: &ShardConfig) -> ShardConfig {
        let mut config = config.clone();
        match self {
            Self::WideBudget => config.outbound_bytes_max *= 10,
            Self::NoPings => config.ping_interval_ms = 0,
            Self::NoRegistrationTimeout => config.register_timeout_ms *= 1_000,
            _ => {}
        }
        config
    }

    pub fn queue(self, limits: QueueLimits) -> QueueLimits {
        match self {
            Self::WideQueue => QueueLimits { messages_max: limits.messages_max * 10, bytes_max: limits.bytes_max * 10 },
            _ => limits,
        }
    }

    /// The process' events instead of `events`; `told` counts them all.
    pub fn events(self, events: Vec<Event>, told: &mut u64) -> Vec<Event> {
        let mut heard = Vec::with_capacity(events.len());
        for mut event in events {
            *told += 1;
            match (self, &mut event) {
                (Self::ForgetsClosed, Event::Closed(_)) if told.is_multiple_of(3) => continue,
                (Self::LosesMessage, Event::Message { .. }) if told.is_multiple_of(53) => continue,
                (Self::DoublesClosed, Event::Closed(_)) if told.is_multiple_of(3) => heard.push(event.clone()),
                (Self::BlamesClient, Event::Closed(closed)) => closed.by = ClosedBy::Client,
                _ => {}
            }
            heard.push(event);
        }
        heard
    }
}
