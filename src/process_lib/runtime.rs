//! The thread of a process: its state, its start and its end.
//!
//! Invariant: a thread runs one process at most. A stopped process is ended by unwinding its thread out of the call in
//! which it waits, as a kernel would end it; its destructors run. Its own panics are caught here and go no further.

use super::backend::{Backend, BackendStopped, Exit};
use super::state::ProcessState;
use crate::node::Address;
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{self, JoinHandle};

thread_local! {
    static STATE: RefCell<Option<ProcessState>> = const { RefCell::new(None) };
}

/// The panic payload that unwinds a stopped process.
struct Unwind;

/// Runs a process on this thread until it ends: `init` with its own address, messages through `backend`.
///
/// # Panics
/// When this thread already runs a process.
pub fn run(our: Address, backend: Box<dyn Backend>, init: impl FnOnce(Address)) -> Exit {
    STATE.with_borrow_mut(|state| {
        assert!(state.is_none(), "this thread already runs a process");
        *state = Some(ProcessState::new(our.clone(), backend));
    });
    let exit = match catch_unwind(AssertUnwindSafe(|| init(our))) {
        Ok(()) => Exit::Returned,
        Err(payload) if payload.is::<Unwind>() => Exit::Stopped,
        Err(payload) => Exit::Panicked(panic_message(payload.as_ref())),
    };
    let state = STATE.take().expect("only the end of the process takes it");
    state.into_backend().ended(&exit);
    exit
}

/// Runs a process on a thread of its own, named after it.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn(
    our: Address,
    backend: Box<dyn Backend>,
    init: impl FnOnce(Address) + Send + 'static,
) -> std::io::Result<JoinHandle<Exit>> {
    thread::Builder::new().name(our.process.to_string()).spawn(move || run(our, backend, init))
}

pub(super) fn with<T>(call: impl FnOnce(&mut ProcessState) -> T) -> T {
    STATE.with_borrow_mut(|state| call(state.as_mut().expect("this can only be called by a process, on its thread")))
}

/// Ends the process if it was stopped. `resume_unwind`, since this is no panic and shall not be reported as one.
pub(super) fn or_end<T>(result: Result<T, BackendStopped>) -> T {
    result.unwrap_or_else(|BackendStopped| resume_unwind(Box::new(Unwind)))
}

fn panic_message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (_, Some(text)) => text.clone(),
        _ => "the panic has no message".to_string(),
    }
}
