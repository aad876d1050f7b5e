//! The demo processes do what their documentation says, end to end over loopback.

use crate::support;
use pushring::Broker;
use pushring::internals::demo::{stage, tokens};
use serde_json::Value;
use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;
use support::{Client, PATIENCE, Patient, connect, demo, on_each_driver, recv, send};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest;

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
        // Later bytes are ignored, and the connection ends without a reset.
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
        // Messages of the tea room were not heard in the coffee room: the next one there is their own.
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

/// A client of `tokens`, and what it was told first.
fn reader(broker: &Broker, protocols: &str) -> (Client, Value) {
    let stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("ws://{}/tokens:pushring:sys/", broker.address()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    let (mut client, _) = tungstenite::client(request, Patient::new(stream)).unwrap();
    let hello = serde_json::from_str(recv(&mut client).to_text().unwrap()).unwrap();
    (client, hello)
}

#[test]
fn tokens_go_on_where_they_were_cut() {
    let words: Vec<&str> = tokens::TEXT.split_inclusive(char::is_whitespace).collect();
    let broker = demo(|_| {});
    tokens::start(&broker.handle()).unwrap();
    let (mut client, hello) = reader(&broker, "pushring.1");
    let mut received = 0;
    for _ in 0..3 {
        assert_eq!(recv(&mut client), Message::text(words[received]));
        received += 1;
    }
    send(&mut client, Message::text("cut"));
    // Its own words, then an end without a close frame.
    loop {
        match client.read() {
            Ok(Message::Text(_)) => received += 1,
            Ok(other) => panic!("{other}"),
            Err(tungstenite::Error::ConnectionClosed) => panic!("it was closed"),
            Err(_) => break,
        }
    }
    let (id, token) = (&hello["channel_id"], hello["resume"].as_str().unwrap());
    let (mut client, hello) = reader(&broker, &format!("pushring.1, resume.{id}.{token}.{received}"));
    assert_eq!((&hello["resumed"], &hello["received"]), (&Value::Bool(true), &Value::from(1)), "{hello}");
    for _ in 0..5 {
        assert_eq!(recv(&mut client), Message::text(words[received]));
        received += 1;
    }
}

/// The next report of the stage that passes, among its messages.
fn report(page: &mut Client, passes: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let message = recv(page);
        assert!(began.elapsed() < PATIENCE, "no such report came: the last was {message}");
        if let Message::Text(text) = message {
            let report = serde_json::from_str(&text).unwrap();
            if passes(&report) {
                return report;
            }
        }
    }
}

#[test]
fn the_stage_shows_that_who_stops_reading_hurts_nobody_else() {
    let broker = demo(|config| config.shard.outbound_bytes_max = 64 << 10);
    let options = stage::StageOptions { receivers: 20, outbound_bytes_max: 64 << 10 };
    stage::start(&broker.handle(), options).unwrap();
    let seats = |report: &Value, letter: char| report["seats"].as_str().unwrap().matches(letter).count();
    let mut page = connect(&broker, "/stage:pushring:sys/");
    let all = report(&mut page, |report| seats(report, 'o') == 20 && !report["p99_us"].is_null());
    assert_eq!((&all["receivers"], &all["stalled"], &all["trouble"]), (&20.into(), &0.into(), &Value::Null));
    // Wishes that are none change nothing; what is asked for too much is half.
    for wish in ["nonsense", r#"{"policy":"other"}"#, r#"{"stall":5,"policy":"conflate"}"#] {
        send(&mut page, Message::text(wish));
    }
    let conflated = report(&mut page, |report| report["conflated"] == 5);
    assert_eq!((seats(&conflated, 's'), seats(&conflated, 'o')), (5, 15));
    send(&mut page, Message::text(r#"{"stall":0,"policy":"close"}"#));
    let back = report(&mut page, |report| seats(report, 'o') == 20);
    assert!(back["missed_in_all"].as_u64().unwrap() > 0, "who is conflated skips: {back}");
    send(&mut page, Message::text(r#"{"stall":1000}"#));
    let closed = report(&mut page, |report| seats(report, 'x') == 10);
    assert_eq!((seats(&closed, 'o'), &closed["closed_in_all"]), (10, &10.into()));
    assert!(closed["sent"].as_u64().unwrap() > 10, "the others and this page go on: {closed}");
    send(&mut page, Message::text(r#"{"stall":0}"#));
    report(&mut page, |report| seats(report, 'o') == 20);
    // Without a page there are no receivers.
    drop(page);
    let began = Instant::now();
    let channels = || broker.handle().processes().iter().map(|process| process.channels).sum::<usize>();
    while channels() > 0 {
        assert!(began.elapsed() < PATIENCE, "{} channels are left", channels());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn nobody_sits_down_on_a_seat_unasked() {
    let broker = demo(|_| {});
    stage::start(&broker.handle(), stage::StageOptions { receivers: 0, outbound_bytes_max: 1 << 20 }).unwrap();
    assert!(support::try_connect(&broker, "/stage:pushring:sys/seat-0/1").is_err());
    let mut page = connect(&broker, "/stage:pushring:sys/");
    let report = report(&mut page, |_| true);
    assert_eq!((&report["receivers"], &report["p99_us"]), (&0.into(), &Value::Null));
}
