//! The memory that clients and processes may make a broker hold is bounded, whatever they do: clients that do not read,
//! clients that never finish a message, a process that does not read its events. Well-behaved clients are served
//! meanwhile, and when the others have gone all counted memory is free again.

use crate::support;
use pushring::{AttachOptions, Broker, Event, MemoryReport, Policy, Process};
use std::io::Write;
use std::time::{Duration, Instant};
use support::{Client, DriverKind, Inbound, PATIENCE, Push, broker, on_each_driver, process, push_outcome, recv, send};

const MIB: usize = 1024 * 1024;
const BUDGET: usize = 8 * MIB;

fn start(driver: DriverKind) -> Broker {
    broker(driver, |config| {
        config.shards = 1;
        config.memory_bytes_max = Some(BUDGET);
        config.shard.outbound_bytes_max = 4 * MIB;
    })
}

fn memory(broker: &Broker) -> MemoryReport {
    broker.handle().reports()[0].memory
}

/// Waits until nothing is held any more, but what a test leaves unread of channels that ended.
#[track_caller]
fn all_free(broker: &Broker) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let memory = memory(broker);
        if memory.waiting_bytes() == 0 && memory.process_queue_bytes < 16 * 1024 {
            return;
        }
        assert!(Instant::now() < deadline, "{memory:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A client that sends and receives, to see that it can.
struct Witness {
    client: Client,
    process: Process,
    inbound: Inbound,
}

impl Witness {
    fn new(broker: &Broker) -> Self {
        let process = process(broker, "witness", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (client, _) = inbound.open(broker, &process);
        Self { client, process, inbound }
    }

    fn echo(&mut self) {
        send(&mut self.client, "are you there?");
        match self.inbound.next(&self.process) {
            Event::Message { channel, .. } => {
                let outcome = push_outcome(&self.process, channel, Push::text("yes"), None);
                assert_eq!(outcome.sent, 1, "{outcome:?}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(recv(&mut self.client).into_text().unwrap(), "yes");
    }
}

#[test]
fn clients_that_do_not_read() {
    on_each_driver(|driver| {
        for policy in [Policy::Close, Policy::DropOldest, Policy::DropNewest] {
            let broker = start(driver);
            let mut witness = Witness::new(&broker);
            let process = process(&broker, "slow", AttachOptions { policy, ..AttachOptions::default() });
            let mut inbound = Inbound::default();
            let clients: Vec<_> = (0..12).map(|_| inbound.open(&broker, &process)).collect();
            // The kernel's buffers for them, and then three times the memory there is.
            let mut queued = vec![0; clients.len()];
            while queued.iter().sum::<usize>() < 3 * BUDGET && queued.contains(&0) {
                for ((_, channel), queued) in std::iter::zip(&clients, &mut queued) {
                    let outcome = push_outcome(&process, *channel, Push::binary(vec![1; 64 * 1024]), None);
                    *queued += (outcome.queued + outcome.dropped + outcome.closed + outcome.not_found) * 64 * 1024;
                }
                witness.echo();
                let memory = memory(&broker);
                assert!(memory.leased_bytes <= BUDGET && memory.used_bytes() <= BUDGET, "{memory:?}");
            }
            drop(clients);
            all_free(&broker);
        }
    });
}

#[test]
fn clients_that_never_finish_a_message() {
    on_each_driver(|driver| {
        let broker = start(driver);
        let mut witness = Witness::new(&broker);
        let process = process(&broker, "partial", AttachOptions::default());
        let mut inbound = Inbound::default();
        let mut clients: Vec<_> = (0..12).map(|_| inbound.open(&broker, &process).0).collect();
        // The header of a masked Binary frame of 3 MiB, and 2 MiB of it.
        let mut begun = vec![0x82, 0xff];
        begun.extend_from_slice(&(3 * MIB as u64).to_be_bytes());
        begun.extend_from_slice(&[0; 4 + 2 * MIB]);
        let senders: Vec<_> = clients
            .drain(..)
            .map(|mut client| {
                let begun = begun.clone();
                // Ends when all was taken, or the broker has closed the connection.
                std::thread::spawn(move || {
                    let written = client.get_mut().write_all(&begun);
                    (client, written)
                })
            })
            .collect();
        let mut refused = 0;
        // 24 MiB were begun and there is room for less than 8: most are refused, one after another.
        while refused < 9 {
            let closed = inbound.closed(&process);
            assert_eq!(closed.code, 1013, "{closed:?}");
            refused += 1;
            witness.echo();
            let memory = memory(&broker);
            assert!(memory.used_bytes() <= BUDGET + 4 * MIB, "{memory:?}");
        }
        for sender in senders {
            drop(sender.join().unwrap());
        }
        all_free(&broker);
    });
}

/// What they send together is three times the budget.
const SENDERS: usize = 64;
const MESSAGES_OF_EACH: u32 = 6;

#[test]
fn a_process_that_does_not_read() {
    on_each_driver(|driver| {
        let broker = start(driver);
        let mut witness = Witness::new(&broker);
        let process = process(&broker, "deaf", AttachOptions::default());
        let mut inbound = Inbound::default();
        // As many as it takes: a client alone does not fill the queue.
        let clients: Vec<_> = (0..SENDERS).map(|_| inbound.open(&broker, &process)).collect();
        let channels: Vec<_> = clients.iter().map(|(_, channel)| *channel).collect();
        let senders: Vec<_> = clients
            .into_iter()
            .map(|(mut client, _)| {
                std::thread::spawn(move || {
                    let message = |at: u32| [&at.to_be_bytes()[..], &[0; 64 * 1024]].concat();
                    (0..MESSAGES_OF_EACH).for_each(|at| send(&mut client, message(at)));
                    client
                })
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        // Memory that cannot be reclaimed fills half of the budget, less other kept data and the last message.
        while memory(&broker).process_queue_bytes < BUDGET / 2 - MIB / 4 {
            assert!(Instant::now() < deadline, "{:?}", memory(&broker));
            witness.echo();
        }
        for _ in 0..20 {
            witness.echo();
            let memory = memory(&broker);
            assert!(memory.process_queue_bytes + memory.used_bytes() <= BUDGET + MIB, "{memory:?}");
        }
        // It reads after all: everything is there, in order.
        let mut next = [0_u32; SENDERS];
        for _ in 0..SENDERS as u32 * MESSAGES_OF_EACH {
            let Event::Message { channel, payload, .. } = inbound.next(&process) else { panic!("a message is next") };
            let at = channels.iter().position(|&one| one == channel).unwrap();
            assert_eq!(payload[..4], next[at].to_be_bytes());
            next[at] += 1;
        }
        assert_eq!(next, [MESSAGES_OF_EACH; SENDERS]);
        for sender in senders {
            drop(sender.join().unwrap());
            inbound.closed(&process);
        }
        all_free(&broker);
    });
}
