//! A client that does not read delays no other: while its socket is full and bytes wait for it, others on the same
//! shard get every message, and it gets all of its own once it reads again.

use crate::support;
use pushring::AttachOptions;
use support::{Inbound, Push, broker, fill, on_each_driver, process, recv};

const BYTES: usize = 16 * 1024;

#[test]
fn others_get_every_message_while_one_does_not_read() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let process = process(&broker, "slow", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (mut slow, slow_id) = inbound.open(&broker, &process);
        let mut others: Vec<_> = (0..8).map(|_| inbound.open(&broker, &process)).collect();
        let filled = fill(&process, slow_id, BYTES);

        for round in 0..20_u8 {
            let message = Push::binary(vec![round; 1000]);
            let ticket = process.broadcast(message).ask().send().unwrap();
            let outcome = ticket.wait(support::PATIENCE).unwrap();
            assert_eq!((outcome.sent, outcome.queued), (8, 1), "round {round}");
            for (client, _) in &mut others {
                assert_eq!(recv(client).into_data(), vec![round; 1000]);
            }
        }

        for _ in 0..filled {
            assert_eq!(recv(&mut slow).into_data(), vec![0x55; BYTES]);
        }
        for round in 0..20_u8 {
            assert_eq!(recv(&mut slow).into_data(), vec![round; 1000]);
        }
    });
}
