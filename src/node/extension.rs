//! MessagePack between the server and an extension's client (node contract, section 6).
//!
//! A frame is `{"WebSocketExtPushData":{"id","kinode_message_type","blob"}}` as named maps; Hyperdrive names the second
//! field `hyperware_message_type`. The blob is written as an array of numbers, as nodes do, and read as that or as bin.

use super::action::{HttpServerAction, MessageType};
use super::dialect::Dialect;
use serde::ser::{Serialize, SerializeStructVariant, Serializer};

/// A message to or from an extension, with the id of the KernelMessage that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocketExtPushData {
    /// The id of the KernelMessage.
    pub id: u64,
    /// To an extension: what its reply shall be. From one: what it is.
    pub message_type: MessageType,
    /// The payload.
    pub blob: Vec<u8>,
}

/// The meaning of an extension's frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExtensionFrame {
    /// A message for the process, under the id that the extension gave.
    Data(WebSocketExtPushData),
    /// Another action: dropped, since extensions may not act.
    Forbidden,
    /// No action at all: these bytes are an ordinary message.
    Ordinary(Vec<u8>),
}

impl WebSocketExtPushData {
    /// The MessagePack of the frame.
    pub fn encode(&self, dialect: Dialect) -> Vec<u8> {
        rmp_serde::to_vec_named(&NamedPushData { data: self, dialect })
            .expect("the writer is memory and lengths are known")
    }
}

/// Reads one message of an extension's client, in either dialect.
pub(super) fn decode(bytes: Vec<u8>) -> ExtensionFrame {
    match rmp_serde::from_slice(&bytes) {
        Ok(HttpServerAction::WebSocketExtPushData { id, kinode_message_type: message_type, blob }) => {
            ExtensionFrame::Data(WebSocketExtPushData { id, message_type, blob })
        }
        Ok(_) => ExtensionFrame::Forbidden,
        Err(_) => ExtensionFrame::Ordinary(bytes),
    }
}

struct NamedPushData<'a> {
    data: &'a WebSocketExtPushData,
    dialect: Dialect,
}

impl Serialize for NamedPushData<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let type_field = match self.dialect {
            Dialect::Kinode => "kinode_message_type",
            Dialect::Hyperdrive => "hyperware_message_type",
        };
        let mut frame = serializer.serialize_struct_variant("HttpServerAction", 0, "WebSocketExtPushData", 3)?;
        frame.serialize_field("id", &self.data.id)?;
        frame.serialize_field(type_field, &self.data.message_type)?;
        frame.serialize_field("blob", &self.data.blob)?;
        frame.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> WebSocketExtPushData {
        WebSocketExtPushData { id: u64::MAX, message_type: MessageType::Response, blob: vec![0, 127, 128, 255] }
    }

    #[test]
    fn either_dialect_is_read_back() {
        for dialect in [Dialect::Kinode, Dialect::Hyperdrive] {
            assert_eq!(decode(data().encode(dialect)), ExtensionFrame::Data(data()));
        }
        assert_ne!(data().encode(Dialect::Kinode), data().encode(Dialect::Hyperdrive));
    }

    #[test]
    fn a_blob_may_come_as_bin() {
        let mut frame =
            b"\x81\xb4WebSocketExtPushData\x83\xa2id\x07\xb3kinode_message_type\xa7Request\xa4blob".to_vec();
        frame.extend_from_slice(b"\xc4\x03\x00\x80\xff");
        let expected = WebSocketExtPushData { id: 7, message_type: MessageType::Request, blob: vec![0, 128, 255] };
        assert_eq!(decode(frame), ExtensionFrame::Data(expected));
    }

    #[test]
    fn another_action_is_forbidden_and_anything_else_ordinary() {
        let close = rmp_serde::to_vec_named(&HttpServerAction::WebSocketClose(7)).unwrap();
        assert_eq!(decode(close), ExtensionFrame::Forbidden);
        for bytes in [&b""[..], b"hello", b"\xff\xff", b"{\"WebSocketClose\":7}"] {
            assert_eq!(decode(bytes.to_vec()), ExtensionFrame::Ordinary(bytes.to_vec()));
        }
    }

    #[test]
    fn a_length_that_lies_reserves_little_and_fails() {
        let mut frame =
            b"\x81\xb4WebSocketExtPushData\x83\xa2id\x07\xb3kinode_message_type\xa7Request\xa4blob".to_vec();
        frame.extend_from_slice(b"\xdd\xff\xff\xff\xff\x00");
        assert_eq!(decode(frame.clone()), ExtensionFrame::Ordinary(frame));
    }
}
