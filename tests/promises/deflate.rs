//! permessage-deflate (RFC 7692), seen by a client that speaks it: off unless a path or the operator offers it;
//! messages are inflated before a process sees them and compressed for clients that agreed, for each as it agreed; a
//! compressed message costs no more than the limit of a message.

use crate::support;
use pushring::internals::gateway::WebSocketRule;
use pushring::{AttachOptions, Broker, Config, Event, Outcome, Policy, Process};
use support::deflate::{DeflateClient, bomb, deflated, records};
use support::{DriverKind, Inbound, Push, broker, connect, demo, on_each_driver, push_outcome, recv};
use tungstenite::Message;

const OFFER: &str = "permessage-deflate; client_max_window_bits";
const ECHO: &str = "/echo:pushring:sys/";
const NO_TAKEOVER: &str = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";

fn everywhere(config: &mut Config) {
    config.shard.deflate.everywhere = true;
}

/// A broker and a process, whose path `/` offers compression.
fn with_process(driver: DriverKind, change: impl FnOnce(&mut Config)) -> (Broker, Process) {
    let broker = broker(driver, change);
    let id = "deflate:test:sys";
    let process = broker.handle().process(id, AttachOptions::default()).unwrap();
    process.bind("/", WebSocketRule { deflate: true, ..Default::default() }).unwrap();
    (broker, process)
}

#[test]
fn it_is_offered_by_path_or_everywhere_and_else_not_at_all() {
    let silent = demo(|_| {});
    assert_eq!(DeflateClient::connect(&silent, ECHO, OFFER).answer, None);
    let (broker, process) = with_process(DriverKind::Auto, |_| {});
    process.bind("/plain", Default::default()).unwrap();
    let answer = |path: &str, offer: &str| DeflateClient::connect(&broker, path, offer).answer;
    assert_eq!(answer("/deflate:test:sys", OFFER).as_deref(), Some(NO_TAKEOVER));
    assert_eq!(answer("/deflate:test:sys/plain", OFFER), None);
    assert_eq!(answer("/deflate:test:sys", "permessage-deflate; unknown"), None, "declined, and yet open");
    assert_eq!(answer("/", OFFER), None);
    let everywhere = demo(everywhere);
    for path in [ECHO, "/"] {
        assert_eq!(DeflateClient::connect(&everywhere, path, OFFER).answer.as_deref(), Some(NO_TAKEOVER));
    }
}

#[test]
fn the_first_offer_that_can_be_kept_is_answered() {
    let broker = demo(everywhere);
    for (offer, answer) in [
        ("permessage-deflate; server_max_window_bits=9", "; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", ""),
        (
            "permessage-deflate; client_max_window_bits=99, permessage-deflate; server_max_window_bits=11",
            "; server_max_window_bits=11",
        ),
    ] {
        let client = DeflateClient::connect(&broker, ECHO, offer);
        assert_eq!(client.answer, Some(format!("{NO_TAKEOVER}{answer}")), "{offer}");
    }
}

#[test]
fn messages_travel_compressed_both_ways_and_processes_see_them_inflated() {
    on_each_driver(|driver| {
        let (broker, process) = with_process(driver, |_| {});
        let mut inbound = Inbound::default();
        for bits in 9..=15 {
            let offer = format!("permessage-deflate; server_max_window_bits={bits}");
            let mut client = DeflateClient::connect(&broker, "/deflate:test:sys", &offer);
            let channel = inbound.opened(&process);
            for bytes in [0, 1, 100, 512, 5_000, 30_000, 100_000] {
                let message = records(bytes, bits);
                client.send(1, &message);
                let received = inbound.message(&process, channel);
                assert_eq!(received, message);
                process.push(channel, Push::text_bytes(received).unwrap()).try_send().unwrap();
                let echoed = client.recv();
                assert_eq!((echoed.is_text, &echoed.payload), (true, &message));
                let is_worth_it = (512..=32 * 1024).contains(&bytes);
                assert_eq!(
                    echoed.compressed, is_worth_it,
                    "{bytes} bytes: small ones go as they are, and large ones to one"
                );
                assert!(!echoed.compressed || echoed.wire_bytes < bytes * 3 / 4, "{} of {bytes}", echoed.wire_bytes);
            }
            drop(client);
            inbound.closed(&process);
        }
    });
}

#[test]
fn a_broadcast_reaches_each_as_it_agreed() {
    on_each_driver(|driver| {
        let (broker, process) = with_process(driver, |_| {});
        let mut inbound = Inbound::default();
        let mut plain: Vec<_> = (0..4).map(|_| inbound.open(&broker, &process).0).collect();
        let offers = ["permessage-deflate", "permessage-deflate; server_max_window_bits=10", "permessage-deflate"];
        let mut clients: Vec<_> = offers
            .iter()
            .cycle()
            .take(12)
            .map(|offer| {
                let client = DeflateClient::connect(&broker, "/deflate:test:sys", offer);
                inbound.opened(&process);
                client
            })
            .collect();
        for bytes in [100, 600, 70_000, 1 << 20] {
            let message = records(bytes, 7);
            let push = Push::binary(message.clone());
            process.broadcast(push).send().unwrap();
            for client in &mut plain {
                assert!(recv(client) == Message::binary(message.clone()));
            }
            let mut wire_bytes = Vec::new();
            for client in &mut clients {
                let received = client.recv();
                assert!(received.payload == message);
                assert_eq!(received.compressed, bytes >= 512);
                wire_bytes.push(received.wire_bytes);
            }
            assert!(wire_bytes.iter().step_by(3).all(|bytes| *bytes == wire_bytes[0]), "{wire_bytes:?}");
        }
        // Messages are no longer compressed for clients that left.
        drop(clients);
        for _ in 0..12 {
            inbound.closed(&process);
        }
        process.broadcast(Push::binary(records(600, 8))).send().unwrap();
        assert!(recv(&mut plain[0]) == Message::binary(records(600, 8)));
    });
}

#[test]
fn a_broadcast_is_compressed_once_for_all_who_agreed_on_the_same() {
    let (broker, process) = with_process(DriverKind::Auto, |config| config.shards = 3);
    let mut inbound = Inbound::default();
    let mut connect = |offer: &str| {
        let client = DeflateClient::connect(&broker, "/deflate:test:sys", offer);
        (client, inbound.opened(&process))
    };
    let mut clients: Vec<_> = (0..24).map(|_| connect("permessage-deflate")).collect();
    let compressions = || {
        let of_one = broker.handle().reports().iter().map(|report| report.stats.compressed).sum::<u64>();
        (broker.handle().broadcast_compressions(), of_one)
    };
    let broadcast = |seed| {
        let ticket = process.broadcast(Push::binary(records(2_000, seed))).ask().send().unwrap();
        ticket.wait(support::PATIENCE).unwrap().sent
    };
    assert_eq!((broadcast(1), compressions()), (24, (1, 0)));
    // A window of its own is one compression more, whether one channel has it or many.
    clients.extend((0..8).map(|_| connect("permessage-deflate; server_max_window_bits=10")));
    assert_eq!((broadcast(2), compressions()), (32, (3, 0)));
    // Small messages are not compressed at all; one to a single channel is, where it lives.
    process.broadcast(Push::text("small")).send().unwrap();
    assert_eq!(push_outcome(&process, clients[0].1, Push::binary(records(2_000, 3)), None).sent, 1);
    assert_eq!(compressions(), (3, 1));
    for (client, _) in &mut clients[..24] {
        assert!(client.recv().payload == records(2_000, 1));
    }
}

#[test]
fn a_broadcast_is_compressed_harder_than_a_push_each_as_its_setting_says() {
    let wire_bytes = |level: Option<u8>, push_level: Option<u8>| {
        let (broker, process) = with_process(DriverKind::Auto, |config: &mut Config| {
            let defaults = config.shard.deflate;
            config.shard.deflate.level = level.unwrap_or(defaults.level);
            config.shard.deflate.push_level = push_level.unwrap_or(defaults.push_level);
        });
        let mut client = DeflateClient::connect(&broker, "/deflate:test:sys", OFFER);
        let channel = Inbound::default().opened(&process);
        let message = records(20_000, 3);
        process.broadcast(Push::binary(message.clone())).send().unwrap();
        let broadcast = client.recv().wire_bytes;
        process.push(channel, Push::binary(message)).send().unwrap();
        (broadcast, client.recv().wire_bytes)
    };
    let (broadcast, push) = wire_bytes(None, None);
    assert!(broadcast < push, "{broadcast} bytes of a broadcast, {push} of a push");
    assert_eq!(wire_bytes(Some(3), Some(1)), (broadcast, push), "the defaults");
    assert_eq!(wire_bytes(Some(1), Some(3)), (push, broadcast), "the same compressor");
}

#[test]
fn what_does_not_get_smaller_goes_as_it_is() {
    let broker = demo(everywhere);
    let mut client = DeflateClient::connect(&broker, ECHO, OFFER);
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(10_000)
    .collect();
    client.send(2, &noise);
    let echoed = client.recv();
    assert!(!echoed.compressed && echoed.payload == noise);
}

#[test]
fn fragments_with_a_ping_between_are_one_message() {
    let broker = demo(everywhere);
    let mut client = DeflateClient::connect(&broker, ECHO, OFFER);
    let text = "κόσμε ☃ ".repeat(200);
    let compressed = deflated(text.as_bytes());
    let (start, end) = compressed.split_at(7);
    client.send_frame(0x41, start);
    client.send_frame(0x89, b"?");
    client.send_frame(0x00, b"");
    client.send_frame(0x80, end);
    let pong = client.frame();
    assert_eq!((pong.first, &pong.payload[..]), (0x8a, &b"?"[..]));
    assert_eq!(client.recv().payload, text.as_bytes());
}

#[test]
fn what_breaks_the_rules_of_compression_is_told_why() {
    let broker = demo(|config| {
        everywhere(config);
        config.shard.limits = pushring::internals::proto::MessageLimits::for_messages(100_000);
    });
    let compressed = deflated(b"Hello, Hello, Hello");
    let closed = |frames: &[(u8, &[u8])], offer: &str| {
        let mut client = DeflateClient::connect(&broker, ECHO, offer);
        frames.iter().for_each(|(first, payload)| client.send_frame(*first, payload));
        client.recv_close().0
    };
    // RFC 7692 section 6: RSV1 stands on the first frame of a message, and only where it was agreed.
    assert_eq!(closed(&[(0xc1, &compressed)], "none"), 1002);
    assert_eq!(closed(&[(0x41, &compressed), (0xc0, b"")], OFFER), 1002);
    assert_eq!(closed(&[(0xc9, b"")], OFFER), 1002);
    assert_eq!(closed(&[(0xe1, &compressed)], OFFER), 1002, "RSV2 is nobody's");
    assert_eq!(closed(&[(0xc2, &[0xff; 20])], OFFER), 1007, "no DEFLATE data");
    assert_eq!(closed(&[(0xc1, &deflated(&[b'a', 0xff]))], OFFER), 1007, "no UTF-8");
    assert_eq!(closed(&[(0xc2, &deflated(&[0; 100_001]))], OFFER), 1009, "too big once inflated");
    let mut client = DeflateClient::connect(&broker, ECHO, OFFER);
    client.send(2, &[7; 100_000]);
    assert_eq!(client.recv().payload, [7; 100_000], "the limit itself is allowed");
}

#[test]
fn queued_bytes_are_those_that_travel_and_policies_hold() {
    on_each_driver(|driver| {
        let (broker, process) = with_process(driver, |config| config.shard.outbound_bytes_max = 128 * 1024);
        let mut client = DeflateClient::connect(&broker, "/deflate:test:sys", OFFER);
        let channel = Inbound::default().opened(&process);
        let filled = support::fill(&process, channel, 16 * 1024);
        let messages: Vec<_> = (0..60).map(|name| records(30_000, name)).collect();
        let push = |name: usize, policy| push_outcome(&process, channel, Push::binary(messages[name].clone()), policy);
        let before = push_outcome(&process, channel, Push::binary(b"small".as_slice()), None).queued_bytes;
        let queued = push(0, Some(Policy::Conflate { key: 1 }));
        let wire_bytes = queued.queued_bytes - before;
        assert!(queued.queued == 1 && (1_000..20_000).contains(&wire_bytes), "{queued:?} behind {before}");
        assert_eq!(push(1, Some(Policy::Conflate { key: 1 })).conflated, 1);
        for name in 2..30 {
            assert_eq!(push(name, Some(Policy::DropOldest)).queued, 1);
        }
        let dropped = (30..60).map(|name| push(name, Some(Policy::DropNewest)));
        let dropped: Vec<Outcome> = dropped.filter(|outcome| outcome.dropped == 1).collect();
        assert!(!dropped.is_empty());
        let mut names = Vec::new();
        let mut fillers = 0;
        while names.last() != Some(&29) {
            let received = client.recv();
            match (2..30).find(|&name| received.payload == messages[name]) {
                Some(name) if received.compressed => names.push(name),
                _ => fillers += 1,
            }
        }
        assert!(names.is_sorted() && names.len() >= 3, "the newest, whole and in order: {names:?}");
        assert!(fillers <= filled + 2);
    });
}

#[test]
fn a_registered_channel_talks_compressed_too() {
    let broker = demo(everywhere);
    let mut client = DeflateClient::connect(&broker, "/", OFFER);
    let secret = pushring::internals::gateway::Secret::new(support::SECRET).unwrap();
    let claims =
        pushring::internals::gateway::Claims { username: "local.os".into(), subdomain: None, expiration: u64::MAX / 2 };
    let token = pushring::internals::gateway::mint(&secret, &claims);
    let register = format!(r#"{{"auth_token":"{token}","target_process":"echo:pushring:sys"}}"#);
    client.send(1, register.as_bytes());
    let reply = client.recv();
    assert!(reply.is_text && reply.payload.starts_with(b"{\"channel_id\":"), "{reply:?}");
    let message = records(10_000, 3);
    client.send(2, &message);
    let echoed = client.recv();
    assert!(echoed.compressed && echoed.payload == message);
}

#[test]
fn clients_without_compression_are_served_beside() {
    let broker = demo(everywhere);
    let mut client = connect(&broker, ECHO);
    support::send(&mut client, Message::binary(records(10_000, 3)));
    assert!(recv(&mut client) == Message::binary(records(10_000, 3)));
}

#[test]
fn a_process_is_told_of_a_bomb_by_the_end_of_its_channel_alone() {
    let (broker, process) = with_process(DriverKind::Auto, |_| {});
    let mut client = DeflateClient::connect(&broker, "/deflate:test:sys", OFFER);
    let mut inbound = Inbound::default();
    let channel = inbound.opened(&process);
    // The limit of 16 MiB is where it ends.
    client.send_frame(0xc2, &bomb());
    assert_eq!(client.recv_close().0, 1009);
    match inbound.next(&process) {
        Event::Closed(closed) => assert_eq!((closed.channel, closed.code), (channel, 1009)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_bombs_at_once_do_not_keep_others_waiting() {
    const BOMBS: u64 = 30;
    on_each_driver(|driver| {
        let (broker, _process) = with_process(driver, |config| config.shards = 1);
        let (last, rest) = bomb().split_last().map(|(last, rest)| (*last, rest.to_vec())).unwrap();
        let refused = || broker.handle().reports()[0].stats.violations;
        // Others are answered while most are still to be inflated; a machine that is busy elsewhere may hide it once.
        let is_answered_meanwhile = (0..5).any(|_| {
            let before = refused();
            let mut witness = connect(&broker, "/deflate:test:sys");
            let mut clients: Vec<_> =
                (0..BOMBS).map(|_| DeflateClient::connect(&broker, "/deflate:test:sys", OFFER)).collect();
            for client in &mut clients {
                client.send_frame(0x42, &rest);
            }
            clients.iter_mut().for_each(|client| client.send_frame(0x80, &[last]));
            witness.send(Message::Ping("?".into())).unwrap();
            assert_eq!(witness.read().unwrap(), Message::Pong("?".into()));
            let in_time = refused() - before < BOMBS / 5;
            for client in &mut clients {
                assert_eq!(client.recv_close().0, 1009);
            }
            in_time
        });
        assert!(is_answered_meanwhile);
    });
}
