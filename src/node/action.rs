//! The actions that a process asks the HTTP server for (node contract, section 3), as JSON.
//!
//! Unknown fields are ignored and unknown variants refused, as nodes do. Whether an action makes sense is decided in
//! `dispatch`; this file defines only shapes.

use super::byte_array;
use serde::{Deserialize, Serialize};

/// The types of WebSocket message that a push can have or that a client can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WsMessageType {
    /// UTF-8 text.
    Text,
    /// Any bytes.
    Binary,
    /// A ping, 125 bytes at most.
    Ping,
    /// A pong, 125 bytes at most.
    Pong,
    /// Received: the client's close, with its reason as blob. Sent: closes the channel.
    Close,
}

/// Whether an extension's frame is a request or a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageType {
    /// A request.
    Request,
    /// A response to the request of the same id.
    Response,
}

/// The body of a request to `http-server:distro:sys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HttpServerAction {
    /// Binds an HTTP path; with `cache` the blob is served to every GET.
    Bind {
        /// The path, below the process id.
        path: String,
        /// Whether a valid login cookie is needed.
        authenticated: bool,
        /// Whether only loopback clients are served.
        local_only: bool,
        /// Whether the blob is served instead of asking the process.
        cache: bool,
    },
    /// As `Bind`, from the process' own subdomain only and always authenticated.
    SecureBind {
        /// The path, below the process id.
        path: String,
        /// Whether the blob is served instead of asking the process.
        cache: bool,
    },
    /// Unbinds an HTTP path.
    Unbind {
        /// The path, as it was bound.
        path: String,
    },
    /// Binds a WebSocket path: connections to it open channels of the process.
    WebSocketBind {
        /// The path, below the process id.
        path: String,
        /// Whether a valid login cookie is needed.
        authenticated: bool,
        /// Only in nodes before Kinode 0.10, which promised encryption and never had it: refused where it is true.
        #[serde(default, skip_serializing_if = "is_false")]
        encrypted: bool,
        /// Whether the clients are extensions, on loopback, that speak MessagePack.
        extension: bool,
    },
    /// As `WebSocketBind`, from the process' own subdomain only and always authenticated.
    WebSocketSecureBind {
        /// The path, below the process id.
        path: String,
        /// As in `WebSocketBind`.
        #[serde(default, skip_serializing_if = "is_false")]
        encrypted: bool,
        /// Whether the clients are extensions.
        extension: bool,
    },
    /// Unbinds a WebSocket path.
    WebSocketUnbind {
        /// The path, as it was bound.
        path: String,
    },
    /// Only ever sent by the server; refused.
    WebSocketOpen {
        /// The path of the channel.
        path: String,
        /// The channel.
        channel_id: u32,
    },
    /// Sends the blob to a channel as one frame.
    WebSocketPush {
        /// The channel.
        channel_id: u32,
        /// The type of the frame.
        message_type: WsMessageType,
    },
    /// Wraps the blob in [`WebSocketExtPushData`](super::WebSocketExtPushData) and sends it to an extension's channel.
    WebSocketExtPushOutgoing {
        /// The channel.
        channel_id: u32,
        /// Must be Binary.
        message_type: WsMessageType,
        /// The type of the extension's reply.
        desired_reply_type: MessageType,
    },
    /// Only ever exchanged with extensions; refused in a request.
    WebSocketExtPushData {
        /// The id of the KernelMessage that it belongs to.
        id: u64,
        /// Request or Response; the name of the field depends on the dialect.
        #[serde(alias = "hyperware_message_type")]
        kinode_message_type: MessageType,
        /// The payload.
        #[serde(with = "byte_array")]
        blob: Vec<u8>,
    },
    /// Closes a channel of the process.
    WebSocketClose(u32),
    /// Sends the blob to each listed channel as one frame, encoded once. Text, Binary, Ping or Pong.
    WebSocketPushMany {
        /// The channels.
        channel_ids: Vec<u32>,
        /// The type of the frame.
        message_type: WsMessageType,
    },
    /// Sends the blob to every channel that was opened on `path`, encoded once. Text, Binary, Ping or Pong.
    WebSocketBroadcast {
        /// The path, as it was bound; registered channels are on `/`. Null or absent: all channels of the process.
        path: Option<String>,
        /// The type of the frame.
        message_type: WsMessageType,
        /// Channels to leave out.
        #[serde(default)]
        except: Vec<u32>,
    },
    /// Subscribes a channel of the process to a topic of the process, until it is unsubscribed or ends.
    WebSocketSubscribe {
        /// The channel.
        channel_id: u32,
        /// The topic: 1 to 255 bytes.
        topic: String,
    },
    /// Takes a channel out of a topic.
    WebSocketUnsubscribe {
        /// The channel.
        channel_id: u32,
        /// The topic.
        topic: String,
    },
    /// Sends the blob to every channel of the process that is subscribed to a topic, encoded once. Text, Binary, Ping
    /// or Pong.
    WebSocketPublish {
        /// The topic.
        topic: String,
        /// The type of the frame.
        message_type: WsMessageType,
        /// Channels to leave out.
        #[serde(default)]
        except: Vec<u32>,
    },
    /// Lets a process of another node push to a channel, until the channel ends.
    WebSocketGrant {
        /// The channel. Null or absent: all channels of the process, those to come included.
        channel_id: Option<u32>,
        /// The guest: `node@process:package:publisher`, on another node.
        address: String,
    },
    /// Takes a grant back, with the same words.
    WebSocketRevoke {
        /// As it was granted.
        channel_id: Option<u32>,
        /// As it was granted.
        address: String,
    },
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl HttpServerAction {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// When the bytes are not the JSON of an action.
    pub fn from_bytes(body: &[u8]) -> serde_json::Result<Self> {
        match plain_push(body) {
            Some(push) => Ok(push),
            None => serde_json::from_slice(body),
        }
    }
}

/// A push as all process libraries write it: nearly every message is one, and to take it apart in general costs a tenth
/// of all that the push costs. None: look closer.
fn plain_push(body: &[u8]) -> Option<HttpServerAction> {
    let rest = body.strip_prefix(br#"{"WebSocketPush":{"channel_id":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = rest.split_at(digits);
    if number.len() > 1 && number[0] == b'0' {
        return None; // Not a number of JSON's.
    }
    let channel_id = std::str::from_utf8(number).ok()?.parse().ok()?;
    let message_type = match rest.strip_prefix(br#","message_type":""#)?.strip_suffix(br#""}}"#)? {
        b"Text" => WsMessageType::Text,
        b"Binary" => WsMessageType::Binary,
        _ => return None,
    };
    Some(HttpServerAction::WebSocketPush { channel_id, message_type })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_push_is_what_it_is_in_general() {
        for number in ["0", "7", "4294967295", "4294967296", "00", "07", "-1", "+1", "", "1.0", "1e3", "99999999999999"]
        {
            for kind in ["Text", "Binary", "Ping", "Close", "text", "Te\\u0078t", ""] {
                for end in ["}}", "}} ", "}}}", "}", ""] {
                    let body = format!(r#"{{"WebSocketPush":{{"channel_id":{number},"message_type":"{kind}"{end}"#);
                    let general = serde_json::from_slice(body.as_bytes()).ok();
                    assert_eq!(HttpServerAction::from_bytes(body.as_bytes()).ok(), general, "{body}");
                }
            }
        }
    }

    #[test]
    fn the_additive_actions_have_these_shapes() {
        for text in [
            r#"{"WebSocketPushMany":{"channel_ids":[7,8],"message_type":"Text"}}"#,
            r#"{"WebSocketBroadcast":{"path":"/","message_type":"Binary","except":[7]}}"#,
            r#"{"WebSocketBroadcast":{"path":null,"message_type":"Binary","except":[]}}"#,
            r#"{"WebSocketSubscribe":{"channel_id":7,"topic":"room"}}"#,
            r#"{"WebSocketUnsubscribe":{"channel_id":7,"topic":"room"}}"#,
            r#"{"WebSocketPublish":{"topic":"room","message_type":"Text","except":[7]}}"#,
            r#"{"WebSocketGrant":{"channel_id":7,"address":"bob.os@p:p:t.os"}}"#,
            r#"{"WebSocketRevoke":{"channel_id":null,"address":"bob.os@p:p:t.os"}}"#,
        ] {
            let action: HttpServerAction = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&action).unwrap(), text);
        }
        let short = r#"{"WebSocketBroadcast":{"path":"/","message_type":"Text"}}"#;
        let action: HttpServerAction = serde_json::from_str(short).unwrap();
        assert!(matches!(action, HttpServerAction::WebSocketBroadcast { except, .. } if except.is_empty()));
    }

    #[test]
    fn both_dialects_name_the_extension_field() {
        for name in ["kinode_message_type", "hyperware_message_type"] {
            let text = format!(r#"{{"WebSocketExtPushData":{{"id":1,"{name}":"Request","blob":[1,255]}}}}"#);
            let action: HttpServerAction = serde_json::from_str(&text).unwrap();
            assert!(matches!(action, HttpServerAction::WebSocketExtPushData { blob, .. } if blob == [1, 255]));
        }
    }
}
