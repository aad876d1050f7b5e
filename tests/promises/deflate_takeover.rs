//! Context takeover on our side (RFC 7692 section 7.1.1): only within a memory budget, and never against the client's
//! word.

use crate::support;
use pushring::ChannelId;
use pushring::internals::gateway::WebSocketRule;
use pushring::{AttachOptions, Broker, Config, Process};
use support::deflate::{DeflateClient, records};
use support::{DriverKind, Inbound, Push, broker, on_each_driver};

const PATH: &str = "/takeover:test:sys";
const TAKEOVER: &str = "permessage-deflate; client_no_context_takeover";

fn start(driver: DriverKind, change: impl FnOnce(&mut Config)) -> (Broker, Process, Inbound) {
    let broker = broker(driver, |config| {
        config.shards = 1;
        config.shard.deflate.takeover_bytes_max = 1 << 20;
        change(config);
    });
    let id = "takeover:test:sys";
    let process = broker.handle().process(id, AttachOptions::default()).unwrap();
    process.bind("/", WebSocketRule { deflate: true, ..Default::default() }).unwrap();
    (broker, process, Inbound::default())
}

fn push(process: &Process, channel: ChannelId, message: &[u8]) {
    process.push(channel, Push::binary(message.to_vec())).try_send().unwrap();
}

fn broadcast(process: &Process, message: &[u8]) {
    process.broadcast(Push::binary(message.to_vec())).send().unwrap();
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
        // An uncompressed message leaves no trace in the client's inflater.
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
