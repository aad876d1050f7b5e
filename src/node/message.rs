//! Messages between processes: requests and responses, a blob beside them, and the envelope of the kernel.
//!
//! The serde shapes are those of a node (node contract, section 1). Blobs are moved, never copied: `LazyLoadBlob` holds
//! a `Vec<u8>`, which becomes shared bytes without a copy. `Debug` shows lengths, not contents, since bodies and blobs
//! carry tokens and private messages. Does not depend on the HTTP server's own bodies.

use super::identity::Address;
use crate::admission::HeapBytes;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes beside a message's body, with an optional MIME type.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LazyLoadBlob {
    /// The MIME type, such as `text/html`.
    pub mime: Option<String>,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl LazyLoadBlob {
    /// A blob with a MIME type or none.
    pub fn new(mime: Option<impl Into<String>>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { mime: mime.map(Into::into), bytes: bytes.into() }
    }

    /// The MIME type.
    pub fn mime(&self) -> Option<&str> {
        self.mime.as_deref()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for LazyLoadBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LazyLoadBlob({:?}, {} bytes)", self.mime, self.bytes.len())
    }
}

/// Bytes that a sender keeps for itself, returned to it with the response.
pub type SenderContext = Vec<u8>;

/// A right that an issuer granted, carried beside a message. The HTTP server neither needs nor gives any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// The issuer.
    pub issuer: Address,
    /// The rights it grants, as JSON text.
    pub params: String,
}

/// A message that may expect a response.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Request {
    /// Whether blob and response target of the prompting message are taken over.
    pub inherit: bool,
    /// Seconds within which a response is expected; none means that no response is expected.
    pub expects_response: Option<u64>,
    /// The body; for the HTTP server, JSON.
    pub body: Vec<u8>,
    /// Text beside the body, for middleware.
    pub metadata: Option<String>,
    /// Capabilities with their signatures.
    pub capabilities: Vec<(Capability, Vec<u8>)>,
}

/// The answer to a request; the envelope's id says to which.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Response {
    /// Whether the blob of the prompting message is taken over.
    pub inherit: bool,
    /// The body.
    pub body: Vec<u8>,
    /// Text beside the body, for middleware.
    pub metadata: Option<String>,
    /// Capabilities with their signatures.
    pub capabilities: Vec<(Capability, Vec<u8>)>,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("inherit", &self.inherit)
            .field("expects_response", &self.expects_response)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("inherit", &self.inherit)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// The content of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// A request.
    Request(Request),
    /// A response, and the context that the asker kept for it.
    Response((Response, Option<SenderContext>)),
}

impl Message {
    /// A request. Capabilities are left out: the HTTP server has no use for them.
    pub fn request(inherit: bool, expects_response: Option<u64>, body: Vec<u8>, metadata: Option<String>) -> Self {
        Self::Request(Request { inherit, expects_response, body, metadata, capabilities: Vec::new() })
    }

    /// A response, and the context that the asker kept for it.
    pub fn response(inherit: bool, body: Vec<u8>, metadata: Option<String>, context: Option<SenderContext>) -> Self {
        Self::Response((Response { inherit, body, metadata, capabilities: Vec::new() }, context))
    }

    /// The body of either kind.
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Request(request) => &request.body,
            Self::Response((response, _)) => &response.body,
        }
    }
}

/// The envelope in which the kernel carries a message between processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelMessage {
    /// Names the request; its response carries the same id.
    pub id: u64,
    /// The sender.
    pub source: Address,
    /// The recipient.
    pub target: Address,
    /// The recipient of the response, if that is not the source.
    pub rsvp: Option<Address>,
    /// The message.
    pub message: Message,
    /// The blob.
    pub lazy_load_blob: Option<LazyLoadBlob>,
}

impl HeapBytes for KernelMessage {
    fn heap_bytes(&self) -> usize {
        let address = |address: &Address| address.node.capacity() + address.process.as_str().len();
        let granted = |capabilities: &Vec<(Capability, Vec<u8>)>| {
            let each = |(capability, signature): &(Capability, Vec<u8>)| {
                address(&capability.issuer) + capability.params.capacity() + signature.capacity()
            };
            capabilities.capacity() * size_of::<(Capability, Vec<u8>)>() + capabilities.iter().map(each).sum::<usize>()
        };
        let carried = |body: &Vec<u8>, metadata: &Option<String>, capabilities| {
            body.capacity() + metadata.heap_bytes() + granted(capabilities)
        };
        let message = match &self.message {
            Message::Request(request) => carried(&request.body, &request.metadata, &request.capabilities),
            Message::Response((response, context)) => {
                carried(&response.body, &response.metadata, &response.capabilities) + context.heap_bytes()
            }
        };
        let blob = self.lazy_load_blob.as_ref().map_or(0, |blob| blob.mime.heap_bytes() + blob.bytes.capacity());
        address(&self.source) + address(&self.target) + self.rsvp.as_ref().map_or(0, address) + message + blob
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_lengths_and_no_contents() {
        let blob = LazyLoadBlob::new(Some("text/plain"), *b"secret");
        assert_eq!(format!("{blob:?}"), r#"LazyLoadBlob(Some("text/plain"), 6 bytes)"#);
        let request = Request { body: b"secret".to_vec(), metadata: Some("secret".into()), ..Request::default() };
        let text = format!("{:?}", Message::Request(request));
        assert!(text.contains("body_bytes: 6") && !text.contains("secret") && !text.contains("115"), "{text}");
    }

    #[test]
    fn a_response_is_a_pair_with_its_context_in_json() {
        let message = Message::Response((Response { body: vec![7], ..Response::default() }, None));
        let text = r#"{"Response":[{"inherit":false,"body":[7],"metadata":null,"capabilities":[]},null]}"#;
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(serde_json::from_str::<Message>(text).unwrap(), message);
    }
}
