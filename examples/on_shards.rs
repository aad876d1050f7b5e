//! Rooms without a thread: a process whose handlers run on the shards, each beside its channels.
//!
//! Run it with `cargo run --example on_shards`, open `ws://127.0.0.1:8080/room/NAME` a few times, and talk. A client's
//! message reaches its whole room, on whatever shard; `/who` is answered with the number of clients in it on this
//! shard.
//!
//! A handler must be quick and must not wait: all clients of its shard wait for it. Long work belongs into a process
//! with a thread of its own, as in `examples/chat.rs`.

use pushring::{Audience, Broker, ChannelId, Event, Here, Message, MessageKind};
use std::collections::HashMap;
use std::sync::Arc;

/// The state of one shard's handler: the room of each channel that lives there. It is not shared, so there is no lock.
#[derive(Default)]
pub struct Rooms(HashMap<ChannelId, Arc<str>>);

impl pushring::ShardHandler for Rooms {
    fn on_event(&mut self, here: &mut Here<'_>, event: Event) {
        match event {
            Event::Opened(opened) => {
                self.0.insert(opened.channel, opened.path.clone());
            }
            Event::Message { channel, kind: MessageKind::Text, payload } if &payload[..] == b"/who" => {
                let Some(room) = self.0.get(&channel) else { return };
                let count = self.0.values().filter(|other| *other == room).count();
                let answer = Message::text(format!("{count} on shard {} of {}", here.shard(), here.shards()));
                // Errors: more waits for other shards than one process may leave to be done, or the broker has stopped.
                let _ = here.push(channel, answer).send();
            }
            Event::Message { channel, kind, payload } => {
                let Some(room) = self.0.get(&channel).cloned() else { return };
                let message = Message::of_kind(kind, payload).expect("received text is UTF-8");
                let _ = here.broadcast(message).to(Audience::Path(room)).except(channel).send();
            }
            Event::Closed(closed) => drop(self.0.remove(&closed.channel)),
            _ => {}
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = Broker::builder().listen("127.0.0.1:8080").start()?;
    let rooms = broker.on_shards("rooms", |_shard| Rooms::default())?;
    for room in ["lobby", "kitchen", "garden"] {
        rooms.handle().bind_at(&format!("/room/{room}"))?;
    }
    println!("ws://{}/room/lobby, kitchen or garden", broker.address());
    broker.wait()?;
    Ok(())
}
