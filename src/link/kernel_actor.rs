//! The broker's side of a kernel's session: messages that the kernel has sent and that were not carried out yet, and
//! the logins that wait for its answer.

use super::kernel_inbox::{KernelInbox, NotTaken};
use super::stop::Stop;
use super::wire::LoggedIn;
use crate::admission::{HeapBytes, HeldAs, ProcessMemory};
use crate::broker::{KernelHandle, PushError};
use crate::gateway::RulesOverlay;
use crate::node::KernelMessage;
use crate::node::login::GrantedLogin;
use crate::words::policy::Policy;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// How long a login waits for the node's word; then its client hears that it could not be checked.
const LOGIN_WITHIN: Duration = Duration::from_secs(15);

type LoginResult = Result<Option<GrantedLogin>, String>;

/// Carries out a node kernel's orders.
pub(super) struct KernelActor {
    pub inbox: KernelInbox,
    pub logins: Logins,
    handle: KernelHandle,
    /// How long what the kernel has sent may find no room: it does not acknowledge what it was sent itself.
    room_within: Duration,
}

impl KernelActor {
    /// One whose kernel is given up when what it has sent finds no room for `room_within`.
    pub(super) fn new(handle: KernelHandle, room_within: Duration) -> Self {
        let inbox = KernelInbox::charged(handle.memory().charge_anyway(HeldAs::Link, 0));
        Self { inbox, logins: Logins::default(), handle, room_within }
    }

    /// A successor has the session, and other rules of entry.
    pub(super) fn set_rules(&self, rules: RulesOverlay) -> Result<(), PushError> {
        self.handle.set_rules(rules)
    }

    /// A successor has the session, and another policy.
    pub(super) fn set_policy(&self, policy: Policy) {
        self.handle.set_policy(policy);
    }

    /// Where what is kept for the kernel is charged.
    pub(super) fn memory(&self) -> &ProcessMemory {
        self.handle.memory()
    }

    /// Takes a message.
    pub(super) fn take(&self, message: KernelMessage) -> Result<(), Stop> {
        let bytes = message.heap_bytes();
        match self.inbox.put(message, bytes, self.room_within) {
            Ok(()) => Ok(()),
            Err(NotTaken::Closed) => Err(Stop::Stopped),
            Err(NotTaken::Full) => {
                Err(Stop::Violation("more than the window is unacknowledged, in both directions".to_owned()))
            }
        }
    }

    /// Takes the answer to a login.
    pub(super) fn logged_in(&self, answer: LoggedIn, keyfile: Bytes) {
        self.inbox.pass();
        let LoggedIn { login, token, error } = answer;
        let judged = match error {
            Some(error) => Err(error),
            None => Ok(token.map(|token| GrantedLogin { token, keyfile })),
        };
        self.logins.answer(login, judged);
    }

    /// The session is over.
    pub(super) fn close(&self) {
        self.inbox.close();
        self.logins.close();
        self.handle.wake();
    }
}

/// Logins that wait for the node's word.
#[derive(Default)]
pub(super) struct Logins {
    state: Mutex<LoginState>,
    changed: Condvar,
}

#[derive(Default)]
struct LoginState {
    count: u64,
    waiting: HashMap<u64, OnceLock<LoginResult>>,
    is_closed: bool,
}

impl Logins {
    /// The number of a new one.
    pub(super) fn begin(&self) -> u64 {
        let mut state = self.lock();
        state.count += 1;
        let number = state.count;
        state.waiting.insert(number, OnceLock::new());
        number
    }

    /// An answer that comes too late, or twice, is dropped.
    fn answer(&self, number: u64, judged: LoginResult) {
        if let Some(waiting) = self.lock().waiting.get(&number) {
            let _ = waiting.set(judged);
        }
        self.changed.notify_all();
    }

    /// The kernel's word, or that there is none.
    pub(super) fn wait(&self, number: u64) -> LoginResult {
        let is_open = |state: &mut LoginState| {
            !state.is_closed && state.waiting.get(&number).is_some_and(|waiting| waiting.get().is_none())
        };
        let waited = self.changed.wait_timeout_while(self.lock(), LOGIN_WITHIN, is_open);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let judged = state.waiting.remove(&number).and_then(OnceLock::into_inner);
        judged.unwrap_or_else(|| Err("the node's kernel did not answer in time".to_owned()))
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, LoginState> {
        // Every change is one call on the map, or one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
