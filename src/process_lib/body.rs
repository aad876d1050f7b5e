//! The body of a received message. One from the broker in this program is written as JSON only when the process reads
//! it: writing and parsing a body costs more than passing a message on.

use crate::node::{HttpServerRequest, WsMessageType};
use std::{fmt, ops::Deref, sync::OnceLock};

/// The bytes of a message's body. Reads as `&[u8]`.
#[derive(Clone)]
pub struct Body {
    unwritten: BodyContent,
    bytes: OnceLock<Vec<u8>>,
}

/// The content of the JSON. Frequent events are kept inline; the large ones, which are rare, in a box.
#[derive(Clone)]
enum BodyContent {
    Nothing,
    Push { channel_id: u32, message_type: WsMessageType },
    Other(Box<HttpServerRequest>),
}

impl BodyContent {
    fn event(&self) -> Option<HttpServerRequest> {
        match self {
            Self::Nothing => None,
            Self::Push { channel_id, message_type } => {
                Some(HttpServerRequest::WebSocketPush { channel_id: *channel_id, message_type: *message_type })
            }
            Self::Other(event) => Some((**event).clone()),
        }
    }

    fn write(&self) -> Vec<u8> {
        match self {
            Self::Other(event) => event.to_bytes(),
            unwritten => unwritten.event().map(|event| event.to_bytes()).unwrap_or_default(),
        }
    }
}

impl Body {
    /// A body whose JSON is written when it is first read.
    pub fn from_event(event: HttpServerRequest) -> Self {
        let unwritten = match event {
            HttpServerRequest::WebSocketPush { channel_id, message_type } => {
                BodyContent::Push { channel_id, message_type }
            }
            other => BodyContent::Other(Box::new(other)),
        };
        Self { unwritten, bytes: OnceLock::new() }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get_or_init(|| self.unwritten.write())
    }

    /// The HTTP server's event in this body, without a detour through JSON where none was made.
    ///
    /// # Errors
    /// The body is not the JSON of an [`HttpServerRequest`].
    pub fn http_server_request(&self) -> serde_json::Result<HttpServerRequest> {
        match self.unwritten.event() {
            Some(event) => Ok(event),
            None => HttpServerRequest::from_bytes(self.as_slice()),
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self { unwritten: BodyContent::Nothing, bytes: OnceLock::from(bytes) }
    }
}

impl From<Body> for Vec<u8> {
    fn from(body: Body) -> Self {
        body.bytes.into_inner().unwrap_or_else(|| body.unwritten.write())
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unwritten.event() {
            Some(event) => event.fmt(f),
            None => write!(f, "{} bytes", self.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_written_when_it_is_read_and_not_before() {
        let body = Body::from_event(HttpServerRequest::WebSocketClose(7));
        assert!(body.bytes.get().is_none());
        assert_eq!(body.http_server_request().unwrap(), HttpServerRequest::WebSocketClose(7));
        assert!(body.bytes.get().is_none());
        assert_eq!(&body[..], br#"{"WebSocketClose":7}"#);
        assert!(body.bytes.get().is_some());
        assert_eq!(Vec::from(body), br#"{"WebSocketClose":7}"#);
    }

    #[test]
    fn any_bytes_may_be_a_body() {
        let body = Body::from(b"hello".to_vec());
        assert_eq!(String::from_utf8_lossy(&body), "hello");
        assert!(body.http_server_request().is_err());
        assert_eq!(format!("{body:?}"), "5 bytes");
    }
}
