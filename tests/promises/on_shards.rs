//! A process that runs on the shards keeps the contract of one on a thread: every channel is opened once and closed
//! once, and in between its messages come in order; pushes keep their order, whichever shard their channel is on;
//! policies hold and outcomes are reported when asked for; no order is lost for want of room. A panic closes its
//! channels with 1011 and nothing else; a slow handler is counted, and others are served between two of its events;
//! calls that wait for shards are refused instead of hanging.

use crate::rooms::Rooms;
use crate::support;
use pushring::internals::gateway::HttpRule;
use pushring::{
    AttachError, AttachOptions, Broker, ChannelId, ClosedBy, Event, Here, Message as Push, MessageKind, Outcome,
    Policy, PushError, QueueLimits, ShardProcess,
};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{
    Client, Inbound, PATIENCE, broker, connect, on_each_driver, process, recv, recv_close, send, try_connect,
};
use tungstenite::Message;

/// An event of a handler, with its shard.
type Told = (usize, Event);

/// A process on the shards that reports its events, and then acts as `act` says. Bound at `/on`.
fn telling(
    broker: &Broker,
    options: AttachOptions,
    act: impl Fn(&mut Here<'_>, &Event) + Clone + Send + Sync + 'static,
) -> (ShardProcess, Receiver<Told>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let process = broker.handle().on_shards_with("on", options, move |_| {
        let (tell, act): (Sender<Told>, _) = (tell.lock().unwrap().clone(), act.clone());
        move |here: &mut Here<'_>, event: Event| {
            act(here, &event);
            let _ = tell.send((here.shard(), event));
        }
    });
    let process = process.unwrap();
    process.handle().bind_at("/on").unwrap();
    (process, told)
}

fn next(told: &Receiver<Told>) -> Event {
    told.recv_timeout(PATIENCE).expect("an event").1
}

fn opened(told: &Receiver<Told>) -> ChannelId {
    match next(told) {
        Event::Opened(opened) => opened.channel,
        other => panic!("expected Opened, got {other:?}"),
    }
}

fn closed(told: &Receiver<Told>) -> (ChannelId, u16, ClosedBy) {
    match next(told) {
        Event::Closed(closed) => (closed.channel, closed.code, closed.by),
        other => panic!("expected Closed, got {other:?}"),
    }
}

/// Clients of `/on`, at least one on each of two shards.
fn clients_on_both(broker: &Broker, told: &Receiver<Told>) -> Vec<(Client, ChannelId)> {
    let mut clients: Vec<(Client, ChannelId)> = Vec::new();
    while clients.len() < 2 || clients.iter().all(|(_, id)| id.shard(2) == clients[0].1.shard(2)) {
        let client = connect(broker, "/on");
        clients.push((client, opened(told)));
    }
    // One of each first.
    let other = clients.iter().position(|(_, id)| id.shard(2) != clients[0].1.shard(2)).unwrap();
    clients.swap(1, other);
    clients
}

/// Does what a message says: `close`, `panic`, `to ID TEXT`, `wait`, …
fn execute(here: &mut Here<'_>, event: &Event) {
    let Event::Message { channel, payload, kind: MessageKind::Text } = event else { return };
    let text = std::str::from_utf8(payload).unwrap();
    let mut words = text.splitn(3, ' ');
    match (words.next().unwrap(), words.next(), words.next()) {
        ("close", ..) => here.close(*channel, 3000, "done").send().unwrap(),
        ("panic", ..) => panic!("as it was told to"),
        ("to", Some(id), Some(text)) => {
            here.push(ChannelId::new(id.parse().unwrap()), Push::text(text)).ask_event(7).send().unwrap();
        }
        ("try", Some(id), Some(text)) => {
            here.push(ChannelId::new(id.parse().unwrap()), Push::text(text)).ask_failure(8).try_send().unwrap();
        }
        ("all", ..) => here.broadcast(Push::text(text)).except(*channel).ask_event(9).send().unwrap(),
        _ => here.push(*channel, Push::text(text)).send().unwrap(),
    }
}

fn executing(here: &mut Here<'_>, event: Event) {
    execute(here, &event);
}

#[test]
fn channels_are_opened_once_and_closed_once_and_messages_come_in_order() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let (_process, told) = telling(&broker, AttachOptions::default(), execute);
        let mut clients = clients_on_both(&broker, &told);
        for (client, id) in &mut clients {
            for number in 0..100 {
                client.write(Message::text(format!("number {number}"))).unwrap();
            }
            client.flush().unwrap();
            for number in 0..100 {
                assert_eq!(recv(client), Message::text(format!("number {number}")));
                let (shard, event) = told.recv_timeout(PATIENCE).unwrap();
                let Event::Message { channel, payload, .. } = event else { panic!("{event:?}") };
                assert_eq!((channel, shard), (*id, id.shard(2) as usize));
                assert_eq!(payload, format!("number {number}"));
            }
        }
        let (mut first, first_id) = clients.swap_remove(0);
        send(&mut first, "close");
        assert_eq!(recv_close(&mut first), (3000, "done".into()));
        first.flush().unwrap();
        assert!(matches!(next(&told), Event::Message { .. }));
        assert_eq!(closed(&told), (first_id, 3000, ClosedBy::Process));
        let mut left: Vec<_> = clients.iter().map(|client| client.1).collect();
        let (gone, gone_id) = clients.pop().unwrap();
        drop(gone);
        assert_eq!(closed(&told), (gone_id, 1006, ClosedBy::Connection));
        // The others hear of the end of the broker, and their handlers of it, before they are gone themselves.
        broker.stop(Duration::ZERO).unwrap();
        left.retain(|&id| id != gone_id);
        for _ in 0..left.len() {
            let (id, _, by) = closed(&told);
            assert_eq!(by, ClosedBy::Broker);
            left.retain(|&other| other != id);
        }
        assert!(left.is_empty());
        drop(_process);
        assert!(told.recv_timeout(PATIENCE).is_err(), "handlers are gone, and nothing more was told");
    });
}

#[test]
fn each_shard_has_a_handler_of_its_own_that_keeps_what_it_likes() {
    let broker = broker(support::driver(), |_| {});
    let made = Arc::new(Mutex::new(Vec::new()));
    let seen = made.clone();
    let process = broker.on_shards("counts", move |shard| {
        seen.lock().unwrap().push(shard);
        // Neither Send nor Sync.
        let count = std::rc::Rc::new(RefCell::new(0));
        move |here: &mut Here<'_>, event: Event| {
            if let Event::Message { channel, .. } = event {
                *count.borrow_mut() += 1;
                let text = format!("{} of {} on {}", count.borrow(), here.process(), here.shard());
                here.push(channel, Push::text(text)).send().unwrap();
            }
        }
    });
    let process = process.unwrap();
    process.handle().bind_at("/counts").unwrap();
    let mut sorted = made.lock().unwrap().clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 1], "one for each shard, before the first client");
    let mut counts = [0, 0];
    for _ in 0..20 {
        let mut client = connect(&broker, "/counts");
        send(&mut client, "?");
        let text = recv(&mut client).into_text().unwrap().to_string();
        let shard: usize = text.rsplit(' ').next().unwrap().parse().unwrap();
        counts[shard] += 1;
        assert_eq!(text, format!("{} of {} on {shard}", counts[shard], process.id()));
    }
}

#[test]
fn pushes_to_other_shards_keep_their_order_and_are_not_lost_for_want_of_room() {
    on_each_driver(|driver| {
        // Room for four orders of one process at a time.
        let broker = broker(driver, |config| config.inbox.commands_max = 16);
        let (_process, told) = telling(&broker, AttachOptions::default(), |here, event| {
            if let Event::Message { channel, payload, .. } = event {
                for copy in 0..3 {
                    let text = format!("{} {copy}", String::from_utf8_lossy(payload));
                    here.broadcast(Push::text(text)).except(*channel).send().unwrap();
                }
            }
        });
        let mut clients = clients_on_both(&broker, &told);
        let (mut sender, _) = clients.swap_remove(0);
        for number in 0..2_000 {
            sender.write(Message::text(number.to_string())).unwrap();
        }
        sender.flush().unwrap();
        for (client, _) in &mut clients {
            for number in 0..6_000 {
                let expected = format!("{} {}", number / 3, number % 3);
                assert_eq!(recv(client), Message::text(expected));
            }
        }
    });
}

#[test]
fn what_cannot_wait_is_refused() {
    let broker = broker(support::driver(), |config| config.inbox.commands_max = 16);
    let refused = Arc::new(AtomicUsize::new(0));
    let seen = refused.clone();
    let (_process, told) = telling(&broker, AttachOptions::default(), move |here, event| {
        if let Event::Message { payload, .. } = event {
            let to: ChannelId = ChannelId::new(String::from_utf8_lossy(payload).parse().unwrap());
            let tries = (0..100).filter(|_| here.push(to, Push::text("x")).try_send() == Err(PushError::InboxFull));
            seen.store(tries.count(), Ordering::SeqCst);
            let mut kept = 0;
            while here.push(to, Push::text("y")).send() != Err(PushError::InboxFull) {
                kept += 1;
            }
            here.push(to, Push::text(format!("{kept}"))).send().unwrap_err();
        }
    });
    let mut clients = clients_on_both(&broker, &told);
    let text = clients[1].1.to_string();
    send(&mut clients[0].0, text);
    // While this shard is busy with the handler, the other one drains: so of many pushes some are refused, or none.
    let mut count = 0;
    while recv(&mut clients[1].0) == Message::text("x") {
        count += 1;
    }
    assert!(matches!(next(&told), Event::Message { .. }));
    assert_eq!(count + refused.load(Ordering::SeqCst), 100);
}

#[test]
fn outcomes_and_failures_are_told_to_the_handler_that_asked() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let (_process, told) = telling(&broker, AttachOptions::default(), execute);
        let mut clients = clients_on_both(&broker, &told);
        let (here, there) = (clients[0].1, clients[1].1);
        let mut ask = |text: String| {
            send(&mut clients[0].0, text);
            assert!(matches!(next(&told), Event::Message { .. }));
            let (shard, event) = told.recv_timeout(PATIENCE).unwrap();
            assert_eq!(shard, here.shard(2) as usize, "{event:?}");
            event
        };
        for to in [here, there] {
            let event = ask(format!("to {to} hello"));
            let sent = Outcome { sent: 1, ..Outcome::default() };
            assert!(matches!(event, Event::Outcome { ticket: 7, outcome } if outcome == sent), "{event:?}");
        }
        // Channels that are not, on either shard.
        for nobody in [here.get() ^ 0x7000_0000, there.get() ^ 0x7000_0000] {
            let event = ask(format!("try {nobody} hello"));
            assert!(matches!(event, Event::Failed { ticket: 8, outcome } if outcome.not_found == 1), "{event:?}");
        }
        let event = ask("all of you".to_owned());
        let others = clients.len() - 1;
        assert!(matches!(event, Event::Outcome { ticket: 9, outcome } if outcome.sent == others), "{event:?}");
        assert_eq!(recv(&mut clients[1].0), Message::text("hello"));
        assert_eq!(recv(&mut clients[1].0), Message::text("all of you"));
    });
}

/// One that asks more than its handler reads does not grow without bound, though its events have left the queue.
#[test]
fn outcomes_that_a_handler_has_not_read_are_bounded() {
    let broker = broker(support::driver(), |config| config.shards = 1);
    let options =
        AttachOptions { queue: QueueLimits { messages_max: 4, ..QueueLimits::default() }, ..AttachOptions::default() };
    let (goes_on, waits) = channel::<()>();
    let waits = Mutex::new(Some(waits));
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let process = broker.handle().on_shards_with("on", options, move |_| {
        let (waits, tell) = (waits.lock().unwrap().take().expect("one shard"), tell.lock().unwrap().clone());
        move |here: &mut Here<'_>, event: Event| {
            let _ = tell.send((here.shard(), event));
            // Slower than any should be.
            let _ = waits.recv_timeout(PATIENCE);
        }
    });
    let process = process.unwrap();
    let ask = |ticket| process.handle().push(ChannelId::new(0), Push::text("?")).ask_event(ticket).try_send();
    let outcome = |told: &Receiver<Told>| match next(told) {
        Event::Outcome { ticket, .. } => ticket,
        other => panic!("expected Outcome, got {other:?}"),
    };
    ask(0).unwrap();
    assert_eq!(outcome(&told), 0);
    // The shard stands still meanwhile: it executes these together, behind this event.
    (1..=8).for_each(|ticket| ask(ticket).unwrap());
    goes_on.send(()).unwrap();
    assert_eq!(outcome(&told), 1);
    assert_eq!(ask(9), Err(PushError::OutcomesUnread), "seven wait");
    for ticket in 2..=8 {
        goes_on.send(()).unwrap();
        assert_eq!(outcome(&told), ticket);
    }
    ask(10).unwrap();
    goes_on.send(()).unwrap();
    assert_eq!(outcome(&told), 10);
    goes_on.send(()).unwrap();
}

#[test]
fn a_client_that_does_not_keep_up_meets_the_policy_and_its_handler_does_not_wait() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shard.outbound_bytes_max = 100_000);
        let options = AttachOptions { policy: Policy::Close, ..AttachOptions::default() };
        let (_process, told) = telling(&broker, options, |here, event| {
            if let Event::Message { channel, payload, .. } = event {
                match &payload[..] {
                    b"flood" => {
                        // More than the kernel takes for a client that does not read, and no more than may wait.
                        for _ in 0..200 {
                            here.push(*channel, Push::binary(vec![0; 60_000])).send().unwrap();
                        }
                    }
                    b"drop" => {
                        for _ in 0..200 {
                            let push = here.push(*channel, Push::binary(vec![0; 60_000])).policy(Policy::DropNewest);
                            push.send().unwrap();
                        }
                        here.push(*channel, Push::text("still here")).send().unwrap();
                    }
                    _ => here.push(*channel, Push::text("yes")).send().unwrap(),
                }
            }
        });
        let (mut flooded, mut dropping) = (connect(&broker, "/on"), connect(&broker, "/on"));
        let mut witness = connect(&broker, "/on");
        (0..3).for_each(|_| _ = opened(&told));
        send(&mut flooded, "flood");
        send(&mut dropping, "drop");
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, Event::Closed(_))) {
            events.push(next(&told));
        }
        let Some(Event::Closed(closed)) = events.iter().find(|event| matches!(event, Event::Closed(_))) else {
            panic!()
        };
        assert_eq!((closed.code, closed.by), (1013, ClosedBy::Backpressure));
        send(&mut witness, "are you there?");
        assert_eq!(recv(&mut witness), Message::text("yes"));
        // It does not read before that.
        while broker.handle().reports().iter().all(|report| report.stats.dropped == 0) {
            std::thread::yield_now();
        }
        let mut whole = 0;
        while recv(&mut dropping) != Message::text("still here") {
            whole += 1;
        }
        assert!(whole < 200, "some were dropped");
    });
}

#[test]
fn a_panic_ends_its_channels_with_1011_and_nothing_else() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let other = process(&broker, "other", AttachOptions::default());
        let mut inbound = Inbound::default();
        let (mut witness, _) = inbound.open(&broker, &other);
        let neighbour = broker.on_shards("neighbour", |_| executing).unwrap();
        neighbour.handle().bind_at("/neighbour").unwrap();
        let mut neighbours: Vec<_> = (0..6).map(|_| connect(&broker, "/neighbour")).collect();
        let (doomed, told) = telling(&broker, AttachOptions::default(), execute);
        doomed.handle().bind_http_at("/ask", HttpRule::default()).unwrap();
        let mut clients = clients_on_both(&broker, &told);
        let mut asked = TcpStream::connect(broker.address()).unwrap();
        asked.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(asked, "GET /ask HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        assert!(matches!(next(&told), Event::Http(_)));
        send(&mut clients[0].0, "panic");
        for (client, _) in &mut clients {
            assert_eq!(recv_close(client).0, 1011);
        }
        let mut response = String::new();
        asked.read_to_string(&mut response).unwrap();
        assert!(response.starts_with("HTTP/1.1 500 "), "{response}");
        for client in &mut neighbours {
            send(client, "still here?");
            assert_eq!(recv(client), Message::text("still here?"));
        }
        send(&mut witness, "are you there?");
        assert!(matches!(inbound.next(&other), Event::Message { .. }));
        assert!(try_connect(&broker, "/on").is_err(), "nothing is bound there any more");
        let (_again, told) = telling(&broker, AttachOptions::default(), execute);
        let mut client = connect(&broker, "/on");
        opened(&told);
        drop(doomed);
        send(&mut client, "hello");
        assert_eq!(recv(&mut client), Message::text("hello"), "its successor is its own");
    });
}

#[test]
fn one_that_ends_closes_with_its_code_and_its_name_is_free() {
    let broker = broker(support::driver(), |_| {});
    let (process, told) = telling(&broker, AttachOptions::default(), execute);
    let mut clients = clients_on_both(&broker, &told);
    assert!(matches!(broker.on_shards("on", |_| executing), Err(AttachError::Taken(_))));
    assert!(matches!(broker.process("on"), Err(AttachError::Taken(_))));
    send(&mut clients[0].0, "still here");
    assert_eq!(recv(&mut clients[0].0), Message::text("still here"), "who came too late has taken nothing");
    process.end(3001, "enough");
    for (client, _) in &mut clients {
        assert_eq!(recv_close(client), (3001, "enough".into()));
    }
    let (process, told) = telling(&broker, AttachOptions::default(), execute);
    let mut clients = clients_on_both(&broker, &told);
    drop(process);
    for (client, _) in &mut clients {
        assert_eq!(recv_close(client).0, 1001);
    }
}

#[test]
fn a_handler_that_cannot_be_made_leaves_nothing_behind() {
    let broker = broker(support::driver(), |_| {});
    let made = broker.on_shards("on", |shard| {
        assert!(shard == 0, "there is no handler for shard {shard}");
        executing
    });
    assert!(matches!(made, Err(AttachError::Panicked(_))));
    let (_process, told) = telling(&broker, AttachOptions::default(), execute);
    let mut client = connect(&broker, "/on");
    opened(&told);
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
}

/// Panics as it is dropped.
struct Grudge;

impl Drop for Grudge {
    fn drop(&mut self) {
        panic!("it does not go quietly");
    }
}

#[test]
fn what_a_process_panics_with_and_leaves_behind_harms_nobody() {
    let broker = broker(support::driver(), |_| {});
    let neighbour = broker.on_shards("neighbour", |_| executing).unwrap();
    neighbour.handle().bind_at("/neighbour").unwrap();
    let is_served = || {
        // On each shard.
        for mut client in (0..6).map(|_| connect(&broker, "/neighbour")) {
            send(&mut client, "still here?");
            assert_eq!(recv(&mut client), Message::text("still here?"));
        }
    };
    let made = broker.on_shards("unmade", |_| -> fn(&mut Here<'_>, Event) { std::panic::panic_any(Grudge) });
    assert!(matches!(made, Err(AttachError::Panicked(_))));
    is_served();
    let kept = Grudge;
    let doomed = broker.on_shards("doomed", move |_| {
        let _kept = &kept;
        |_: &mut Here<'_>, event: Event| {
            if matches!(event, Event::Message { .. }) {
                std::panic::panic_any(Grudge);
            }
        }
    });
    let doomed = doomed.unwrap();
    doomed.handle().bind_at("/doomed").unwrap();
    let mut client = connect(&broker, "/doomed");
    send(&mut client, "now");
    assert_eq!(recv_close(&mut client).0, 1011);
    is_served();
    broker.stop(PATIENCE).unwrap();
}

#[test]
fn others_are_served_between_two_events_of_a_slow_one_which_is_counted() {
    on_each_driver(|driver| {
        const EVENTS: usize = 100;
        let broker = broker(driver, |config| config.shards = 1);
        let done = Arc::new(AtomicUsize::new(0));
        let counted = done.clone();
        let slow = broker.on_shards("slow", move |_| {
            let done = counted.clone();
            move |_: &mut Here<'_>, event: Event| {
                if matches!(event, Event::Message { .. }) {
                    std::thread::sleep(Duration::from_millis(10));
                    done.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let slow = slow.unwrap();
        slow.handle().bind_at("/slow").unwrap();
        let (_process, told) = telling(&broker, AttachOptions::default(), execute);
        let (mut busy, mut witness) = (connect(&broker, "/slow"), connect(&broker, "/on"));
        opened(&told);
        for _ in 0..EVENTS {
            busy.write(Message::text("work")).unwrap();
        }
        busy.flush().unwrap();
        while done.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // All of them have come, and most are not done when others are answered.
        send(&mut witness, "are you there?");
        assert_eq!(recv(&mut witness), Message::text("are you there?"));
        assert!(done.load(Ordering::SeqCst) < EVENTS, "it stood behind all of them");
        while done.load(Ordering::SeqCst) < EVENTS {
            std::thread::yield_now();
        }
        drop(slow);
        let stats = broker.handle().reports()[0].stats;
        assert!(stats.handler_slow >= EVENTS as u64 && stats.handler_ns >= EVENTS as u64 * 10_000_000, "{stats:?}");
        assert!(stats.handler_events > stats.handler_slow, "{stats:?}");
    });
}

/// `examples/on_shards.rs`.
#[test]
fn rooms_reach_across_shards_and_not_beyond_their_walls() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let rooms = broker.on_shards("rooms", |_| Rooms::default()).unwrap();
        for room in ["lobby", "kitchen"] {
            rooms.handle().bind_at(&format!("/room/{room}")).unwrap();
        }
        let mut lobby: Vec<_> = (0..8).map(|_| connect(&broker, "/room/lobby")).collect();
        let mut cook = connect(&broker, "/room/kitchen");
        send(&mut cook, "/who");
        assert!(recv(&mut cook).to_text().unwrap().starts_with("1 on shard "));
        // Each of them is there once it is answered.
        for client in &mut lobby {
            send(client, "/who");
            assert!(recv(client).to_text().unwrap().ends_with(" of 2"));
        }
        send(&mut lobby[0], "hello");
        for client in &mut lobby[1..] {
            assert_eq!(recv(client), Message::text("hello"));
        }
        send(&mut cook, "/who");
        assert!(recv(&mut cook).to_text().unwrap().starts_with("1 on shard "), "and nothing from the lobby");
    });
}

#[test]
fn it_answers_requests_too() {
    let broker = broker(support::driver(), |_| {});
    let process = broker.on_shards("asked", |_| {
        |here: &mut Here<'_>, event: Event| {
            if let Event::Http(request) = event {
                let body = format!("{} bytes on {}", request.body.len(), here.shard());
                here.respond(request.id, 201).header("x-by", "a handler").body(body).send().unwrap();
            }
        }
    });
    let process = process.unwrap();
    process.handle().bind_http_at("/ask", HttpRule::default()).unwrap();
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 201 ") && response.contains("x-by: a handler"), "{response}");
    assert!(response.contains("3 bytes on "), "{response}");
}

#[test]
fn a_handler_that_asked_is_told_of_who_joins_and_who_leaves() {
    let broker = broker(support::driver(), |_| {});
    let options = AttachOptions { wants_topics: true, ..AttachOptions::default() };
    let (_process, told) = telling(&broker, options, |here, event| {
        if let Event::Message { channel, payload, .. } = event {
            let topic = std::str::from_utf8(payload).unwrap();
            here.subscribe(*channel, topic).send().unwrap();
        }
    });
    for (mut client, channel) in clients_on_both(&broker, &told) {
        send(&mut client, "news");
        assert!(matches!(next(&told), Event::Message { .. }));
        match next(&told) {
            Event::Joined { channel: joined, topic } => assert_eq!((joined, &*topic), (channel, "news")),
            other => panic!("expected Joined, got {other:?}"),
        }
        drop(client);
        match next(&told) {
            Event::Left { channel: left, topic } => assert_eq!((left, &*topic), (channel, "news")),
            other => panic!("expected Left, got {other:?}"),
        }
        assert_eq!(closed(&told).0, channel);
    }
}

#[test]
fn what_waits_for_shards_is_refused_instead_of_hanging() {
    let broker = broker(support::driver(), |_| {});
    let handle = broker.handle();
    let process = broker.on_shards("waits", move |_| {
        let handle = handle.clone();
        move |_: &mut Here<'_>, event: Event| {
            if matches!(event, Event::Message { .. }) {
                // Would wait for the very shard that it runs on.
                let _ = handle.process("another", AttachOptions::default());
            }
        }
    });
    let process = process.unwrap();
    process.handle().bind_at("/waits").unwrap();
    let mut client = connect(&broker, "/waits");
    send(&mut client, "now");
    assert_eq!(recv_close(&mut client).0, 1011);
    broker.stop(PATIENCE).unwrap();
}
