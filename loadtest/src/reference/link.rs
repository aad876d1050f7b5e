//! The demo's processes over a link: a broker, and processes that are attached to its Unix socket as those of another
//! program are. Both ends are in this process, so its CPU time is theirs together.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use pushring::link::{Client, ClientOptions, LinkConfig, LinkSendError, LinkServer};
use pushring::{Audience, Broker, ChannelId, Config, Event, Message, MessageKind, WebSocketRule};

use super::greeting;

/// How long a wait for events lasts before it begins anew.
const WAIT_MAX: Duration = Duration::from_secs(3600);

type OnEvent = fn(&Client, Event) -> Result<(), LinkSendError>;

const PROCESSES: [(&str, OnEvent); 3] =
    [("echo:pushring:sys", echo), ("relay:pushring:sys", relay), ("unicast:pushring:sys", unicast)];

/// Serves until the process ends.
pub(crate) fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let broker = Broker::start(Config { listen, shards: 1, pin: true, ..Config::default() })?;
    let directory = std::env::temp_dir().join(format!("pushring-measured-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let path = directory.join("link");
    let _link = LinkServer::start(broker.handle(), LinkConfig { path: Some(path.clone()), ..LinkConfig::default() })?;
    let mut processes = Vec::new();
    for (id, on_event) in PROCESSES {
        let client = Client::connect(&path, &id.parse()?, ClientOptions::default())?;
        client.bind("/", WebSocketRule::default())?;
        processes.push(thread::spawn(move || run(&client, on_event)));
    }
    // There are no other connections.
    std::fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    println!("listening on http://{}", broker.address());
    for process in processes {
        process.join().expect("a process that panics has said so");
    }
    Ok(())
}

/// Handles events until the broker stops.
fn run(client: &Client, on_event: OnEvent) {
    let mut events = Vec::new();
    while client.recv_batch(&mut events, WAIT_MAX).is_ok() {
        // The only error is that the broker has stopped.
        if events.drain(..).try_for_each(|event| on_event(client, event)).is_err() {
            return;
        }
    }
}

fn echo(client: &Client, event: Event) -> Result<(), LinkSendError> {
    match event {
        Event::Message { channel, kind, payload } => client.push(channel, received(kind, payload), None, None),
        _ => Ok(()),
    }
}

fn relay(client: &Client, event: Event) -> Result<(), LinkSendError> {
    match event {
        Event::Message { channel, kind, payload } => {
            client.push_many(Audience::Process, &[channel], received(kind, payload), None, None)
        }
        _ => Ok(()),
    }
}

fn unicast(client: &Client, event: Event) -> Result<(), LinkSendError> {
    match event {
        Event::Opened(opened) => client.push(opened.channel, Message::text(greeting(opened.channel.get())), None, None),
        Event::Message { kind: MessageKind::Binary, payload, .. } => match payload.split_first_chunk::<4>() {
            Some((id, _)) => {
                let channel = ChannelId::new(u32::from_le_bytes(*id));
                client.push(channel, Message::binary(payload.slice(4..)), None, None)
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// What a client sent, to be sent on as it is.
fn received(kind: MessageKind, payload: bytes::Bytes) -> Message {
    Message::of_kind(kind, payload).expect("a received text message is UTF-8")
}
