//! What operators ask of a shard while it runs: its channels page by page, who is attached, other settings, a drain.
//!
//! Invariants: a question costs a bounded part of a turn, however many channels there are, and is asked again for the
//! rest; a drain tells each channel once, and at most as many at a time as its pace allows; whoever asks may have gone
//! before the answer. It must not know who asks, or why.

use super::command::CloseFrame;
use super::config::Config;
use super::core::Shard;
use super::table::connection::{Connection, Flags, Phase};
use crate::channel::ChannelId;
use crate::gateway::IpPrefix;
use crate::process_id::ProcessId;
use crate::proto::close;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Places of the connection table looked at for one question, at some 20 ns each: as long as a few dozen sends.
const LOOKED_AT_MAX: usize = 8 * 1024;

/// A client that is told to come back waits up to so long besides, so that those told in one tick do not come in one.
const RETRY_SPREAD_MS: u64 = 1000;

/// Which channels are asked for; all that is left out lets everything pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelFilter {
    /// Only this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelId>,
    /// Of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// Opened on this path, as it is bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Box<str>>,
    /// Of clients in this range, as we or a trusted proxy see them: an address, or `10.0.0.0/8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpPrefix>,
    /// With at least so many bytes that wait to be sent.
    #[serde(skip_serializing_if = "is_zero")]
    pub queued_bytes_min: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One channel at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Its id.
    pub channel: ChannelId,
    /// Whose it is.
    pub process: ProcessId,
    /// The bound path, without the process id.
    pub path: Arc<str>,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The client as a trusted proxy forwarded it (of an IPv6 address the /64).
    pub forwarded_for: Option<IpAddr>,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
    /// How long it has been open, in seconds.
    pub age_s: u32,
    /// How long the client has said nothing, in milliseconds.
    pub silent_ms: u64,
    /// What the last answered ping of ours took, in milliseconds.
    pub ping_ms: Option<u16>,
    /// Whether a close frame has been sent, and its answer is awaited.
    pub is_closing: bool,
}

/// A part of the answer to a [`ChannelFilter`].
#[derive(Debug, Clone, Default)]
pub struct ChannelPage {
    /// In the order of the shard's table.
    pub channels: Vec<ChannelReport>,
    /// Where to go on; none: that was all.
    pub next: Option<u32>,
}

/// How channels are closed so that their clients come back evenly, here or elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// How long new clients are still taken, so that balancers can turn away first.
    pub grace_ms: u64,
    /// Then channels are closed with 1012, one after another, for so long.
    pub over_ms: u64,
    /// Then who is left is closed as by a stop, and has so long to answer.
    pub within_ms: u64,
}

/// A drain in progress.
pub(super) struct Draining {
    closes_from_ms: u64,
    closes_until_ms: u64,
    within_ms: u64,
    /// Channels when the closes began, and how many have been told since; none before.
    progress: Option<Progress>,
}

#[derive(Clone, Copy)]
struct Progress {
    channels: usize,
    told: usize,
    /// The place in the connection table to look at next.
    next: usize,
}

impl Shard {
    /// The channels that pass, from place `from` of the table on, at most `limit`.
    pub(super) fn channel_page(&self, filter: &ChannelFilter, from: u32, limit: usize) -> ChannelPage {
        let from = from as usize;
        let end = self.connections.capacity().min(from.saturating_add(LOOKED_AT_MAX));
        let mut channels = Vec::new();
        for slot in from..end {
            if channels.len() == limit {
                return ChannelPage { channels, next: Some(slot as u32) };
            }
            channels.extend(self.connections.get(slot).and_then(|connection| self.channel_report(connection, filter)));
        }
        ChannelPage { channels, next: (end < self.connections.capacity()).then_some(end as u32) }
    }

    fn channel_report(&self, connection: &Connection, filter: &ChannelFilter) -> Option<ChannelReport> {
        let channel = connection.channel()?;
        let queued_bytes = connection.outbound.queued_bytes();
        let owner = &self.owners[channel.owner as usize];
        let path = owner.path(channel.place);
        let peer: SocketAddr = connection.peer.into();
        let forwarded_for = self.forwarded_for(connection);
        let client = forwarded_for.unwrap_or(peer.ip());
        let passes = queued_bytes >= filter.queued_bytes_min
            && filter.channel.is_none_or(|id| id == channel.id)
            && filter.process.as_ref().is_none_or(|process| *process == owner.owner.process)
            && filter.path.as_deref().is_none_or(|wanted| wanted == &**path)
            && filter.address.is_none_or(|range| range.contains(client));
        passes.then(|| ChannelReport {
            channel: channel.id,
            process: owner.owner.process.clone(),
            path: path.clone(),
            peer,
            forwarded_for,
            queued_bytes,
            age_s: self.now_s().saturating_sub(connection.since_s),
            silent_ms: u64::from((self.now_ms as u32).wrapping_sub(connection.heard_ms)),
            ping_ms: channel.ping_ms(),
            is_closing: connection.flags.has(Flags::CLOSE_SENT),
        })
    }

    /// How many channels each process has here.
    pub(super) fn channels_by_process(&self) -> Vec<(ProcessId, usize)> {
        let of = |owner: &super::owners::owner::LocalOwner| owner.channels().map(<[u32]>::len).sum();
        self.owners.iter().map(|(_, owner)| (owner.owner.process.clone(), of(owner))).collect()
    }

    /// Obeys other numbers from now on. What was agreed on with a client at its upgrade stays.
    pub(super) fn reconfigure(&mut self, config: Arc<Config>) {
        if config.deflate.level != self.config.deflate.level {
            self.deflater = crate::proto::deflate::Deflater::new(config.deflate.level.into());
        }
        self.config = config;
    }

    /// Begins a drain; one that has begun goes on with the new times.
    pub(super) fn drain(&mut self, drain: Drain) {
        if self.stop_at_ms.is_some() {
            return;
        }
        let closes_from_ms = self.now_ms.saturating_add(drain.grace_ms);
        let closes_until_ms = closes_from_ms.saturating_add(drain.over_ms);
        self.draining = Some(Draining { closes_from_ms, closes_until_ms, within_ms: drain.within_ms, progress: None });
        self.drain_on();
    }

    /// Closes as many channels as the pace of the drain asks for by now. Call it each tick.
    pub(super) fn drain_on(&mut self) {
        let Some(draining) = &self.draining else { return };
        if self.now_ms < draining.closes_from_ms {
            return;
        }
        let channels = self.channels.len();
        let mut progress = draining.progress.unwrap_or(Progress { channels, told: 0, next: 0 });
        if self.now_ms >= draining.closes_until_ms || channels == 0 {
            let within_ms = draining.within_ms;
            self.draining = None;
            return self.stop(within_ms, None);
        }
        let over_ms = draining.closes_until_ms - draining.closes_from_ms;
        let passed_ms = self.now_ms - draining.closes_from_ms;
        let due = (progress.channels as u128 * u128::from(passed_ms) / u128::from(over_ms)) as usize;
        // Clients that came during the drain stand at any place, so the table is gone through again, once a tick.
        for _ in 0..self.connections.capacity() {
            if progress.told >= due {
                break;
            }
            let slot = progress.next;
            progress.next = (slot + 1) % self.connections.capacity();
            progress.told += usize::from(self.tell_to_come_back(slot));
        }
        if let Some(draining) = &mut self.draining {
            draining.progress = Some(progress);
        }
    }

    /// Closes the channel at `slot`, if there is one that is not closing. Returns whether there was.
    fn tell_to_come_back(&mut self, slot: usize) -> bool {
        let is_open = |connection: &Connection| {
            matches!(connection.phase, Phase::Open(_)) && !connection.flags.has(Flags::CLOSE_SENT)
        };
        if !self.connections.get(slot).is_some_and(is_open) {
            return false;
        }
        let retry_ms = self.random() % RETRY_SPREAD_MS;
        let reason = format!(r#"{{"retry_ms":{retry_ms}}}"#).into();
        self.close_behind(slot as u32, &CloseFrame { code: Some(close::code::SERVICE_RESTART), reason });
        true
    }

    /// Whether a drain has been asked for or begun: responses end their connections.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Whether a drain has come to closing channels: new clients are not taken any more.
    pub(super) fn drain_closes(&self) -> bool {
        self.draining.as_ref().is_some_and(|draining| self.now_ms >= draining.closes_from_ms)
    }
}
