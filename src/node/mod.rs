//! The contract of a Kinode or Hyperdrive node's HTTP server, `http-server:distro:sys`.
//!
//! Types with the serde shapes of nodes, and the rules between them as pure functions: [`dispatch()`] checks a process'
//! request, [`EventMessages`] makes the messages to a process, [`rpc_request`] turns an RPC call into a Request.
//! `perform` carries requests out through the broker. It must not know how channels are kept or frames are sent.
//!
//! ```
//! use pushring::node::{HttpServerRequest, WsMessageType};
//!
//! let body = br#"{"WebSocketPush":{"channel_id":7,"message_type":"Text"}}"#;
//! let request = HttpServerRequest::from_bytes(body)?;
//! assert_eq!(request, HttpServerRequest::WebSocketPush { channel_id: 7, message_type: WsMessageType::Text });
//! # Ok::<(), serde_json::Error>(())
//! ```

pub(crate) mod acting;
mod action;
mod attempts;
pub(crate) mod byte_array;
pub(crate) mod calls;
mod dialect;
mod dispatch;
mod error;
mod events;
mod extension;
mod host;
mod identity;
pub(crate) mod inbound;
mod intake;
pub(crate) mod login;
mod message;
pub(crate) mod outbound;
pub(crate) mod perform;
pub(crate) mod prints;
mod registration;
mod request;
pub(crate) mod request_queues;
mod rpc;
pub(crate) mod server;
pub(crate) mod service;

pub use crate::process_id::{ParseProcessIdError, ProcessId};
pub use action::{HttpServerAction, MessageType, WsMessageType};
#[cfg(feature = "link")]
pub(crate) use dialect::RPC_PATH;
pub use dialect::{Dialect, settings};
pub(crate) use dispatch::frame;
#[cfg(feature = "link")]
pub(crate) use dispatch::unreadable_response;
pub use dispatch::{ActionRequest, CheckedAction, Inbound, Reply, dispatch};
pub use error::{HttpServerError, PushCounts, ServerError};
pub use events::EventMessages;
pub use extension::WebSocketExtPushData;
pub use host::Host;
pub use identity::{Address, OUR, PackageId, ParseAddressError, ServerName, http_server_process, is_http_server};
pub use message::{Capability, KernelMessage, LazyLoadBlob, Message, Request, Response, SenderContext};
pub use registration::{WsRegister, WsRegisterResponse};
pub use request::{HttpResponse, HttpServerRequest, IncomingHttpRequest};
pub use rpc::{RpcError, RpcMessage, RpcResponseBody, rpc_request, rpc_response_body};
pub use server::{NodeParts, NodeServer, config, http_server};
#[cfg(feature = "link")]
pub(crate) use server::{in_its_mode, warn_of_its_mode};
