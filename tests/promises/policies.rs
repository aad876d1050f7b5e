//! The policies for a client that is behind: whole frames are dropped or replaced, never parts of one; the outcome says
//! which; the channel lives on and its client sees exactly the frames that were kept, in order.

use crate::support;
use pushring::ChannelId;
use pushring::{AttachOptions, Broker, Outcome, Policy, Process};
use support::{Client, DriverKind, Inbound, Push, broker, fill, on_each_driver, process, push_outcome, recv};
use tungstenite::Message;

const BYTES: usize = 16 * 1024;
const BUDGET: usize = 128 * 1024;

/// A channel whose client does not read and whose socket is full.
struct Behind {
    _broker: Broker,
    process: Process,
    channel: ChannelId,
    client: Client,
    /// Messages of [`fill`] that the client will read first.
    filled: usize,
}

fn behind(driver: DriverKind, policy: Policy) -> Behind {
    let broker = broker(driver, |config| config.shard.outbound_bytes_max = BUDGET);
    let process = process(&broker, "policy", AttachOptions { policy, ..AttachOptions::default() });
    let (client, channel) = Inbound::default().open(&broker, &process);
    let filled = fill(&process, channel, BYTES);
    Behind { _broker: broker, process, channel, client, filled }
}

impl Behind {
    fn push(&self, text: &str, policy: Option<Policy>) -> Outcome {
        push_outcome(&self.process, self.channel, Push::text(text), policy)
    }

    /// Reads all up to a last message that is pushed when the client has read what filled its socket; without those
    /// that filled it, of which `lost` were dropped.
    fn drain(mut self, lost: usize) -> Vec<String> {
        for _ in 0..self.filled - lost {
            assert_eq!(recv(&mut self.client), Message::binary(vec![0x55; BYTES]), "whole or not at all");
        }
        self.process.push(self.channel, Push::text("end")).try_send().unwrap();
        let mut texts = Vec::new();
        loop {
            let text = recv(&mut self.client).into_text().unwrap().to_string();
            if text == "end" {
                return texts;
            }
            texts.push(text);
        }
    }
}

/// A text of about a quarter of the budget that can be told from others.
fn quarter(name: usize) -> String {
    format!("{name:0>width$}", width = BUDGET / 4)
}

#[test]
fn drop_newest_keeps_what_waits() {
    on_each_driver(|driver| {
        let behind = behind(driver, Policy::DropNewest);
        let outcomes: Vec<_> = (0..8).map(|name| behind.push(&quarter(name), None)).collect();
        let queued = outcomes.iter().take_while(|outcome| outcome.queued == 1).count();
        assert!((1..=4).contains(&queued), "{outcomes:?}");
        let dropped = Outcome { dropped: 1, ..Outcome::default() };
        assert!(outcomes[queued..].iter().all(|outcome| *outcome == dropped), "{outcomes:?}");
        let expected: Vec<_> = (0..queued).map(quarter).collect();
        assert!(behind.drain(0) == expected);
    });
}

#[test]
fn drop_oldest_keeps_what_is_new() {
    on_each_driver(|driver| {
        let behind = behind(driver, Policy::Close);
        // The policy of a push goes before that of the process.
        for name in 0..12 {
            let outcome = behind.push(&quarter(name), Some(Policy::DropOldest));
            assert_eq!((outcome.queued, outcome.dropped), (1, 0), "the pushed frame itself is kept");
            assert!(outcome.queued_bytes <= BUDGET, "{outcome:?}");
        }
        let texts: Vec<_> = drain_unknown(behind);
        assert!(texts.len() >= 3, "only {} kept", texts.len());
        let expected: Vec<_> = (12 - texts.len()..12).map(quarter).collect();
        assert!(texts == expected, "the newest, in order");
    });
}

/// As [`Behind::drain`], when it is not known how many of the first messages were dropped.
fn drain_unknown(mut behind: Behind) -> Vec<String> {
    let mut texts = Vec::new();
    let mut has_pushed_end = false;
    loop {
        match recv(&mut behind.client) {
            Message::Binary(bytes) => assert_eq!(bytes, vec![0x55; BYTES], "whole or not at all"),
            Message::Text(text) if text == "end" => return texts,
            Message::Text(text) => texts.push(text.to_string()),
            other => panic!("{other:?}"),
        }
        // Once a text is read all older ones have left: there is room.
        if !texts.is_empty() && !has_pushed_end {
            behind.process.push(behind.channel, Push::text("end")).try_send().unwrap();
            has_pushed_end = true;
        }
    }
}

#[test]
fn conflate_keeps_the_newest_of_each_key() {
    on_each_driver(|driver| {
        let behind = behind(driver, Policy::Close);
        let key = |key| Some(Policy::Conflate { key });
        for round in 0..100 {
            for (name, id) in [("bid", 1), ("ask", 2)] {
                let outcome = behind.push(&format!("{name} {round}"), key(id));
                let expected = if round == 0 { (1, 0) } else { (0, 1) };
                assert_eq!((outcome.queued, outcome.conflated), expected, "{name} {round}");
            }
        }
        assert_eq!(behind.drain(0), ["bid 99", "ask 99"]);
    });
}

#[test]
fn a_frame_without_a_key_keeps_its_place_behind_conflated_ones() {
    on_each_driver(|driver| {
        let behind = behind(driver, Policy::Close);
        let bid = Some(Policy::Conflate { key: 1 });
        behind.push("bid 1", bid);
        behind.push("bid 2", bid);
        assert_eq!(behind.push("trade", None).queued, 1);
        assert_eq!(behind.push("bid 3", bid).queued, 1, "bid 2 stands before the trade and stays there");
        assert_eq!(behind.push("bid 4", bid).conflated, 1);
        assert_eq!(behind.drain(0), ["bid 2", "trade", "bid 4"]);
    });
}

#[test]
fn no_policy_touches_a_client_that_keeps_up() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.outbound_bytes_max = BUDGET);
        let process = process(&broker, "policy", AttachOptions::default());
        let (mut client, channel) = Inbound::default().open(&broker, &process);
        for policy in [Policy::Close, Policy::DropNewest, Policy::DropOldest, Policy::Conflate { key: 1 }] {
            for name in 0..3 {
                let outcome = push_outcome(&process, channel, Push::text(quarter(name)), Some(policy));
                assert_eq!(outcome, Outcome { sent: 1, ..Outcome::default() });
                assert!(recv(&mut client) == Message::text(quarter(name)));
            }
        }
    });
}

#[test]
fn every_policy_stands_where_people_look_it_up() {
    let pages = [
        "docs/LIMITS.md",
        "docs/LINK.md",
        "docs/PUBLISHING.md",
        "docs/openapi.json",
        "clients/python/src/pushring/_link.py",
        "clients/python/src/pushring/_publish.py",
    ];
    for page in pages {
        let text = std::fs::read_to_string(format!("{}/{page}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for policy in Policy::EACH {
            let is_named =
                [policy.name().to_owned(), policy.name().replace('_', "-")].iter().any(|name| text.contains(&**name));
            assert!(is_named, "{page} does not name the policy {}", policy.name());
        }
    }
}
