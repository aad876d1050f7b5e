//! The demo processes: small, typed-batch users of the embedding API that tools and tests talk to as well.
//!
//! - `echo:pushring:sys` sends each message back to its sender, same type, same bytes.
//! - `relay:pushring:sys` sends each message to every other channel of the process, with one push.
//! - `unicast:pushring:sys` tells each client its channel id as Text `{"channel_id":N}`, and passes a Binary message
//!   that begins with a little-endian channel id on to that channel.
//! - `rooms:pushring:sys` sends each message to every other channel with the same path: `/rooms:pushring:sys/ROOM`.
//! - `sink:pushring:sys` takes Text messages without an answer, and sends each Binary message back.
//!
//! All are bound open at `/PROCESS_ID/`, take registered channels too, and lose nothing: they wait for room in the
//! shards' inboxes, which drain at CPU speed. They run on the shards; `threaded-echo`, `threaded-relay` and
//! `threaded-unicast` do the same on threads of their own, until the broker stops.
//!
//! [`page`] is a page for browsers that uses them; [`stage`] and [`tokens`] are the processes behind its pictures.

pub mod page;
pub mod stage;
pub mod tokens;

use crate::broker::PushError;
use crate::broker::{AttachOptions, Audience, Batch, BrokerHandle, Event, Here, Message, Process};
use crate::broker::{ClientMessage, ServiceError, ShardHandler};
use crate::channel::ChannelId;
use crate::gateway::WebSocketRule;
use crate::proto::MessageKind;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Starts all demo processes.
///
/// # Errors
/// See [`ServiceError`]; those that did start end with the broker.
pub fn start(broker: &BrokerHandle) -> Result<Vec<JoinHandle<()>>, ServiceError> {
    run_on_shards(broker, "echo:pushring:sys", |_| Echo)?;
    run_on_shards(broker, "relay:pushring:sys", |_| Relay)?;
    run_on_shards(broker, "unicast:pushring:sys", |_| Unicast)?;
    run_on_shards(broker, "sink:pushring:sys", |_| Sink)?;
    run_rooms(broker)?;
    Ok(vec![
        spawn(broker, "threaded-echo:pushring:sys", threaded_echo)?,
        spawn(broker, "threaded-relay:pushring:sys", threaded_relay)?,
        spawn(broker, "threaded-unicast:pushring:sys", threaded_unicast)?,
    ])
}

fn run_on_shards<H: ShardHandler>(broker: &BrokerHandle, id: &str, make: fn(usize) -> H) -> Result<(), ServiceError> {
    let process = broker.on_shards(id, make)?;
    process.handle().bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() })?;
    process.detach();
    Ok(())
}

fn run_rooms(broker: &BrokerHandle) -> Result<(), ServiceError> {
    let process = broker.on_shards("rooms:pushring:sys", |_| Rooms::default())?;
    process.handle().bind("/", WebSocketRule::default())?;
    process.handle().bind("/:room", WebSocketRule::default())?;
    process.detach();
    Ok(())
}

type OnEvent = fn(&Process, &mut Batch, Event) -> Result<(), PushError>;

fn spawn(broker: &BrokerHandle, id: &str, on_event: OnEvent) -> Result<JoinHandle<()>, ServiceError> {
    let process = broker.process(id, AttachOptions::default())?;
    // Clients that ask for it find their channel again after a lost connection.
    process.bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() })?;
    let name = process.id().process().to_owned();
    Ok(thread::Builder::new().name(name).spawn(move || run(&process, on_event))?)
}

/// Handles events until the broker stops.
fn run(process: &Process, on_event: impl Fn(&Process, &mut Batch, Event) -> Result<(), PushError>) {
    let mut events = Vec::new();
    let mut batch = process.batch();
    loop {
        if process.recv_batch(&mut events, Duration::from_secs(3600)).is_err() {
            return;
        }
        let handled = events.drain(..).try_for_each(|event| on_event(process, &mut batch, event));
        // The only error is that the broker has stopped.
        if handled.and_then(|()| batch.flush()).is_err() {
            return;
        }
    }
}

// One order an event always has room; else the broker has stopped. So what the orders below return is left.

struct Echo;

impl ShardHandler for Echo {
    fn on_event(&mut self, _: &mut Here<'_>, _: Event) {}

    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        let _ = here.pass_on(message.channel(), &message);
    }
}

struct Relay;

impl ShardHandler for Relay {
    fn on_event(&mut self, _: &mut Here<'_>, _: Event) {}

    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        let channel = message.channel();
        let _ = here.broadcast(Message::received(message)).except(channel).send();
    }
}

struct Unicast;

impl ShardHandler for Unicast {
    fn on_event(&mut self, here: &mut Here<'_>, event: Event) {
        if let Event::Opened(opened) = event {
            let _ = here.push(opened.channel, greeting(opened.channel)).send();
        }
    }

    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        if message.kind() == MessageKind::Binary
            && let Some((id, payload)) = message.bytes().split_first_chunk()
        {
            let _ = here.push_binary(ChannelId::new(u32::from_le_bytes(*id)), payload);
        }
    }
}

struct Sink;

impl ShardHandler for Sink {
    fn on_event(&mut self, _: &mut Here<'_>, _: Event) {}

    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        if message.kind() == MessageKind::Binary {
            let _ = here.pass_on(message.channel(), &message);
        }
    }
}

/// `rooms`: the paths of the channels of this shard.
#[derive(Default)]
struct Rooms(HashMap<ChannelId, Arc<str>>);

impl ShardHandler for Rooms {
    fn on_event(&mut self, here: &mut Here<'_>, event: Event) {
        match event {
            Event::Opened(opened) => {
                let _ = here.subscribe(opened.channel, opened.path.clone()).send();
                self.0.insert(opened.channel, opened.path.clone());
            }
            Event::Closed(closed) => {
                self.0.remove(&closed.channel);
            }
            _ => {}
        }
    }

    fn on_message(&mut self, here: &mut Here<'_>, message: ClientMessage<'_>) {
        let channel = message.channel();
        if let Some(room) = self.0.get(&channel) {
            let order = here.broadcast(Message::received(message)).to(Audience::Topic(room.clone()));
            let _ = order.except(channel).send();
        }
    }
}

fn threaded_echo(process: &Process, batch: &mut Batch, event: Event) -> Result<(), PushError> {
    match event {
        Event::Message { channel, kind, payload } => batch.send(process.push(channel, received(kind, payload))),
        _ => Ok(()),
    }
}

fn threaded_relay(process: &Process, batch: &mut Batch, event: Event) -> Result<(), PushError> {
    match event {
        Event::Message { channel, kind, payload } => {
            batch.send(process.broadcast(received(kind, payload)).except(channel))
        }
        _ => Ok(()),
    }
}

fn threaded_unicast(process: &Process, batch: &mut Batch, event: Event) -> Result<(), PushError> {
    match event {
        Event::Opened(opened) => batch.send(process.push(opened.channel, greeting(opened.channel))),
        Event::Message { kind: MessageKind::Binary, payload, .. } => match addressed(&payload) {
            Some((channel, message)) => batch.send(process.push(channel, message)),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The first message of `unicast` to a client.
fn greeting(channel: ChannelId) -> Message {
    Message::text(format!("{{\"channel_id\":{channel}}}"))
}

/// The channel that a message to `unicast` is for, and what it is sent.
fn addressed(payload: &Bytes) -> Option<(ChannelId, Message)> {
    let id = payload.first_chunk()?;
    Some((ChannelId::new(u32::from_le_bytes(*id)), Message::binary(payload.slice(4..))))
}

/// A client's message, to be sent on unchanged.
fn received(kind: MessageKind, payload: Bytes) -> Message {
    Message::of_kind(kind, payload).expect("a received text message is UTF-8")
}
