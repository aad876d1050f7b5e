//! A message of a node to the HTTP server → an action, and its answer (node contract, section 3).
//!
//! Everything that can be checked without a running broker is checked here: whether the body parses, whether there is a
//! blob, whether the source may bind, whether the payload fits its frame. The result is one [`CheckedAction`] and a
//! [`Reply`]: a refusal is answered at once even if no response was expected, success only when one was. Blobs are
//! moved, never copied, and text is checked once, when its message is made. Holds no state and does not depend on
//! channels, routes or clocks.

use super::action::{HttpServerAction, WsMessageType};
use super::dialect::Dialect;
use super::error::{HttpServerError, OldHttpServerError, PushCounts};
use super::extension::WebSocketExtPushData;
use super::identity::{Address, OUR, ServerName};
use super::message::{KernelMessage, LazyLoadBlob, Message, Response};
use crate::admission::HeapBytes;
use crate::broker::{self, InvalidMessage};
use crate::channel::ChannelId;
use crate::proto::MessageKind;
use crate::words::audience::Audience;
use crate::words::topic;
use serde::Serialize;

/// The meaning of a message to the HTTP server.
#[derive(Debug, PartialEq, Eq)]
pub enum Inbound {
    /// A process' answer to an HTTP request or RPC call of this id. Only the process that was asked may answer an HTTP
    /// request; a call may have been passed on, and is answered by its id.
    Response {
        /// The id of the request that it answers.
        id: u64,
        /// The process that answers.
        source: Address,
        /// The answer.
        response: Response,
        /// Its blob.
        blob: Option<LazyLoadBlob>,
    },
    /// An action to perform.
    Action(ActionRequest),
    /// Nothing to do but to send this answer.
    Refused(KernelMessage),
}

/// An action, its requester, and the form of its answer.
#[derive(Debug, PartialEq, Eq)]
pub struct ActionRequest {
    /// The action.
    pub action: CheckedAction,
    /// How to answer.
    pub reply: Reply,
}

impl ActionRequest {
    /// The requesting node and process; the node may be [`OUR`]. Both decide on the ownership of channels.
    pub fn requester(&self) -> &Address {
        &self.reply.source
    }
}

/// An action that was found well-formed. Paths are as the process gave them, still without its id.
#[derive(Debug, PartialEq, Eq)]
pub enum CheckedAction {
    /// Bind an HTTP path of the requester.
    BindHttp {
        /// The path.
        path: String,
        /// The content to serve; none: ask the process.
        content: Option<LazyLoadBlob>,
        /// Whether a token is needed.
        authenticated: bool,
        /// Whether only loopback clients are served.
        local_only: bool,
        /// Whether only the process' own subdomain serves it.
        secure: bool,
    },
    /// Unbind an HTTP path of the requester.
    UnbindHttp {
        /// The path.
        path: String,
    },
    /// Bind a WebSocket path of the requester.
    BindWebSocket {
        /// The path.
        path: String,
        /// Whether a token is needed.
        authenticated: bool,
        /// Whether the clients are extensions.
        extension: bool,
        /// Whether only the process' own subdomain serves it.
        secure: bool,
    },
    /// Unbind a WebSocket path of the requester; its open channels live on.
    UnbindWebSocket {
        /// The path.
        path: String,
    },
    /// Send one frame to one channel of the requester.
    Push {
        /// The channel.
        channel: ChannelId,
        /// The frame.
        message: broker::Message,
    },
    /// Send one frame to many channels of the requester.
    PushMany {
        /// Which channels; a path is as it was bound, or without the slashes at its ends.
        audience: Audience,
        /// Channels to leave out.
        except: Vec<ChannelId>,
        /// The frame.
        message: broker::Message,
    },
    /// Subscribe a channel of the requester to one of its topics, or take it out of it.
    Subscribe {
        /// The channel.
        channel: ChannelId,
        /// The topic.
        topic: String,
        /// Out of it instead.
        is_out: bool,
    },
    /// Let a process of another node push to a channel of the requester, or no more.
    Grant {
        /// The channel; none: all of the requester's.
        channel: Option<ChannelId>,
        /// The guest, on another node.
        guest: Address,
        /// False takes it back.
        is_granted: bool,
    },
    /// Close a channel of the requester. An unknown channel is closed already: that succeeds.
    Close {
        /// The channel.
        channel: ChannelId,
    },
}

/// The recipient of the answer to one request, and the condition for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    id: u64,
    source: Address,
    /// The name that was addressed answers.
    server: ServerName,
    /// The receiver of an answer to success; none: no answer is expected.
    on_success: Option<Address>,
}

impl Reply {
    /// To a request of `source` to `server` that expects no answer.
    pub(crate) fn unasked(id: u64, source: Address, server: ServerName) -> Self {
        Self { id, source, server, on_success: None }
    }

    /// The id of the request.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns whether success is answered, so that the outcome must be asked for.
    pub fn wants_success(&self) -> bool {
        self.on_success.is_some()
    }

    /// The answer to a refused action: always sent, and to the source, even if success would be reported elsewhere.
    pub fn refused(self, error: HttpServerError) -> KernelMessage {
        match self.server {
            ServerName::Current => answer(self.id, self.server, self.source, &Err::<(), _>(error)),
            ServerName::Old => {
                answer(self.id, self.server, self.source, &Err::<(), _>(OldHttpServerError::from(error)))
            }
        }
    }

    /// The answer to an action that was done, if one is expected.
    pub fn done(self) -> Option<KernelMessage> {
        Some(answer(self.id, self.server, self.on_success?, &Ok::<_, HttpServerError>(())))
    }

    /// The answer to a push to many, if one is expected.
    pub fn counted(self, counts: PushCounts) -> Option<KernelMessage> {
        Some(answer(self.id, self.server, self.on_success?, &Ok::<_, HttpServerError>(counts)))
    }
}

impl HeapBytes for Reply {
    fn heap_bytes(&self) -> usize {
        // Where an answer goes to the source, the two share the name of its process.
        let elsewhere = self.on_success.as_ref().map_or(0, |to| {
            let is_shared = to.process == self.source.process;
            to.node.capacity() + if is_shared { 0 } else { to.process.as_str().len() }
        });
        self.source.node.capacity() + self.source.process.as_str().len() + elsewhere
    }
}

fn answer<T: Serialize, E: Serialize>(
    id: u64,
    server: ServerName,
    target: Address,
    result: &Result<T, E>,
) -> KernelMessage {
    let body = serde_json::to_vec(result).expect("keys are strings and the writer is memory");
    KernelMessage {
        id,
        source: Address::new(OUR, server.process()),
        target,
        rsvp: None,
        message: Message::Response((Response { body, ..Response::default() }, None)),
        lazy_load_blob: None,
    }
}

/// The context of [`unreadable_response`]: nodes keep contexts to themselves.
const UNREADABLE: &[u8] = b"unreadable";

/// Returns whether this stands for a response that could not be sent.
pub(crate) fn is_unreadable(message: &KernelMessage) -> bool {
    matches!(&message.message, Message::Response((_, Some(context))) if context == UNREADABLE)
}

/// A Response to the HTTP request or call of this id that no client can be answered with, so that it is answered 500.
#[cfg(feature = "link")]
pub(crate) fn unreadable_response(id: u64, source: Address) -> KernelMessage {
    KernelMessage {
        id,
        source,
        target: Address::new(OUR, ServerName::default().process()),
        rsvp: None,
        message: Message::Response((Response::default(), Some(UNREADABLE.to_vec()))),
        lazy_load_blob: None,
    }
}

/// Checks one message of the kernel to the HTTP server of `our_node`.
pub fn dispatch(message: KernelMessage, our_node: &str, dialect: Dialect) -> Inbound {
    let KernelMessage { id, source, target, rsvp, message, lazy_load_blob: blob } = message;
    let server = ServerName::of(&target.process).unwrap_or_default();
    let request = match message {
        Message::Response((response, _)) => return Inbound::Response { id, source, response, blob },
        Message::Request(request) => request,
    };
    let asked = rsvp.is_some() || request.expects_response.is_some();
    let on_success = asked.then(|| rsvp.unwrap_or_else(|| source.clone()));
    let mut reply = Reply { id, source, server, on_success };
    let validated = match HttpServerAction::from_bytes(&request.body) {
        Ok(HttpServerAction::WebSocketExtPushOutgoing { channel_id, message_type, desired_reply_type }) => {
            // Its answer comes from the extension, under the same id: one of ours would be taken for it.
            reply.on_success = None;
            extension_push(id, channel_id, message_type, desired_reply_type, blob, dialect)
        }
        Ok(action) => validate(action, &reply, our_node, blob),
        Err(_) => Err(HttpServerError::MalformedRequest),
    };
    match validated {
        Ok(action) => Inbound::Action(ActionRequest { action, reply }),
        Err(error) => Inbound::Refused(reply.refused(error)),
    }
}

fn validate(
    action: HttpServerAction,
    reply: &Reply,
    our_node: &str,
    blob: Option<LazyLoadBlob>,
) -> Result<CheckedAction, HttpServerError> {
    use HttpServerAction as Asked;
    let Reply { source: requester, server, .. } = reply;
    let may_bind = || may_bind(requester, *server, our_node);
    Ok(match action {
        Asked::Bind { path, authenticated, local_only, cache } => {
            may_bind()?;
            CheckedAction::BindHttp { path, content: content(cache, blob)?, authenticated, local_only, secure: false }
        }
        Asked::SecureBind { path, cache } => {
            may_bind()?;
            let content = content(cache, blob)?;
            CheckedAction::BindHttp { path, content, authenticated: true, local_only: false, secure: true }
        }
        // Never in the clear what was meant to be encrypted.
        Asked::WebSocketBind { encrypted: true, .. } | Asked::WebSocketSecureBind { encrypted: true, .. } => {
            return Err(HttpServerError::MalformedRequest);
        }
        Asked::WebSocketBind { path, authenticated, extension, encrypted: false } => {
            may_bind()?;
            CheckedAction::BindWebSocket { path, authenticated, extension, secure: false }
        }
        Asked::WebSocketSecureBind { path, extension, encrypted: false } => {
            may_bind()?;
            CheckedAction::BindWebSocket { path, authenticated: true, extension, secure: true }
        }
        Asked::Unbind { path } => {
            on_our_node(requester, our_node)?;
            CheckedAction::UnbindHttp { path }
        }
        Asked::WebSocketUnbind { path } => {
            on_our_node(requester, our_node)?;
            CheckedAction::UnbindWebSocket { path }
        }
        Asked::WebSocketPush { channel_id, message_type } => {
            push(channel_id, message_type, blob.ok_or(HttpServerError::NoBlob)?)?
        }
        Asked::WebSocketClose(channel_id) => CheckedAction::Close { channel: ChannelId::new(channel_id) },
        Asked::WebSocketPushMany { channel_ids, message_type } => {
            push_many(Audience::Channels(channels(channel_ids)), Vec::new(), message_type, blob)?
        }
        Asked::WebSocketBroadcast { path, message_type, except } => {
            let audience = path.map_or(Audience::Process, |path| Audience::Path(path.into()));
            push_many(audience, except, message_type, blob)?
        }
        Asked::WebSocketSubscribe { channel_id, topic } => subscribe(channel_id, topic, false)?,
        Asked::WebSocketUnsubscribe { channel_id, topic } => subscribe(channel_id, topic, true)?,
        Asked::WebSocketPublish { topic, message_type, except } => {
            check_topic(&topic)?;
            push_many(Audience::Topic(topic.into()), except, message_type, blob)?
        }
        Asked::WebSocketGrant { channel_id, address } => grant(channel_id, &address, true, our_node)?,
        Asked::WebSocketRevoke { channel_id, address } => grant(channel_id, &address, false, our_node)?,
        Asked::WebSocketOpen { .. } | Asked::WebSocketExtPushData { .. } | Asked::WebSocketExtPushOutgoing { .. } => {
            return Err(HttpServerError::MalformedRequest);
        }
    })
}

fn subscribe(channel_id: u32, topic: String, is_out: bool) -> Result<CheckedAction, HttpServerError> {
    check_topic(&topic)?;
    Ok(CheckedAction::Subscribe { channel: ChannelId::new(channel_id), topic, is_out })
}

fn check_topic(name: &str) -> Result<(), HttpServerError> {
    topic::check(name).map_err(|_| HttpServerError::MalformedRequest)
}

/// Paths are bound below the process id, so only a process of this node whose id fits a path may bind.
fn may_bind(requester: &Address, server: ServerName, our_node: &str) -> Result<(), HttpServerError> {
    on_our_node(requester, our_node)?;
    if server.lets_bind(&requester.process) { Ok(()) } else { Err(HttpServerError::InvalidSourceProcess) }
}

fn on_our_node(requester: &Address, our_node: &str) -> Result<(), HttpServerError> {
    if requester.is_on(our_node) { Ok(()) } else { Err(HttpServerError::InvalidSourceProcess) }
}

fn content(cache: bool, blob: Option<LazyLoadBlob>) -> Result<Option<LazyLoadBlob>, HttpServerError> {
    match (cache, blob) {
        (true, None) => Err(HttpServerError::NoBlob),
        (true, blob) => Ok(blob),
        (false, _) => Ok(None),
    }
}

/// The longest address of a guest, many times what names of nodes and processes have.
const ADDRESS_BYTES_MAX: usize = 1024;

/// Processes of our own node have channels of their own; only others are let in.
fn grant(
    channel_id: Option<u32>,
    address: &str,
    is_granted: bool,
    our_node: &str,
) -> Result<CheckedAction, HttpServerError> {
    let guest: Option<Address> = address.parse().ok().filter(|_| address.len() <= ADDRESS_BYTES_MAX);
    let guest = guest.filter(|guest| !guest.is_on(our_node)).ok_or(HttpServerError::MalformedRequest)?;
    Ok(CheckedAction::Grant { channel: channel_id.map(ChannelId::new), guest, is_granted })
}

fn channels(ids: Vec<u32>) -> Vec<ChannelId> {
    ids.into_iter().map(ChannelId::new).collect()
}

fn push(channel_id: u32, message_type: WsMessageType, blob: LazyLoadBlob) -> Result<CheckedAction, HttpServerError> {
    let channel = ChannelId::new(channel_id);
    Ok(match frame(message_type, blob.bytes)? {
        Some(message) => CheckedAction::Push { channel, message },
        None => CheckedAction::Close { channel },
    })
}

fn push_many(
    audience: Audience,
    except: Vec<u32>,
    message_type: WsMessageType,
    blob: Option<LazyLoadBlob>,
) -> Result<CheckedAction, HttpServerError> {
    let bytes = blob.ok_or(HttpServerError::NoBlob)?.bytes;
    let message = frame(message_type, bytes)?.ok_or(HttpServerError::MalformedRequest)?;
    Ok(CheckedAction::PushMany { audience, except: channels(except), message })
}

/// The message of a push; none for Close, which is no message.
///
/// # Errors
/// `MalformedRequest` for text that is not UTF-8 (RFC 6455, section 5.6): to rewrite the bytes would change what was
/// said; also for what no frame can carry. `WsPingPongTooLong` for a control frame over 125 bytes (section 5.5).
pub(crate) fn frame(message_type: WsMessageType, bytes: Vec<u8>) -> Result<Option<broker::Message>, HttpServerError> {
    let message = match message_type {
        WsMessageType::Text => broker::Message::text_bytes(bytes),
        WsMessageType::Binary => broker::Message::of_kind(MessageKind::Binary, bytes),
        WsMessageType::Ping => broker::Message::ping(bytes),
        WsMessageType::Pong => broker::Message::pong(bytes),
        WsMessageType::Close => return Ok(None),
    };
    message.map(Some).map_err(|invalid| match invalid {
        InvalidMessage::NotUtf8 | InvalidMessage::TooLarge => HttpServerError::MalformedRequest,
        InvalidMessage::ControlTooLong => HttpServerError::WsPingPongTooLong,
    })
}

fn extension_push(
    id: u64,
    channel_id: u32,
    message_type: WsMessageType,
    desired_reply_type: super::action::MessageType,
    blob: Option<LazyLoadBlob>,
    dialect: Dialect,
) -> Result<CheckedAction, HttpServerError> {
    let blob = blob.ok_or(HttpServerError::NoBlob)?.bytes;
    if message_type != WsMessageType::Binary {
        return Err(HttpServerError::NoBlob); // The contract's answer, odd as it is.
    }
    let data = WebSocketExtPushData { id, message_type: desired_reply_type, blob };
    let message = broker::Message::of_kind(MessageKind::Binary, data.encode(dialect))
        .map_err(|_| HttpServerError::MalformedRequest)?;
    Ok(CheckedAction::Push { channel: ChannelId::new(channel_id), message })
}

#[cfg(test)]
#[path = "dispatch_tests.rs"]
mod tests;
