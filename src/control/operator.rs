//! An operator's requests: the control socket and a daemon's admin listener both end here.
//!
//! Invariants: an answer states what was done, or why nothing was; it holds no secret. It must not know sockets.

use super::usage::Usage;
use super::wire::{
    BrokerInfo, Changes, ChannelList, ChannelQuery, ControlAnswer, ControlRequest, HubCounts, LastReload, Overview,
};
use crate::broker::{Broker, BrokerHandle, ChannelFilter, Drain};
use crate::words::close_reason::code;
use std::sync::Arc;
use std::time::SystemTime;

/// Processes of which an overview tells what is held for them: a kernel may have 64 Ki.
const HELD_MAX: usize = 1000;

/// Channels in one answer, where the question does not say.
const CHANNELS_DEFAULT: usize = 100;

/// The most channels in one answer: some 300 bytes each.
const CHANNELS_MAX: usize = 10_000;

/// The code and reason when an operator closes a channel: see `docs/PROTOCOL.md`.
const KICKED: (u16, &str) = (code::POLICY_VIOLATION, "closed by the operator");

/// How a drain goes where the question does not say: as long as two ping intervals for the closes.
const DRAIN_DEFAULT: Drain = Drain { grace_ms: 5_000, over_ms: 60_000, within_ms: 10_000 };

/// The program around a broker, as far as operators deal with it.
pub trait Program: Send + Sync {
    /// Reads the settings again and applies those that can change while it runs.
    ///
    /// # Errors
    /// Why nothing has changed, in words.
    fn reload(&self) -> Result<Changes, String> {
        Err("this program has no settings to read again".to_owned())
    }

    /// The result of the last [`reload`](Self::reload), by whatever caller; none: there was none.
    fn last_reload(&self) -> Option<LastReload> {
        None
    }

    /// How it is drained where the question does not say.
    fn drain(&self) -> Drain {
        DRAIN_DEFAULT
    }

    /// Called when a drain begins.
    fn draining(&self) {}

    /// Counts of its hub's requests to others; none: it has no hub.
    fn hub_counts(&self) -> Option<HubCounts> {
        None
    }

    /// Log lines that it has lost.
    fn log_counts(&self) -> LogCounts {
        LogCounts::default()
    }
}

/// Lines that a program's log could not write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogCounts {
    /// Lines that found no room, or could not be written.
    pub lines_lost: u64,
    /// Writes that failed.
    pub write_errors: u64,
}

/// A program that only runs a broker.
impl Program for () {}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Operator {
    about: Arc<BrokerInfo>,
    broker: BrokerHandle,
    program: Arc<dyn Program>,
}

impl Operator {
    /// For `broker`, which `program` runs. Best made once, at its start.
    pub fn new(broker: &Broker, program: Arc<dyn Program>) -> Self {
        Self { about: Arc::new(about(broker)), broker: broker.handle(), program }
    }

    /// The broker.
    pub fn broker(&self) -> &BrokerHandle {
        &self.broker
    }

    /// The broker as it is now.
    pub fn overview(&self) -> Overview {
        let LogCounts { lines_lost, write_errors } = self.program.log_counts();
        let usage = Usage { log_lines_lost: lines_lost, log_write_errors: write_errors, ..Usage::now() };
        let mut held = self.broker.held_by_process();
        held.truncate(HELD_MAX);
        let about = BrokerInfo::clone(&self.about);
        let (hub, fleet) = (self.program.hub_counts(), self.broker.fleet());
        let (reload, shards) = (self.program.last_reload(), self.broker.reports());
        Overview { about, unix_ms: unix_ms(), usage, hub, held, fleet, reload, shards }
    }

    /// Answers or carries out a request.
    pub fn answer(&self, request: ControlRequest) -> ControlAnswer {
        match request {
            ControlRequest::Stats {} => ControlAnswer::Stats(Box::new(self.overview())),
            ControlRequest::Disconnects(filter) => ControlAnswer::Disconnects(filter.apply(self.broker.disconnects())),
            ControlRequest::Channels(query) => ControlAnswer::Channels(self.channels(&query)),
            ControlRequest::Topics(query) => ControlAnswer::Topics(self.broker.topics(&query)),
            ControlRequest::Processes {} => ControlAnswer::Processes(self.broker.processes()),
            ControlRequest::Fleet {} => match self.broker.fleet() {
                Some(fleet) => ControlAnswer::Fleet(Box::new(fleet)),
                None => ControlAnswer::Refused("this broker is in no fleet: set fleet_nats".to_owned()),
            },
            ControlRequest::Kick { channel, reason } => {
                let filter = ChannelFilter { channel: Some(channel), ..ChannelFilter::default() };
                if self.broker.channels(&filter, 0, 1).0.is_empty() {
                    return ControlAnswer::Refused(format!("there is no channel {channel}"));
                }
                let reason = reason.unwrap_or_else(|| KICKED.1.to_owned());
                match self.broker.close(channel, KICKED.0, &reason).send() {
                    Ok(()) => ControlAnswer::Kicked(channel),
                    Err(error) => ControlAnswer::Refused(error.to_string()),
                }
            }
            ControlRequest::Reload {} => {
                self.program.reload().map_or_else(ControlAnswer::Refused, ControlAnswer::Reloaded)
            }
            ControlRequest::Drain { grace_ms, over_ms } => {
                let default = self.program.drain();
                let drain = Drain {
                    grace_ms: grace_ms.unwrap_or(default.grace_ms),
                    over_ms: over_ms.unwrap_or(default.over_ms),
                    ..default
                };
                self.drain(drain);
                ControlAnswer::Draining(drain)
            }
        }
    }

    /// Begins a drain.
    pub fn drain(&self, drain: Drain) {
        tracing::info!(?drain, "draining: closing channels one after another with 1012");
        self.program.draining();
        self.broker.drain(drain);
    }

    fn channels(&self, query: &ChannelQuery) -> ChannelList {
        let limit = query.limit.unwrap_or(CHANNELS_DEFAULT).min(CHANNELS_MAX);
        if query.fullest {
            return ChannelList { channels: self.broker.fullest_channels(limit), next: None };
        }
        let (channels, next) = self.broker.channels(&query.filter, query.after.unwrap_or(0), limit);
        ChannelList { channels, next }
    }
}

/// Which broker this is.
fn about(broker: &Broker) -> BrokerInfo {
    BrokerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        node: broker.handle().settings().user,
        address: broker.address(),
        tls_address: broker.tls_address(),
        driver: broker.driver().to_string(),
        since_unix_ms: unix_ms(),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
