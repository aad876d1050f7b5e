//! Builders of a process' requests and responses.

use super::message::{Message, SendError};
use super::runtime;
use super::state::OutgoingRequest;
use crate::node::{self, Address, Capability, LazyLoadBlob};

/// The setters of what requests and responses both carry.
macro_rules! carried_by_both {
    () => {
        /// Sets the body.
        pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
            self.body = Some(body.into());
            self
        }

        /// Sets the body from a type that may fail to become bytes.
        ///
        /// # Errors
        /// Those of the conversion.
        pub fn try_body<T: TryInto<Vec<u8>, Error = anyhow::Error>>(self, body: T) -> anyhow::Result<Self> {
            Ok(self.body(body.try_into()?))
        }

        /// Sets the text beside the body.
        pub fn metadata(mut self, metadata: &str) -> Self {
            self.metadata = Some(metadata.to_string());
            self
        }

        /// Sets the blob.
        pub fn blob(mut self, blob: LazyLoadBlob) -> Self {
            self.blob = Some(blob);
            self
        }

        /// Sets the blob's MIME type.
        pub fn blob_mime(mut self, mime: &str) -> Self {
            self.blob.get_or_insert_default().mime = Some(mime.to_string());
            self
        }

        /// Sets the blob's bytes.
        pub fn blob_bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
            self.blob.get_or_insert_default().bytes = bytes.into();
            self
        }

        /// Attaches capabilities.
        pub fn capabilities(mut self, capabilities: Vec<Capability>) -> Self {
            self.capabilities = capabilities;
            self
        }
    };
}

/// A request to be. Needs a target and a body.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The recipient.
    pub target: Option<Address>,
    /// Whether id, blob and response target of the prompting message are taken over.
    pub inherit: bool,
    /// Seconds within which a response is expected; none: it expects none.
    pub timeout: Option<u64>,
    /// The body.
    pub body: Option<Vec<u8>>,
    /// Text beside the body.
    pub metadata: Option<String>,
    /// The blob.
    pub blob: Option<LazyLoadBlob>,
    /// Bytes returned with the response.
    pub context: Option<Vec<u8>>,
    /// Capabilities to attach.
    pub capabilities: Vec<Capability>,
}

impl Request {
    /// An empty request.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request to `target`.
    pub fn to(target: impl Into<Address>) -> Self {
        Self::new().target(target)
    }

    /// Sets the recipient.
    pub fn target(mut self, target: impl Into<Address>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Sets whether id, blob and response target of the prompting message are taken over. An own blob goes first.
    pub fn inherit(mut self, inherit: bool) -> Self {
        self.inherit = inherit;
        self
    }

    /// Expects a response within `timeout` seconds: it comes with [`await_message`](super::await_message), or a
    /// [`SendError`] does.
    pub fn expects_response(mut self, timeout: u64) -> Self {
        self.timeout = Some(timeout);
        self
    }

    carried_by_both!();

    /// Sets what comes back with the response or the failure.
    pub fn context(mut self, context: impl Into<Vec<u8>>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Sends it. Does not wait for its delivery.
    ///
    /// # Errors
    /// When target or body is missing, or the process was stopped.
    ///
    /// # Panics
    /// Outside of a process.
    pub fn send(self) -> anyhow::Result<()> {
        let outgoing = self.into_outgoing()?;
        runtime::with(|state| state.send(outgoing))?;
        Ok(())
    }

    /// Sends it and waits up to `timeout` seconds for the response. Other messages wait for their turn. Afterwards
    /// [`get_blob`](super::get_blob) gives the response's blob.
    ///
    /// # Errors
    /// Outer: as [`send`](Self::send). Inner: the target did not answer.
    ///
    /// # Panics
    /// Outside of a process.
    pub fn send_and_await_response(self, timeout: u64) -> anyhow::Result<Result<Message, SendError>> {
        let outgoing = self.expects_response(timeout).into_outgoing()?;
        Ok(runtime::with(|state| {
            let id = state.send(outgoing)?;
            state.receive_response(id)
        })?)
    }

    fn into_outgoing(self) -> anyhow::Result<OutgoingRequest> {
        let target = self.target.ok_or_else(|| anyhow::anyhow!("the request has no target"))?;
        let body = self.body.ok_or_else(|| anyhow::anyhow!("the request has no body"))?;
        let request = node::Request {
            inherit: self.inherit,
            expects_response: self.timeout,
            body,
            metadata: self.metadata,
            capabilities: unsigned(self.capabilities),
        };
        Ok(OutgoingRequest { target, request, context: self.context, blob: self.blob })
    }
}

/// An answer to be, to the last request that waits for one. Needs a body.
#[derive(Debug, Clone, Default)]
pub struct Response {
    inherit: bool,
    body: Option<Vec<u8>>,
    metadata: Option<String>,
    blob: Option<LazyLoadBlob>,
    capabilities: Vec<Capability>,
}

impl Response {
    /// An empty response.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the blob of the message received last is handed on. An own blob goes first.
    pub fn inherit(mut self, inherit: bool) -> Self {
        self.inherit = inherit;
        self
    }

    carried_by_both!();

    /// Answers the last request that expects a response.
    ///
    /// # Errors
    /// The body is missing, no such request was received, or the process was stopped.
    ///
    /// # Panics
    /// Outside of a process.
    pub fn send(self) -> anyhow::Result<()> {
        let body = self.body.ok_or_else(|| anyhow::anyhow!("the response has no body"))?;
        let response = node::Response {
            inherit: self.inherit,
            body,
            metadata: self.metadata,
            capabilities: unsigned(self.capabilities),
        };
        anyhow::ensure!(
            runtime::with(|state| state.respond(response, self.blob))?,
            "there is no request to respond to"
        );
        Ok(())
    }
}

/// Signatures are the kernel's to add.
fn unsigned(capabilities: Vec<Capability>) -> Vec<(Capability, Vec<u8>)> {
    capabilities.into_iter().map(|capability| (capability, Vec::new())).collect()
}
