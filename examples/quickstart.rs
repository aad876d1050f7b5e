//! A room of docs/QUICKSTART.md, in the broker's own program.

use pushring::{Broker, BrokerHandle, Event, Message};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let broker = Broker::builder().listen("127.0.0.1:8080").start()?;
    println!("ws://{}/room", broker.address());
    serve(&broker.handle())
}

/// Sends each client's message to all others, until the broker stops.
pub fn serve(broker: &BrokerHandle) -> Result<(), Box<dyn std::error::Error>> {
    let mut room = broker.process("room", pushring::AttachOptions::default())?;
    room.bind_at("/room")?;
    loop {
        if let Event::Message { channel, kind, payload } = room.recv_blocking()? {
            room.broadcast(Message::of_kind(kind, payload)?).except(channel).send()?;
        }
    }
}
