//! A chat as a tokio task: what one client says, all others get.
//!
//! ```sh
//! cargo run --example tokio_backend -- 127.0.0.1:8080
//! ```
//!
//! then open two browser consoles and say `ws = new WebSocket("ws://127.0.0.1:8080/chat"); ws.onmessage = (m) =>
//! console.log(m.data)`, and in one of them `ws.send("hello")`.

use pushring::{Broker, Event, Message, Process};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let broker = Broker::builder().listen(address).start()?;
    let chat = broker.process("chat")?;
    chat.bind_at("/chat")?;
    println!("ws://{}/chat", broker.address());
    tokio::select! {
        served = serve(chat) => served,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// Passes on what clients say until the broker stops.
pub async fn serve(mut chat: Process) -> anyhow::Result<()> {
    while let Ok(event) = chat.recv().await {
        if let Event::Message { channel, kind, payload } = event {
            chat.broadcast(Message::of_kind(kind, payload)?).except(channel).await?;
        }
    }
    Ok(())
}
