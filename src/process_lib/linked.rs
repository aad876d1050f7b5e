//! A process whose broker is in another program: the same process, over a link.

use super::attached::{AttachedProcess, Attachment};
use super::backend::Exit;
use super::runtime::run;
use crate::broker::{
    Audience, BindPathError, ChannelAt, DeliveryOptions, Event, GrantError, Message, Outcome, PushError, RequestId,
    Stopped,
};
use crate::channel::ChannelId;
use crate::gateway::{HttpRule, WebSocketRule};
use crate::link::{Client, ClientOptions, ConnectError, Endpoint, LinkSendError};
use crate::node::acting::{Acting, ActingOrders};
use crate::node::{Address, ProcessId};
use bytes::Bytes;
use std::cell::RefCell;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Attaches a process to a broker in another program, over the link that it listens on (`pushring serve --link PATH`);
/// a path, or an [`Endpoint`] for TCP. [`LinkedProcess::run`] and [`LinkedProcess::spawn`] then run the process as
/// [`spawn_on`](super::spawn_on) does.
///
/// A lost connection is restored as long as the broker keeps the process' channels (`owner_grace`, 10 s), and no
/// message in either direction is lost or duplicated. After that time, or when the broker has stopped, the process is
/// stopped. A process started again within that time takes over: its predecessor's channels are reported to it as if
/// they were opened now, followed by the clients' messages since. Paths stay bound, too; binding them again does no
/// harm.
///
/// # Errors
/// No broker listens there, or it refuses.
pub fn connect(endpoint: impl Into<Endpoint>, process: ProcessId) -> Result<LinkedProcess, ConnectError> {
    // A node's processes are told of control frames.
    let options = ClientOptions { wants_control: true, ..ClientOptions::default() };
    let client = Client::connect(endpoint, &process, options)?;
    let (our, dialect) = (Address::new(client.node(), process), client.dialect());
    let attachment = LinkAttachment { client, failed: RefCell::default() };
    Ok(LinkedProcess(AttachedProcess::at(Box::new(attachment), our, dialect)))
}

/// A process that is attached over a link and does not run yet. Dropping it ends it.
pub struct LinkedProcess(AttachedProcess);

impl LinkedProcess {
    /// Its address.
    pub fn our(&self) -> &Address {
        self.0.our()
    }

    /// Runs it on this thread until it ends. Its channels are then closed with 1001, after a panic with 1011.
    ///
    /// # Panics
    /// When this thread already runs a process.
    pub fn run(self, init: impl FnOnce(Address)) -> Exit {
        run(self.0.our().clone(), Box::new(self.0), init)
    }

    /// Runs it on a thread of its own, named after it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(self, init: impl FnOnce(Address) + Send + 'static) -> std::io::Result<JoinHandle<Exit>> {
        thread::Builder::new().name(self.our().process.to_string()).spawn(move || self.run(init))
    }
}

struct LinkAttachment {
    client: Client,
    /// Outcomes of what could not even be sent.
    failed: RefCell<Vec<Event>>,
}

impl LinkAttachment {
    /// An order larger than the link's limits is dropped; if its outcome was asked for, it is reported.
    fn sent(&self, sent: Result<(), LinkSendError>, ask: Option<u64>) -> Result<(), PushError> {
        match (sent, ask) {
            (Ok(()), _) => Ok(()),
            (Err(LinkSendError::Stopped), _) => Err(PushError::Stopped),
            (Err(LinkSendError::TooLarge), None) => {
                tracing::warn!("a push was dropped: it is larger than the link takes");
                Ok(())
            }
            (Err(LinkSendError::TooLarge), Some(ticket)) => {
                let outcome = Outcome { dropped: 1, ..Outcome::default() };
                self.failed.borrow_mut().push(Event::Outcome { ticket, outcome });
                Ok(())
            }
        }
    }
}

impl Attachment for LinkAttachment {
    fn acting(&self) -> &dyn Acting {
        self
    }

    fn recv_batch(&self, events: &mut Vec<Event>, timeout: Duration) -> Result<usize, Stopped> {
        let mut failed = self.failed.borrow_mut();
        if failed.is_empty() {
            return self.client.recv_batch(events, timeout);
        }
        let count = failed.len();
        events.append(&mut failed);
        Ok(count)
    }

    fn ended(self: Box<Self>, exit: &Exit) {
        if matches!(exit, Exit::Panicked(_)) {
            self.client.fail();
        }
    }
}

impl ActingOrders for LinkAttachment {
    fn push(&self, channel: ChannelId, message: Message, delivery: DeliveryOptions) -> Result<(), PushError> {
        let (policy, ask) = delivery.into_parts();
        self.sent(self.client.push(channel, message, policy, ask), ask)
    }

    fn push_many(
        &self,
        audience: Audience,
        except: &[ChannelId],
        message: Message,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        let (policy, ask) = delivery.into_parts();
        self.sent(self.client.push_many(audience, except, message, policy, ask), ask)
    }

    fn subscribe(
        &self,
        channel: ChannelId,
        topic: &str,
        is_out: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        let (_, ask) = delivery.into_parts();
        let sent = match is_out {
            true => self.client.unsubscribe(channel, topic, ask),
            false => self.client.subscribe(channel, topic, ask),
        };
        self.sent(sent, ask)
    }

    fn close(&self, channel: ChannelId, code: u16, reason: &str, delivery: DeliveryOptions) -> Result<(), PushError> {
        let (_, ask) = delivery.into_parts();
        self.sent(self.client.close(channel, code, reason, ask), ask)
    }

    fn respond(
        &self,
        request: RequestId,
        status: u16,
        headers: Vec<(Box<str>, Box<str>)>,
        body: Bytes,
    ) -> Result<(), PushError> {
        self.sent(self.client.respond(request, status, headers, body), None)
    }
}

impl Acting for LinkAttachment {
    fn bind(&self, path: &str, rule: WebSocketRule) -> Result<(), BindPathError> {
        self.client.bind(path, rule)
    }

    fn unbind(&self, path: &str) -> Result<(), BindPathError> {
        self.client.unbind(path)
    }

    fn bind_http(&self, path: &str, rule: HttpRule) -> Result<(), BindPathError> {
        self.client.bind_http(path, rule)
    }

    fn grant(
        &self,
        channel: ChannelId,
        guest: Arc<str>,
        is_granted: bool,
        delivery: DeliveryOptions,
    ) -> Result<(), PushError> {
        let (_, ask) = delivery.into_parts();
        self.sent(self.client.grant(channel, &guest, is_granted, ask), ask)
    }

    fn grant_all(&self, guest: &Arc<str>, is_granted: bool) -> Result<(), GrantError> {
        self.client.grant_all(guest, is_granted)
    }

    fn push_as_guest(&self, to: &ChannelAt, message: Message) -> Result<bool, PushError> {
        self.sent(self.client.push_as_guest(to, message), None).map(|()| true)
    }

    fn unbind_http(&self, path: &str) -> Result<(), BindPathError> {
        self.client.unbind_http(path)
    }
}
