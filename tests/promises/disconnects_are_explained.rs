//! An operator can ask why the last 1,000 channels ended: code, reason, which side ended it, lost messages, and the
//! state of the connection; clients that never became a channel are among them.

use crate::support;

use pushring::ChannelId;
use pushring::{AttachOptions, Broker, ClosedBy, Disconnect};
use std::time::{Duration, Instant, SystemTime};
use support::{Client, Inbound, PATIENCE, Push, broker, connect, fill, on_each_driver, process, recv_close, send};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame as ClientClose;

/// The end of this channel, once it is known.
#[track_caller]
fn end_of(broker: &Broker, channel: ChannelId) -> Disconnect {
    wait_for(broker, |all| all.iter().find(|end| end.channel == Some(channel)).cloned())
}

#[track_caller]
fn wait_for<T>(broker: &Broker, find: impl Fn(&[Disconnect]) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = broker.handle().disconnects();
        match find(&all) {
            Some(found) => return found,
            None => assert!(Instant::now() < deadline, "not among {all:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn each_end_says_who_and_why() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.outbound_bytes_max = 64 << 10);
        let process = process(&broker, "explained", AttachOptions::default());
        let mut inbound = Inbound::default();
        let said = |end: &Disconnect| (end.code, end.reason.to_string(), end.by);

        let (mut client, _) = inbound.open(&broker, &process);
        let local = client.get_ref().local_addr().unwrap();
        client.close(Some(ClientClose { code: 1000.into(), reason: "bye".into() })).unwrap();
        let end = end_of(&broker, inbound.closed(&process).channel);
        assert_eq!(said(&end), (1000, "bye".into(), ClosedBy::Client));
        assert_eq!((end.peer, end.process.as_ref(), &*end.path), (local, Some(process.id()), "/"));
        assert_eq!((end.lost_bytes, end.forwarded_for, end.ping_ms), (0, None, None));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(now.abs_diff(end.unix_ms) < 60_000, "{end:?} at {now}");

        let (client, _) = inbound.open(&broker, &process);
        drop(client);
        let why = if support::is_over_tls() {
            "the client ended TLS without close_notify: what it said last may be lost"
        } else {
            ""
        };
        assert_eq!(
            said(&end_of(&broker, inbound.closed(&process).channel)),
            (1006, why.to_owned(), ClosedBy::Connection)
        );

        let (mut client, channel) = inbound.open(&broker, &process);
        // More than a close frame holds, and cut between characters.
        let reason = "ö".repeat(100);
        process.close(channel, 4000, &reason).send().unwrap();
        assert_eq!(recv_close(&mut client).0, 4000);
        while client.read().is_ok() {}
        assert_eq!(said(&end_of(&broker, inbound.closed(&process).channel)), (4000, "ö".repeat(61), ClosedBy::Process));

        let (mut client, _) = inbound.open(&broker, &process);
        std::io::Write::write_all(client.get_mut(), &[0xff, 0x80, 1, 2, 3, 4]).unwrap();
        let end = end_of(&broker, inbound.closed(&process).channel);
        assert_eq!((end.code, end.by), (1002, ClosedBy::Violation));
        assert!(!end.reason.is_empty());

        let (_client, channel) = inbound.open(&broker, &process);
        fill(&process, channel, 16 << 10);
        (0..8).for_each(|_| process.push(channel, Push::binary(vec![7; 16 << 10])).try_send().unwrap());
        let end = end_of(&broker, inbound.closed(&process).channel);
        assert_eq!((end.code, end.by), (1013, ClosedBy::Backpressure));
        assert!(end.lost_bytes >= 16 << 10, "{end:?}");
    });
}

#[test]
fn who_does_not_register_is_told_of_too() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.register_timeout_ms = 300);
        let find = |code: u16| {
            move |all: &[Disconnect]| all.iter().find(|end| end.channel.is_none() && end.code == code).cloned()
        };
        let mut client = connect(&broker, "/");
        send(&mut client, Message::text(r#"{"auth_token":"a.b.c","target_process":"p:p:sys"}"#));
        let end = wait_for(&broker, find(4401));
        assert_eq!((end.by, end.process), (ClosedBy::Violation, None));
        assert!(end.reason.starts_with("auth_token: "), "{}", end.reason);

        let late = connect(&broker, "/");
        assert_eq!(wait_for(&broker, find(4408)).by, ClosedBy::Timeout);
        drop(late);
        drop(connect(&broker, "/"));
        assert_eq!(wait_for(&broker, find(1006)).by, ClosedBy::Connection);
    });
}

#[test]
fn pings_leave_their_mark() {
    on_each_driver(|driver| {
        let interval_ms = 500;
        let broker = broker(driver, |config| config.shard.ping_interval_ms = interval_ms);
        let process = process(&broker, "pinged", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (silent, unanswered) = inbound.open(&broker, &process);
        let (mut talker, answered) = inbound.open(&broker, &process);
        // One reads its pings, and so answers them, until the other has been given up.
        talker.get_ref().set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let read_on = |talker: &mut Client| {
            let _ = talker.read();
            let _ = talker.flush();
        };
        let deadline = Instant::now() + PATIENCE;
        let gone = loop {
            read_on(&mut talker);
            if let Some(end) = broker.handle().disconnects().into_iter().next() {
                break end;
            }
            assert!(Instant::now() < deadline, "the silent client lives on");
        };
        assert_eq!((gone.channel, gone.by, gone.pings_unanswered), (Some(unanswered), ClosedBy::Timeout, 2));
        // Two pings and the verdict, each after 80 to 95 % of the interval.
        let silent_ms_min = 3 * interval_ms * 4 / 5;
        assert!(gone.silent_ms >= silent_ms_min && gone.ping_ms.is_none(), "{gone:?}");
        drop((silent, talker));
        let end = end_of(&broker, answered);
        assert!(end.ping_ms.is_some_and(|ms| ms < 20_000), "{end:?}");
    });
}

#[test]
fn the_last_thousand_are_kept_in_order() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "many", AttachOptions::default());
        let mut inbound = Inbound::default();
        let mut ended = Vec::new();
        for _ in 0..1_050 {
            let (mut client, channel) = inbound.open(&broker, &process);
            client.close(None).unwrap();
            inbound.closed(&process);
            ended.push(channel);
        }
        let kept: Vec<_> = broker.handle().disconnects().into_iter().map(|end| end.channel.unwrap()).collect();
        assert_eq!(kept.len(), 1_000);
        // Two shards read the clock, each when it begins a turn: neighbours may change places.
        let oldest = ended.iter().position(|channel| kept.contains(channel)).unwrap();
        assert!((45..=55).contains(&oldest), "the newest are kept, from {oldest}");
        assert!(ended[1_040..].contains(&kept[999]), "the newest come last");
    });
}
