//! A push can be asked what became of it, in two ways, and a process learns that the broker has stopped.

use crate::support;
use pushring::ChannelId;
use pushring::{AttachOptions, Broker, Config, Event, Message, Outcome, PushError, QueueLimits, Stopped};
use support::{PATIENCE, connect, on_each_driver, recv};

#[test]
fn outcomes_come_by_ticket_and_as_events_and_stop_ends_the_queue() {
    on_each_driver(|_| {
        let broker = Broker::start(Config { shards: 2, driver: support::driver(), ..Config::default() }).unwrap();
        let process = broker.process("p:p:t.os").unwrap();
        process.bind("/", Default::default()).unwrap();
        let mut clients: Vec<_> = (0..5).map(|_| connect(&broker, "/p:p:t.os/")).collect();
        let (mut events, mut channels) = (Vec::new(), Vec::new());
        while channels.len() < clients.len() {
            assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
            channels.extend(events.drain(..).filter_map(|event| match event {
                Event::Opened(opened) => Some(opened.channel),
                _ => None,
            }));
        }

        let ticket = process.broadcast(Message::text("all")).except(channels[0]).ask().send().unwrap();
        assert_eq!(ticket.wait(PATIENCE), Ok(Outcome { sent: 4, ..Outcome::default() }));

        let unknown = ChannelId::new(channels.iter().map(|channel| channel.get()).max().unwrap() + 1000);
        process.broadcast(Message::text("one")).to(vec![channels[0], unknown]).ask_event(7).try_send().unwrap();
        assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
        let expected = Outcome { sent: 1, not_found: 1, ..Outcome::default() };
        assert!(matches!(events[..], [Event::Outcome { ticket: 7, outcome }] if outcome == expected), "{events:?}");
        let first = clients.iter_mut().map(recv).map(|message| message.to_text().unwrap().to_owned());
        let mut first: Vec<_> = first.collect();
        first.sort();
        assert_eq!(first, ["all", "all", "all", "all", "one"]);

        drop(clients);
        broker.stop(PATIENCE).unwrap();
        let ended = loop {
            events.clear();
            if let Err(error) = process.recv_batch(&mut events, PATIENCE) {
                break error;
            }
        };
        assert_eq!(ended, Stopped);
    });
}

/// A process that asks and never listens does not grow its queue for ever; nothing but its questions is refused.
#[test]
fn outcomes_that_nobody_reads_are_bounded() {
    let broker = Broker::start(Config { shards: 1, driver: support::driver(), ..Config::default() }).unwrap();
    let queue = QueueLimits { messages_max: 100, ..QueueLimits::default() };
    let options = AttachOptions { queue, ..AttachOptions::default() };
    let process = broker.handle().process("p:p:t.os", options).unwrap();
    let nobody = ChannelId::new(u32::MAX);
    let ask = |ticket| process.push(nobody, Message::text("?")).ask_event(ticket).try_send();
    let refused_after = (0..).find(|&ticket| match ask(ticket) {
        Ok(()) | Err(PushError::InboxFull) => false,
        Err(error) => {
            assert_eq!(error, PushError::OutcomesUnread);
            true
        }
    });
    // Those that were on their way when the last was refused come on top.
    assert!(refused_after.unwrap() >= 100);
    process.push(nobody, Message::text("not asked")).send().unwrap();
    let ticket = process.push(nobody, Message::text("asked by ticket")).ask().send().unwrap();
    assert_eq!(ticket.wait(PATIENCE).unwrap().not_found, 1);
    let mut events = Vec::new();
    while ask(0).is_err() {
        assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
    }
    assert!(events.len() >= 100);
    // Outcomes of a process that is gone are dropped, and hold up no other.
    drop(process);
    assert!(broker.handle().reports().iter().all(|report| report.memory.process_queue_bytes == 0));
}

/// An embedder's error is an error, and affects no other process.
#[test]
fn a_message_that_no_queue_can_count_is_refused() {
    let broker = Broker::start(Config { shards: 1, driver: support::driver(), ..Config::default() }).unwrap();
    let process = broker.process("p:p:t.os").unwrap();
    process.bind("/", Default::default()).unwrap();
    let mut client = connect(&broker, "/p:p:t.os/");
    // Zeros that are never touched take no memory.
    let huge = Message::binary(vec![0; 1 << 32]);
    let nobody = ChannelId::new(u32::MAX);
    assert_eq!(process.push(nobody, huge.clone()).try_send(), Err(PushError::TooLarge));
    assert_eq!(process.push(nobody, huge.clone()).send(), Err(PushError::TooLarge));
    assert_eq!(process.push(nobody, huge.clone()).ask().send().err(), Some(PushError::TooLarge));
    assert_eq!(process.broadcast(huge.clone()).send(), Err(PushError::TooLarge));
    assert_eq!(process.batch().send(process.push(nobody, huge.clone())), Err(PushError::TooLarge));
    assert_eq!(broker.handle().push(nobody, huge).send(), Err(PushError::TooLarge));
    process.broadcast(Message::text("small")).send().unwrap();
    assert_eq!(recv(&mut client).to_text().unwrap(), "small");
}

/// However long a list is, and however often it names a channel, each mention counts, and others are served between
/// them.
#[test]
fn a_list_may_be_long_and_name_a_channel_again_and_again() {
    let broker = Broker::start(Config { shards: 2, driver: support::driver(), ..Config::default() }).unwrap();
    let process = broker.process("p:p:t.os").unwrap();
    process.bind("/", Default::default()).unwrap();
    let mut client = connect(&broker, "/p:p:t.os/");
    let mut events = Vec::new();
    assert!(process.recv_batch(&mut events, PATIENCE).unwrap() > 0, "events come");
    let Some(Event::Opened(opened)) = events.first() else { panic!("{events:?}") };
    let strangers = (0..100_000).map(|at| ChannelId::new(opened.channel.get().wrapping_add(2 + 2 * at)));
    let named: Vec<_> = strangers.chain([opened.channel; 3_000]).collect();
    let ticket = process.broadcast(Message::text("again")).to(named).ask().send().unwrap();
    process.push(opened.channel, Message::text("behind")).send().unwrap();
    for _ in 0..3_000 {
        assert_eq!(recv(&mut client).to_text().unwrap(), "again");
    }
    assert_eq!(recv(&mut client).to_text().unwrap(), "behind");
    assert_eq!(ticket.wait(PATIENCE), Ok(Outcome { sent: 3_000, not_found: 100_000, ..Outcome::default() }));
}
