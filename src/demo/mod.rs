//! The demo processes: small, typed-batch users of the embedding API that tools and tests talk to as well.
//!
//! - `echo:pushring:sys` sends each message back to its sender, same type, same bytes.
//! - `relay:pushring:sys` sends each message to every other channel of the process, with one push.
//! - `unicast:pushring:sys` tells each client its channel id as Text `{"channel_id":N}`, and passes a Binary message
//!   that begins with a little-endian channel id on to that channel.
//!
//! All are bound open at `/PROCESS_ID/`, take registered channels too, and lose nothing: they wait for room in the shards'
//! inboxes, which drain at CPU speed. Echo and relay run on the shards; `threaded-echo` and `threaded-relay` do the same on
//! threads of their own, as unicast does, until the broker stops.
//!
//! [`page`] is a page for browsers that uses them.

pub mod page;

use crate::broker::PushError;
use crate::broker::{AttachError, AttachOptions, Batch, BindPathError, BrokerHandle, Event, Here, Message, Process};
use crate::channel::ChannelId;
use crate::gateway::WebSocketRule;
use crate::proto::MessageKind;
use bytes::Bytes;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Why a demo process did not start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Its id is taken, or the broker has stopped.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The broker has stopped.
    #[error(transparent)]
    Bind(#[from] BindPathError),
    /// No thread.
    #[error("no thread for a demo process: {0}")]
    Thread(#[from] io::Error),
}

/// Starts all demo processes.
///
/// # Errors
/// See [`DemoError`]; those that did start end with the broker.
pub fn start(broker: &BrokerHandle) -> Result<Vec<JoinHandle<()>>, DemoError> {
    run_on_shards(broker, "echo:pushring:sys", echo)?;
    run_on_shards(broker, "relay:pushring:sys", relay)?;
    Ok(vec![
        spawn(broker, "threaded-echo:pushring:sys", threaded_echo)?,
        spawn(broker, "threaded-relay:pushring:sys", threaded_relay)?,
        spawn(broker, "unicast:pushring:sys", unicast)?,
    ])
}

fn run_on_shards(broker: &BrokerHandle, id: &str, on_event: fn(&mut Here<'_>, Event)) -> Result<(), DemoError> {
    let process = broker.on_shards(id, move |_| on_event)?;
    process.handle().bind("/", WebSocketRule { resume: true, ..WebSocketRule::default() })?;
    process.detach();
    Ok(())
}

type OnEvent = fn(&Process, &mut Batch, Event) -> Result<(), PushError>;

fn spawn(broker: &BrokerHandle, id: &str, on_event: OnEvent) -> Result<JoinHandle<()>, DemoError> {
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

fn echo(here: &mut Here<'_>, event: Event) {
    if let Event::Message { channel, kind, payload } = event {
        // One order an event always has room; else the broker has stopped.
        let _ = here.push(channel, received(kind, payload)).send();
    }
}

fn relay(here: &mut Here<'_>, event: Event) {
    if let Event::Message { channel, kind, payload } = event {
        // As above.
        let _ = here.broadcast(received(kind, payload)).except(channel).send();
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

fn unicast(process: &Process, batch: &mut Batch, event: Event) -> Result<(), PushError> {
    match event {
        Event::Opened(opened) => {
            let text = format!("{{\"channel_id\":{}}}", opened.channel);
            batch.send(process.push(opened.channel, Message::text(text)))
        }
        Event::Message { kind: MessageKind::Binary, payload, .. } => match payload.first_chunk() {
            Some(id) => {
                let channel = ChannelId::new(u32::from_le_bytes(*id));
                batch.send(process.push(channel, Message::binary(payload.slice(4..))))
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// What a client sent, to be sent on as it is.
fn received(kind: MessageKind, payload: Bytes) -> Message {
    Message::of_kind(kind, payload).expect("a received text message is UTF-8")
}
