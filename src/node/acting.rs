//! What acts in the name of one process: its handle at a broker in this program, the same over a link, or a batch that is
//! handed over later.

use crate::broker::{Audience, Batch, BindPathError, Delivery, Message, OwnerHandle, PushError, RequestId};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use bytes::Bytes;
use std::cell::RefCell;

/// Orders to shards: the calls of an [`OwnerHandle`] that the contract is carried out with. They wait for room at most,
/// which comes at CPU speed, and never for a client.
///
/// Each fails with what says that the broker has stopped, or can be reached no more.
pub(crate) trait Orders {
    fn push(&self, channel: ChannelId, message: Message, delivery: Delivery) -> Result<(), PushError>;

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError>;

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: Delivery) -> Result<(), PushError>;

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError>;
}

/// The rest: changes of paths, which wait until every shard has them. Whether the process may bind was judged already.
pub(crate) trait Acting: Orders {
    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError>;

    fn unbind(&self, path: &str) -> Result<(), BindPathError>;

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError>;

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError>;
}

impl Orders for OwnerHandle {
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

impl Acting for OwnerHandle {
    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.bind_any(path, rule)
    }

    fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.unbind(path)
    }

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.bind_http_any(path, rule)
    }

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.unbind_http(path)
    }
}

/// Orders that are collected: whoever gives them never waits.
pub(crate) struct Collecting<'a> {
    pub owner: &'a OwnerHandle,
    pub batch: RefCell<&'a mut Batch>,
}

impl<'a> Collecting<'a> {
    pub fn new(owner: &'a OwnerHandle, batch: &'a mut Batch) -> Self {
        Self { owner, batch: RefCell::new(batch) }
    }
}

impl Orders for Collecting<'_> {
    fn push(&self, channel: ChannelId, message: Message, delivery: Delivery) -> Result<(), PushError> {
        self.batch.borrow_mut().collect_push(self.owner, channel, message, delivery);
        Ok(())
    }

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: Delivery,
    ) -> Result<(), PushError> {
        self.batch.borrow_mut().collect_push_many(self.owner, audience, except, message, delivery);
        Ok(())
    }

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: Delivery) -> Result<(), PushError> {
        self.batch.borrow_mut().collect_close(self.owner, channel, code, reason, delivery);
        Ok(())
    }

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError> {
        self.batch.borrow_mut().collect_respond(self.owner, request, status, headers, body);
        Ok(())
    }
}
