//! The orders of one producer for one channel are carried out in order: push, push_many and close, small and large,
//! whatever the socket takes at a time.

use crate::support;
use pushring::{AttachOptions, Audience};
use support::{Inbound, Push, broker, on_each_driver, process, recv, recv_close};

/// From a few bytes, which are copied, to blobs that go out by reference and need several sends.
const SIZES: [usize; 6] = [4, 100, 5_000, 20_000, 70_000, 400_000];

fn message(number: u32) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(SIZES[number as usize % SIZES.len()], number as u8);
    bytes
}

#[test]
fn push_push_many_and_close_keep_their_order() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.outbound_bytes_max = 1 << 30);
        let process = process(&broker, "order", AttachOptions::default());
        let mut inbound = Inbound::default();
        let mut clients: Vec<_> = (0..4).map(|_| inbound.open(&broker, &process)).collect();
        let ids: Vec<_> = clients.iter().map(|(_, id)| *id).collect();
        for number in 0..120 {
            let bytes = message(number);
            match number % 4 {
                0 => process.broadcast(Push::binary(bytes)).send().unwrap(),
                1 => {
                    let audience = Audience::Channels(ids.clone());
                    process.broadcast(Push::binary(bytes)).to(audience).send().unwrap();
                }
                _ => {
                    for &id in &ids {
                        process.push(id, Push::binary(bytes.clone())).send().unwrap();
                    }
                }
            }
        }
        for &id in &ids {
            process.close(id, 3000, "that was all").send().unwrap();
            process.push(id, Push::text("behind the close")).send().unwrap();
        }
        for (client, _) in &mut clients {
            for number in 0..120 {
                let got = recv(client).into_data();
                assert!(got == message(number), "expected message {number}, got {} bytes", got.len());
            }
            assert_eq!(recv_close(client), (3000, "that was all".into()));
        }
    });
}
