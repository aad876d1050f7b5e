//! A channel's id names that channel alone: ids of live channels differ, tell their shard, are never 0, and those of
//! closed channels are not given out again soon, nor by the next broker; so a late push never reaches a stranger.

use crate::support;
use pushring::AttachOptions;
use std::collections::HashSet;
use support::{Inbound, Push, broker, on_each_driver, process, push_outcome};

#[test]
fn a_closed_channels_id_is_not_given_to_the_next_ones() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "ids", AttachOptions::default());
        let mut inbound = Inbound::default();
        let mut seen = HashSet::new();
        for _ in 0..200 {
            let (mut client, channel) = inbound.open(&broker, &process);
            assert!(seen.insert(channel), "{channel} was given out twice");
            assert_ne!(channel.get(), 0);
            client.close(None).unwrap();
            assert_eq!(inbound.closed(&process).channel, channel);
        }
        let live: Vec<_> = (0..50).map(|_| inbound.open(&broker, &process)).collect();
        for (_, channel) in &live {
            assert!(seen.insert(*channel), "{channel} was given out twice");
        }
        for &channel in &seen {
            let outcome = push_outcome(&process, channel, Push::text("x"), None);
            let is_live = live.iter().any(|(_, live)| *live == channel);
            assert_eq!((outcome.sent, outcome.not_found), if is_live { (1, 0) } else { (0, 1) });
        }
    });
}

#[test]
fn the_next_broker_begins_elsewhere() {
    on_each_driver(|driver| {
        let firsts: HashSet<_> = (0..4)
            .map(|_| {
                let broker = broker(driver, |config| config.shards = 1);
                let process = process(&broker, "ids", AttachOptions::default());
                Inbound::default().open(&broker, &process).1
            })
            .collect();
        // Four random starts out of four thousand million: two of them may be one in 700 million runs.
        assert_eq!(firsts.len(), 4);
    });
}
