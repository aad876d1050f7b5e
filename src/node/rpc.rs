//! The RPC path, `POST /rpc:distro:sys/message` (node contract, section 7): JSON in, a Request to a process out, and
//! back. Access to the path is checked by the gateway.

use super::identity::{Address, OUR, is_node_name};
use super::message::{KernelMessage, LazyLoadBlob, Message, Request, Response};
use crate::process_id::{ParseProcessIdError, ProcessId};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};

/// The body of an RPC call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcMessage {
    /// The node to ask; ours if absent.
    pub node: Option<String>,
    /// The process to ask, as text.
    pub process: String,
    /// Accepted and without effect, as in nodes.
    pub inherit: Option<bool>,
    /// Seconds to wait for a response; absent: answer 200 at once.
    pub expects_response: Option<u64>,
    /// The body of the Request.
    pub body: Option<String>,
    /// The metadata of the Request.
    pub metadata: Option<String>,
    /// Accepted and without effect, as in nodes.
    pub context: Option<String>,
    /// The MIME type of the blob.
    pub mime: Option<String>,
    /// The blob, in base64.
    pub data: Option<String>,
}

/// The body of the HTTP answer to an RPC call that waited. The blob's bytes are the text of their base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcResponseBody {
    /// The body of the process' Response.
    pub body: Vec<u8>,
    /// Its blob.
    pub lazy_load_blob: Option<LazyLoadBlob>,
}

/// Why an RPC call is answered with 400. The fault is the caller's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// The HTTP body is not an [`RpcMessage`].
    #[error("the rpc message does not parse: {0}")]
    Body(String),
    /// `process` is not a process id.
    #[error("the rpc message names no process: {0}")]
    Process(#[from] ParseProcessIdError),
    /// `node` is no name of a node.
    #[error("the rpc message names no node: a node's name is not empty and holds no `@`")]
    Node,
    /// `data` is not base64.
    #[error("the data of the rpc message is not base64: {0}")]
    Data(String),
}

/// The Request of `server` that an RPC call becomes. Whether it waits for a response is in its `expects_response`.
///
/// # Errors
/// When the call is malformed; it is answered with 400 and nothing is sent.
pub fn rpc_request(id: u64, server: Address, http_body: &[u8]) -> Result<KernelMessage, RpcError> {
    let call: RpcMessage = serde_json::from_slice(http_body).map_err(|error| RpcError::Body(error.to_string()))?;
    let process: ProcessId = call.process.parse()?;
    let blob = match call.data {
        Some(data) => {
            let bytes = BASE64.decode(data).map_err(|error| RpcError::Data(error.to_string()))?;
            Some(LazyLoadBlob { mime: call.mime, bytes })
        }
        None => None,
    };
    let node = match call.node {
        Some(node) if !is_node_name(&node) => return Err(RpcError::Node),
        Some(node) if node != OUR => node,
        _ => server.node.clone(),
    };
    Ok(KernelMessage {
        id,
        target: Address::new(node, process),
        rsvp: call.expects_response.map(|_| server.clone()),
        source: server,
        message: Message::Request(Request {
            inherit: false,
            expects_response: call.expects_response,
            body: call.body.map(String::into_bytes).unwrap_or_default(),
            metadata: call.metadata,
            capabilities: Vec::new(),
        }),
        lazy_load_blob: blob,
    })
}

/// The body of the HTTP answer, JSON, made from the process' Response.
pub fn rpc_response_body(response: Response, blob: Option<LazyLoadBlob>) -> Vec<u8> {
    let encoded = |blob: LazyLoadBlob| LazyLoadBlob { mime: blob.mime, bytes: BASE64.encode(blob.bytes).into_bytes() };
    let body = RpcResponseBody { body: response.body, lazy_load_blob: blob.map(encoded) };
    serde_json::to_vec(&body).expect("keys are strings and the writer is memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &str) -> Result<KernelMessage, RpcError> {
        rpc_request(9, Address::new("alice.os", crate::node::http_server_process()), body.as_bytes())
    }

    #[test]
    fn a_call_without_expectation_has_nobody_to_answer() {
        let message = request(r#"{"process":"p:p:t.os"}"#).unwrap();
        assert_eq!((message.id, message.target.to_string()), (9, "alice.os@p:p:t.os".to_string()));
        assert_eq!((&message.rsvp, &message.lazy_load_blob, message.message.body()), (&None, &None, &[][..]));
    }

    #[test]
    fn another_node_may_be_asked_and_our_means_ours() {
        let to = |node: &str| request(&format!(r#"{{"node":"{node}","process":"p:p:t.os"}}"#)).unwrap().target.node;
        assert_eq!((to("bob.os"), to("our")), ("bob.os".to_string(), "alice.os".to_string()));
    }

    #[test]
    fn malformed_calls_say_which_part() {
        assert!(matches!(request("{"), Err(RpcError::Body(_))));
        assert!(matches!(request(r#"{"process":7}"#), Err(RpcError::Body(_))));
        assert!(matches!(request(r#"{"process":"p"}"#), Err(RpcError::Process(_))));
        assert!(matches!(request(r#"{"process":"p:p:t@os"}"#), Err(RpcError::Process(_))));
        for node in ["", "bob@os", "@"] {
            let call = format!(r#"{{"node":"{node}","process":"p:p:t.os"}}"#);
            assert!(matches!(request(&call), Err(RpcError::Node)), "{node}");
        }
        assert!(matches!(request(r#"{"process":"p:p:t.os","data":"?"}"#), Err(RpcError::Data(_))));
    }
}
