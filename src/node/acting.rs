//! What acts in the name of one process: its handle at a broker in this program, or the same over a link.

use crate::broker::{Audience, BindPathError, Delivery, Message, OwnerHandle, PushError, RequestId};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use bytes::Bytes;

/// The calls of an [`OwnerHandle`] that the contract is carried out with. Those that push wait for room, which comes at
/// CPU speed, and never for a client.
///
/// Each fails with what says that the broker has stopped, or can be reached no more; binding also when it is refused.
pub(crate) trait Acting {
    fn push(&self, channel: ChannelId, message: Message, delivery: Delivery) -> Result<(), PushError>;

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError>;

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: Delivery) -> Result<(), PushError>;

    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError>;

    fn unbind(&self, path: &str) -> Result<(), BindPathError>;

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError>;

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError>;

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError>;
}

impl Acting for OwnerHandle {
    fn push(&self, channel: ChannelId, message: Message, delivery: Delivery) -> Result<(), PushError> {
        self.push_wait_with(channel, message, delivery)
    }

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        self.push_many_wait(audience, except, message, delivery)
    }

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: Delivery) -> Result<(), PushError> {
        self.close_with(channel, code, reason, delivery)
    }

    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.bind(path, rule)
    }

    fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.unbind(path)
    }

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.bind_http(path, rule)
    }

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.unbind_http(path)
    }

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError> {
        self.respond(request, status, headers, body)
    }
}
