//! The demo processes do what their documentation says, end to end over loopback.

use crate::support;
use std::io::Write;
use support::{connect, demo, on_each_driver, recv, send};
use tungstenite::Message;

#[test]
fn echo_sends_back_type_and_bytes() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let mut client = connect(&broker, "/echo:pushring:sys/");
        for message in [
            Message::text("hello"),
            Message::text(""),
            Message::binary(vec![0xff; 70_000]),
            Message::binary(vec![1; 1 << 20]),
            Message::text("ö".repeat(40_000)),
        ] {
            send(&mut client, message.clone());
            assert_eq!(recv(&mut client), message);
        }
    });
}

#[test]
fn relay_reaches_every_other_channel() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let mut clients: Vec<_> = (0..8).map(|_| connect(&broker, "/relay:pushring:sys/")).collect();
        // A round trip through each: all channels are open before the broadcast.
        for sender in 0..clients.len() {
            send(&mut clients[sender], Message::binary(vec![sender as u8]));
            for (at, client) in clients.iter_mut().enumerate() {
                if at != sender {
                    assert_eq!(recv(client), Message::binary(vec![sender as u8]));
                }
            }
        }
    });
}

#[test]
fn unicast_reaches_the_named_channel() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let mut clients: Vec<_> = (0..4).map(|_| connect(&broker, "/unicast:pushring:sys/")).collect();
        let ids: Vec<u32> = clients
            .iter_mut()
            .map(|client| {
                let reply: serde_json::Value = serde_json::from_str(recv(client).to_text().unwrap()).unwrap();
                reply["channel_id"].as_u64().unwrap() as u32
            })
            .collect();
        let mut message = ids[3].to_le_bytes().to_vec();
        message.extend_from_slice(b"for you");
        send(&mut clients[0], Message::binary(message));
        assert_eq!(recv(&mut clients[3]), Message::binary(&b"for you"[..]));
    });
}

#[test]
fn stop_closes_every_channel_with_1001() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let mut clients: Vec<_> = (0..4).map(|_| connect(&broker, "/echo:pushring:sys/")).collect();
        let handle = broker.handle();
        handle.stop(support::PATIENCE);
        for client in &mut clients {
            assert_eq!(support::recv_close(client).0, 1001);
            // The answer to the close goes out with the next read.
            while client.read().is_ok() {}
        }
        broker.wait().unwrap();
    });
}

#[test]
fn what_came_before_a_violation_is_answered() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let mut client = connect(&broker, "/echo:pushring:sys/");
        // One write: a text message "hi", then a frame with a reserved bit set. Both masked with zeros.
        let message = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
        let violation = [0xc1, 0x82, 0, 0, 0, 0, b'n', b'o'];
        client.get_mut().write_all(&[&message[..], &violation, &message].concat()).unwrap();
        assert_eq!(recv(&mut client), Message::text("hi"));
        let (code, reason) = support::recv_close(&mut client);
        assert_eq!(code, 1002);
        assert!(reason.contains("reserved bit"), "{reason}");
        // What followed is not looked at, and the connection ends without a reset.
        let end = loop {
            match client.read() {
                Ok(message) => assert!(!message.is_text(), "{message}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
    });
}

#[test]
fn rooms_reach_the_others_of_a_room() {
    on_each_driver(|_| {
        // On one shard a client is in its room before another's message is handled.
        let broker = demo(|config| config.shards = 1);
        let [mut one, mut two] = [(); 2].map(|()| connect(&broker, "/rooms:pushring:sys/tea"));
        let mut elsewhere = [(); 2].map(|()| connect(&broker, "/rooms:pushring:sys/coffee"));
        send(&mut one, Message::text("to two"));
        assert_eq!(recv(&mut two), Message::text("to two"));
        send(&mut two, Message::binary(vec![7; 70_000]));
        assert_eq!(recv(&mut one), Message::binary(vec![7; 70_000]));
        // What was said over tea was not heard over coffee: the next message there is their own.
        send(&mut elsewhere[0], Message::text("still here"));
        assert_eq!(recv(&mut elsewhere[1]), Message::text("still here"));
    });
}

#[test]
fn sink_answers_binary_messages_only() {
    on_each_driver(|_| {
        let broker = demo(|_| {});
        let mut client = connect(&broker, "/sink:pushring:sys/");
        send(&mut client, Message::text("no answer"));
        send(&mut client, Message::binary(vec![1, 2]));
        assert_eq!(recv(&mut client), Message::binary(vec![1, 2]));
    });
}
