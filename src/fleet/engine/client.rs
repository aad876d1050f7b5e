//! The client of NATS, and what is done where it bounds nothing by itself: it keeps what has come of a message, however
//! long that is said to be, and its own task ends, by a panic, at some words that no server of NATS says.
//!
//! Invariants: a server that sends more than a message may have, and no message, is left within [`LOOK_INTERVAL`]; a
//! client whose task has ended is replaced by another within a second, which listens to the same.

use super::super::connection::{connect_options, note_connected};
use super::{Engine, LOOK_INTERVAL};
use async_nats::{Client, ServerAddr};
use futures_util::FutureExt;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use tokio::task::{self, AbortHandle};
use tokio::time;

/// The most bytes of a message, whatever the server says that it takes: more than any that is configured with care.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What stands around a message, and comes between messages, for weeks.
const OTHER_BYTES: usize = 1 << 20;

/// How long a server that is left may take to let go.
const LEFT_WITHIN: time::Duration = LOOK_INTERVAL;

/// See the module.
pub(super) struct NatsClient {
    client: RefCell<Rc<Client>>,
    servers: Vec<ServerAddr>,
    /// Connections that the clients before this one have made.
    connects_before: Cell<u64>,
    /// Messages that had come, and all bytes, when the last of them was seen to have come.
    seen: Cell<(u64, u64)>,
    /// Subscribes at the present one to what was listened to.
    listens: RefCell<Option<AbortHandle>>,
}

impl NatsClient {
    /// A client of these servers.
    pub(super) fn new(client: Client, servers: Vec<ServerAddr>) -> Self {
        let (connects_before, seen, listens) = Default::default();
        Self { client: RefCell::new(Rc::new(client)), servers, connects_before, seen, listens }
    }

    /// The present one.
    pub(super) fn get(&self) -> Rc<Client> {
        self.client.borrow().clone()
    }

    /// Connections that were made.
    pub(super) fn connects(&self) -> u64 {
        self.connects_before.get() + self.get().statistics().connects.load(Ordering::Relaxed)
    }

    /// Returns whether its task has ended: nothing takes what it is told any more.
    fn has_ended(&self) -> bool {
        matches!(self.get().flush().now_or_never(), Some(Err(_)))
    }

    /// Returns whether more has come than a message may have since one has last come.
    fn hears_no_end(&self) -> bool {
        let client = self.get();
        let statistics = client.statistics();
        let messages = statistics.in_messages.load(Ordering::Relaxed);
        let bytes = statistics.in_bytes.load(Ordering::Relaxed);
        let (messages_before, bytes_before) = self.seen.get();
        let bytes_max = client.server_info().max_payload.min(MESSAGE_BYTES_MAX) + OTHER_BYTES;
        let hears_no_end = messages == messages_before && bytes - bytes_before > bytes_max as u64;
        if messages != messages_before || hears_no_end {
            self.seen.set((messages, bytes));
        }
        hears_no_end
    }

    fn replace(&self, client: Client) {
        self.connects_before.set(self.connects());
        self.seen.set((0, 0));
        *self.client.borrow_mut() = Rc::new(client);
    }
}

impl Engine {
    /// Leaves a server that sends without end. All that its client has kept is freed with the connection.
    pub(super) async fn leave_who_never_ends(&self) {
        if self.client.hears_no_end() {
            tracing::error!(
                "fleet: NATS sends more than a message may have, and no end of it: is it a server of NATS? Connecting anew"
            );
            // It fails where the client has ended, which is seen to below.
            let _ = time::timeout(LEFT_WITHIN, self.client.get().force_reconnect()).await;
        }
    }

    /// Begins with another client where the task of this one has ended. What was on its way is lost, as with a
    /// connection, and told by the numbers.
    pub(super) async fn begin_anew_if_ended(self: &Rc<Self>) {
        if !self.client.has_ended() {
            return;
        }
        tracing::error!("fleet: the client of NATS has failed: is it a server of NATS? Connecting anew");
        let connect = match connect_options(&self.options, &self.state) {
            Ok(connect) => connect.retry_on_initial_connect(),
            Err(error) => return tracing::error!(%error, "fleet: cannot connect; another attempt follows"),
        };
        note_connected(&self.state, false);
        match connect.connect(self.client.servers.clone()).await {
            Ok(client) => self.client.replace(client),
            Err(error) => return tracing::error!(%error, "fleet: cannot connect; another attempt follows"),
        }
        self.state.heard.write().unwrap_or_else(PoisonError::into_inner).clear();
        // They end with what has come to them.
        self.listening.borrow_mut().clear();
        // The client takes some orders and then no more, until it is connected.
        let listens = task::spawn_local(self.clone().listen_anew()).abort_handle();
        if let Some(before) = self.client.listens.replace(Some(listens)) {
            before.abort();
        }
    }

    /// Subscribes to all that is listened to: also to what the client before did not take any more.
    async fn listen_anew(self: Rc<Self>) {
        let always = self.member.borrow().subscriptions();
        for subject in always {
            self.subscribe(subject).await;
        }
        let lines = self.member.borrow().lines();
        for line in lines {
            self.subscribe_to(line).await;
        }
    }
}
