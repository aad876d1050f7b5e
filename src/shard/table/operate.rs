//! Requests of operators to a running shard ([`operating`](crate::shard::operating)), and a drain.
//!
//! Invariants: a request costs a bounded part of a turn; a drain tells each channel once.

use crate::process_id::ProcessId;
use crate::proto::close;
use crate::shard::command::CloseFrame;
use crate::shard::config::ShardConfig;
use crate::shard::core::Shard;
use crate::shard::operating::{ChannelFilter, ChannelPage, ChannelReport, Drain, DrainProgress, Draining};
use crate::shard::owners::owner::LocalOwner;
use crate::shard::table::connection::{Connection, ConnectionPhase, Flag};
use crate::shard::table::slot::Slot;
use crate::shard::work;
use std::net::SocketAddr;
use std::sync::Arc;

/// Places of the connection table looked at for one question, at some 20 ns each: as long as a few dozen sends.
const LOOKED_AT_MAX: usize = 8 * 1024;

/// A client that is told to come back waits up to so long besides, so that those told in one tick do not come in one.
const RETRY_SPREAD_MS: u64 = 1000;

impl Shard {
    /// The channels that pass, from place `from` of the table on, at most `limit`.
    pub(in crate::shard) fn channel_page(&mut self, filter: &ChannelFilter, from: u32, limit: usize) -> ChannelPage {
        let from = from as usize;
        let page = self.page_from(filter, from, limit);
        let end = page.next.map_or(self.table.connections.capacity(), |next| next as usize);
        let looked_at = if filter.channel.is_some() { 1 } else { end.saturating_sub(from) };
        let told: usize = page.channels.iter().map(|channel| 1 + channel.topics.len()).sum();
        self.work.spend(looked_at as u64 * work::PASS_NS + told as u64 * work::TELL_NS);
        page
    }

    fn page_from(&self, filter: &ChannelFilter, from: usize, limit: usize) -> ChannelPage {
        if let Some(id) = filter.channel {
            let slot =
                Some(id).filter(|id| id.shard(self.shards) == self.index()).and_then(|id| self.table.slot_of(id));
            let channels =
                slot.and_then(|slot| self.channel_report(slot, &self.table[slot], filter)).into_iter().collect();
            return ChannelPage { channels, next: None };
        }
        let end = self.table.connections.capacity().min(from.saturating_add(LOOKED_AT_MAX));
        let mut channels = Vec::new();
        for slot in from..end {
            if channels.len() == limit {
                return ChannelPage { channels, next: Some(slot as u32) };
            }
            let connection = self.table.connections.get(slot);
            let slot = Slot::new(slot as u32);
            channels.extend(connection.and_then(|connection| self.channel_report(slot, connection, filter)));
        }
        ChannelPage { channels, next: (end < self.table.connections.capacity()).then_some(end as u32) }
    }

    fn channel_report(&self, slot: Slot, connection: &Connection, filter: &ChannelFilter) -> Option<ChannelReport> {
        let channel = connection.channel()?;
        let queued_bytes = self.queued_bytes(slot);
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
            kept_bytes: self.out.kept_channels.get(&slot).map_or(0, |kept_channel| kept_channel.log.sent_bytes()),
            is_detached: connection.flags.has(Flag::Detached),
            age_s: self.now_s().saturating_sub(connection.since_s),
            silent_ms: u64::from((self.now_ms as u32).wrapping_sub(connection.heard_ms)),
            ping_ms: channel.ping_ms(),
            is_closing: connection.flags.has(Flag::CloseSent),
            subscriptions: owner.subscriptions.count_of(slot),
            topics: match filter.channel {
                Some(_) => owner.subscriptions.topics_of(slot),
                None => Vec::new(),
            },
        })
    }

    /// How many channels each process has here.
    pub(in crate::shard) fn channels_by_process(&mut self) -> Vec<(ProcessId, usize)> {
        let mut lists = 0;
        let mut count = |list: &[Slot]| {
            lists += 1;
            list.len()
        };
        let mut of = |owner: &LocalOwner| owner.channels().map(&mut count).sum();
        let told: Vec<_> = self.owners.iter().map(|owner| (owner.owner.process.clone(), of(owner))).collect();
        self.work.spend(lists * work::PASS_NS + told.len() as u64 * work::TELL_NS);
        told
    }

    /// Obeys other numbers from now on. What was agreed on with a client at its upgrade stays.
    pub(in crate::shard) fn reconfigure(&mut self, config: Arc<ShardConfig>) {
        if config.deflate.push_level != self.config.deflate.push_level {
            self.out.set_level(config.deflate.push_level.into());
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
        self.begin_draining_on();
        self.drain_on(self.work.slice_end_ns());
    }

    /// Finds out how many channels the pace of the drain asks for by now. Call it each tick.
    pub(in crate::shard) fn begin_draining_on(&mut self) {
        let (channels, places) = (self.table.channels.len(), self.table.connections.capacity());
        let now_ms = self.now_ms;
        let Some(draining) = &mut self.table.draining else { return };
        if now_ms < draining.closes_from_ms {
            return;
        }
        let is_over = now_ms >= draining.closes_until_ms || channels == 0;
        let over_ms = (draining.closes_until_ms - draining.closes_from_ms).max(1);
        let passed_ms = now_ms - draining.closes_from_ms;
        let progress = draining.progress.get_or_insert(DrainProgress { channels, ..DrainProgress::default() });
        let due = (progress.channels as u128 * u128::from(passed_ms) / u128::from(over_ms)) as usize;
        progress.due = if is_over { usize::MAX } else { due };
        // Clients that came during the drain stand at any place, so the table is gone through again, once a tick.
        progress.places = places;
    }

    /// Closes that many channels, until the turn has cost so much.
    pub(in crate::shard) fn drain_on(&mut self, until_ns: u64) {
        let Some(draining) = &self.table.draining else { return };
        let (within_ms, Some(mut progress)) = (draining.within_ms, draining.progress) else { return };
        while progress.places > 0 && progress.told < progress.due && self.work.spent_ns() < until_ns {
            progress.places -= 1;
            let slot = progress.next;
            progress.next = (slot + 1) % self.table.connections.capacity();
            let is_told = self.tell_to_come_back(slot);
            progress.told += usize::from(is_told);
            self.work.spend(if is_told { work::END_NS } else { work::PASS_NS });
        }
        if progress.told >= progress.due {
            progress.places = 0;
        }
        if progress.due == usize::MAX && progress.places == 0 {
            self.table.draining = None;
            self.work.begin_slice(until_ns.saturating_sub(self.work.spent_ns()));
            let stopping = self.stop(within_ms, None);
            self.chores.extend(stopping);
        } else if let Some(draining) = &mut self.table.draining {
            draining.progress = Some(progress);
        }
    }

    /// Closes the channel at `slot`, if there is one that is not closing. Returns whether there was.
    fn tell_to_come_back(&mut self, slot: usize) -> bool {
        let is_open = |connection: &Connection| {
            matches!(connection.phase, ConnectionPhase::Open(_)) && !connection.flags.has(Flag::CloseSent)
        };
        if !self.table.connections.get(slot).is_some_and(is_open) {
            return false;
        }
        let retry_ms = self.intake.random() % RETRY_SPREAD_MS;
        let reason = format!(r#"{{"retry_ms":{retry_ms}}}"#).into();
        self.close_behind(Slot::new(slot as u32), &CloseFrame { code: Some(close::code::SERVICE_RESTART), reason });
        true
    }

    /// Returns whether a drain has been asked for or begun: responses end their connections.
    pub(in crate::shard) fn is_draining(&self) -> bool {
        self.table.draining.is_some()
    }

    /// Returns whether a drain has come to closing channels: new clients are not taken any more.
    pub(in crate::shard) fn drain_closes(&self) -> bool {
        self.table.draining.as_ref().is_some_and(|draining| self.now_ms >= draining.closes_from_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Budget;
    use crate::shard::TICK_MS;
    use crate::shard::command::Command;
    use crate::shard::stage::{Stage, frames};

    /// The payloads of the close frames that have left on a socket.
    fn closes(stage: &mut Stage, socket: i32) -> Vec<Vec<u8>> {
        let left = stage.wire(socket, |wire| wire.to_client.clone());
        let closes = frames(&left).into_iter().filter(|frame| frame[0] == 0x88);
        closes.map(|frame| frame[2..].to_vec()).collect()
    }

    #[test]
    fn closes_are_spread_evenly_and_each_channel_is_told_once() {
        const CLIENTS: usize = 500;
        const OVER_MS: u64 = 10_000;
        let mut stage = Stage::new(ShardConfig::default(), Budget::default());
        let clients: Vec<_> = (0..CLIENTS).map(|_| stage.open(usize::MAX)).collect();
        let drain = Drain { grace_ms: 1000, over_ms: OVER_MS, within_ms: 2000 };
        let began_ms = stage.now_ms;
        stage.shard.handle_command(Command::Drain(Box::new(drain)), began_ms);
        let mut told_before = 0;
        let mut comes_back_ms = Vec::new();
        while stage.now_ms < began_ms + 1000 + OVER_MS {
            stage.tick(stage.now_ms + TICK_MS);
            stage.turn();
            assert_eq!(
                stage.shard.is_stopping(),
                stage.now_ms >= began_ms + 1000,
                "new clients are taken in the grace"
            );
            let told: usize = clients.iter().map(|client| closes(&mut stage, client.socket).len()).sum();
            let at_most = CLIENTS * TICK_MS as usize / OVER_MS as usize + 1;
            assert!(told - told_before <= at_most, "{} in one tick", told - told_before);
            comes_back_ms.resize(told, stage.now_ms);
            told_before = told;
        }
        assert!(!stage.shard.is_stopped());
        let mut seconds = vec![0usize; 16];
        for (client, told_ms) in std::iter::zip(&clients, comes_back_ms) {
            let closes = closes(&mut stage, client.socket);
            assert_eq!((closes.len(), &closes[0][..2]), (1, &1012u16.to_be_bytes()[..]));
            let reason: serde_json::Value = serde_json::from_slice(&closes[0][2..]).unwrap();
            let retry_ms = reason["retry_ms"].as_u64().unwrap();
            seconds[((told_ms - began_ms - 1000 + retry_ms) / 1000) as usize] += 1;
        }
        let mean = CLIENTS / (OVER_MS as usize / 1000);
        assert!(seconds.iter().all(|&came| came <= mean * 2), "{seconds:?}");
        // None of them answers: the stop behind the drain lets go of them.
        stage.tick(stage.now_ms + 2000 + TICK_MS);
        stage.turn();
        assert!(stage.shard.is_stopped());
    }

    #[test]
    fn pages_of_channels_are_bounded_and_together_are_all() {
        let mut stage = Stage::new(ShardConfig::default(), Budget::default());
        let mut clients: Vec<_> = (0..30).map(|_| stage.open(usize::MAX).channel).collect();
        let (mut from, mut seen) = (Some(0), Vec::new());
        while let Some(at) = from {
            let page = stage.shard.channel_page(&ChannelFilter::default(), at, 7);
            assert!(page.channels.len() <= 7);
            seen.extend(page.channels.iter().map(|channel| channel.channel));
            from = page.next;
        }
        clients.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, clients);
        let of_another = ChannelFilter { process: Some("a:b:c".parse().unwrap()), ..ChannelFilter::default() };
        assert!(stage.shard.channel_page(&of_another, 0, 100).channels.is_empty());
        let (known, count) = stage.shard.channels_by_process().remove(0);
        assert_eq!((known.as_str(), count), ("p:sim:sys", 30));
    }
}
