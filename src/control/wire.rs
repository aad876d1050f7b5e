//! Requests and answers of the control socket. Fields may be added: readers ignore those that they do not know.

use super::usage::Usage;
use crate::broker::{
    ChannelFilter, ChannelReport, Cursor, Disconnect, Drain, FleetReport, ProcessReport, Report, Stats, TenantReport,
    TopicQuery, TopicReport,
};
use crate::channel::ChannelId;
use crate::process_id::ProcessId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The largest question, in bytes.
pub(super) const REQUEST_BYTES_MAX: u64 = 4 << 10;

/// A question: `{"stats":{}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlRequest {
    /// The broker's state and counts.
    Stats {},
    /// The last channels that ended, and why.
    Disconnects(Filter),
    /// Live channels.
    Channels(ChannelQuery),
    /// The processes that are attached.
    Processes {},
    /// Topics of a process, and how many are subscribed to each.
    Topics(TopicQuery),
    /// The fleet that the broker is in.
    Fleet {},
    /// Close this channel with 1008.
    Kick {
        /// Which.
        channel: ChannelId,
        /// Detail for its client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Read the settings again.
    Reload {},
    /// Close all channels one after another, then stop.
    Drain {
        /// How long new clients are still taken first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
        /// For how long channels are closed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        over_ms: Option<u64>,
    },
}

/// Which channels are asked for, and how many of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChannelQuery {
    /// Which pass.
    pub filter: ChannelFilter,
    /// Where the answer before ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Cursor>,
    /// The most in the answer: 100 unless it says otherwise, 10,000 at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Instead, of all channels those with the most bytes that wait to be sent, the fullest first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fullest: bool,
}

/// Which ends are asked for; all that is left out lets everything pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Of channels of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessId>,
    /// Of this channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<ChannelId>,
    /// With this close code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<u16>,
    /// The last so many of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<usize>,
}

impl Filter {
    /// The part of `all`, newest last, that it selects.
    pub fn apply(&self, mut all: Vec<Disconnect>) -> Vec<Disconnect> {
        all.retain(|end| {
            self.process.as_ref().is_none_or(|process| end.process.as_ref() == Some(process))
                && self.channel.is_none_or(|channel| end.channel == Some(channel))
                && self.code.is_none_or(|code| end.code == code)
        });
        all.split_off(all.len().saturating_sub(self.last.unwrap_or(usize::MAX)))
    }
}

/// An answer, under the name of its question.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlAnswer {
    /// To [`ControlRequest::Stats`].
    Stats(Box<Overview>),
    /// To [`ControlRequest::Disconnects`]: the newest last.
    Disconnects(Vec<Disconnect>),
    /// To [`ControlRequest::Channels`].
    Channels(ChannelList),
    /// To [`ControlRequest::Processes`]: by name.
    Processes(Vec<ProcessReport>),
    /// To [`ControlRequest::Topics`]: by name. The next page is behind the last.
    Topics(Vec<TopicReport>),
    /// To [`ControlRequest::Fleet`].
    Fleet(Box<FleetReport>),
    /// To [`ControlRequest::Kick`]: its close frame has been queued.
    Kicked(ChannelId),
    /// To [`ControlRequest::Reload`].
    Reloaded(Changes),
    /// To [`ControlRequest::Drain`]: it has begun.
    Draining(Drain),
    /// There is no answer; why.
    Refused(String),
}

/// Live channels.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ChannelList {
    /// In the order of the shards' tables, or the fullest first.
    pub channels: Vec<ChannelReport>,
    /// Where to go on; none: that was all.
    pub next: Option<Cursor>,
}

/// The settings that a reload found changed, by name, and what became of each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Obeyed from now on.
    pub now: Vec<String>,
    /// Obeyed for clients that connect from now on.
    pub new_connections: Vec<String>,
    /// Obeyed after a restart only; until then as before.
    pub restart: Vec<String>,
}

/// The result of the last reload of the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// When, in milliseconds after 1970.
    pub unix_ms: u64,
    /// The changes.
    pub changes: Changes,
    /// Why nothing was changed instead, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Counts of the hub's requests: to the authority for its keys, and to the backend for events of its clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HubCounts {
    /// Times that keys were to be read.
    pub key_fetches: u64,
    /// Those of them that failed.
    pub key_fetches_failed: u64,
    /// Keys that tokens are checked with.
    pub keys: u64,
    /// Requests to the backend.
    pub webhook_calls: u64,
    /// Those that were not taken.
    pub webhook_calls_failed: u64,
    /// Events that it has taken.
    pub webhook_events_delivered: u64,
    /// Events that it will never hear of.
    pub webhook_events_lost: u64,
    /// Events that wait.
    pub webhook_events_waiting: u64,
}

/// A broker at one moment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overview {
    /// Which broker.
    pub about: BrokerInfo,
    /// When this was, in milliseconds after 1970.
    pub unix_ms: u64,
    /// The machine's resources that the program uses.
    #[serde(default)]
    pub usage: Usage,
    /// Counts of the hub's requests to others, where there is a hub.
    #[serde(default)]
    pub hub: Option<HubCounts>,
    /// The memory held for processes, the 1,000 with most first.
    #[serde(default)]
    pub held: Vec<TenantReport>,
    /// Its fleet, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetReport>,
    /// The last reload, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<LastReload>,
    /// Its shards, in order. None: it has stopped.
    pub shards: Vec<Report>,
}

impl Overview {
    /// HTTP responses of all shards together, by status.
    pub fn responses(&self) -> BTreeMap<u16, u64> {
        let mut sum = BTreeMap::new();
        for (status, count) in self.shards.iter().flat_map(|shard| &shard.responses) {
            *sum.entry(*status).or_default() += count;
        }
        sum
    }

    /// The counts of all shards together.
    pub fn total(&self) -> Stats {
        self.shards.iter().fold(Stats::default(), |mut sum, shard| {
            sum += shard.stats;
            sum
        })
    }
}

/// A broker, as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerInfo {
    /// Its version.
    pub version: String,
    /// The id of its operating-system process.
    pub pid: u32,
    /// The node it serves.
    pub node: String,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where they connect over TLS, if they may.
    #[serde(default)]
    pub tls_address: Option<SocketAddr>,
    /// The driver: `uring` or `epoll`.
    pub driver: String,
    /// When this was first asked, at its start, in milliseconds after 1970.
    pub since_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::ClosedBy;

    fn end(unix_ms: u64, channel: Option<u32>, process: Option<&str>, code: u16) -> Disconnect {
        Disconnect {
            unix_ms,
            channel: channel.map(ChannelId::new),
            process: process.map(|id| id.parse().unwrap()),
            path: "/".into(),
            peer: ([127, 0, 0, 1], 1).into(),
            forwarded_for: None,
            code,
            reason: "".into(),
            by: ClosedBy::Client,
            lost_bytes: 0,
            age_s: 0,
            silent_ms: 0,
            pings_unanswered: 0,
            ping_ms: None,
        }
    }

    #[test]
    fn a_filter_lets_pass_what_fits_all_of_it() {
        let all = vec![
            end(1, Some(4), Some("a:b:c"), 1000),
            end(2, Some(5), Some("a:b:c"), 1006),
            end(3, None, None, 4401),
            end(4, Some(7), Some("x:b:c"), 1006),
        ];
        let times = |filter: Filter| filter.apply(all.clone()).iter().map(|end| end.unix_ms).collect::<Vec<_>>();
        assert_eq!(times(Filter::default()), [1, 2, 3, 4]);
        assert_eq!(times(Filter { process: Some("a:b:c".parse().unwrap()), ..Filter::default() }), [1, 2]);
        assert_eq!(times(Filter { channel: Some(ChannelId::new(7)), ..Filter::default() }), [4]);
        assert_eq!(times(Filter { code: Some(1006), last: Some(1), ..Filter::default() }), [4]);
        assert_eq!(times(Filter { last: Some(0), ..Filter::default() }), [0; 0]);
        assert_eq!(times(Filter { last: Some(9), code: Some(1), ..Filter::default() }), [0; 0]);
    }

    #[test]
    fn questions_are_as_they_are_documented() {
        for (text, request) in [
            (r#"{"stats":{}}"#, ControlRequest::Stats {}),
            (r#"{"disconnects":{}}"#, ControlRequest::Disconnects(Filter::default())),
            (
                r#"{"disconnects":{"process":"a:b:c","channel":4,"code":1006,"last":10}}"#,
                ControlRequest::Disconnects(Filter {
                    process: Some("a:b:c".parse().unwrap()),
                    channel: Some(ChannelId::new(4)),
                    code: Some(1006),
                    last: Some(10),
                }),
            ),
            (r#"{"channels":{"filter":{}}}"#, ControlRequest::Channels(ChannelQuery::default())),
            (
                r#"{"channels":{"filter":{"path":"/x","address":"10.0.0.0/8"},"after":7,"limit":2,"fullest":true}}"#,
                ControlRequest::Channels(ChannelQuery {
                    filter: ChannelFilter {
                        path: Some("/x".into()),
                        address: Some("10.0.0.0/8".parse().unwrap()),
                        ..ChannelFilter::default()
                    },
                    after: Some(7),
                    limit: Some(2),
                    fullest: true,
                }),
            ),
            (r#"{"processes":{}}"#, ControlRequest::Processes {}),
            (r#"{"fleet":{}}"#, ControlRequest::Fleet {}),
            (
                r#"{"topics":{"process":"a:b:c","prefix":"room/","after":"room/1","limit":9}}"#,
                ControlRequest::Topics(TopicQuery {
                    process: "a:b:c".parse().unwrap(),
                    prefix: "room/".into(),
                    after: Some("room/1".into()),
                    limit: Some(9),
                }),
            ),
            (r#"{"kick":{"channel":7}}"#, ControlRequest::Kick { channel: ChannelId::new(7), reason: None }),
            (r#"{"reload":{}}"#, ControlRequest::Reload {}),
            (r#"{"drain":{"over_ms":9}}"#, ControlRequest::Drain { grace_ms: None, over_ms: Some(9) }),
        ] {
            assert_eq!(serde_json::from_str::<ControlRequest>(text).unwrap(), request);
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
        for bad in [r#"{"disconnects":{"proces":"a:b:c"}}"#, r#"{"disconnects":{"code":-1}}"#, r#"{"quit":{}}"#, "1"] {
            assert!(serde_json::from_str::<ControlRequest>(bad).is_err(), "{bad}");
        }
        let told = ControlAnswer::Disconnects(vec![end(1, None, Some("a:b:c"), 1000)]);
        let text = serde_json::to_string(&told).unwrap();
        assert!(
            text.starts_with(r#"{"disconnects":[{"unix_ms":1,"channel":null,"process":"a:b:c","path":"/""#),
            "{text}"
        );
        let ControlAnswer::Disconnects(read) = serde_json::from_str(&text).unwrap() else { panic!() };
        assert_eq!(read, [end(1, None, Some("a:b:c"), 1000)]);
    }
}
