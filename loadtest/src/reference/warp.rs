//! The shape of today's node, part for part as its sources have it: warp 0.3; a `DashMap` from channel id to its
//! owner and a bounded queue of 100; one task per socket that selects over the two halves of a split WebSocket; one
//! loop that takes a kernel message per push from a queue of 32, parses its JSON body, and awaits the push while it
//! holds the map's entry; a copy of the blob per push.
//!
//! The cost of a push before that, in the kernel's loop and in Wasm, is left out: so this is a lower bound. The limit
//! of 128 connections is left out as well. The shape's flaw is kept: a client that stops reading fills its queue, then
//! the loop waits, and with it all clients.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use warp::Filter;
use warp::ws::{Message, WebSocket, Ws};

use super::{Role, greeting};

/// Messages a socket's queue holds, as in the node.
const SOCKET_QUEUE: usize = 100;
/// Kernel messages that wait for the server's loop, as in the node.
pub(super) const SERVER_QUEUE: usize = 32;
/// Kernel messages that wait for the processes, as in the node.
pub(super) const KERNEL_QUEUE: usize = 100_000;

pub(super) const OUR: &str = "node.os";

/// The id of a process, three strings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcessId {
    pub process: String,
    pub package: String,
    pub publisher: String,
}

impl ProcessId {
    pub(super) fn new(process: &str, package: &str, publisher: &str) -> Self {
        Self { process: process.to_owned(), package: package.to_owned(), publisher: publisher.to_owned() }
    }

    pub(super) fn server() -> Self {
        Self::new("http-server", "distro", "sys")
    }

    pub(super) fn of_role(role: Role) -> Self {
        let process = match role {
            Role::Relay => "relay",
            Role::Unicast => "unicast",
            Role::Echo | Role::Registration => "echo",
        };
        Self::new(process, "pushring", "sys")
    }

    pub(super) fn role(&self) -> Option<Role> {
        Role::of_process(&self.process)
    }
}

#[derive(Debug, Clone)]
struct Address {
    _node: String,
    process: ProcessId,
}

impl Address {
    fn ours(process: ProcessId) -> Self {
        Self { _node: OUR.to_owned(), process }
    }
}

#[derive(Debug, Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageType {
    Text,
    Binary,
    Close,
}

/// The bodies of both directions that matter here, as the node's JSON has them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Body {
    #[serde(rename = "WebSocketOpen")]
    Open { path: String, channel_id: u32 },
    #[serde(rename = "WebSocketPush")]
    Push { channel_id: u32, message_type: MessageType },
    #[serde(rename = "WebSocketClose")]
    Close(u32),
}

/// A message between the parts of a node.
struct KernelMessage {
    _id: u64,
    source: Address,
    target: Address,
    _rsvp: Option<Address>,
    body: Vec<u8>,
    _metadata: Option<String>,
    blob: Option<Vec<u8>>,
}

impl KernelMessage {
    fn new(source: ProcessId, target: ProcessId, body: &Body, blob: Option<Vec<u8>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            _id: NEXT.fetch_add(1, Ordering::Relaxed),
            source: Address::ours(source),
            target: Address::ours(target),
            _rsvp: None,
            body: serde_json::to_vec(body).expect("numbers and strings are JSON"),
            _metadata: None,
            blob,
        }
    }
}

type Senders = Arc<DashMap<u32, (ProcessId, mpsc::Sender<Message>)>>;

/// Serves until the process ends.
pub(crate) fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(listen))
}

async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let senders = Senders::default();
    let (to_server, from_kernel) = mpsc::channel(SERVER_QUEUE);
    let (to_kernel, for_processes) = mpsc::channel(KERNEL_QUEUE);
    tokio::spawn(server_loop(Arc::clone(&senders), from_kernel));
    tokio::spawn(processes(for_processes, to_server));
    let upgrade = warp::ws()
        .and(warp::addr::remote())
        .and(warp::path::full())
        .and(warp::filters::host::optional())
        .and(warp::filters::header::headers_cloned())
        .and(warp::any().map(move || Arc::clone(&senders)))
        .and(warp::any().map(move || to_kernel.clone()))
        .map(|ws: Ws, _, path: warp::path::FullPath, _, _, senders, to_kernel| {
            let role = Role::of_path(path.as_str()).unwrap_or(Role::Echo);
            ws.on_upgrade(move |socket| maintain_websocket(socket, role, senders, to_kernel))
        });
    let (address, server) = warp::serve(upgrade).try_bind_ephemeral(listen)?;
    println!("listening on http://{address}");
    tokio::spawn(server).await?;
    Ok(())
}

/// The server's loop: one push after the other, each awaited.
async fn server_loop(senders: Senders, mut from_kernel: mpsc::Receiver<KernelMessage>) {
    while let Some(message) = from_kernel.recv().await {
        handle_app_message(message, Arc::clone(&senders)).await;
    }
}

async fn handle_app_message(message: KernelMessage, senders: Senders) {
    let Ok(Body::Push { channel_id, message_type }) = serde_json::from_slice(&message.body) else { return };
    let Some(blob) = message.blob else { return };
    let outgoing = match message_type {
        MessageType::Text => Message::text(String::from_utf8_lossy(&blob).to_string()),
        MessageType::Binary => Message::binary(blob),
        MessageType::Close => Message::close(),
    };
    if let Some(entry) = senders.get(&channel_id)
        && entry.0 == message.source.process
    {
        // A socket that has ended takes nothing; the node answers an error then.
        let _ = entry.1.send(outgoing).await;
    }
}

async fn maintain_websocket(socket: WebSocket, role: Role, senders: Senders, to_kernel: mpsc::Sender<KernelMessage>) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let (mut write, mut read) = socket.split();
    let channel_id = NEXT.fetch_add(1, Ordering::Relaxed) as u32;
    let app = ProcessId::of_role(role);
    let (sender, mut queue) = mpsc::channel(SOCKET_QUEUE);
    senders.insert(channel_id, (app.clone(), sender));
    let to_app = |body: Body, blob| KernelMessage::new(ProcessId::server(), app.clone(), &body, blob);
    let _ = to_kernel.send(to_app(Body::Open { path: "/".to_owned(), channel_id }, None)).await;
    loop {
        tokio::select! {
            incoming = read.next() => {
                let Some(Ok(message)) = incoming else { break };
                let message_type = if message.is_text() {
                    MessageType::Text
                } else if message.is_binary() {
                    MessageType::Binary
                } else if message.is_close() {
                    MessageType::Close
                } else {
                    continue;
                };
                let body = Body::Push { channel_id, message_type };
                let _ = to_kernel.send(to_app(body, Some(message.into_bytes()))).await;
            }
            Some(outgoing) = queue.recv() => {
                if write.send(outgoing).await.is_err() {
                    break;
                }
            }
        }
    }
    senders.remove(&channel_id);
    let _ = to_kernel.send(to_app(Body::Close(channel_id), None)).await;
    if let Ok(socket) = write.reunite(read) {
        let _ = socket.close().await;
    }
}

/// The demo processes: each push is a message of its own to the server.
async fn processes(mut events: mpsc::Receiver<KernelMessage>, to_server: mpsc::Sender<KernelMessage>) {
    let mut relay = HashSet::new();
    while let Some(event) = events.recv().await {
        let app = event.target.process;
        let Some(role) = app.role() else { continue };
        let Ok(body) = serde_json::from_slice::<Body>(&event.body) else { continue };
        match body {
            Body::Open { channel_id, .. } if role == Role::Unicast => {
                push(&to_server, &app, channel_id, MessageType::Text, greeting(channel_id).as_bytes()).await;
            }
            Body::Open { channel_id, .. } => {
                relay.extend((role == Role::Relay).then_some(channel_id));
            }
            Body::Close(channel_id) => {
                relay.remove(&channel_id);
            }
            Body::Push { message_type: MessageType::Close, .. } => {}
            Body::Push { channel_id, message_type } => {
                let blob = event.blob.unwrap_or_default();
                answer(&to_server, &app, role, &relay, channel_id, message_type, &blob).await;
            }
        }
    }
}

async fn answer(
    to_server: &mpsc::Sender<KernelMessage>,
    app: &ProcessId,
    role: Role,
    relay: &HashSet<u32>,
    channel_id: u32,
    message_type: MessageType,
    blob: &[u8],
) {
    match role {
        Role::Echo | Role::Registration => push(to_server, app, channel_id, message_type, blob).await,
        Role::Relay => {
            for &other in relay.iter().filter(|&&other| other != channel_id) {
                push(to_server, app, other, message_type, blob).await;
            }
        }
        Role::Unicast => {
            if let Some((target, rest)) = blob.split_first_chunk::<4>() {
                push(to_server, app, u32::from_le_bytes(*target), MessageType::Binary, rest).await;
            }
        }
    }
}

async fn push(
    to_server: &mpsc::Sender<KernelMessage>,
    app: &ProcessId,
    channel_id: u32,
    message_type: MessageType,
    blob: &[u8],
) {
    let body = Body::Push { channel_id, message_type };
    let _ = to_server.send(KernelMessage::new(app.clone(), ProcessId::server(), &body, Some(blob.to_vec()))).await;
}
