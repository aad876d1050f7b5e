//! Talking to the HTTP server: binding paths, answering HTTP requests, pushing to channels.

pub mod server;

use super::message::SendError;
use super::request::{Request, Response};
use super::runtime;
use crate::node::{Address, HttpServerAction, HttpServerError, OUR, http_server_process};
use std::collections::HashMap;

pub use crate::node::{
    HttpResponse, HttpServerRequest, IncomingHttpRequest, LazyLoadBlob, WsMessageType, WsRegister, WsRegisterResponse,
};

/// Seconds within which the server is to answer an action.
const ANSWER_TIMEOUT_S: u64 = 5;

/// Pushes one message to a channel. `node` is usually `our.node`; another node's server refuses unless that channel's
/// owner granted it. Where there is no kernel it is reached over the broker's fleet, if it is in one (`docs/FLEET.md`).
/// Does not wait for the client, and nothing is heard of a channel that is gone: send the action as a
/// [`Request`] that expects a response where that matters.
///
/// # Errors
/// When the process was stopped.
///
/// # Panics
/// Outside of a process.
pub fn send_ws_push(
    node: String,
    channel_id: u32,
    message_type: WsMessageType,
    blob: LazyLoadBlob,
) -> anyhow::Result<()> {
    Ok(runtime::with(|state| state.push(node, channel_id, message_type, blob))?)
}

/// Subscribes a channel of this process to a topic of this process, a name of 1 to 255 bytes: what is
/// [published](ws_publish) behind it reaches the channel, until it is unsubscribed or closed.
///
/// # Errors
/// When the channel is gone or another process', when it has as many topics as it may have, or the server does not
/// answer.
pub fn ws_subscribe(channel_id: u32, topic: impl Into<String>) -> anyhow::Result<()> {
    ask(HttpServerAction::WebSocketSubscribe { channel_id, topic: topic.into() }, None)
}

/// Takes a channel of this process out of a topic.
///
/// # Errors
/// When the channel is gone or another process', or the server does not answer.
pub fn ws_unsubscribe(channel_id: u32, topic: impl Into<String>) -> anyhow::Result<()> {
    ask(HttpServerAction::WebSocketUnsubscribe { channel_id, topic: topic.into() }, None)
}

/// Pushes one message to all channels of this process that are subscribed to a topic, but those in `except`. Does not
/// wait for clients, and nothing is heard of it: send the action as a [`Request`] that expects a response where counts
/// matter.
///
/// # Errors
/// When the process was stopped.
pub fn ws_publish(
    topic: impl Into<String>,
    message_type: WsMessageType,
    except: Vec<u32>,
    blob: LazyLoadBlob,
) -> anyhow::Result<()> {
    let action = HttpServerAction::WebSocketPublish { topic: topic.into(), message_type, except };
    let request = Request::to(Address::new(OUR, http_server_process())).body(serde_json::to_vec(&action)?);
    request.blob(blob).send()
}

/// Closes a channel of this process; it hears of the end by [`HttpServerRequest::WebSocketClose`].
///
/// # Errors
/// When the channel belongs to another process or the server does not answer.
pub fn close_ws(channel_id: u32) -> anyhow::Result<()> {
    ask(HttpServerAction::WebSocketClose(channel_id), None)
}

/// Binds a WebSocket path: clients that connect to `/PROCESS_ID/path` open channels of this process. `authenticated`
/// asks for the node's login cookie.
///
/// # Errors
/// When the server refuses or does not answer; `encrypted` channels are not offered and never fall back to clear text.
pub fn bind_ws_path(path: impl Into<String>, authenticated: bool, encrypted: bool) -> anyhow::Result<()> {
    anyhow::ensure!(!encrypted, "encrypted channels are not offered");
    ask(HttpServerAction::WebSocketBind { path: path.into(), authenticated, encrypted: false, extension: false }, None)
}

/// Binds a WebSocket path on the process' own subdomain, always authenticated.
///
/// # Errors
/// As [`bind_ws_path`].
pub fn secure_bind_ws_path(path: impl Into<String>, encrypted: bool) -> anyhow::Result<()> {
    anyhow::ensure!(!encrypted, "encrypted channels are not offered");
    ask(HttpServerAction::WebSocketSecureBind { path: path.into(), encrypted: false, extension: false }, None)
}

/// Binds a WebSocket path for an extension: loopback clients that speak MessagePack.
///
/// # Errors
/// As [`bind_ws_path`].
pub fn bind_ext_path(path: impl Into<String>) -> anyhow::Result<()> {
    ask(
        HttpServerAction::WebSocketBind { path: path.into(), authenticated: false, encrypted: false, extension: true },
        None,
    )
}

/// Unbinds a WebSocket path. Open channels live on.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn unbind_ws_path(path: impl Into<String>) -> anyhow::Result<()> {
    ask(HttpServerAction::WebSocketUnbind { path: path.into() }, None)
}

/// Binds an HTTP path whose requests this process answers. Segments may be parameters, `/user/:id`.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn bind_http_path(path: impl Into<String>, authenticated: bool, local_only: bool) -> anyhow::Result<()> {
    ask(HttpServerAction::Bind { path: path.into(), authenticated, local_only, cache: false }, None)
}

/// Binds an HTTP path to content that the server itself serves.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn bind_http_static_path(
    path: impl Into<String>,
    authenticated: bool,
    local_only: bool,
    content_type: Option<String>,
    content: Vec<u8>,
) -> anyhow::Result<()> {
    let blob = LazyLoadBlob { mime: content_type, bytes: content };
    ask(HttpServerAction::Bind { path: path.into(), authenticated, local_only, cache: true }, Some(blob))
}

/// Binds an HTTP path on the process' own subdomain, always authenticated.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn secure_bind_http_path(path: impl Into<String>) -> anyhow::Result<()> {
    ask(HttpServerAction::SecureBind { path: path.into(), cache: false }, None)
}

/// Binds an HTTP path on the process' own subdomain to content that the server itself serves.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn secure_bind_http_static_path(
    path: impl Into<String>,
    content_type: Option<String>,
    content: Vec<u8>,
) -> anyhow::Result<()> {
    let blob = LazyLoadBlob { mime: content_type, bytes: content };
    ask(HttpServerAction::SecureBind { path: path.into(), cache: true }, Some(blob))
}

/// Unbinds an HTTP path.
///
/// # Errors
/// When the server refuses or does not answer.
pub fn unbind_http_path(path: impl Into<String>) -> anyhow::Result<()> {
    ask(HttpServerAction::Unbind { path: path.into() }, None)
}

/// Answers the HTTP request received last. `status` is a number or the `StatusCode` of the `http` crate.
///
/// # Errors
/// There is no request to answer, or the process was stopped.
pub fn send_response(
    status: impl Into<u16>,
    headers: Option<HashMap<String, String>>,
    body: Vec<u8>,
) -> anyhow::Result<()> {
    let response = HttpResponse { status: status.into(), headers: headers.unwrap_or_default() };
    Response::new().body(response.to_bytes()).blob_bytes(body).send()
}

/// Sends an action and waits for the server's answer.
fn ask(action: HttpServerAction, blob: Option<LazyLoadBlob>) -> anyhow::Result<()> {
    Ok(answer(ANSWER_TIMEOUT_S, &action, blob)???)
}

/// The results of sending an action, of waiting for its answer, and of the action itself.
type ActionResult = anyhow::Result<Result<Result<(), HttpServerError>, SendError>>;

fn answer(timeout_s: u64, action: &HttpServerAction, blob: Option<LazyLoadBlob>) -> ActionResult {
    let mut request = Request::to(Address::new(OUR, http_server_process())).body(serde_json::to_vec(action)?);
    request.blob = blob;
    match request.send_and_await_response(timeout_s)? {
        Ok(answer) => Ok(Ok(serde_json::from_slice(answer.body())?)),
        Err(error) => Ok(Err(error)),
    }
}

/// As [`ask`], with the errors of the libraries' [`server`].
fn ask_within(
    timeout_s: u64,
    action: &HttpServerAction,
    blob: Option<LazyLoadBlob>,
) -> Result<(), server::HttpServerError> {
    match answer(timeout_s, action, blob) {
        Ok(Ok(answer)) => Ok(answer?),
        Ok(Err(_)) => Err(server::HttpServerError::Timeout),
        Err(_) => Err(server::HttpServerError::UnexpectedResponse),
    }
}
