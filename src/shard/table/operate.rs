//! What operators ask of a shard while it runs ([`operating`](crate::shard::operating)), and a drain.
//!
//! Invariants: a question costs a bounded part of a turn; a drain tells each channel once.

use crate::process_id::ProcessId;
use crate::proto::close;
use crate::shard::command::CloseFrame;
use crate::shard::config::Config;
use crate::shard::core::Shard;
use crate::shard::operating::{ChannelFilter, ChannelPage, ChannelReport, Drain, Draining, Progress};
use crate::shard::owners::owner::LocalOwner;
use crate::shard::table::connection::{Connection, Flag, Phase};
use crate::shard::table::slot::Slot;
use std::net::SocketAddr;
use std::sync::Arc;

/// Places of the connection table looked at for one question, at some 20 ns each: as long as a few dozen sends.
const LOOKED_AT_MAX: usize = 8 * 1024;

/// A client that is told to come back waits up to so long besides, so that those told in one tick do not come in one.
const RETRY_SPREAD_MS: u64 = 1000;

impl Shard {
    /// The channels that pass, from place `from` of the table on, at most `limit`.
    pub(in crate::shard) fn channel_page(&self, filter: &ChannelFilter, from: u32, limit: usize) -> ChannelPage {
        let from = from as usize;
        let end = self.table.connections.capacity().min(from.saturating_add(LOOKED_AT_MAX));
        let mut channels = Vec::new();
        for slot in from..end {
            if channels.len() == limit {
                return ChannelPage { channels, next: Some(slot as u32) };
            }
            let connection = self.table.connections.get(slot);
            channels.extend(connection.and_then(|connection| self.channel_report(connection, filter)));
        }
        ChannelPage { channels, next: (end < self.table.connections.capacity()).then_some(end as u32) }
    }

    fn channel_report(&self, connection: &Connection, filter: &ChannelFilter) -> Option<ChannelReport> {
        let channel = connection.channel()?;
        let queued_bytes = connection.outbound.queued_bytes();
        let owner = &self.owners[channel.owner];
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
            is_closing: connection.flags.has(Flag::CloseSent),
        })
    }

    /// How many channels each process has here.
    pub(in crate::shard) fn channels_by_process(&self) -> Vec<(ProcessId, usize)> {
        let of = |owner: &LocalOwner| owner.channels().map(<[Slot]>::len).sum();
        self.owners.iter().map(|owner| (owner.owner.process.clone(), of(owner))).collect()
    }

    /// Obeys other numbers from now on. What was agreed on with a client at its upgrade stays.
    pub(in crate::shard) fn reconfigure(&mut self, config: Arc<Config>) {
        if config.deflate.level != self.config.deflate.level {
            self.out.set_level(config.deflate.level.into());
        }
        self.config = config;
    }

    /// Begins a drain; one that has begun goes on with the new times.
    pub(in crate::shard) fn drain(&mut self, drain: Drain) {
        if self.table.stop_at_ms.is_some() {
            return;
        }
        let closes_from_ms = self.now_ms.saturating_add(drain.grace_ms);
        let closes_until_ms = closes_from_ms.saturating_add(drain.over_ms);
        self.table.draining =
            Some(Draining { closes_from_ms, closes_until_ms, within_ms: drain.within_ms, progress: None });
        self.drain_on();
    }

    /// Closes as many channels as the pace of the drain asks for by now. Call it each tick.
    pub(in crate::shard) fn drain_on(&mut self) {
        let Some(draining) = &self.table.draining else { return };
        if self.now_ms < draining.closes_from_ms {
            return;
        }
        let channels = self.table.channels.len();
        let mut progress = draining.progress.unwrap_or(Progress { channels, told: 0, next: 0 });
        if self.now_ms >= draining.closes_until_ms || channels == 0 {
            let within_ms = draining.within_ms;
            self.table.draining = None;
            return self.stop(within_ms, None);
        }
        let over_ms = draining.closes_until_ms - draining.closes_from_ms;
        let passed_ms = self.now_ms - draining.closes_from_ms;
        let due = (progress.channels as u128 * u128::from(passed_ms) / u128::from(over_ms)) as usize;
        // Clients that came during the drain stand at any place, so the table is gone through again, once a tick.
        for _ in 0..self.table.connections.capacity() {
            if progress.told >= due {
                break;
            }
            let slot = progress.next;
            progress.next = (slot + 1) % self.table.connections.capacity();
            progress.told += usize::from(self.tell_to_come_back(slot));
        }
        if let Some(draining) = &mut self.table.draining {
            draining.progress = Some(progress);
        }
    }

    /// Closes the channel at `slot`, if there is one that is not closing. Returns whether there was.
    fn tell_to_come_back(&mut self, slot: usize) -> bool {
        let is_open = |connection: &Connection| {
            matches!(connection.phase, Phase::Open(_)) && !connection.flags.has(Flag::CloseSent)
        };
        if !self.table.connections.get(slot).is_some_and(is_open) {
            return false;
        }
        let retry_ms = self.intake.random() % RETRY_SPREAD_MS;
        let reason = format!(r#"{{"retry_ms":{retry_ms}}}"#).into();
        self.close_behind(Slot::new(slot as u32), &CloseFrame { code: Some(close::code::SERVICE_RESTART), reason });
        true
    }

    /// Whether a drain has been asked for or begun: responses end their connections.
    pub(in crate::shard) fn is_draining(&self) -> bool {
        self.table.draining.is_some()
    }

    /// Whether a drain has come to closing channels: new clients are not taken any more.
    pub(in crate::shard) fn drain_closes(&self) -> bool {
        self.table.draining.as_ref().is_some_and(|draining| self.now_ms >= draining.closes_from_ms)
    }
}
