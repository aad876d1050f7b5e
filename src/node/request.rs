//! The HTTP server's messages to a process (node contract, section 2), as JSON, and a process' answer to an HTTP
//! request.
//!
//! Only shapes; which process is told, and from which source, is decided in `events`.

use super::action::WsMessageType;
use crate::gateway;
use serde::ser::{SerializeStructVariant, Serializer};
use serde::{Deserialize, Serialize};
use std::{collections::HashMap, fmt};

/// The body of a request from `http-server:distro:sys` to a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum HttpServerRequest {
    /// A request hit a bound dynamic path. Its body is the blob; answer with an [`HttpResponse`].
    Http(IncomingHttpRequest),
    /// A channel was opened and belongs to this process.
    WebSocketOpen {
        /// The path below the process id, `/` if nothing is left.
        path: String,
        /// The channel: push to it with this id.
        channel_id: u32,
        /// The client's address and port. Kinode does not tell it.
        #[serde(default)]
        source_socket_addr: Option<String>,
        /// The client's address as a reverse proxy told it.
        #[serde(default)]
        forwarded_for: Option<String>,
    },
    /// A client sent the blob; or, sent by a process, a push of the blob.
    WebSocketPush {
        /// The channel.
        channel_id: u32,
        /// The type of the message.
        message_type: WsMessageType,
    },
    /// The channel is gone. Comes exactly once for each channel.
    WebSocketClose(u32),
}

impl HttpServerRequest {
    /// Parses a message body.
    ///
    /// # Errors
    /// When the bytes are not the JSON of one of the variants.
    pub fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// The HTTP request, if it is one.
    pub fn request(self) -> Option<IncomingHttpRequest> {
        match self {
            Self::Http(request) => Some(request),
            _ => None,
        }
    }

    /// The JSON of this body.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are strings and the writer is memory")
    }
}

/// `WebSocketOpen` has two fields in Kinode and four in Hyperdrive: the two more are written together when one is
/// known.
impl Serialize for HttpServerRequest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const NAME: &str = "HttpServerRequest";
        match self {
            Self::Http(request) => serializer.serialize_newtype_variant(NAME, 0, "Http", request),
            Self::WebSocketOpen { path, channel_id, source_socket_addr, forwarded_for } => {
                let tells_peer = source_socket_addr.is_some() || forwarded_for.is_some();
                let fields = if tells_peer { 4 } else { 2 };
                let mut open = serializer.serialize_struct_variant(NAME, 1, "WebSocketOpen", fields)?;
                open.serialize_field("path", path)?;
                open.serialize_field("channel_id", channel_id)?;
                if tells_peer {
                    open.serialize_field("source_socket_addr", source_socket_addr)?;
                    open.serialize_field("forwarded_for", forwarded_for)?;
                }
                open.end()
            }
            Self::WebSocketPush { channel_id, message_type } => {
                let mut push = serializer.serialize_struct_variant(NAME, 2, "WebSocketPush", 2)?;
                push.serialize_field("channel_id", channel_id)?;
                push.serialize_field("message_type", message_type)?;
                push.end()
            }
            Self::WebSocketClose(channel_id) => {
                serializer.serialize_newtype_variant(NAME, 3, "WebSocketClose", channel_id)
            }
        }
    }
}

/// An HTTP request for a bound dynamic path. Its body is the blob beside it.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IncomingHttpRequest {
    /// The client's address and port.
    pub source_socket_addr: Option<String>,
    /// The method, such as `GET`.
    pub method: String,
    /// `http://` + host without port + path, undecoded, without query.
    pub url: String,
    /// The path that was bound, with the process id and its parameters: `/p:p:t.os/user/:id`.
    pub bound_path: String,
    /// Header fields, names in lower case; the last of several wins.
    pub headers: HashMap<String, String>,
    /// The values of the bound path's parameters and wildcards, undecoded.
    pub url_params: HashMap<String, String>,
    /// The query, decoded; the last of several wins.
    pub query_params: HashMap<String, String>,
}

impl From<gateway::ContractRequest> for IncomingHttpRequest {
    fn from(request: gateway::ContractRequest) -> Self {
        Self {
            source_socket_addr: Some(request.source.to_string()),
            method: request.method,
            url: request.url,
            bound_path: request.bound_path.to_string(),
            headers: request.headers.into_iter().collect(),
            url_params: request.url_params.into_iter().collect(),
            query_params: request.query_params.into_iter().collect(),
        }
    }
}

impl IncomingHttpRequest {
    /// The bound path, without `/` + `process_id_to_strip` if it starts with that.
    pub fn bound_path(&self, process_id_to_strip: Option<&str>) -> &str {
        process_id_to_strip
            .and_then(|process| self.bound_path.strip_prefix('/')?.strip_prefix(process))
            .unwrap_or(&self.bound_path)
    }

    /// The path behind the process id: `/x/y` of `http://host/p:p:t.os/x/y`.
    ///
    /// # Errors
    /// When the URL has no path.
    pub fn path(&self) -> anyhow::Result<String> {
        let no_path = || anyhow::anyhow!("the url has no path: {}", self.url);
        let (_, behind_scheme) = self.url.split_once("://").ok_or_else(no_path)?;
        let (_, path) = behind_scheme.split_once('/').ok_or_else(no_path)?;
        let (_, rest) = path.split_once('/').unwrap_or((path, ""));
        Ok(format!("/{rest}"))
    }

    /// The client's address and port.
    ///
    /// # Errors
    /// When the server did not tell it.
    pub fn source_socket_addr(&self) -> anyhow::Result<std::net::SocketAddr> {
        match &self.source_socket_addr {
            Some(address) => Ok(address.parse()?),
            None => anyhow::bail!("the request came without its client's address"),
        }
    }

    /// The parameters of the bound path.
    pub fn url_params(&self) -> &HashMap<String, String> {
        &self.url_params
    }

    /// The query.
    pub fn query_params(&self) -> &HashMap<String, String> {
        &self.query_params
    }
}

/// Header values and the query may hold tokens, so they are not shown.
impl fmt::Debug for IncomingHttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingHttpRequest")
            .field("method", &self.method)
            .field("url", &self.url)
            .field("bound_path", &self.bound_path)
            .field("source_socket_addr", &self.source_socket_addr)
            .finish_non_exhaustive()
    }
}

/// A process' answer to an HTTP request. Its body is the blob beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpResponse {
    /// The status code.
    pub status: u16,
    /// Header fields.
    pub headers: HashMap<String, String>,
}

impl HttpResponse {
    /// An answer without header fields.
    pub fn new(status: impl Into<u16>) -> Self {
        Self { status: status.into(), headers: HashMap::new() }
    }

    /// The same answer with one more header field.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    /// The JSON of this body.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("keys are strings and the writer is memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_has_two_fields_or_four() {
        for text in [
            r#"{"WebSocketOpen":{"path":"/","channel_id":7}}"#,
            r#"{"WebSocketOpen":{"path":"/","channel_id":7,"source_socket_addr":"127.0.0.1:5000","forwarded_for":null}}"#,
        ] {
            let request = HttpServerRequest::from_bytes(text.as_bytes()).unwrap();
            assert!(matches!(request, HttpServerRequest::WebSocketOpen { channel_id: 7, .. }));
            assert_eq!(request.to_bytes(), text.as_bytes());
        }
    }

    #[test]
    fn paths_lose_the_process_id() {
        let request = IncomingHttpRequest {
            url: "http://localhost/p:p:t.os/x/a%20b".into(),
            bound_path: "/p:p:t.os/x/:id".into(),
            ..Default::default()
        };
        assert_eq!(request.path().unwrap(), "/x/a%20b");
        assert_eq!(request.bound_path(Some("p:p:t.os")), "/x/:id");
        assert_eq!(request.bound_path(Some("q:q:t.os")), "/p:p:t.os/x/:id");
        assert_eq!(request.bound_path(None), "/p:p:t.os/x/:id");
        let root = IncomingHttpRequest { url: "http://localhost/p:p:t.os".into(), ..Default::default() };
        assert_eq!(root.path().unwrap(), "/");
        assert!(IncomingHttpRequest::default().path().is_err());
    }

    #[test]
    fn debug_hides_header_values() {
        let headers = HashMap::from([("cookie".to_string(), "kinode-auth_a.os=token".to_string())]);
        let request = IncomingHttpRequest { headers, ..Default::default() };
        assert!(!format!("{:?}", HttpServerRequest::Http(request)).contains("token"));
    }
}
