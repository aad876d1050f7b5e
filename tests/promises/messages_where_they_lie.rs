//! A handler on the shards may take messages where they were read, and push from there: every message comes once, in
//! order, with the bytes that were sent, whether it lies there or had to wait for its turn; what is pushed keeps the
//! order of the calls, however it is pushed. A handler may end the very channel that it is told of, or panic: nothing
//! is told behind Closed, and others go on.

use crate::support;
use pushring::{ClientMessage, Event, Here, Message as Push, MessageKind, ShardHandler};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use support::{Client, PATIENCE, broker, connect, on_each_driver, recv, recv_close, send};
use tungstenite::Message;

/// Sends each message back, by each of the ways in turn, and does what `close` and `panic` say.
struct Answers {
    answered: usize,
    told: Sender<String>,
}

impl ShardHandler for Answers {
    fn on_event(&mut self, _: &mut Here<'_>, event: Event) {
        let told = match event {
            Event::Opened(_) => "opened".to_owned(),
            Event::Closed(closed) => format!("closed {}", closed.code),
            other => format!("{other:?}"),
        };
        let _ = self.told.send(told);
    }

    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        let channel = message.channel();
        self.answered += 1;
        match (message.bytes(), self.answered % 4) {
            (b"close", _) => {
                let _ = self.told.send("close".to_owned());
                here.close(channel, 3000, "as it was told to").send().unwrap();
            }
            (b"panic", _) => panic!("as it was told to"),
            (_, 0) => here.pass_on(channel, &message).unwrap(),
            (bytes, 1) => match message.kind() {
                MessageKind::Text => here.push_text(channel, std::str::from_utf8(bytes).unwrap()).unwrap(),
                MessageKind::Binary => here.push_binary(channel, bytes).unwrap(),
            },
            (_, 2) => here.push(channel, Push::received(message)).send().unwrap(),
            _ => here.broadcast(Push::received(message)).to(vec![channel]).send().unwrap(),
        }
    }
}

fn answering(broker: &pushring::Broker) -> (pushring::ShardProcess, Receiver<String>) {
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let make = move |_| Answers { answered: 0, told: tell.lock().unwrap().clone() };
    let process = broker.on_shards("answers", make).unwrap();
    process.handle().bind_at("/answers").unwrap();
    (process, told)
}

/// Texts and bytes of all forms of length: some fit a read with many others, some are gathered from several.
fn messages(seed: usize) -> Vec<Message> {
    let lengths = [0, 1, 5, 125, 126, 200, 1000, 4096, 5000, 70_000];
    let each = |number: usize| {
        let len = if number % 50 == 49 { 70_000 } else { lengths[(seed + number) % 7] };
        match number % 3 {
            0 => Message::binary(vec![number as u8; len]),
            _ => Message::text(char::from(b'a' + (number % 26) as u8).to_string().repeat(len)),
        }
    };
    (0..400).map(each).collect()
}

fn write_all(client: &mut Client, messages: &[Message]) {
    messages.iter().for_each(|message| client.write(message.clone()).unwrap());
    client.flush().unwrap();
}

#[test]
fn every_message_comes_once_in_order_and_so_do_the_answers() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let (_process, told) = answering(&broker);
        let mut clients: Vec<Client> = (0..4).map(|_| connect(&broker, "/answers")).collect();
        // All of them at once, so that a turn has not room for all.
        std::thread::scope(|scope| {
            for (seed, client) in clients.iter_mut().enumerate() {
                scope.spawn(move || {
                    for part in messages(seed).chunks(100) {
                        write_all(client, part);
                        part.iter().for_each(|message| assert!(recv(client) == *message, "as it was sent"));
                    }
                });
            }
        });
        for _ in 0..4 {
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "opened");
        }
        assert!(told.try_recv().is_err(), "a handler that takes messages is not told of them as events as well");
    });
}

#[test]
fn nothing_is_told_behind_the_end_that_a_handler_gives_to_a_channel_in_the_middle_of_a_read() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let (_process, told) = answering(&broker);
        let mut client = connect(&broker, "/answers");
        let sent = ["before", "close", "behind", "close"].map(Message::text);
        write_all(&mut client, &sent);
        assert_eq!(recv(&mut client), Message::text("before"));
        assert_eq!(recv_close(&mut client), (3000, "as it was told to".into()));
        client.flush().unwrap();
        // Messages of the same read may be reported before the end is.
        let all: Vec<String> = std::iter::from_fn(|| Some(told.recv_timeout(PATIENCE).unwrap()))
            .take_while(|told| told != "closed 3000")
            .collect();
        assert!(all[..2] == ["opened", "close"] && all[2..].iter().all(|told| told == "close"), "{all:?}");
        // The shard goes on, and has told nothing more.
        let mut other = connect(&broker, "/answers");
        send(&mut other, "hello");
        assert_eq!(recv(&mut other), Message::text("hello"));
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "opened");
    });
}

#[test]
fn a_panic_in_the_middle_of_a_read_ends_the_process_and_nobody_else() {
    on_each_driver(|driver| {
        let broker = broker(driver, |config| config.shards = 1);
        let (_process, _told) = answering(&broker);
        let others = broker.on_shards("others", |_| {
            |here: &mut Here<'_>, event: Event| {
                if let Event::Message { channel, kind, payload } = event {
                    here.push(channel, Push::of_kind(kind, payload).unwrap()).send().unwrap();
                }
            }
        });
        let others = others.unwrap();
        others.handle().bind_at("/others").unwrap();
        let (mut client, mut witness) = (connect(&broker, "/answers"), connect(&broker, "/others"));
        write_all(&mut client, &["before", "panic", "behind"].map(Message::text));
        assert_eq!(recv(&mut client), Message::text("before"));
        assert_eq!(recv_close(&mut client).0, 1011);
        send(&mut witness, "are you there?");
        assert_eq!(recv(&mut witness), Message::text("are you there?"));
    });
}
