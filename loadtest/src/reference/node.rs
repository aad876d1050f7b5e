//! Today's apps on the drop-in: the processes of `warp`, message for message, with pushring as the server.
//!
//! Each push is a message of its own, with ids of three strings, a JSON body and a copy of the blob, and goes through
//! an adapter as a node writes it; queues and runtime are a node's. So its cost is that of unchanged apps.

use std::collections::HashSet;
use std::net::SocketAddr;

use anyhow::Context;
use pushring::Config;
use pushring::node::{self, Dialect, Host, LazyLoadBlob, Message, NodeParts};
use tokio::sync::mpsc;

use super::warp::{Body, KERNEL_QUEUE, MessageType, OUR, ProcessId, SERVER_QUEUE};
use super::{Role, greeting};

/// A node's message.
struct NodeMessage {
    id: u64,
    source: Address,
    target: Address,
    rsvp: Option<Address>,
    message: Message,
    blob: Option<Vec<u8>>,
}

struct Address {
    node: String,
    process: ProcessId,
}

impl Address {
    fn ours(process: ProcessId) -> Self {
        Self { node: OUR.to_owned(), process }
    }
}

/// The adapter.
struct Node;

impl Host for Node {
    type Message = NodeMessage;
    type Print = String;

    fn to_ours(&self, message: NodeMessage) -> Option<node::KernelMessage> {
        Some(node::KernelMessage {
            id: message.id,
            source: address_in(message.source)?,
            target: address_in(message.target)?,
            rsvp: message.rsvp.and_then(address_in),
            message: message.message,
            lazy_load_blob: message.blob.map(|bytes| LazyLoadBlob { mime: None, bytes }),
        })
    }

    fn to_node(&self, message: node::KernelMessage) -> NodeMessage {
        NodeMessage {
            id: message.id,
            source: address_out(message.source),
            target: address_out(message.target),
            rsvp: message.rsvp.map(address_out),
            message: message.message,
            blob: message.lazy_load_blob.map(|blob| blob.bytes),
        }
    }

    fn print(&self, _: u8, text: String) -> String {
        text
    }

    fn is_password(&self, _: &[u8], _: &str) -> bool {
        false
    }
}

fn address_in(Address { node, process: p }: Address) -> Option<node::Address> {
    node::Address::of_parts(node, &p.process, &p.package, &p.publisher)
}

fn address_out(node::Address { node, process: p }: node::Address) -> Address {
    Address { node, process: ProcessId::new(p.process(), p.package(), p.publisher()) }
}

/// Serves until the process ends.
pub(crate) fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(listen))
}

async fn run(listen: SocketAddr) -> anyhow::Result<()> {
    let (to_server, from_kernel) = mpsc::channel(SERVER_QUEUE);
    let (to_kernel, mut for_processes) = mpsc::channel(KERNEL_QUEUE);
    let (prints, mut printed) = mpsc::channel(32);
    let serving = tokio::spawn(node::http_server(NodeParts {
        host: Node,
        our_node: OUR.to_owned(),
        dialect: Dialect::Hyperdrive,
        listen,
        keyfile: Vec::new(),
        jwt_secret: b"measured".to_vec(),
        from_kernel,
        to_kernel,
        prints,
        expose_local: false,
        control: None,
        config: Config { pin: true, ..node::config() },
    }));
    for role in [Role::Relay, Role::Echo, Role::Unicast] {
        let bind = br#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#.to_vec();
        let bound = Message::request(false, Some(5), bind, None);
        send(&to_server, &ProcessId::of_role(role), bound, None).await;
        for_processes.recv().await.context("the server did not start")?;
    }
    let line = printed.recv().await.context("the server did not start")?;
    let address = line.rsplit(' ').next().unwrap_or_default();
    println!("listening on http://{address}");
    tokio::spawn(processes(for_processes, to_server));
    tokio::spawn(async move { while printed.recv().await.is_some() {} });
    Ok(serving.await??)
}

/// The demo processes: each push is a message of its own to the server.
async fn processes(mut events: mpsc::Receiver<NodeMessage>, to_server: mpsc::Sender<NodeMessage>) {
    let mut relay = HashSet::new();
    while let Some(event) = events.recv().await {
        let app = event.target.process;
        let Some(role) = app.role() else { continue };
        let Ok(body) = serde_json::from_slice::<Body>(event.message.body()) else { continue };
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
                match role {
                    Role::Echo | Role::Registration => push(&to_server, &app, channel_id, message_type, &blob).await,
                    Role::Relay => {
                        for &other in relay.iter().filter(|&&other| other != channel_id) {
                            push(&to_server, &app, other, message_type, &blob).await;
                        }
                    }
                    Role::Unicast => {
                        if let Some((target, rest)) = blob.split_first_chunk::<4>() {
                            push(&to_server, &app, u32::from_le_bytes(*target), MessageType::Binary, rest).await;
                        }
                    }
                }
            }
        }
    }
}

async fn push(
    to_server: &mpsc::Sender<NodeMessage>,
    app: &ProcessId,
    channel_id: u32,
    message_type: MessageType,
    blob: &[u8],
) {
    let body = serde_json::to_vec(&Body::Push { channel_id, message_type }).expect("numbers and strings are JSON");
    send(to_server, app, Message::request(false, None, body, None), Some(blob.to_vec())).await;
}

async fn send(to_server: &mpsc::Sender<NodeMessage>, app: &ProcessId, message: Message, blob: Option<Vec<u8>>) {
    let (source, target) = (Address::ours(app.clone()), Address::ours(ProcessId::server()));
    // It has ended: so will this process.
    let _ = to_server.send(NodeMessage { id: 7, source, target, rsvp: None, message, blob }).await;
}
