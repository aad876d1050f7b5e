//! A chat room as a Kinode process: every client gets what any client says.
//!
//! The process is written against `process_lib` alone, with the names of the Kinode process library. Here the program
//! plays the node's part: it opens two channels, lets their clients talk and prints what the process pushes.

use anyhow::Context;
use pushring::channel::ChannelId;
use pushring::node::{Dialect, Events};
use pushring::process_lib::{self, Mailbox};

/// The chat itself.
pub mod process {
    use pushring::process_lib::http::{self, send_ws_push};
    use pushring::process_lib::{
        Address, HttpServerRequest, IncomingHttpRequest, LazyLoadBlob, WsMessageType, await_message, get_blob,
    };
    use serde::{Deserialize, Serialize};
    use std::collections::{HashMap, HashSet};

    /// What clients send, as JSON.
    #[derive(Debug, Serialize, Deserialize)]
    enum ChatRequest {
        /// Say something to everybody.
        Send { author: String, content: String },
        /// Ask for what was said so far.
        History,
    }

    /// What clients get, as JSON.
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
                // The archive, for whoever may read the path that was bound
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

/// Plays the node's part.
///
/// # Errors
/// When the process does not do what a chat does.
pub fn main() -> anyhow::Result<()> {
    let (to_kernel, from_process) = crossbeam_channel::bounded(64);
    let (to_process, from_kernel) = crossbeam_channel::bounded(64);
    let our: process_lib::Address = "local.os@chat:chat:template.os".parse()?;
    let chat = process_lib::spawn(our.clone(), Box::new(Mailbox::new(to_kernel, from_kernel)), process::init)?;

    let events = Events::new(&our.node, Dialect::Kinode);
    let peer = "127.0.0.1:5000".parse()?;
    let (alice, bob) = (ChannelId::new(7), ChannelId::new(8));
    for (id, channel) in [(1, alice), (2, bob)] {
        to_process.send(events.opened(id, &our.process, channel, "/".to_string(), peer, None))?;
    }
    let text = process_lib::WsMessageType::Text;
    let said = br#"{"Send":{"author":"alice","content":"hello"}}"#.to_vec();
    to_process.send(events.message(3, &our.process, alice, text, said))?;
    to_process.send(events.message(4, &our.process, bob, text, br#""History""#.to_vec()))?;
    for _ in 0..3 {
        let push = from_process.recv()?;
        let blob = push.lazy_load_blob.context("a push has a blob")?;
        println!("{} {}", String::from_utf8_lossy(push.message.body()), String::from_utf8_lossy(&blob.bytes));
    }
    drop(to_process);
    anyhow::ensure!(
        chat.join().is_ok_and(|exit| exit == process_lib::Exit::Stopped),
        "the chat ends when it is told to"
    );
    Ok(())
}
