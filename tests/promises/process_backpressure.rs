//! A process that does not read slows its own clients and no others: they are read no further than its queue holds,
//! nothing is lost when it goes on, and its end while they wait does no harm.

use crate::support;
use pushring::{AttachOptions, Broker, QueueLimits};
use std::time::Duration;
use support::{Client, Inbound, Push, broker, on_each_driver, process, recv, recv_close, send};
use tungstenite::Message;

const MESSAGES_MAX: usize = 16;
const MESSAGES: u32 = 1_000;

fn narrow() -> AttachOptions {
    let queue = QueueLimits { messages_max: MESSAGES_MAX, ..QueueLimits::default() };
    AttachOptions { queue, ..AttachOptions::default() }
}

/// How many messages all shards have received.
fn received(broker: &Broker) -> u64 {
    broker.handle().reports().iter().map(|report| report.stats.received).sum()
}

/// Sends numbered messages in one write, so that a read brings many at once.
fn send_numbers(client: &mut Client) {
    for number in 0..MESSAGES {
        client.write(Message::binary(number.to_le_bytes().to_vec())).unwrap();
    }
    client.flush().unwrap();
}

/// A channel of another process on the same shard gets an answer, so the shard has had turns behind all that was sent.
fn others_are_served(broker: &Broker) {
    let other = process(broker, "other", AttachOptions::default());
    let mut inbound = Inbound::default();
    let (mut client, channel) = inbound.open(broker, &other);
    for round in 0..50_u8 {
        send(&mut client, Message::binary(vec![round]));
        assert_eq!(inbound.message(&other, channel), vec![round]);
        other.push(channel, Push::binary(vec![round])).try_send().unwrap();
        assert_eq!(recv(&mut client), Message::binary(vec![round]));
    }
}

#[test]
fn its_clients_are_not_read_and_nothing_is_lost() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let lazy = process(&broker, "lazy", narrow());
        let mut inbound = Inbound::default();
        let mut clients: Vec<_> = (0..4).map(|_| inbound.open(&broker, &lazy)).collect();
        for (client, _) in &mut clients {
            send_numbers(client);
        }
        others_are_served(&broker);
        assert!(received(&broker) <= MESSAGES_MAX as u64 + 50, "{} messages were taken in", received(&broker));

        let mut next = vec![0_u32; clients.len()];
        for _ in 0..clients.len() * MESSAGES as usize {
            match inbound.next(&lazy) {
                pushring::Event::Message { channel, payload, .. } => {
                    let at = clients.iter().position(|(_, id)| *id == channel).unwrap();
                    assert_eq!(payload, next[at].to_le_bytes().to_vec(), "in order, each once");
                    next[at] += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(next, vec![MESSAGES; clients.len()]);
    });
}

#[test]
fn what_was_sent_before_a_close_is_not_lost() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let lazy = process(&broker, "lazy", narrow());
        let mut inbound = Inbound::default();
        let (mut client, channel) = inbound.open(&broker, &lazy);
        send_numbers(&mut client);
        client.close(None).unwrap();
        others_are_served(&broker);
        for number in 0..MESSAGES {
            assert_eq!(inbound.message(&lazy, channel), number.to_le_bytes().to_vec());
        }
        assert_eq!(inbound.closed(&lazy).channel, channel);
    });
}

#[test]
fn its_end_while_clients_wait_closes_them_and_nobody_else() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let lazy = process(&broker, "lazy", narrow());
        let mut inbound = Inbound::default();
        let (mut client, _) = inbound.open(&broker, &lazy);
        send_numbers(&mut client);
        others_are_served(&broker);
        drop(lazy);
        assert_eq!(recv_close(&mut client).0, 1001);
        others_are_served(&broker);
        broker.stop(Duration::from_millis(100)).unwrap();
    });
}
