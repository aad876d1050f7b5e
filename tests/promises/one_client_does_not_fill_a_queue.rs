//! Clients that send as fast as they are read do not fill the queue of their process: what the process' other clients
//! say is taken in meanwhile, and only a part of the queue is ahead of it. Nothing is lost, and each client's order
//! stays.

use crate::support;
use pushring::{AttachOptions, Broker, ChannelId, Event, Process};
use std::time::Instant;
use support::{Client, Inbound, PATIENCE, Push, broker, driver, process, recv, send};
use tungstenite::Message;

const SENDERS: usize = 20;
/// Of each of them; together they are more than a queue holds.
const MESSAGES: u32 = 4_000;
const QUEUE_MESSAGES_MAX: usize = 64 * 1024;

/// What an innocent client says.
const HELLO: &[u8] = b"hello, whoever else may speak";

/// How many messages the shard has received.
fn received(broker: &Broker) -> u64 {
    broker.handle().reports().iter().map(|report| report.stats.received).sum()
}

/// A client of another process is answered this often, so the shard has had turns.
const ROUNDS: u64 = 20;

struct Other {
    process: Process,
    inbound: Inbound,
    client: Client,
    channel: ChannelId,
}

impl Other {
    fn new(broker: &Broker) -> Self {
        let (process, mut inbound) = (process(broker, "other", AttachOptions::default()), Inbound::default());
        let (client, channel) = inbound.open(broker, &process);
        Self { process, inbound, client, channel }
    }

    fn is_served(&mut self) {
        for round in 0..ROUNDS {
            send(&mut self.client, Message::binary(round.to_le_bytes().to_vec()));
            assert_eq!(self.inbound.message(&self.process, self.channel), round.to_le_bytes().to_vec());
            self.process.push(self.channel, Push::binary(vec![7])).try_send().unwrap();
            assert_eq!(recv(&mut self.client), Message::binary(vec![7]));
        }
    }
}

#[test]
fn what_others_of_the_process_say_is_behind_a_part_of_the_queue() {
    let broker = broker(driver(), |config| config.shards = 1);
    let lazy = process(&broker, "lazy", AttachOptions::default());
    let mut other = Other::new(&broker);
    let mut inbound = Inbound::default();
    let (mut innocent, innocent_channel) = inbound.open(&broker, &lazy);
    let mut senders: Vec<_> = (0..SENDERS).map(|_| inbound.open(&broker, &lazy)).collect();
    for (client, _) in &mut senders {
        for number in 0..MESSAGES {
            client.write(Message::binary(number.to_le_bytes().to_vec())).unwrap();
        }
        client.flush().unwrap();
    }

    // Until they are read no further.
    let mut before = u64::MAX;
    let deadline = Instant::now() + PATIENCE;
    loop {
        other.is_served();
        let now = received(&broker);
        if now == before.saturating_add(ROUNDS) {
            break;
        }
        before = now;
        assert!(Instant::now() < deadline, "{now} and counting");
    }
    let before = received(&broker);
    assert!((before as usize) < QUEUE_MESSAGES_MAX / 4, "{before} messages wait");

    let deadline = Instant::now() + PATIENCE;
    send(&mut innocent, Message::binary(HELLO.to_vec()));
    while received(&broker) == before {
        assert!(Instant::now() < deadline, "who has said nothing yet is read");
        std::thread::yield_now();
    }

    let mut next = vec![0_u32; SENDERS];
    let mut ahead = None;
    for taken in 0..=SENDERS * MESSAGES as usize {
        let Event::Message { channel, payload, .. } = inbound.next(&lazy) else { panic!("a message is next") };
        if channel == innocent_channel {
            assert_eq!((&payload[..], ahead.replace(taken)), (HELLO, None));
            continue;
        }
        let at = senders.iter().position(|(_, id)| *id == channel).unwrap();
        assert_eq!(payload, next[at].to_le_bytes().to_vec(), "in order, each once");
        next[at] += 1;
    }
    assert_eq!(next, vec![MESSAGES; SENDERS]);
    assert!(ahead.is_some_and(|ahead| ahead < QUEUE_MESSAGES_MAX / 4), "{ahead:?} messages were ahead");
}
