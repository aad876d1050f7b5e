//! Context takeover on our side (RFC 7692 section 7.1.1): only within a memory budget, never against the client's word, and
//! never so that a message refers to one that did not arrive, whatever was dropped, replaced or broadcast in between.
#![allow(missing_docs)]

mod support;
use pushring::broker::{AttachOptions, Audience, Broker, Config, Delivery, Policy, Process};
use pushring::channel::ChannelId;
use pushring::gateway::WebSocketRule;
use support::deflate::{DeflateClient, Inflated, records};
use support::{DriverKind, Inbound, Push, broker, on_each_driver, push_outcome};

const PATH: &str = "/takeover:test:sys";
const TAKEOVER: &str = "permessage-deflate; client_no_context_takeover";
const BUDGET: usize = 128 * 1024;

fn start(driver: DriverKind, change: impl FnOnce(&mut Config)) -> (Broker, Process, Inbound) {
    let broker = broker(driver, |config| {
        config.shards = 1;
        config.shard.outbound_bytes_max = BUDGET;
        config.shard.deflate.takeover_bytes_max = 1 << 20;
        change(config);
    });
    let id = "takeover:test:sys".parse().unwrap();
    let process = broker.handle().process(id, AttachOptions::default()).unwrap();
    process.bind("/", WebSocketRule { deflate: true, ..Default::default() }).unwrap();
    (broker, process, Inbound::default())
}

fn push(process: &Process, channel: ChannelId, message: &[u8]) {
    process.push(channel, Push::binary(message.to_vec())).unwrap();
}

fn broadcast(process: &Process, message: &[u8]) {
    process.push_many(Audience::Process, &[], Push::binary(message.to_vec()), Delivery::default()).unwrap();
}

/// The next message, which must be this one; how much of it travelled.
#[track_caller]
fn wire_bytes(client: &mut DeflateClient, message: &[u8]) -> usize {
    let received = client.recv();
    assert!(received.payload == message, "{} bytes instead of {}", received.payload.len(), message.len());
    received.wire_bytes
}

#[test]
fn what_was_sent_before_is_referred_to() {
    on_each_driver(|driver| {
        let (broker, process, mut inbound) = start(driver, |_| {});
        let mut client = DeflateClient::connect(&broker, PATH, "permessage-deflate; server_max_window_bits=14");
        assert_eq!(
            client.answer.as_deref(),
            Some("permessage-deflate; client_no_context_takeover; server_max_window_bits=14")
        );
        let channel = inbound.opened(&process);
        let (first, other) = (records(2_000, 1), records(2_000, 2));
        push(&process, channel, &first);
        let alone = wire_bytes(&mut client, &first);
        push(&process, channel, &first);
        assert!(wire_bytes(&mut client, &first) < alone / 5);
        // A broadcast refers to nothing, since others get it too, but may be referred to.
        broadcast(&process, &other);
        assert!(wire_bytes(&mut client, &other) > alone / 2);
        push(&process, channel, &other);
        assert!(wire_bytes(&mut client, &other) < alone / 5);
        // What goes as it is leaves no trace in the client's inflater.
        push(&process, channel, b"small");
        assert_eq!(wire_bytes(&mut client, b"small"), 5);
        push(&process, channel, &first);
        assert!(wire_bytes(&mut client, &first) < alone / 5);
    });
}

#[test]
fn the_budget_is_kept_and_given_back() {
    let window_bytes = 32 * 1024;
    let (broker, process, mut inbound) = start(DriverKind::Auto, |config| {
        config.shard.deflate.takeover_bytes_max = 2 * window_bytes + 1024;
    });
    let mut connect = |offer: &str| {
        let client = DeflateClient::connect(&broker, PATH, offer);
        inbound.opened(&process);
        client
    };
    let mut clients: Vec<_> = (0..4).map(|_| connect("permessage-deflate")).collect();
    let takes_over = |client: &DeflateClient| client.answer.as_deref() == Some(TAKEOVER);
    assert_eq!(clients.iter().map(takes_over).collect::<Vec<_>>(), [true, true, false, false]);
    drop(clients.remove(0));
    inbound.closed(&process);
    let client = DeflateClient::connect(&broker, PATH, "permessage-deflate; server_no_context_takeover");
    assert!(!takes_over(&client), "the client does not want it");
    let client = DeflateClient::connect(&broker, PATH, "permessage-deflate");
    assert!(takes_over(&client), "there is room again");
}

#[test]
fn no_message_refers_to_one_that_was_dropped_or_replaced() {
    on_each_driver(|driver| {
        let (broker, process, mut inbound) = start(driver, |_| {});
        let mut client = DeflateClient::connect(&broker, PATH, "permessage-deflate");
        let channel = inbound.opened(&process);
        // All much alike, so that there is a lot to refer to.
        let messages: Vec<Vec<u8>> =
            (0..64u64).map(|name| [&name.to_le_bytes()[..], &records(20_000, name % 4)].concat()).collect();
        let (mut behind, mut at) = (0, 0);
        for round in 0..4 {
            let policy = |at: usize| match round {
                0 | 2 => Policy::DropOldest,
                1 => Policy::Conflate { key: at as u64 % 5 },
                _ => Policy::DropNewest,
            };
            // Until the socket is full and far more than fits is pushed, broadcasts among it.
            let mut waits = 0;
            while waits < 60 {
                at += 1;
                let message = Push::binary(messages[at % messages.len()].clone());
                if at % 7 == 3 {
                    let delivery = Delivery::default().with_policy(policy(at));
                    process.push_many(Audience::Process, &[], message, delivery).unwrap();
                    continue;
                }
                let outcome = push_outcome(&process, channel, message, Some(policy(at)));
                waits += usize::from(outcome.sent == 0);
                behind += usize::from(outcome.dropped + outcome.conflated > 0);
                if waits == 30 && round == 2 {
                    // Some is read, so that the queue moves on and fills again.
                    (0..20).for_each(|_| check(&client.recv(), &messages));
                }
            }
            let pusher = process.pusher();
            let end = std::thread::spawn(move || {
                while push_outcome(&pusher, channel, Push::text("end"), Some(Policy::DropNewest)).dropped > 0 {}
            });
            loop {
                let received = client.recv();
                if received.is_text {
                    break;
                }
                check(&received, &messages);
            }
            end.join().unwrap();
        }
        assert!(behind > 60, "only {behind} were dropped or replaced");
        // And the context goes on.
        push(&process, channel, &messages[0]);
        let first = wire_bytes(&mut client, &messages[0]);
        push(&process, channel, &messages[0]);
        assert!(wire_bytes(&mut client, &messages[0]) < first / 2);
    });
}

#[track_caller]
fn check(received: &Inflated, messages: &[Vec<u8>]) {
    let name = u64::from_le_bytes(*received.payload.first_chunk().expect("a name")) as usize;
    assert!(received.payload == messages[name], "message {name} came out as something else");
}
