//! The names of `kinode_process_lib` since 0.10 and of `hyperware_process_lib`: an [`HttpServer`] that remembers bound
//! paths and connected clients, and functions that return nothing.
//!
//! The functions that serve the node's file system (`serve_ui`, `serve_file`) are left out: a process beside a broker
//! has none.

use super::ask_within;
use crate::node::{self, HttpServerAction};
use crate::process_lib::request::Response;
use crate::process_lib::{get_blob, our, runtime};
use std::collections::{HashMap, HashSet};

pub use crate::node::{HttpResponse, HttpServerRequest, IncomingHttpRequest, LazyLoadBlob, MessageType, WsMessageType};

/// Why the server refused an action, or that it did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpServerError {
    /// It is no action that the server performs.
    #[error("{}", node::HttpServerError::MalformedRequest)]
    MalformedRequest,
    /// It needs a blob.
    #[error("{}", node::HttpServerError::NoBlob)]
    NoBlob,
    /// This process may not bind.
    #[error("{}", node::HttpServerError::InvalidSourceProcess)]
    InvalidSourceProcess,
    /// A Ping or Pong is over 125 bytes.
    #[error("{}", node::HttpServerError::WsPingPongTooLong)]
    WsPingPongTooLong,
    /// No channel of that id belongs to the process.
    #[error("{}", node::HttpServerError::WsChannelNotFound)]
    WsChannelNotFound,
    /// A channel has as many topics as it may have, or all channels together have.
    #[error("{}", node::HttpServerError::TooManySubscriptions)]
    TooManySubscriptions,
    /// The server did not answer in time.
    #[error("the http server did not answer in time")]
    Timeout,
    /// The server answered with something else.
    #[error("the http server sent something other than an answer")]
    UnexpectedResponse,
}

impl From<node::HttpServerError> for HttpServerError {
    fn from(error: node::HttpServerError) -> Self {
        match error {
            node::HttpServerError::MalformedRequest => Self::MalformedRequest,
            node::HttpServerError::NoBlob => Self::NoBlob,
            node::HttpServerError::InvalidSourceProcess => Self::InvalidSourceProcess,
            node::HttpServerError::WsPingPongTooLong => Self::WsPingPongTooLong,
            node::HttpServerError::WsChannelNotFound => Self::WsChannelNotFound,
            node::HttpServerError::TooManySubscriptions => Self::TooManySubscriptions,
            // Nothing here asks for a grant.
            node::HttpServerError::TooManyGrants => Self::UnexpectedResponse,
        }
    }
}

/// How a path is bound for HTTP.
#[derive(Debug, Clone)]
pub struct HttpBindingConfig {
    authenticated: bool,
    local_only: bool,
    secure_subdomain: bool,
    static_content: Option<LazyLoadBlob>,
}

impl Default for HttpBindingConfig {
    /// With a token, from anywhere, on the node's own host, answered by the process.
    fn default() -> Self {
        Self::new(true, false, false, None)
    }
}

impl HttpBindingConfig {
    /// All of it at once.
    pub fn new(
        authenticated: bool,
        local_only: bool,
        secure_subdomain: bool,
        static_content: Option<LazyLoadBlob>,
    ) -> Self {
        Self { authenticated, local_only, secure_subdomain, static_content }
    }

    /// Whether clients need a token.
    #[must_use]
    pub fn authenticated(mut self, authenticated: bool) -> Self {
        self.authenticated = authenticated;
        self
    }

    /// Whether only clients of this machine are answered.
    #[must_use]
    pub fn local_only(mut self, local_only: bool) -> Self {
        self.local_only = local_only;
        self
    }

    /// Whether it is bound on the package's own subdomain, which always asks for a token.
    #[must_use]
    pub fn secure_subdomain(mut self, secure_subdomain: bool) -> Self {
        self.secure_subdomain = secure_subdomain;
        self
    }

    /// The content that the server serves without asking the process.
    #[must_use]
    pub fn static_content(mut self, static_content: Option<LazyLoadBlob>) -> Self {
        self.static_content = static_content;
        self
    }

    fn action(&self, path: &str) -> HttpServerAction {
        let (path, cache) = (path.to_owned(), self.static_content.is_some());
        match self.secure_subdomain {
            true => HttpServerAction::SecureBind { path, cache },
            false => {
                HttpServerAction::Bind { path, authenticated: self.authenticated, local_only: self.local_only, cache }
            }
        }
    }
}

/// How a path is bound for WebSocket.
#[derive(Debug, Clone, Copy)]
pub struct WsBindingConfig {
    authenticated: bool,
    secure_subdomain: bool,
    extension: bool,
}

impl Default for WsBindingConfig {
    /// With a token, on the node's own host, for browsers.
    fn default() -> Self {
        Self::new(true, false, false)
    }
}

impl WsBindingConfig {
    /// All of it at once.
    pub fn new(authenticated: bool, secure_subdomain: bool, extension: bool) -> Self {
        Self { authenticated, secure_subdomain, extension }
    }

    /// Whether clients need a token.
    #[must_use]
    pub fn authenticated(mut self, authenticated: bool) -> Self {
        self.authenticated = authenticated;
        self
    }

    /// Whether it is bound on the package's own subdomain, which always asks for a token.
    #[must_use]
    pub fn secure_subdomain(mut self, secure_subdomain: bool) -> Self {
        self.secure_subdomain = secure_subdomain;
        self
    }

    /// Whether clients are extensions of this machine.
    #[must_use]
    pub fn extension(mut self, extension: bool) -> Self {
        self.extension = extension;
        self
    }

    fn action(self, path: &str) -> HttpServerAction {
        let Self { authenticated, secure_subdomain, extension } = self;
        let path = path.to_owned();
        match secure_subdomain {
            true => HttpServerAction::WebSocketSecureBind { path, encrypted: false, extension },
            false => HttpServerAction::WebSocketBind { path, authenticated, encrypted: false, extension },
        }
    }
}

/// The server as this process has set it up: what is bound, and which channels are open on which path.
#[derive(Debug, Clone)]
pub struct HttpServer {
    http_paths: HashMap<String, HttpBindingConfig>,
    ws_paths: HashMap<String, WsBindingConfig>,
    ws_channels: HashMap<String, HashSet<u32>>,
    /// Seconds within which the server is to answer an action.
    pub timeout: u64,
}

impl HttpServer {
    /// Nothing is bound.
    pub fn new(timeout: u64) -> Self {
        let (http_paths, ws_paths, ws_channels) = Default::default();
        Self { http_paths, ws_paths, ws_channels, timeout }
    }

    /// Binds a path for HTTP.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn bind_http_path(
        &mut self,
        path: impl Into<String>,
        config: HttpBindingConfig,
    ) -> Result<(), HttpServerError> {
        let path = path.into();
        ask_within(self.timeout, &config.action(&path), config.static_content.clone())?;
        self.http_paths.insert(path, config);
        Ok(())
    }

    /// Binds a path for HTTP to content that the server itself serves.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn bind_http_static_path(
        &mut self,
        path: impl Into<String>,
        authenticated: bool,
        local_only: bool,
        content_type: Option<String>,
        content: Vec<u8>,
    ) -> Result<(), HttpServerError> {
        let content = LazyLoadBlob { mime: content_type, bytes: content };
        self.bind_http_path(path, HttpBindingConfig::new(authenticated, local_only, false, Some(content)))
    }

    /// Binds a path for HTTP on the package's own subdomain.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn secure_bind_http_path(&mut self, path: impl Into<String>) -> Result<(), HttpServerError> {
        self.bind_http_path(path, HttpBindingConfig::default().secure_subdomain(true))
    }

    /// Binds several paths for HTTP alike: all of them, or none.
    ///
    /// # Errors
    /// Of the first path that is refused; those before it are unbound again.
    pub fn bind_multiple_http_paths<T: Into<String>>(
        &mut self,
        paths: Vec<T>,
        config: HttpBindingConfig,
    ) -> Result<(), HttpServerError> {
        let mut bound: Vec<String> = Vec::new();
        for path in paths {
            let path = path.into();
            if let Err(error) = self.bind_http_path(path.clone(), config.clone()) {
                // The first refusal is what is told.
                for path in bound {
                    let _ = self.unbind_http_path(path);
                }
                return Err(error);
            }
            bound.push(path);
        }
        Ok(())
    }

    /// Binds a path for WebSocket.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn bind_ws_path(&mut self, path: impl Into<String>, config: WsBindingConfig) -> Result<(), HttpServerError> {
        let path = path.into();
        ask_within(self.timeout, &config.action(&path), None)?;
        self.ws_paths.insert(path, config);
        Ok(())
    }

    /// Binds a path for WebSocket on the package's own subdomain.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn secure_bind_ws_path(&mut self, path: impl Into<String>) -> Result<(), HttpServerError> {
        self.bind_ws_path(path, WsBindingConfig::default().secure_subdomain(true))
    }

    /// Binds a path for HTTP otherwise than before.
    ///
    /// # Errors
    /// `MalformedRequest` if this has not bound it; else see [`HttpServerError`].
    pub fn modify_http_path(&mut self, path: &str, config: HttpBindingConfig) -> Result<(), HttpServerError> {
        match self.http_paths.contains_key(path) {
            true => self.bind_http_path(path, config),
            false => Err(HttpServerError::MalformedRequest),
        }
    }

    /// Binds a path for WebSocket otherwise than before.
    ///
    /// # Errors
    /// `MalformedRequest` if this has not bound it; else see [`HttpServerError`].
    pub fn modify_ws_path(&mut self, path: &str, config: WsBindingConfig) -> Result<(), HttpServerError> {
        match self.ws_paths.contains_key(path) {
            true => self.bind_ws_path(path, config),
            false => Err(HttpServerError::MalformedRequest),
        }
    }

    /// Unbinds an HTTP path.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn unbind_http_path(&mut self, path: impl Into<String>) -> Result<(), HttpServerError> {
        let path = path.into();
        ask_within(self.timeout, &HttpServerAction::Unbind { path: path.clone() }, None)?;
        self.http_paths.remove(&path);
        Ok(())
    }

    /// Unbinds a WebSocket path. Open channels live on.
    ///
    /// # Errors
    /// See [`HttpServerError`].
    pub fn unbind_ws_path(&mut self, path: impl Into<String>) -> Result<(), HttpServerError> {
        let path = path.into();
        ask_within(self.timeout, &HttpServerAction::WebSocketUnbind { path: path.clone() }, None)?;
        self.ws_paths.remove(&path);
        Ok(())
    }

    /// Notes a channel that was opened.
    pub fn handle_websocket_open(&mut self, path: &str, channel_id: u32) {
        self.ws_channels.entry(path.to_owned()).or_default().insert(channel_id);
    }

    /// Forgets a channel that was closed.
    pub fn handle_websocket_close(&mut self, channel_id: u32) {
        self.ws_channels.retain(|_, channels| {
            channels.remove(&channel_id);
            !channels.is_empty()
        });
    }

    /// The request of the server that a message's body is.
    ///
    /// # Errors
    /// `MalformedRequest` when it is none.
    pub fn parse_request(&self, body: &[u8]) -> Result<HttpServerRequest, HttpServerError> {
        HttpServerRequest::from_bytes(body).map_err(|_| HttpServerError::MalformedRequest)
    }

    /// Handles a request of the server: answers HTTP with what `http_handler` returns, gives messages of channels to
    /// `ws_handler`, and keeps the list of channels.
    pub fn handle_request(
        &mut self,
        server_request: HttpServerRequest,
        mut http_handler: impl FnMut(IncomingHttpRequest) -> (HttpResponse, Option<LazyLoadBlob>),
        mut ws_handler: impl FnMut(u32, WsMessageType, LazyLoadBlob),
    ) {
        match server_request {
            HttpServerRequest::Http(request) => {
                let (response, blob) = http_handler(request);
                respond(&response, blob);
            }
            HttpServerRequest::WebSocketPush { channel_id, message_type } => {
                ws_handler(channel_id, message_type, get_blob().unwrap_or_default());
            }
            HttpServerRequest::WebSocketOpen { path, channel_id, .. } => self.handle_websocket_open(&path, channel_id),
            HttpServerRequest::WebSocketClose(channel_id) => self.handle_websocket_close(channel_id),
        }
    }

    /// Pushes one message to all channels that are open on `path`.
    pub fn ws_push_all_channels(&self, path: &str, message_type: WsMessageType, blob: LazyLoadBlob) {
        ws_push_all_channels(&self.ws_channels, path, message_type, blob);
    }

    /// The channels that are open, by path.
    pub fn get_ws_channels(&self) -> HashMap<String, HashSet<u32>> {
        self.ws_channels.clone()
    }
}

/// Answers the HTTP request received last, if there is one. `status` is a number or the `StatusCode` of the `http`
/// crate.
pub fn send_response(status: impl Into<u16>, headers: Option<HashMap<String, String>>, body: Vec<u8>) {
    let response = HttpResponse { status: status.into(), headers: headers.unwrap_or_default() };
    respond(&response, Some(LazyLoadBlob { mime: None, bytes: body }));
}

fn respond(response: &HttpResponse, blob: Option<LazyLoadBlob>) {
    let answer = Response::new().body(response.to_bytes());
    let answer = match blob {
        Some(blob) => answer.blob(blob),
        None => answer,
    };
    // Without a request there is nothing to answer; a stopped process ends with its next call.
    if let Err(error) = answer.send() {
        tracing::debug!(%error, "a response was not sent");
    }
}

/// Pushes one message to a channel of this process. Does not wait for the client, and nothing is heard of a channel
/// that is gone.
///
/// If the process is stopped, this does not return: the thread unwinds to where the process was started.
///
/// # Panics
/// Outside of a process.
pub fn send_ws_push(channel_id: u32, message_type: WsMessageType, blob: LazyLoadBlob) {
    let node = our().node;
    runtime::or_end(runtime::with(|state| state.push(node, channel_id, message_type, blob)));
}

/// Pushes one message to all channels that `ws_channels` has on `path`.
pub fn ws_push_all_channels(
    ws_channels: &HashMap<String, HashSet<u32>>,
    path: &str,
    message_type: WsMessageType,
    blob: LazyLoadBlob,
) {
    for channel_id in ws_channels.get(path).into_iter().flatten() {
        send_ws_push(*channel_id, message_type, blob.clone());
    }
}
