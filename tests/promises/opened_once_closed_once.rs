//! Every channel is opened once and closed once, whichever side ends it and however; and the process is told which.

use crate::support;
use pushring::ChannelId;
use pushring::{AttachOptions, Broker, ClosedBy, Event, Process, Stopped};
use std::io::Write;
use std::net::Shutdown;
use std::time::Duration;
use support::{Client, Inbound, PATIENCE, Push, broker, fill, on_each_driver, process, recv, recv_close};
use tungstenite::Message;
use tungstenite::protocol::CloseFrame;

/// For clients that do not answer.
const SHORT: Duration = Duration::from_millis(200);

/// Ends a channel in some way, and checks what the process is told: Opened once, Closed once, and of the channel that
/// is opened afterwards nothing else in between.
fn check(end: impl Fn(&Process, &mut Client, ChannelId), code: u16, by: ClosedBy) {
    check_with(PATIENCE, end, code, by);
}

/// The same; a client that does not answer a close is waited for so long.
fn check_with(answers_in: Duration, end: impl Fn(&Process, &mut Client, ChannelId), code: u16, by: ClosedBy) {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.close_timeout_ms = answers_in.as_millis() as u64);
        let process = process(&broker, "once", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (mut client, channel) = inbound.open(&broker, &process);
        end(&process, &mut client, channel);
        let closed = inbound.closed(&process);
        assert_eq!((closed.channel, closed.code, closed.by), (channel, code, by));
        drop(client);
        nothing_more(broker, process, &mut inbound);
    });
}

/// Stops the broker and reads what the process is still told: nothing.
fn nothing_more(broker: Broker, process: Process, inbound: &mut Inbound) {
    let (_other, other) = inbound.open(&broker, &process);
    broker.stop(Duration::ZERO).unwrap();
    assert_eq!(inbound.closed(&process).channel, other);
    let mut events = Vec::new();
    assert_eq!(process.recv_batch(&mut events, support::PATIENCE), Err(Stopped), "{events:?}");
}

#[test]
fn the_client_closes() {
    let end = |_: &Process, client: &mut Client, _| {
        client.close(Some(CloseFrame { code: 3001.into(), reason: "enough".into() })).unwrap();
        client.flush().unwrap();
        assert_eq!(recv_close(client).0, 3001, "the code is echoed (RFC 6455 5.5.1)");
    };
    check(end, 3001, ClosedBy::Client);
}

#[test]
fn the_client_closes_without_a_code() {
    check(|_, client, _| client.close(None).unwrap(), 1005, ClosedBy::Client);
}

#[test]
fn the_client_leaves_without_a_word() {
    check(|_, client, _| client.get_ref().shutdown(Shutdown::Both).unwrap(), 1006, ClosedBy::Connection);
}

#[test]
fn the_connection_is_reset() {
    let end = |_: &Process, client: &mut Client, _| {
        let socket = socket2::SockRef::from(client.get_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        // Closing the descriptor sends the reset; what is left here is a socket that leads nowhere.
        let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        client.get_mut().stream = std::net::TcpStream::connect(nowhere.local_addr().unwrap()).unwrap();
    };
    check(end, 1006, ClosedBy::Connection);
}

#[test]
fn the_client_breaks_the_protocol() {
    let end = |_: &Process, client: &mut Client, _| {
        // Not masked (RFC 6455 5.1), twice: what follows a violation is not even looked at.
        client.get_mut().write_all(&[0x82, 0x01, 0x00, 0x82, 0x01, 0x00]).unwrap();
        assert_eq!(recv_close(client).0, 1002);
    };
    check(end, 1002, ClosedBy::Violation);
}

#[test]
fn the_process_closes() {
    let end = |process: &Process, client: &mut Client, channel| {
        process.close(channel, 3000, "done").send().unwrap();
        process.close(channel, 3002, "done twice").send().unwrap();
        assert_eq!(recv_close(client), (3000, "done".into()));
        client.flush().unwrap();
    };
    check(end, 3000, ClosedBy::Process);
}

#[test]
fn the_process_closes_and_the_client_does_not_answer() {
    let end = |process: &Process, _: &mut Client, channel| process.close(channel, 3000, "done").send().unwrap();
    check_with(SHORT, end, 1006, ClosedBy::Process);
}

#[test]
fn the_budget_is_exceeded() {
    let end = |process: &Process, _: &mut Client, channel| {
        fill(process, channel, 64 * 1024);
        // The default budget is 1 MiB.
        for _ in 0..17 {
            process.push(channel, Push::binary(vec![0; 64 * 1024])).try_send().unwrap();
        }
    };
    check_with(SHORT, end, 1013, ClosedBy::Backpressure);
}

#[test]
fn the_process_ends_and_what_it_pushed_still_arrives() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "ends", AttachOptions::default());
        let (mut client, channel) = Inbound::default().open(&broker, &process);
        process.push(channel, Push::text("last words")).try_send().unwrap();
        drop(process);
        assert_eq!(recv(&mut client), Message::text("last words"));
        assert_eq!(recv_close(&mut client).0, 1001);
        assert_closed_once(&broker, ClosedBy::Process);
    });
}

#[test]
fn the_process_panics() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "panics", AttachOptions::default());
        let (mut client, _) = Inbound::default().open(&broker, &process);
        let thread = std::thread::spawn(move || {
            let _process = process;
            // As a panic, but without its message on the test's output.
            std::panic::resume_unwind(Box::new("a panic of the process"));
        });
        assert!(thread.join().is_err());
        assert_eq!(recv_close(&mut client).0, 1011);
        assert_closed_once(&broker, ClosedBy::Process);
    });
}

/// There was one channel, and this side ended it.
fn assert_closed_once(broker: &Broker, by: ClosedBy) {
    let reports = broker.handle().reports();
    let opened: u64 = reports.iter().map(|report| report.stats.opened).sum();
    let closed: u64 = reports.iter().map(|report| report.stats.closed[by as usize]).sum();
    let closed_by_any: u64 = reports.iter().flat_map(|report| report.stats.closed).sum();
    assert_eq!((opened, closed, closed_by_any), (1, 1, 1));
    assert_eq!(reports.iter().map(|report| report.channels).sum::<usize>(), 0);
}

#[test]
fn the_broker_stops() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let process = process(&broker, "stops", AttachOptions::default());
        let mut inbound = Inbound::default();
        let mut channels = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let (client, channel) = inbound.open(&broker, &process);
            clients.push(client);
            channels.push(channel);
        }
        broker.stop(Duration::from_millis(100)).unwrap();
        let mut events = Vec::new();
        let end = loop {
            if let Err(end) = process.recv_batch(&mut events, support::PATIENCE) {
                break end;
            }
        };
        assert_eq!(end, Stopped, "the process is told that there is nothing more to come");
        let mut closed: Vec<ChannelId> = events
            .iter()
            .map(|event| match event {
                Event::Closed(closed) => closed.channel,
                other => panic!("expected Closed, got {other:?}"),
            })
            .collect();
        closed.sort_unstable();
        channels.sort_unstable();
        assert_eq!(closed, channels);
    });
}
