//! Events at the server → the KernelMessages that report them to a process (node contract, section 2).
//!
//! The source is `NODE@http-server:distro:sys`, but literally `our` (and so is the target's node) for `WebSocketClose`.
//! Nothing inherits; WebSocket events expect no response. The caller supplies ids, since it has the randomness. Blobs
//! are moved.

use super::action::{MessageType, WsMessageType};
use super::dialect::Dialect;
use super::extension::{self, ExtensionFrame};
use super::identity::{Address, OUR, ServerName};
use super::message::{KernelMessage, LazyLoadBlob, Message, Request, Response};
use super::request::{HttpServerRequest, IncomingHttpRequest};
use crate::{channel::ChannelId, process_id::ProcessId};
use std::net::SocketAddr;

/// Makes the messages of one node's server.
#[derive(Debug, Clone)]
pub struct EventMessages {
    our_node: String,
    dialect: Dialect,
    name: ServerName,
}

impl EventMessages {
    /// For the server of `our_node`.
    pub fn new(our_node: &str, dialect: Dialect) -> Self {
        Self { our_node: our_node.to_owned(), dialect, name: ServerName::default() }
    }

    /// In another dialect from now on.
    pub fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    /// Under another name from now on.
    pub fn set_name(&mut self, name: ServerName) {
        self.name = name;
    }

    /// The name.
    pub fn name(&self) -> ServerName {
        self.name
    }

    /// A process of our node.
    pub(crate) fn address_of(&self, process: &ProcessId) -> Address {
        Address::new(self.our_node.clone(), process)
    }

    /// The server's address.
    pub fn server(&self) -> Address {
        Address::new(self.our_node.clone(), self.name.process())
    }

    /// A channel was opened on `path`, which is without the process id. The peer is told in the Hyperdrive dialect
    /// only.
    pub fn opened(
        &self,
        id: u64,
        owner: &ProcessId,
        channel: ChannelId,
        path: String,
        peer: SocketAddr,
        forwarded_for: Option<String>,
    ) -> KernelMessage {
        let (source_socket_addr, forwarded_for) = match self.dialect {
            Dialect::Kinode => (None, None),
            Dialect::Hyperdrive => (Some(peer.to_string()), forwarded_for),
        };
        let body =
            HttpServerRequest::WebSocketOpen { path, channel_id: channel.get(), source_socket_addr, forwarded_for };
        self.tell(id, owner, request(body.to_bytes()), None)
    }

    /// A client of a channel sent a message or a control frame. For Close, `bytes` is the reason without the code.
    pub fn message(
        &self,
        id: u64,
        owner: &ProcessId,
        channel: ChannelId,
        message_type: WsMessageType,
        bytes: Vec<u8>,
    ) -> KernelMessage {
        let body = push_body(channel, message_type);
        self.tell(id, owner, request(body), Some(LazyLoadBlob { mime: None, bytes }))
    }

    /// An extension's client sent a message. One in the extensions' shape keeps the id that it carries; another is
    /// ordinary and gets `id`. None: the message was an action, which extensions may not ask for.
    pub fn extension_message(
        &self,
        id: u64,
        owner: &ProcessId,
        channel: ChannelId,
        message_type: WsMessageType,
        bytes: Vec<u8>,
    ) -> Option<KernelMessage> {
        let data = match extension::decode(bytes) {
            ExtensionFrame::Data(data) => data,
            ExtensionFrame::Forbidden => return None,
            ExtensionFrame::Ordinary(bytes) => return Some(self.message(id, owner, channel, message_type, bytes)),
        };
        let body = push_body(channel, message_type);
        let message = match data.message_type {
            MessageType::Request => request(body),
            MessageType::Response => Message::Response((Response { body, ..Response::default() }, None)),
        };
        Some(self.tell(data.id, owner, message, Some(LazyLoadBlob { mime: None, bytes: data.blob })))
    }

    /// A channel is gone.
    pub fn closed(&self, id: u64, owner: &ProcessId, channel: ChannelId) -> KernelMessage {
        KernelMessage {
            source: Address::new(OUR, self.name.process()),
            target: Address::new(OUR, owner),
            ..self.tell(id, owner, request(HttpServerRequest::WebSocketClose(channel.get()).to_bytes()), None)
        }
    }

    /// A request hit a dynamic path. The response carries the same id; after `timeout_s` seconds the client gets 408.
    pub fn http(
        &self,
        id: u64,
        owner: &ProcessId,
        incoming: IncomingHttpRequest,
        bytes: Vec<u8>,
        timeout_s: u64,
    ) -> KernelMessage {
        let message = Message::Request(Request {
            body: HttpServerRequest::Http(incoming).to_bytes(),
            expects_response: Some(timeout_s),
            ..Request::default()
        });
        self.tell(id, owner, message, Some(LazyLoadBlob { mime: None, bytes }))
    }

    fn tell(&self, id: u64, owner: &ProcessId, message: Message, blob: Option<LazyLoadBlob>) -> KernelMessage {
        KernelMessage {
            id,
            source: self.server(),
            target: Address::new(self.our_node.clone(), owner),
            rsvp: None,
            message,
            lazy_load_blob: blob,
        }
    }
}

fn push_body(channel: ChannelId, message_type: WsMessageType) -> Vec<u8> {
    HttpServerRequest::WebSocketPush { channel_id: channel.get(), message_type }.to_bytes()
}

fn request(body: Vec<u8>) -> Message {
    Message::Request(Request { body, ..Request::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::action::HttpServerAction;
    use crate::node::extension::WebSocketExtPushData;

    fn owner() -> ProcessId {
        "p:p:t.os".parse().unwrap()
    }

    #[test]
    fn kinode_does_not_tell_the_peer() {
        let peer: SocketAddr = "127.0.0.1:5000".parse().unwrap();
        let open = |dialect| {
            let events = EventMessages::new("alice.os", dialect);
            let message = events.opened(1, &owner(), ChannelId::new(7), "/".into(), peer, Some("203.0.113.7".into()));
            String::from_utf8(message.message.body().to_vec()).unwrap()
        };
        assert_eq!(open(Dialect::Kinode), r#"{"WebSocketOpen":{"path":"/","channel_id":7}}"#);
        assert!(open(Dialect::Hyperdrive).contains(r#""source_socket_addr":"127.0.0.1:5000","forwarded_for":"203."#));
    }

    #[test]
    fn an_extension_gives_its_id_and_may_not_act() {
        let events = EventMessages::new("alice.os", Dialect::Kinode);
        let tell = |bytes| events.extension_message(1, &owner(), ChannelId::new(7), WsMessageType::Binary, bytes);
        let data = WebSocketExtPushData { id: 99, message_type: MessageType::Response, blob: b"x".to_vec() };
        let message = tell(data.encode(Dialect::Kinode)).unwrap();
        assert_eq!((message.id, message.lazy_load_blob.unwrap().bytes), (99, b"x".to_vec()));
        assert!(matches!(message.message, Message::Response(_)));
        let ordinary = tell(b"hello".to_vec()).unwrap();
        assert_eq!((ordinary.id, ordinary.lazy_load_blob.unwrap().bytes), (1, b"hello".to_vec()));
        assert_eq!(tell(rmp_serde::to_vec_named(&HttpServerAction::WebSocketClose(7)).unwrap()), None);
    }
}
