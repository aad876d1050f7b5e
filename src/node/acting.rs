//! Handles that act in the name of one process: at a broker in this program, over a link, or into a batch that is
//! submitted later.

use crate::broker::{
    Audience, Batch, BindPathError, Broadcast, ChannelAt, DeliveryOptions, GrantError, Message, ProcessHandle,
    PushError, RequestId, Subscribe,
};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use bytes::Bytes;
use std::cell::RefCell;
use std::sync::Arc;

/// Orders to shards: the calls of an [`ProcessHandle`] that the contract is carried out with. They wait for room at
/// most, which comes at CPU speed, and never for a client.
///
/// Each fails with what says that the broker has stopped, or can be reached no more.
pub(crate) trait ActingOrders {
    fn push(&self, channel: ChannelId, message: Message, delivery: DeliveryOptions) -> Result<(), PushError>;

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError>;

    fn subscribe(
        &self,
        channel: ChannelId,
        topic: &str,
        is_out: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError>;

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: DeliveryOptions) -> Result<(), PushError>;

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError>;
}

/// Changes of paths, which wait until every shard has them. The caller has checked that the process may bind.
pub(crate) trait Acting: ActingOrders {
    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError>;

    fn unbind(&self, path: &str) -> Result<(), BindPathError>;

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError>;

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError>;

    /// Lets a process of another node push to a channel, or no more. Its outcome says whether it is so.
    fn grant(
        &self,
        channel: ChannelId,
        guest: Arc<str>,
        is_granted: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError>;

    /// The same to all channels.
    fn grant_all(&self, guest: &Arc<str>, is_granted: bool) -> Result<(), GrantError>;

    /// A push to a channel of another node of the fleet, whose owner may have let this process in. Returns whether
    /// there may be a fleet.
    fn push_as_guest(&self, to: &ChannelAt, message: Message) -> Result<bool, PushError>;
}

fn broadcast<'p>(
    owner: &'p ProcessHandle,
    audience: Audience,
    except: &[ChannelId],
    message: Message,
    delivery: DeliveryOptions,
) -> Broadcast<'p> {
    owner.broadcast(message).to(audience).except_all(except.iter().copied()).delivered(delivery)
}

fn subscribe<'p>(
    owner: &'p ProcessHandle,
    channel: ChannelId,
    topic: &str,
    is_out: bool,
    delivery: DeliveryOptions,
) -> Subscribe<'p> {
    let order = if is_out { owner.unsubscribe(channel, topic) } else { owner.subscribe(channel, topic) };
    order.delivered(delivery)
}

impl ActingOrders for ProcessHandle {
    fn push(&self, channel: ChannelId, message: Message, delivery: DeliveryOptions) -> Result<(), PushError> {
        self.push(channel, message).delivered(delivery).send()
    }

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        broadcast(self, audience, except, message, delivery).send()
    }

    fn subscribe(
        &self,
        channel: ChannelId,
        topic: &str,
        is_out: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        subscribe(self, channel, topic, is_out, delivery).send()
    }

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: DeliveryOptions) -> Result<(), PushError> {
        self.close(channel, code, reason).delivered(delivery).send()
    }

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError> {
        self.respond(request, status).headers(headers).body(body).send()
    }
}

impl Acting for ProcessHandle {
    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.bind_any(path, rule)
    }

    fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.unbind(path)
    }

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.bind_http_any(path, rule)
    }

    fn grant(
        &self,
        channel: ChannelId,
        guest: Arc<str>,
        is_granted: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        let mut batch = self.batch();
        batch.add(self.grant(channel, guest, is_granted, delivery));
        batch.flush()
    }

    fn grant_all(&self, guest: &Arc<str>, is_granted: bool) -> Result<(), GrantError> {
        self.grant_all(guest, is_granted)
    }

    fn push_as_guest(&self, to: &ChannelAt, message: Message) -> Result<bool, PushError> {
        if !self.is_in_fleet() {
            return Ok(false);
        }
        self.push_as_guest(to, message).send().map(|()| true)
    }

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.unbind_http(path)
    }
}

/// Orders that are collected: adding one never waits.
pub(crate) struct Collecting<'a> {
    pub owner: &'a ProcessHandle,
    pub batch: RefCell<&'a mut Batch>,
}

impl<'a> Collecting<'a> {
    pub(crate) fn new(owner: &'a ProcessHandle, batch: &'a mut Batch) -> Self {
        Self { owner, batch: RefCell::new(batch) }
    }
}

impl ActingOrders for Collecting<'_> {
    fn push(&self, channel: ChannelId, message: Message, delivery: DeliveryOptions) -> Result<(), PushError> {
        self.batch.borrow_mut().add(self.owner.push(channel, message).delivered(delivery));
        Ok(())
    }

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        self.batch.borrow_mut().add(broadcast(self.owner, audience, except, message, delivery));
        Ok(())
    }

    fn subscribe(
        &self,
        channel: ChannelId,
        topic: &str,
        is_out: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        self.batch.borrow_mut().add(subscribe(self.owner, channel, topic, is_out, delivery));
        Ok(())
    }

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: DeliveryOptions) -> Result<(), PushError> {
        self.batch.borrow_mut().add(self.owner.close(channel, code, reason).delivered(delivery));
        Ok(())
    }

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError> {
        self.batch.borrow_mut().add(self.owner.respond(request, status).headers(headers).body(body));
        Ok(())
    }
}
