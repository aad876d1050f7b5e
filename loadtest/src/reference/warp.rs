//! The shape of today's node: warp on a work-stealing runtime, a map of channel id to bounded queue behind a lock, one
//! task per socket, one loop that parses each push's JSON body and awaits the push while it holds the map's read guard,
//! a copy of the blob per push.
//!
//! It keeps the shape's flaw on purpose: a client that stops reading fills its queue, then the loop, then everyone waits.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, mpsc};
use warp::Filter;
use warp::ws::{Message, WebSocket, Ws};

use super::{Role, greeting};

/// Messages a socket's queue holds, as in the node.
const SOCKET_QUEUE: usize = 100;
/// Commands that wait for the loop, as in the node.
const LOOP_QUEUE: usize = 32;
/// Events that wait for the processes, as in the node.
const PROCESS_QUEUE: usize = 100_000;

type Senders = Arc<RwLock<HashMap<u32, mpsc::Sender<Message>>>>;

/// The `WebSocketPush` action as its JSON body has it.
#[derive(Serialize, Deserialize)]
struct Action {
    channel_id: u32,
    message_type: String,
}

/// A push as it comes to the loop: a JSON body and a blob.
struct Push {
    body: Vec<u8>,
    blob: Vec<u8>,
}

impl Push {
    fn new(channel_id: u32, text: bool, blob: &[u8]) -> Self {
        let message_type = if text { "Text" } else { "Binary" }.to_owned();
        let body = serde_json::to_vec(&Action { channel_id, message_type }).expect("numbers and strings are JSON");
        Self { body, blob: blob.to_vec() }
    }
}

/// What the processes hear.
enum Event {
    Opened(u32, Role),
    Message(u32, Role, Message),
    Closed(u32),
}

/// Serves until the process ends.
pub fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(listen))
}

async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let senders = Senders::default();
    let (to_loop, pushes) = mpsc::channel(LOOP_QUEUE);
    let (to_processes, events) = mpsc::channel(PROCESS_QUEUE);
    tokio::spawn(push_loop(Arc::clone(&senders), pushes));
    tokio::spawn(processes(events, to_loop));
    let next_id = Arc::new(AtomicU32::new(1));
    let upgrade = warp::path::full().and(warp::ws()).map(move |path: warp::path::FullPath, ws: Ws| {
        let id = next_id.fetch_add(1, Ordering::Relaxed);
        let role = Role::of_path(path.as_str()).unwrap_or(Role::Echo);
        let (senders, to_processes) = (Arc::clone(&senders), to_processes.clone());
        ws.on_upgrade(move |socket| serve_socket(socket, id, role, senders, to_processes))
    });
    let (address, server) = warp::serve(upgrade).try_bind_ephemeral(listen)?;
    println!("listening on http://{address}");
    server.await;
    Ok(())
}

/// The server's loop: one push after the other, each awaited.
async fn push_loop(senders: Senders, mut pushes: mpsc::Receiver<Push>) {
    while let Some(push) = pushes.recv().await {
        let Ok(action) = serde_json::from_slice::<Action>(&push.body) else { continue };
        let guard = senders.read().await;
        if let Some(sender) = guard.get(&action.channel_id) {
            let message = if action.message_type == "Text" {
                Message::text(String::from_utf8_lossy(&push.blob).into_owned())
            } else {
                Message::binary(push.blob.clone())
            };
            // A socket that has ended takes nothing; the node's loop ignores that as well.
            let _ = sender.send(message).await;
        }
    }
}

async fn serve_socket(mut socket: WebSocket, id: u32, role: Role, senders: Senders, to_processes: mpsc::Sender<Event>) {
    let (sender, mut queue) = mpsc::channel(SOCKET_QUEUE);
    senders.write().await.insert(id, sender);
    let _ = to_processes.send(Event::Opened(id, role)).await;
    loop {
        tokio::select! {
            Some(message) = queue.recv() => {
                if socket.send(message).await.is_err() {
                    break;
                }
            }
            incoming = socket.next() => match incoming {
                Some(Ok(message)) if message.is_text() || message.is_binary() => {
                    let _ = to_processes.send(Event::Message(id, role, message)).await;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            },
        }
    }
    senders.write().await.remove(&id);
    let _ = to_processes.send(Event::Closed(id)).await;
}

/// The demo processes: each push is a request of its own to the server's loop.
async fn processes(mut events: mpsc::Receiver<Event>, to_loop: mpsc::Sender<Push>) {
    let mut channels: HashMap<u32, Role> = HashMap::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Opened(id, role) => {
                channels.insert(id, role);
                if role == Role::Unicast {
                    let _ = to_loop.send(Push::new(id, true, greeting(id).as_bytes())).await;
                }
            }
            Event::Closed(id) => {
                channels.remove(&id);
            }
            Event::Message(id, role, message) => answer(id, role, &message, &channels, &to_loop).await,
        }
    }
}

async fn answer(id: u32, role: Role, message: &Message, channels: &HashMap<u32, Role>, to_loop: &mpsc::Sender<Push>) {
    let (text, blob) = (message.is_text(), message.as_bytes());
    match role {
        Role::Echo | Role::Registration => {
            let _ = to_loop.send(Push::new(id, text, blob)).await;
        }
        Role::Relay => {
            for (&other, _) in channels.iter().filter(|&(&other, &role)| other != id && role == Role::Relay) {
                let _ = to_loop.send(Push::new(other, text, blob)).await;
            }
        }
        Role::Unicast => {
            if let Some((target, rest)) = blob.split_first_chunk::<4>() {
                let target = u32::from_le_bytes(*target);
                let _ = to_loop.send(Push::new(target, false, rest)).await;
            }
        }
    }
}
