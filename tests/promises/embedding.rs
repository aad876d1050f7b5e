//! A program embeds a broker with a name and a path: no node, no id of three parts. Its tasks receive and push on any
//! executor, its threads beside them; a wait that times out is no error, and a plain name belongs to the program alone.

use crate::support;
use pushring::{AttachError, Broker, Builder, Event, Message, NotYetKnown, Process, PushError, Stopped};
use std::future::{Future, IntoFuture};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use support::{PATIENCE, connect, on_each_driver, recv, send, try_connect};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The least of executors: it polls again when it is woken, and fails where nothing wakes it.
fn block_on<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let started = std::time::Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park_timeout(PATIENCE);
        assert!(started.elapsed() < PATIENCE, "nothing woke the task");
    }
}

fn start() -> Builder {
    Broker::builder().shards(2).driver(support::driver())
}

fn chat(broker: &Broker) -> Process {
    let chat = broker.process("chat").unwrap();
    chat.bind_at("/rooms/:room").unwrap();
    chat
}

#[test]
fn how_long_pushes_take_to_the_kernel_is_sampled() {
    on_each_driver(|_| {
        let broker = start().shards(1).start().unwrap();
        let chat = chat(&broker);
        let mut client = connect(&broker, "/rooms/1");
        let started = std::time::Instant::now();
        let (mut pushes, mut samples) = (0, 0);
        // Each way of pushing may be the one that is sampled.
        while samples < 3 {
            chat.broadcast(Message::text("to all")).send().unwrap();
            block_on(chat.broadcast(Message::text("to all"))).unwrap();
            pushes += 2;
            recv(&mut client);
            recv(&mut client);
            samples = broker.handle().reports()[0].push_delays.count();
            assert!(started.elapsed() < PATIENCE, "{samples} samples of {pushes} pushes");
        }
        let report = broker.handle().reports().remove(0);
        assert!(report.push_delays.sum_us >= report.push_delays.max_us && report.turns.count() > samples);
        assert!(samples <= pushes, "{samples} samples of {pushes} pushes");
    });
}

#[test]
fn a_name_and_a_path_are_enough() {
    on_each_driver(|_| {
        let broker = start().start().unwrap();
        let mut chat = chat(&broker);
        assert_eq!(chat.recv_timeout(Duration::ZERO).unwrap().map(|_| ()), None, "a wait that ends is no error");
        let (mut one, mut two) = (connect(&broker, "/rooms/1"), connect(&broker, "/rooms/1"));
        let mut opened = || match chat.recv_blocking().unwrap() {
            Event::Opened(opened) => opened,
            other => panic!("{other:?}"),
        };
        let (first, second) = (opened(), opened());
        assert_eq!((&*first.path, &*second.path), ("/rooms/1", "/rooms/1"), "the whole path, as it was asked for");
        send(&mut one, "hello");
        let Event::Message { channel, kind, payload } = chat.recv_timeout(PATIENCE).unwrap().unwrap() else {
            panic!("a message was sent");
        };
        let heard = Message::of_kind(kind, payload).unwrap();
        chat.broadcast(heard).to(pushring::Audience::Path("/rooms/:room".into())).except(channel).send().unwrap();
        assert_eq!(recv(&mut two).to_text().unwrap(), "hello");
        let ticket = chat.push(channel, Message::text("you alone")).ask().send().unwrap();
        assert_eq!(ticket.wait(PATIENCE).unwrap().sent, 1);
        assert_eq!(recv(&mut one).to_text().unwrap(), "you alone");

        // Nothing of a node is there: no registration on `/`, no path below the name.
        assert!(try_connect(&broker, "/").is_err() && try_connect(&broker, "/chat/rooms/1").is_err());
        // A path of its own is below its name.
        chat.bind("/own", Default::default()).unwrap();
        connect(&broker, "/chat/own");
        assert!(matches!(chat.recv_timeout(PATIENCE).unwrap(), Some(Event::Opened(opened)) if &*opened.path == "/own"));

        assert!(matches!(broker.process("chat"), Err(AttachError::Taken(_))));
        for bad in ["", "Chat", "a/b", "a:b"] {
            assert!(matches!(broker.process(bad), Err(AttachError::Name(_))), "{bad}");
        }
        // The close frames are not read.
        broker.stop(Duration::from_secs(1)).unwrap();
        while let Ok(event) = chat.recv_blocking() {
            assert!(matches!(event, Event::Opened(_) | Event::Closed(_)), "{event:?}");
        }
        assert_eq!(chat.push(channel, Message::text("late")).send(), Err(PushError::Stopped));
    });
}

#[test]
fn tasks_hear_and_push_on_any_executor() {
    on_each_driver(|_| {
        let broker = start().start().unwrap();
        let mut chat = chat(&broker);
        let mut client = connect(&broker, "/rooms/7");
        let task = std::thread::spawn(move || {
            block_on(async move {
                let mut heard = 0;
                while let Ok(event) = chat.recv().await {
                    if let Event::Message { channel, kind, payload } = event {
                        heard += 1;
                        let echo = Message::of_kind(kind, payload).unwrap();
                        let ticket = chat.push(channel, echo).ask().await.unwrap();
                        assert_eq!(ticket.await.sent, 1);
                    }
                }
                heard
            })
        });
        // One at a time: each must wake the task from its sleep.
        for round in 0..300 {
            send(&mut client, format!("{round}"));
            assert_eq!(recv(&mut client).to_text().unwrap(), format!("{round}"));
        }
        // A stop waits for a client that is still there.
        drop(client);
        broker.stop(PATIENCE).unwrap();
        assert_eq!(task.join().unwrap(), 300);
    });
}

#[test]
fn an_order_that_found_no_room_goes_on_when_there_is_some() {
    let broker = start().shards(1).start().unwrap();
    let chat = broker.process("chat").unwrap();
    let handle = chat.handle();
    let nobody = pushring::ChannelId::new(u32::MAX);
    // More than the inbox holds of one process, from a task that never blocks its thread.
    block_on(async {
        for _ in 0..20_000 {
            handle.push(nobody, Message::binary(vec![0; 1024])).await.unwrap();
        }
        let mut batch = handle.batch();
        for _ in 0..20_000 {
            batch.add(handle.push(nobody, Message::text("?")));
            if batch.is_full() {
                batch.flush_async().await.unwrap();
            }
        }
        batch.flush_async().await.unwrap();
        assert_eq!(handle.broadcast(Message::text("all")).ask().await.unwrap().await.sent, 0);
    });
    let pushes = broker.handle().reports()[0].stats.pushes_unknown;
    assert_eq!(pushes, 40_000, "every one of them got there");
}

/// Events as a stream, read together with what was taken out by the batch before.
#[test]
fn events_are_a_stream_and_nothing_is_lost_between_the_ways_to_read() {
    let broker = start().start().unwrap();
    let mut chat = chat(&broker);
    let mut client = connect(&broker, "/rooms/1");
    for round in 0..9 {
        send(&mut client, format!("{round}"));
    }
    let mut texts = Vec::new();
    let mut keep = |event| {
        if let Event::Message { payload, .. } = event {
            texts.push(String::from_utf8(payload.to_vec()).unwrap());
        }
    };
    let (mut events, mut seen) = (Vec::new(), 0);
    while seen < 10 {
        let event = match seen % 3 {
            0 => block_on(chat.recv()).unwrap(),
            1 => block_on(std::future::poll_fn(|context| stream_next(Pin::new(&mut chat), context))).unwrap(),
            _ => {
                seen += chat.recv_batch(&mut events, PATIENCE).unwrap();
                events.drain(..).for_each(&mut keep);
                continue;
            }
        };
        seen += 1;
        keep(event);
    }
    assert_eq!(texts, ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    broker.stop(PATIENCE).unwrap();
    assert!(matches!(block_on(chat.recv()), Ok(Event::Closed(_))));
    assert_eq!(block_on(chat.recv()).map(|_| ()), Err(Stopped));
}

fn stream_next<S: futures_core::Stream>(stream: Pin<&mut S>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
    stream.poll_next(context)
}

#[test]
fn a_ticket_says_that_it_is_too_early_and_stays_good() {
    let broker = start().start().unwrap();
    let chat = chat(&broker);
    let ticket = chat.broadcast(Message::text("?")).ask().try_send().unwrap();
    let early = ticket.wait(Duration::ZERO);
    assert!(matches!(early, Ok(_) | Err(NotYetKnown)));
    assert_eq!(ticket.wait(PATIENCE).unwrap().sent, 0);
}

#[test]
fn a_process_may_cut_a_connection_as_a_network_does() {
    let broker = start().start().unwrap();
    let mut chat = chat(&broker);
    let mut client = connect(&broker, "/rooms/cut");
    let Event::Opened(opened) = chat.recv_blocking().unwrap() else { panic!("no Opened") };
    let outcome = chat.disconnect(opened.channel).ask().send().unwrap().wait(PATIENCE).unwrap();
    assert_eq!(outcome.closed, 1);
    // No close frame comes: the connection is reset or ends.
    let end = client.read().unwrap_err();
    assert!(!matches!(end, tungstenite::Error::ConnectionClosed), "{end}");
    let Event::Closed(closed) = chat.recv_blocking().unwrap() else { panic!("no Closed") };
    assert_eq!((closed.channel, closed.code), (opened.channel, 1006));
    let again = chat.disconnect(opened.channel).ask().send().unwrap().wait(PATIENCE).unwrap();
    assert_eq!(again.not_found, 1);
}

/// Plain HTTP alone, where TLS was asked for, would be noticed by nobody.
#[test]
fn a_listener_for_tls_needs_certificates() {
    for plain in [true, false] {
        let with_tls = start().config(move |config| {
            (config.tls_listen, config.listens_plain) = (Some(([127, 0, 0, 1], 0).into()), plain);
        });
        let refused = with_tls.start().err().map(|error| error.to_string());
        assert!(refused.is_some_and(|why| why.contains("certificate")), "beside plain HTTP: {plain}");
    }
}

#[test]
fn numbers_beyond_all_bounds_are_as_far_as_a_broker_can_count() {
    on_each_driver(|_| {
        let beyond = |config: &mut pushring::Config| {
            let shard = &mut config.shard;
            for time_ms in [
                &mut shard.register_timeout_ms,
                &mut shard.tls_handshake_timeout_ms,
                &mut shard.head_timeout_ms,
                &mut shard.body_timeout_ms,
                &mut shard.http_idle_timeout_ms,
                &mut shard.close_timeout_ms,
                &mut shard.linger_ms,
                &mut shard.ping_interval_ms,
                &mut shard.resume.window_ms,
            ] {
                *time_ms = u64::MAX;
            }
            shard.topics_per_channel_max = usize::MAX;
            shard.deflate.everywhere = true;
            (shard.deflate.level, shard.deflate.push_level, shard.deflate.window_bits) = (0, u8::MAX, u8::MAX);
            config.inbox.bytes_max = u64::MAX;
            (config.tcp.user_timeout_ms, config.tcp.notsent_lowat_bytes) = (u32::MAX, u32::MAX);
        };
        let broker = start().config(beyond).start().unwrap();
        let mut reloaded = pushring::Config::default();
        beyond(&mut reloaded);
        broker.handle().reload(&reloaded).unwrap();
        let mut chat = chat(&broker);
        let mut client = connect(&broker, "/rooms/1");
        send(&mut client, "hello");
        let channel = loop {
            if let Event::Message { channel, .. } = chat.recv_timeout(PATIENCE).unwrap().expect("it was sent") {
                break channel;
            }
        };
        chat.push(channel, Message::text("to one")).send().unwrap();
        chat.broadcast(Message::text("to all")).send().unwrap();
        assert_eq!((recv(&mut client).to_text().unwrap(), recv(&mut client).to_text().unwrap()), ("to one", "to all"));
        chat.close(channel, 1000, "enough").send().unwrap();
        assert_eq!(support::recv_close(&mut client).0, 1000);
        // A client that did not answer would be waited for for ever.
        drop(client);
        broker.stop(Duration::MAX).unwrap();
    });
}

/// A queue for nothing, and handshakes of which none may be made: nobody could say anything, for ever.
#[test]
fn numbers_of_nothing_leave_room_for_one() {
    on_each_driver(|driver| {
        let broker = support::broker(driver, |config| {
            config.shard.tls_handshakes_per_turn = 0;
            config.inbox = pushring::InboxLimits { commands_max: 0, bytes_max: 0 };
            config.shard.outbound_bytes_max = 0;
        });
        let queue = pushring::QueueLimits { messages_max: 0, bytes_max: 0 };
        let options = pushring::AttachOptions { queue, ..pushring::AttachOptions::default() };
        let mut chat = broker.process_with("chat", options).unwrap();
        chat.bind_at("/chat").unwrap();
        let echo = |here: &mut pushring::Here<'_>, event: Event| {
            if let Event::Message { channel, kind, payload } = event {
                here.push(channel, Message::of_kind(kind, payload).unwrap()).send().unwrap();
            }
        };
        let on_shards = broker.handle().on_shards_with("echo", options, move |_| echo).unwrap();
        on_shards.handle().bind_at("/echo").unwrap();
        let handle = chat.handle().clone();
        let mut next = |what: &str| chat.recv_timeout(PATIENCE).unwrap().unwrap_or_else(|| panic!("no {what}"));
        let mut client = connect(&broker, "/chat");
        assert!(matches!(next("Opened"), Event::Opened(_)));
        for number in 0..10 {
            send(&mut client, format!("{number}"));
        }
        for number in 0..10 {
            let Event::Message { payload, .. } = next("a message") else { panic!("no message") };
            assert_eq!(payload, format!("{number}"));
        }
        handle.push(pushring::ChannelId::new(0), Message::text("?")).ask_failure(7).send().unwrap();
        assert!(matches!(next("failure"), Event::Failed { ticket: 7, .. }));
        let mut client = connect(&broker, "/echo");
        for number in 0..10 {
            send(&mut client, format!("{number}"));
            assert_eq!(recv(&mut client).to_text().unwrap(), format!("{number}"));
        }
    });
}
