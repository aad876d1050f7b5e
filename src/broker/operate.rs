//! Operating a running broker: listing channels and processes, draining, changing settings.
//!
//! Invariants: nothing here delays a push; a question to a shard costs it a bounded part of a turn; settings change as
//! a whole or not at all.

use super::here::must_not_be_on_a_shard;
use super::pusher::Pusher;
use super::{BrokerHandle, BrokerShared, Config, Disconnect, ProcessHandle, PushError, Report};
use crate::admission;
use crate::gateway::{Challenges, Settings};
use crate::process_id::ProcessId;
use crate::shard::command::Command;
use crate::shard::disconnects::DISCONNECTS_MAX;
use crate::shard::operating::{ChannelFilter, ChannelPage, ChannelReport, Drain};
use crate::shard::topics::TopicReport;
use crossbeam_channel::bounded;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A place between the pages of an answer: the shard in the upper half, a place of its table in the lower.
pub type Cursor = u64;

/// Which topics are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicQuery {
    /// Of which process.
    pub process: ProcessId,
    /// Those whose names begin with this; all if it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Those behind this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The most in the answer: 100 unless it says otherwise, 1,000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Topics in one answer, where the question does not say.
const TOPICS_DEFAULT: usize = 100;

/// The most topics in one answer.
const TOPICS_MAX: usize = 1000;

/// Channels that are asked of a shard at a time.
const PAGE: usize = 1000;

/// The largest body of a logged-in client where there is no budget to derive it from: a file of 256 MiB as an array of
/// numbers, the form in which pages send it to a node.
const LARGEST_BODY_WITHOUT_BUDGET: usize = 1 << 30;

/// Brings numbers into the range of what there is, those among them that `budget_bytes` bounds: a body takes up to
/// twice its size when it grows. `None`: there is no budget.
pub(super) fn fit_numbers(numbers: &mut crate::shard::ShardConfig, budget_bytes: Option<usize>) {
    let half = budget_bytes.map_or(LARGEST_BODY_WITHOUT_BUDGET, |bytes| bytes / 2);
    numbers.fit();
    numbers.body_bytes_max_logged_in = numbers.body_bytes_max_logged_in.min(half);
}

/// A process that is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// The id of the process.
    #[serde(deserialize_with = "crate::process_id::read_back")]
    pub process: ProcessId,
    /// Its channels, on all shards together.
    pub channels: usize,
    /// Its topics that have subscribers.
    #[serde(default)]
    pub topics: usize,
    /// Their subscribers together.
    #[serde(default)]
    pub subscriptions: usize,
}

impl BrokerHandle {
    /// The shards as they are now, in order. Empty once the broker has stopped.
    pub fn reports(&self) -> Vec<Report> {
        let (sender, reports) = bounded(self.shared.inboxes.len());
        // A shard that has stopped drops its copy of the sender.
        let _ = self.shared.send_all(|_| Command::Report(sender.clone()));
        drop(sender);
        let mut reports: Vec<Report> = reports.iter().collect();
        reports.sort_unstable_by_key(|report| report.shard);
        reports
    }

    /// The last 1,000 channels that ended, and why, the newest last; clients that opened a WebSocket and did not
    /// register are among them. Empty once the broker has stopped.
    pub fn disconnects(&self) -> Vec<Disconnect> {
        let (sender, shards) = bounded(self.shared.inboxes.len());
        // A shard that has stopped drops its copy of the sender.
        let _ = self.shared.send_all(|_| Command::Disconnects(sender.clone()));
        drop(sender);
        let mut all: Vec<Disconnect> = shards.iter().flatten().collect();
        all.sort_by_key(|disconnect| disconnect.unix_ms);
        all.split_off(all.len().saturating_sub(DISCONNECTS_MAX))
    }

    /// At most `limit` channels that pass `filter`, from `cursor` on (0: from the first), and where to go on, if there
    /// may be more. Channels that open or close between two pages may be in both or in none.
    pub fn channels(
        &self,
        filter: &ChannelFilter,
        cursor: Cursor,
        limit: usize,
    ) -> (Vec<ChannelReport>, Option<Cursor>) {
        let filter = Arc::new(filter.clone());
        let mut found = Vec::new();
        let (mut shard, mut from) = ((cursor >> 32) as usize, cursor as u32);
        while shard < self.shared.inboxes.len() {
            if found.len() >= limit {
                return (found, Some((shard as u64) << 32 | u64::from(from)));
            }
            let page = self.shared.channel_page(shard, &filter, from, (limit - found.len()).min(PAGE));
            found.extend(page.channels);
            (shard, from) = match page.next {
                Some(next) => (shard, next),
                None => (shard + 1, 0),
            };
        }
        (found, None)
    }

    /// The `count` channels with the most bytes that wait to be sent, the fullest first; those for which nothing waits
    /// are left out.
    pub fn fullest_channels(&self, count: usize) -> Vec<ChannelReport> {
        let filter = ChannelFilter { queued_bytes_min: 1, ..ChannelFilter::default() };
        let mut fullest: Vec<ChannelReport> = Vec::new();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let (page, next) = self.channels(&filter, at, PAGE);
            fullest.extend(page);
            fullest.sort_unstable_by_key(|channel| std::cmp::Reverse(channel.queued_bytes));
            fullest.truncate(count);
            cursor = next;
        }
        fullest
    }

    /// The processes that are attached or have channels, by name.
    pub fn processes(&self) -> Vec<ProcessReport> {
        let mut by_name: BTreeMap<ProcessId, ProcessReport> = BTreeMap::new();
        let entry =
            |process: ProcessId| (process.clone(), ProcessReport { process, channels: 0, topics: 0, subscriptions: 0 });
        // Gone through as it is now, not under its lock: others push and bind meanwhile.
        let directory = self.shared.directory().clone();
        for owner in directory.owners.values() {
            let (name, mut report) = entry(owner.process.clone());
            (report.topics, report.subscriptions) = (owner.topics.count(), owner.topics.subscriptions().count());
            by_name.insert(name, report);
        }
        let (sender, shards) = bounded(self.shared.inboxes.len());
        // A shard that has stopped drops its copy of the sender.
        let _ = self.shared.send_all(|_| Command::Processes(sender.clone()));
        drop(sender);
        for (process, channels) in shards.iter().flatten() {
            let (key, value) = entry(process);
            by_name.entry(key).or_insert(value).channels += channels;
        }
        by_name.into_values().collect()
    }

    /// A handle that acts for a process as long as that is attached. Its orders count as a producer's of their own, not
    /// as the process'.
    pub fn acting(&self, process: &ProcessId) -> Option<ProcessHandle> {
        let directory = self.shared.directory().clone();
        let owner = directory.owners.get(directory.processes.get(process)?)?;
        let pusher = Pusher::of_process(self.shared.clone(), owner);
        Some(ProcessHandle { shared: self.shared.clone(), id: process.clone(), owner: owner.id, pusher })
    }

    /// Topics of a process that have subscribers, by name; none, if no such process is attached.
    pub fn topics(&self, query: &TopicQuery) -> Vec<TopicReport> {
        let owner = self.shared.directory().find(&query.process);
        let limit = query.limit.unwrap_or(TOPICS_DEFAULT).min(TOPICS_MAX);
        owner.map_or(Vec::new(), |owner| owner.topics.page(&query.prefix, query.after.as_deref(), limit))
    }

    /// Closes all channels one after another with 1012 and `{"retry_ms":N}` as the reason, then stops: see [`Drain`].
    /// [`Broker::wait`](super::Broker::wait) returns when it is done.
    pub fn drain(&self, drain: Drain) {
        self.shared.draining.mark();
        // Shards that have stopped already are what is wanted.
        let _ = self.shared.send_all(|_| Command::Drain(Box::new(drain)));
        self.shared.draining.begin(drain);
    }

    /// Returns whether the broker drains or stops, or has stopped: balancers should send no client here.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.is_marked()
    }

    /// Accepts clients from now on, where [`Config::opens_later`] kept them waiting.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn open(&self) -> Result<(), PushError> {
        self.shared.send_all(|_| Command::Open)
    }

    /// Changes the rules of entry (but for what a node's kernel has said of them, while it is attached), the numbers of
    /// the shards and the limits of connections to those of `config`, all of them or none. Of the rest of `config`
    /// nothing is looked at: it holds from a start on. No connection is closed for it; what was agreed on with a client
    /// stays, and new clients meet the new rules.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn reload(&self, config: &Config) -> Result<(), PushError> {
        let mut settings: Settings = config.settings.clone();
        settings.hosts = settings.hosts.for_listener(self.shared.address.ip());
        let changed = self.shared.change(|directory| {
            directory.gateway = directory.gateway.clone().with_settings(settings);
            Ok::<(), std::convert::Infallible>(())
        })?;
        changed.unwrap_or_else(|never| match never {});
        let admission = &self.shared.admission;
        let (limits, shards) = (config.admission.clone(), self.shared.inboxes.len());
        // Files that shards have opened already are counted twice, which errs on the safe side.
        admission.set_limits(super::fit_to_open_files(limits, shards, admission.total()));
        let mut numbers = config.shard.clone();
        fit_numbers(&mut numbers, self.shared.memory.budget().bytes());
        let numbers = Arc::new(numbers);
        self.shared.compression.set(numbers.deflate);
        self.shared.send_all(|_| Command::Reconfigure(numbers.clone()))
    }

    /// Serves these tokens, and no others, to certificate authorities (ACME's HTTP-01) from now on: at
    /// `/.well-known/acme-challenge/TOKEN` on any host, before any redirect.
    ///
    /// # Errors
    /// The broker has stopped.
    pub fn set_challenges(&self, challenges: Challenges) -> Result<(), PushError> {
        let changed = self.shared.change(|directory| {
            directory.gateway.set_challenges(challenges);
            Ok::<(), std::convert::Infallible>(())
        })?;
        changed.unwrap_or_else(|never| match never {});
        Ok(())
    }

    /// How many may connect.
    pub fn connection_limits(&self) -> admission::ConnectionLimits {
        self.shared.admission.limits()
    }
}

impl BrokerShared {
    fn channel_page(&self, shard: usize, filter: &Arc<ChannelFilter>, from: u32, limit: usize) -> ChannelPage {
        must_not_be_on_a_shard();
        let (to, answer) = bounded(1);
        let command = Command::Channels { filter: filter.clone(), from, limit, to };
        match self.inboxes[shard].send_wait(command, 0, &self.accounts[shard]) {
            // A shard that has stopped has no channels.
            Ok(()) => answer.recv().unwrap_or_default(),
            Err(_) => ChannelPage::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_body_is_half_of_the_budget_also_when_numbers_are_read_again() {
        let bytes_max = |wanted: usize, budget: Option<usize>| {
            let mut numbers = crate::shard::ShardConfig { body_bytes_max_logged_in: wanted, ..Default::default() };
            fit_numbers(&mut numbers, budget);
            numbers.body_bytes_max_logged_in
        };
        assert_eq!(bytes_max(usize::MAX, Some(100)), 50);
        assert_eq!(bytes_max(7, Some(100)), 7);
        assert_eq!(bytes_max(usize::MAX, None), LARGEST_BODY_WITHOUT_BUDGET);
    }
}
