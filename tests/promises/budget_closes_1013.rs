//! A channel whose client does not keep up is closed with 1013 once its budget is exceeded, and its process is told so,
//! with the bytes that were lost.

use crate::support;
use pushring::{AttachOptions, ClosedBy};
use support::{Inbound, Push, broker, fill, on_each_driver, process, push_outcome, recv, recv_close};

const BYTES: usize = 32 * 1024;
/// Header of a frame of `BYTES` (RFC 6455 5.2).
const HEADER_BYTES: usize = 4;
const BUDGET: usize = 256 * 1024;

#[test]
fn over_budget_closes_with_1013_and_tells_the_process() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.outbound_bytes_max = BUDGET);
        let process = process(&broker, "budget", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (mut client, channel) = inbound.open(&broker, &process);
        let (mut witness, witness_id) = inbound.open(&broker, &process);
        let mut accepted = fill(&process, channel, BYTES);
        let mut queued_bytes = 0;
        loop {
            let outcome = push_outcome(&process, channel, Push::binary(vec![0x55; BYTES]), None);
            if outcome.closed == 1 {
                break;
            }
            assert_eq!(outcome.queued, 1);
            assert!(outcome.queued_bytes <= BUDGET, "{outcome:?}");
            queued_bytes = outcome.queued_bytes;
            accepted += 1;
        }
        assert!(queued_bytes + BYTES + HEADER_BYTES > BUDGET, "closed with {queued_bytes} bytes queued");

        let closed = inbound.closed(&process);
        assert_eq!((closed.channel, closed.code, closed.by), (channel, 1013, ClosedBy::Backpressure));
        assert!(closed.lost_bytes > 0 && closed.lost_bytes % (BYTES + HEADER_BYTES) == 0, "{closed:?}");
        let lost = closed.lost_bytes / (BYTES + HEADER_BYTES);

        // The client sees every message that was not lost, whole, and then why it ends.
        for _ in 0..accepted - lost {
            assert_eq!(recv(&mut client).into_data().len(), BYTES);
        }
        assert_eq!(recv_close(&mut client).0, 1013);
        assert_eq!(push_outcome(&process, channel, Push::text("late"), None).not_found, 1);
        assert_eq!(push_outcome(&process, witness_id, Push::text("still here"), None).sent, 1);
        assert_eq!(recv(&mut witness).into_text().unwrap(), "still here");
    });
}

#[test]
fn a_single_message_over_the_budget_is_sent_when_nothing_waits() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.outbound_bytes_max = BUDGET);
        let process = process(&broker, "single", AttachOptions::default());
        let (mut client, channel) = Inbound::default().open(&broker, &process);
        process.push(channel, Push::binary(vec![0x66; 8 * BUDGET])).try_send().unwrap();
        assert_eq!(recv(&mut client).into_data(), vec![0x66; 8 * BUDGET]);
    });
}
