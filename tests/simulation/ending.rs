//! Limits that hold at every moment, and what must be true once the faults have stopped and when all is over.

use super::client::{Left, State};
use super::oracle::Channel;
use super::process::{Phase, Process};
use super::world::{Report, World};
use pushring::internals::gateway::Snapshot;
use pushring::internals::shard::command::Command;
use pushring::internals::shard::disconnects::{DISCONNECTS_MAX, Disconnect};
use pushring::internals::shard::event::ClosedBy;
use pushring::internals::shard::{Directory, TICK_MS};
use pushring::node::Dialect;
use std::collections::HashMap;
use std::sync::Arc;

/// Long enough for every timeout of the settings, one after the other.
const CALM_MS: u64 = 16_000;

/// Nothing takes longer than this to be read.
const CALM_MS_MAX: u64 = 600_000;

/// The bytes that a shard may hold over its lease: those of one read, and one frame.
const OVERDRAFT_BYTES: usize = 600 * 1024;

/// How long clients get to answer when the broker stops at the end of a world.
const STOP_WITHIN_MS: u64 = 60_000;

/// RFC 6455 5.5: of the 125 bytes of a control frame two are the code.
const REASON_BYTES_MAX: usize = 123;

impl World {
    /// At every moment: a departed client's connection is released, whatever it waited for.
    pub fn check_descriptors(&self) -> Result<(), String> {
        let config = &self.settings.config;
        for client in self.clients.iter().filter(|client| matches!(client.left, Some(Left::Fin | Left::Reset))) {
            // Bytes for a client that may still read are sent to it, for as long as it takes any.
            let at_most_ms = match client.left {
                Some(Left::Reset) => config.close_timeout_ms,
                _ => 2 * (config.close_timeout_ms + config.http_idle_timeout_ms) + config.linger_ms,
            };
            let since_ms = client.left_ms.max(client.accepted_ms);
            let late_ms = self.now_ms.saturating_sub(since_ms + at_most_ms + 2 * self.slack_ms(since_ms));
            let is_kept =
                client.accepted_ms > 0 && !self.network.borrow().sockets[client.plan.socket.0 as usize].closed;
            if late_ms > 0 && is_kept {
                let how = (client.left, client.state);
                return Err(format!("client {} has left ({how:?}) and is kept {late_ms} ms too long", client.number()));
            }
        }
        Ok(())
    }

    /// At every moment.
    pub fn check_budgets(&self) -> Result<(), String> {
        let counted = self.network.borrow().counted();
        if self.admission.total() != counted {
            return Err(format!("{} connections are counted, and there are {counted}", self.admission.total()));
        }
        let budget = self.memory.budget();
        if budget.bytes().is_some_and(|bytes| budget.leased_bytes() > bytes) {
            return Err(format!("{} bytes are leased", budget.leased_bytes()));
        }
        for sender in &self.senders {
            let ((commands, bytes), limits) = (sender.held(), self.settings.inbox);
            if commands > limits.commands_max.into() || bytes > limits.bytes_max + self.largest_order as u64 {
                return Err(format!("{commands} orders of {bytes} bytes are in an inbox"));
            }
        }
        let limits = self.settings.queue;
        for process in &self.processes {
            // The message that fills it may be of any size, and what is behind it says why channels have closed.
            let bytes = process.owner.queue.bytes();
            let reasons = self.clients.len() * REASON_BYTES_MAX;
            if bytes > limits.bytes_max + self.settings.message_bytes_max + 16 + reasons {
                return Err(format!("{bytes} bytes, of {limits:?}, are in the queue of {}", process.owner.process));
            }
        }
        for pump in &self.pumps {
            let memory = pump.shard().report().memory;
            let is_over = memory.used_bytes() > memory.leased_bytes / 4 * 5 + OVERDRAFT_BYTES + self.largest_order;
            if self.settings.memory_bytes.is_some() && is_over {
                return Err(format!("more is held than was leased: {memory:?}"));
            }
        }
        Ok(())
    }

    /// The faults stop: accepted messages arrive, and departed clients are gone.
    pub fn calm_down(&mut self) -> Result<(), String> {
        self.network.borrow_mut().calm = true;
        for process in &mut self.processes {
            process.sleeps_until = 0;
            if let Phase::Detached(_) = process.phase {
                process.phase = Phase::Attached;
            }
        }
        // Clients' messages are read at the pace of their processes, a few in each step, and so are orders given.
        let (mut heard, mut quiet_ms, until_ms) = (0, 0, self.now_ms + CALM_MS_MAX);
        while quiet_ms < CALM_MS {
            if self.now_ms > until_ms {
                return Err("there is no end to what clients have sent, or handlers have to order".into());
            }
            self.one_step(TICK_MS, false)?;
            quiet_ms += TICK_MS;
            let has_heard = std::mem::replace(&mut heard, self.report.messages + self.report.pings) != heard;
            if has_heard || self.has_hosted_orders() {
                quiet_ms = quiet_ms.min(CALM_MS / 2);
            }
        }
        let is_open = |channel: &&Channel| channel.ended.is_none() && !self.is_forgotten(channel.owner);
        for channel in self.channels.values().filter(is_open) {
            let client = &self.clients[channel.client];
            if client.state != State::Open || client.left.is_some() {
                return Err(channel.complain(&format!("still open, although its client is {:?}", client.state)));
            }
            let unfinished = self.network.borrow_mut().socket(client.plan.socket).unfinished();
            if unfinished > 0 || client.sent != channel.messages {
                let (sent, got) = (client.sent, channel.messages);
                return Err(channel.complain(&format!(
                    "of {sent} messages {got} came, and {unfinished} bytes of a frame, though nothing is in the way"
                )));
            }
            channel.all_have_come(0, channel.pushed.len())?;
        }
        self.check_sockets()?;
        self.check_outcomes()?;
        self.processes_act(false)?;
        self.check_nothing_waits()
    }

    fn check_sockets(&self) -> Result<(), String> {
        for client in self.clients.iter().filter(|client| client.accepted_ms > 0) {
            let channel = self.channel_of.get(&client.number()).map(|id| &self.channels[id]);
            let is_open = channel.is_some_and(|channel| channel.ended.is_none() && !self.is_forgotten(channel.owner));
            let is_closed = self.network.borrow_mut().socket(client.plan.socket).closed;
            if is_open == is_closed {
                let state = (client.state, client.left, client.plan.manners);
                return Err(format!(
                    "client {}: channel {is_open}, socket closed {is_closed}: {state:?}",
                    client.number()
                ));
            }
        }
        Ok(())
    }

    fn check_outcomes(&self) -> Result<(), String> {
        for (id, awaited) in &self.awaited {
            let Some(outcome) = awaited.outcome else { return Err(format!("push {id} was never settled")) };
            let left = self.network.borrow().left.get(id).copied().unwrap_or(0);
            if awaited.bytes > 0 && !(outcome.sent..=outcome.sent + outcome.queued + outcome.conflated).contains(&left)
            {
                return Err(format!("push {id} has left {left} times: {outcome:?}"));
            }
        }
        Ok(())
    }

    fn check_nothing_waits(&self) -> Result<(), String> {
        let reports = || self.pumps.iter().map(|pump| pump.shard().report());
        // Subscriptions, and guests of channels.
        let topics: usize = reports().map(|report| report.subscriptions + report.channels).sum();
        for (pump, sender) in std::iter::zip(&self.pumps, &self.senders) {
            if !pump.is_over() && sender.held() != (0, 0) {
                return Err(format!("{:?} orders and bytes are left in an inbox", sender.held()));
            }
            let report = pump.shard().report();
            // They last.
            let topic_bytes = if topics > 0 { report.memory.topic_bytes } else { 0 };
            if report.memory.waiting_bytes() + report.memory.kept_bytes() + report.window_bytes > topic_bytes {
                return Err(format!("something waits, though nothing is in its way: {report:?}"));
            }
        }
        // Subscriptions last here too.
        let held = |process: &Process| {
            let held = process.owner.memory.tenant().held();
            held.total() - held.topics
        };
        match self.processes.iter().find(|process| held(process) > 0) {
            Some(process) => {
                Err(format!("{} has left unread: {:?}", process.owner.process, process.owner.memory.tenant().held()))
            }
            None => Ok(()),
        }
    }

    /// The broker stops, and nothing is left.
    pub fn finish(mut self) -> Result<Report, String> {
        self.tell_to_stop(STOP_WITHIN_MS);
        // A client with half a request may send the rest for half of that time, and one that does not answer has all of
        // it.
        for _ in 0..STOP_WITHIN_MS / TICK_MS + 2 {
            self.one_step(TICK_MS, false)?;
        }
        if let Some(pump) = self.pumps.iter().find(|pump| !pump.is_over()) {
            return Err(format!("a shard keeps {} connections after its stop", pump.shard().connections()));
        }
        let is_lost = |channel: &&Channel| channel.ended.is_none() && !self.is_forgotten(channel.owner);
        if let Some(channel) = self.channels.values().find(is_lost) {
            return Err(channel.complain("opened and never closed"));
        }
        self.check_sockets()?;
        self.processes_act(false)?;
        self.check_nothing_waits()?;
        self.check_disconnects()?;
        self.directory = Directory::new(Snapshot::new(pushring::node::settings("nobody", Dialect::Kinode)));
        let nobody = Arc::new(self.directory.clone());
        for shard in self.pumps.iter_mut().filter_map(|pump| pump.stopped()) {
            shard.handle_command(Command::Adopt(nobody.clone(), None), self.now_ms);
        }
        self.check_leaks()?;
        Ok(self.into_report())
    }

    fn check_leaks(&mut self) -> Result<(), String> {
        let stopped: Vec<_> = self.pumps.iter().map(|pump| pump.shard().report()).collect();
        if let Some(report) = stopped.iter().find(|report| report.connections + report.channels > 0) {
            return Err(format!("something is left: {report:?}"));
        }
        if let Some(process) = self.processes.iter().find(|process| Arc::strong_count(&process.owner) > 1) {
            return Err(format!("somebody still knows {}, which is gone", process.owner.process));
        }
        self.note_stats();
        self.pumps.clear();
        self.processes.clear();
        match self.memory.budget().leased_bytes() {
            0 => Ok(()),
            bytes => Err(format!("{bytes} bytes are still leased")),
        }
    }

    /// The shards' reports to an operator match those to the processes.
    fn check_disconnects(&mut self) -> Result<(), String> {
        let mut told: HashMap<u32, Disconnect> = HashMap::new();
        let mut is_whole = true;
        for pump in &mut self.pumps {
            let (to, from) = crossbeam_channel::bounded(1);
            let shard = pump.stopped().ok_or("the shard goes on")?;
            shard.handle_command(Command::Disconnects(to), self.now_ms);
            let ends = from.recv().map_err(|_| "no answer")?;
            is_whole &= ends.len() < DISCONNECTS_MAX;
            told.extend(ends.into_iter().filter_map(|end| Some((end.channel?.get(), end))));
        }
        for channel in self.channels.values() {
            let (Some(ended), told) = (channel.ended, told.get(&channel.id)) else { continue };
            match told {
                None if is_whole => return Err(channel.complain("its end is not told")),
                None => {}
                Some(told) if (told.code, told.by, told.lost_bytes) != (ended.code, ended.by, ended.lost_bytes) => {
                    return Err(channel.complain(&format!("ended {ended:?}, and is told as {told:?}")));
                }
                Some(told) => self.judge_silence(told).map_err(|why| channel.complain(&why))?,
            }
        }
        Ok(())
    }

    /// A client is let go for its silence when it has not answered so many pings, and has had the time for it.
    fn judge_silence(&self, told: &Disconnect) -> Result<(), String> {
        if told.by != ClosedBy::Timeout {
            return Ok(());
        }
        let config = &self.settings.config;
        let periods = u64::from(config.pings_unanswered_max) + 1;
        let (least, most) = (config.ping_interval_ms * 4 / 5 * periods, config.ping_interval_ms * periods);
        let processes_read = self.settings.process.nap + self.settings.process.detach + self.settings.process.end == 0
            && self.settings.queue.messages_max.min(self.settings.queue.bytes_max) >= 1_000;
        let is_late = processes_read && told.silent_ms > most + self.slack_ms(0);
        if told.pings_unanswered != config.pings_unanswered_max || told.silent_ms < least || is_late {
            return Err(format!("let go after {} ms of silence: {told:?}", told.silent_ms));
        }
        Ok(())
    }

    fn note_stats(&mut self) {
        for pump in &self.pumps {
            let stats = pump.shard().report().stats;
            self.report.dropped += stats.dropped;
            self.report.conflated += stats.conflated;
            self.report.queued += stats.queued;
            self.report.dropped_for_memory += stats.dropped_for_memory;
            self.report.closed_for_memory += stats.closed_for_memory;
        }
    }

    fn into_report(self) -> Report {
        Report {
            hash: self.trace.hash(),
            traces: self.traces.iter().map(super::rng::Trace::hash).collect(),
            pushed: self.next_push - 1,
            ..self.report
        }
    }
}
