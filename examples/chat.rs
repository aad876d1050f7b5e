//! A chat room as a Kinode process: every client gets what any client says.
//!
//! The process is written against `process_lib` alone, with the names of the Kinode process library. The program around
//! it starts a broker, runs the process on it, and says how a browser joins.

use anyhow::Context;
use pushring::node::{self, Dialect};
use pushring::process_lib::{self, Exit};
use pushring::{Broker, Config};
use pushring::{Claims, HostPolicy, Secret, mint};
use std::io::Read;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

/// The chat itself.
pub mod process {
    use pushring::process_lib::http::{self, send_ws_push};
    use pushring::process_lib::{
        Address, HttpServerRequest, IncomingHttpRequest, LazyLoadBlob, WsMessageType, await_message, get_blob,
    };
    use serde::{Deserialize, Serialize};
    use std::collections::{HashMap, HashSet};

    /// A client's message, as JSON.
    #[derive(Debug, Serialize, Deserialize)]
    enum ChatRequest {
        /// Sends a message to the room.
        Send { author: String, content: String },
        /// Ask for what was said so far.
        History,
    }

    /// A message to clients, as JSON.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct ChatMessage {
        author: String,
        content: String,
    }

    type MessageArchive = Vec<ChatMessage>;

    /// Where the process starts.
    pub fn init(our: Address) {
        let mut message_archive = MessageArchive::new();
        let mut channel_ids = HashSet::new();
        loop {
            let message = match await_message() {
                Ok(message) => message,
                Err(error) => {
                    eprintln!("{our}: {error}");
                    continue;
                }
            };
            let handled = handle_http_server_request(
                &our,
                &mut message_archive,
                message.source(),
                message.body(),
                &mut channel_ids,
            );
            if let Err(error) = handled {
                eprintln!("{our}: {error:#}");
            }
        }
    }

    fn handle_http_server_request(
        our: &Address,
        message_archive: &mut MessageArchive,
        source: &Address,
        body: &[u8],
        channel_ids: &mut HashSet<u32>,
    ) -> anyhow::Result<()> {
        let Ok(server_request) = serde_json::from_slice::<HttpServerRequest>(body) else {
            // Fail silently if we can't parse the request
            return Ok(());
        };

        match server_request {
            HttpServerRequest::WebSocketOpen { channel_id, .. } => {
                // Remember the newly opened channel, to push to it
                channel_ids.insert(channel_id);
            }
            HttpServerRequest::WebSocketPush { channel_id, .. } => {
                let Some(blob) = get_blob() else {
                    return Ok(());
                };

                handle_chat_request(our, message_archive, channel_ids, channel_id, source, &blob.bytes)?;
            }
            HttpServerRequest::WebSocketClose(channel_id) => {
                channel_ids.remove(&channel_id);
            }
            HttpServerRequest::Http(IncomingHttpRequest { method, bound_path, .. }) => {
                // The archive, for clients that may read the bound path
                let status: u16 = if method == "GET" && bound_path.ends_with("/history") { 200 } else { 405 };
                let headers = HashMap::from([("Content-Type".to_string(), "application/json".to_string())]);
                http::send_response(status, Some(headers), serde_json::to_vec(message_archive)?)?;
            }
        };

        Ok(())
    }

    fn handle_chat_request(
        our: &Address,
        message_archive: &mut MessageArchive,
        channel_ids: &HashSet<u32>,
        channel_id: u32,
        source: &Address,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        // Only our node's server speaks for clients
        if !source.is_on(&our.node) {
            return Ok(());
        }
        let (audience, messages) = match serde_json::from_slice(bytes)? {
            ChatRequest::Send { author, content } => {
                let message = ChatMessage { author, content };
                message_archive.push(message.clone());
                (channel_ids.iter().copied().collect(), vec![message])
            }
            ChatRequest::History => (vec![channel_id], message_archive.clone()),
        };
        for message in messages {
            for channel_id in &audience {
                let blob =
                    LazyLoadBlob { mime: Some("application/json".to_string()), bytes: serde_json::to_vec(&message)? };
                send_ws_push(our.node.clone(), *channel_id, WsMessageType::Text, blob)?;
            }
        }
        Ok(())
    }
}

/// The name of this node: tokens are made out to it.
const NODE: &str = "local.os";

/// The chat's process id: what clients register with.
const PROCESS: &str = "chat:chat:template.os";

/// How long the token is worth something, in seconds.
const TOKEN_S: u64 = 24 * 3600;

/// A broker, the chat on it, and the token that lets clients in.
pub struct Chat {
    /// The broker.
    pub broker: Broker,
    /// The chat's thread.
    pub process: JoinHandle<Exit>,
    /// The token for registering; a node would set it as a cookie at login.
    pub token: String,
}

/// Starts a broker with a fresh secret, and the chat on it.
///
/// # Errors
/// The system lacks something, or the address is taken.
pub fn start(listen: SocketAddr) -> anyhow::Result<Chat> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("no randomness")?;
    let secret = Secret::new(&bytes)?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = Claims { username: NODE.to_string(), subdomain: None, expiration: now_s + TOKEN_S };
    let token = mint(&secret, &claims);

    let mut config = Config { listen, ..Config::default() };
    config.settings = node::settings(NODE, Dialect::Kinode);
    config.settings.secret = Some(secret);
    config.settings.hosts = HostPolicy::Listed(Vec::new());
    let broker = Broker::start(config)?;
    let process = process_lib::spawn_on(&broker.handle(), PROCESS.parse()?, process::init)?;
    Ok(Chat { broker, process, token })
}

/// Serves the chat until it is interrupted.
fn main() -> anyhow::Result<()> {
    let Chat { broker, process, token } = start(([127, 0, 0, 1], 8080).into())?;
    let address = broker.address();
    println!("The chat is at ws://{address}/. In the console of a browser, on any page that was loaded without TLS:\n");
    println!("const ws = new WebSocket('ws://{address}/');");
    println!("ws.onmessage = (message) => console.log(message.data);");
    println!("ws.onopen = () => ws.send(JSON.stringify({{");
    println!("  auth_token: '{token}',");
    println!("  target_process: '{PROCESS}',");
    println!("  encrypted: false,");
    println!("}}));\n");
    println!("Then, in this tab or another that did the same:\n");
    println!("ws.send(JSON.stringify({{ Send: {{ author: 'alice', content: 'hello' }} }}));");
    println!("ws.send(JSON.stringify('History'));");
    let exit = process.join().map_err(|_| anyhow::anyhow!("the chat's thread panicked"))?;
    anyhow::ensure!(exit == Exit::Stopped, "the chat ended: {exit:?}");
    Ok(broker.wait()?)
}
