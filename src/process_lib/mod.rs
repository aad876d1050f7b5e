//! The names and signatures of the Kinode process library, for processes on plain threads.
//!
//! A process is a function that runs on its own thread, receives messages and sends requests and responses. A
//! [`Backend`] transports them, so the same process runs inside the broker's program or beside it. It must not know
//! shards, sockets or routes.
//!
//! ```
//! use pushring::process_lib::{self, HttpServerRequest, LazyLoadBlob, Mailbox, WsMessageType};
//! use pushring::process_lib::{await_message, get_blob, send_ws_push};
//!
//! // A process that sends each message back to its client.
//! fn echo(our: process_lib::Address) {
//!     loop {
//!         let Ok(message) = await_message() else { continue };
//!         let Ok(HttpServerRequest::WebSocketPush { channel_id, message_type }) =
//!             HttpServerRequest::from_bytes(message.body())
//!         else {
//!             continue;
//!         };
//!         let blob = get_blob().unwrap_or_default();
//!         if send_ws_push(our.node.clone(), channel_id, message_type, blob).is_err() {
//!             return;
//!         }
//!     }
//! }
//!
//! # use pushring::node::{Dialect, EventMessages};
//! let (to_kernel, from_process) = std::sync::mpsc::sync_channel(16);
//! let (to_process, from_kernel) = std::sync::mpsc::sync_channel(16);
//! let our: process_lib::Address = "alice.os@echo:echo:template.os".parse()?;
//! let process = process_lib::spawn(our.clone(), Box::new(Mailbox::new(to_kernel, from_kernel)), echo)?;
//!
//! let events = EventMessages::new("alice.os", Dialect::Kinode);
//! let channel = pushring::ChannelId::new(7);
//! to_process.send(events.message(1, &our.process, channel, WsMessageType::Text, b"hello".to_vec()))?;
//! assert_eq!(from_process.recv()?.lazy_load_blob, Some(LazyLoadBlob { mime: None, bytes: b"hello".to_vec() }));
//! drop(to_process);
//! assert_eq!(process.join().unwrap(), process_lib::Exit::Stopped);
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! # Calls that may wait
//!
//! These block the process' thread, and no others do. None waits for a client.
//!
//! | call | waits for |
//! |---|---|
//! | [`await_message`], [`await_message_timeout`] | a message |
//! | [`Request::send_and_await_response`] | the response |
//! | [`Request::send`], [`Response::send`], [`send_ws_push`], [`http::ws_publish`], [`http::send_response`], [`http::server::send_response`], [`http::server::send_ws_push`], [`http::server::ws_push_all_channels`], [`HttpServer::handle_request`](http::server::HttpServer), [`HttpServer::ws_push_all_channels`](http::server::HttpServer) | room in the shards' inboxes, in the link, or in the node kernel's queue |
//! | `ws_subscribe`, `ws_unsubscribe`, `close_ws`, `bind_ws_path`, `secure_bind_ws_path`, `bind_ext_path`, `unbind_ws_path`, `bind_http_path`, `bind_http_static_path`, `secure_bind_http_path`, `secure_bind_http_static_path`, `unbind_http_path` of [`http`] | the server's answer, 5 s at most |
//! | `HttpServer::bind_http_path`, `HttpServer::bind_http_static_path`, `HttpServer::secure_bind_http_path`, `HttpServer::bind_multiple_http_paths`, `HttpServer::bind_ws_path`, `HttpServer::secure_bind_ws_path`, `HttpServer::modify_http_path`, `HttpServer::modify_ws_path`, `HttpServer::unbind_http_path`, `HttpServer::unbind_ws_path` | likewise, for the server's own timeout |
//! | [`spawn_on`], [`AttachedProcess::new`] | every shard to know of the process |
//! | [`connect`] | the broker's welcome, 10 s at most once it is connected |
//! | [`run`], [`LinkedProcess::run`] | the end of the process |

mod attached;
mod backend;
mod body;
pub mod http;
#[cfg(feature = "link")]
mod linked;
mod mailbox;
mod message;
mod request;
mod runtime;
mod state;

pub use crate::node::{
    Address, Capability, HttpResponse, HttpServerAction, HttpServerError, HttpServerRequest, IncomingHttpRequest,
    LazyLoadBlob, MessageType, PackageId, ProcessId, WsMessageType,
};
pub use attached::{AttachedProcess, SpawnError, spawn_on};
pub use backend::{Backend, BackendDelivery, BackendPush, BackendRequest, BackendStopped, Blob, Exit, SendErrorKind};
pub use body::Body;
pub use http::send_ws_push;
#[cfg(feature = "link")]
pub use linked::{LinkedProcess, connect};
pub use mailbox::Mailbox;
pub use message::{Message, SendError};
pub use request::{Request, Response};
pub use runtime::{run, spawn};

use std::time::{Duration, Instant};

/// Waits for the next message, or for the failure of a request that expected a response.
///
/// If the process is stopped, this does not return: the thread unwinds to where the process was started.
///
/// # Errors
/// When an earlier request was not delivered, or not answered in time.
///
/// # Panics
/// Outside of a process.
pub fn await_message() -> Result<Message, SendError> {
    let received = runtime::or_end(runtime::with(|state| state.receive(None)));
    received.expect("nothing but a deadline ends a wait without a message")
}

/// Waits up to `timeout` for the next message; none when that is over. A zero timeout takes what is here already.
///
/// If the process is stopped, this does not return, as [`await_message`].
///
/// # Errors
/// When an earlier request was not delivered, or not answered in time.
///
/// # Panics
/// Outside of a process.
pub fn await_message_timeout(timeout: Duration) -> Result<Option<Message>, SendError> {
    let deadline = Instant::now().checked_add(timeout);
    runtime::or_end(runtime::with(|state| state.receive(deadline))).transpose()
}

/// A copy of the blob of the message received last, if it had one.
///
/// # Panics
/// Outside of a process.
pub fn get_blob() -> Option<LazyLoadBlob> {
    runtime::with(|state| state.blob().map(|blob| LazyLoadBlob { mime: blob.mime.clone(), bytes: blob.bytes.to_vec() }))
}

impl Message {
    /// The blob of the message received last, as [`get_blob`].
    pub fn blob(&self) -> Option<LazyLoadBlob> {
        get_blob()
    }
}

/// The blob of the message received last, if it had one and it was not taken yet. Without a copy where the process is
/// the only one that has it.
///
/// # Panics
/// Outside of a process.
pub fn take_blob() -> Option<LazyLoadBlob> {
    runtime::with(|state| state.take_blob().map(LazyLoadBlob::from))
}

/// The address of this process.
///
/// # Panics
/// Outside of a process.
pub fn our() -> Address {
    runtime::with(|state| state.our().clone())
}

#[cfg(test)]
mod tests;
