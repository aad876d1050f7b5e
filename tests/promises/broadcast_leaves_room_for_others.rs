//! A broadcast leaves room for others: it goes out in slices, messages for one channel go ahead of the next slice, and
//! frames that arrive meanwhile catch up with those that are still on their way.
//!
//! The first tests count in turns, on a shard in memory with 20,000 channels; the last is the same on sockets.

use crate::shard_support;
use crate::support;

use pushring::internals::shard::command::Command;
use pushring::{AttachOptions, Policy, PushError};
use shard_support::Fan;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use support::{Inbound, Push, broker, connect, on_each_driver, process, recv, send};

const CHANNELS: usize = 20_000;

/// The most sends of one turn.
const SLICE: usize = 256;

/// A masked ping without a payload.
const PING: [u8; 6] = [0x89, 0x80, 1, 2, 3, 4];

fn payload(bytes: usize) -> bytes::Bytes {
    vec![b'x'; bytes].into()
}

/// A shard with a broadcast to all channels on its way, of which the first slice has left.
fn storm() -> Fan {
    let mut fan = Fan::new(CHANNELS);
    fan.taken.sends.store(0, Ordering::Relaxed);
    fan.shard.handle_command(Fan::broadcast(payload(128)), 1);
    assert!(fan.shard.flush(), "more is waiting");
    assert_eq!(fan.taken.sends.load(Ordering::Relaxed), SLICE);
    fan
}

/// Watches the socket of the channel at this place, which must be among those that the broadcast reaches last.
fn watch(fan: &Fan, at: usize) {
    fan.taken.watch(at);
    assert_eq!(fan.taken.watched_sends.load(Ordering::Relaxed), 0);
}

#[test]
fn a_ping_is_answered_by_the_next_slice() {
    let mut fan = storm();
    let at = CHANNELS / 2;
    watch(&fan, at);
    fan.shard.handle_read(fan.tokens[at], &mut PING.to_vec(), 1);
    fan.shard.flush();
    assert_eq!(fan.taken.watched_sends.load(Ordering::Relaxed), 1);
    assert_eq!(fan.taken.sends.load(Ordering::Relaxed), 2 * SLICE, "and the slice is no larger for it");
}

#[test]
fn a_push_to_one_channel_goes_with_the_next_slice() {
    let mut fan = storm();
    let at = CHANNELS / 2;
    watch(&fan, at);
    fan.shard.handle_command(Fan::unicast(fan.channels[at], payload(128)), 1);
    fan.shard.flush();
    assert_eq!(fan.taken.watched_sends.load(Ordering::Relaxed), 1);
}

#[test]
fn a_new_client_is_let_in_by_the_next_slice() {
    let mut fan = storm();
    watch(&fan, CHANNELS);
    fan.open(CHANNELS);
    fan.shard.flush();
    assert_eq!(fan.taken.watched_sends.load(Ordering::Relaxed), 1, "its 101 has left");
}

#[test]
fn a_later_broadcast_catches_up_with_one_on_its_way() {
    let mut fan = storm();
    fan.shard.flush();
    fan.shard.begin_turn(1);
    fan.shard.handle_command(Fan::broadcast(payload(128)), 1);
    fan.turn();
    let sends = fan.taken.sends.load(Ordering::Relaxed);
    assert_eq!(sends, CHANNELS + 2 * SLICE, "only those that had the first frame already need a second send");
}

#[test]
fn a_batch_of_broadcasts_takes_many_turns() {
    const FRAMES: usize = 50;
    let mut fan = Fan::new(CHANNELS);
    fan.taken.bytes.store(0, Ordering::Relaxed);
    fan.shard.handle_command(Command::Batch((0..FRAMES).map(|_| Fan::broadcast(payload(128))).collect()), 1);
    assert!(fan.shard.is_turn_full(), "the rest of the batch waits, and so does the inbox");
    watch(&fan, CHANNELS / 2);
    fan.shard.handle_read(fan.tokens[CHANNELS / 2], &mut PING.to_vec(), 1);
    fan.shard.flush();
    assert_eq!(fan.taken.watched_sends.load(Ordering::Relaxed), 1, "a ping does not wait for the batch");
    let mut turns = 1;
    while fan.shard.wants_flush() || fan.shard.is_turn_full() {
        fan.shard.flush();
        fan.shard.end_turn();
        turns += 1;
    }
    // A frame of 128 bytes has a header of 4; the pong is 2 bytes.
    assert_eq!(fan.taken.bytes.load(Ordering::Relaxed), FRAMES * CHANNELS * 132 + 2);
    assert!(turns < 2 * CHANNELS.div_ceil(SLICE), "most frames leave merged: {turns} turns");
}

#[test]
fn others_are_served_while_a_process_broadcasts_without_a_pause() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let loud = process(&broker, "loud", AttachOptions::default());
        let quiet = process(&broker, "quiet", AttachOptions::default());
        let (mut of_loud, mut of_quiet) = (Inbound::default(), Inbound::default());
        // They never read: soon a frame is dropped for most of them, and sent to none.
        let audience: Vec<_> = (0..50).map(|_| of_loud.open(&broker, &loud)).collect();
        let (mut client, channel) = of_quiet.open(&broker, &quiet);
        let (over, broadcasts) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (pusher, started) = (loud.handle(), Instant::now());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // A failure on the other side ends it as well, if late.
                while !over.load(Ordering::Relaxed) && started.elapsed() < support::PATIENCE {
                    let broadcast = pusher.broadcast(Push::binary(vec![7; 1024])).policy(Policy::DropNewest);
                    match broadcast.try_send() {
                        Ok(()) => broadcasts.fetch_add(1, Ordering::Relaxed),
                        Err(PushError::InboxFull) => continue,
                        Err(error) => panic!("{error}"),
                    };
                }
            });
            for round in 0..10_u8 {
                let before = broadcasts.load(Ordering::Relaxed);
                send(&mut client, vec![round]);
                assert_eq!(&of_quiet.message(&quiet, channel)[..], [round]);
                quiet.push(channel, Push::binary(vec![round])).send().unwrap();
                assert_eq!(recv(&mut client).into_data(), vec![round]);
                if round % 5 == 0 {
                    drop(connect(&broker, "/quiet:test:sys/"));
                    of_quiet.opened(&quiet);
                    of_quiet.closed(&quiet);
                    while broadcasts.load(Ordering::Relaxed) == before && started.elapsed() < support::PATIENCE {
                        std::thread::yield_now();
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
        });
        drop(audience);
    });
}
