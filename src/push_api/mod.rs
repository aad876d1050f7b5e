//! Publishing over HTTP: `POST /api/push`, queries and closes, for backends that have no link.
//!
//! The shards' own HTTP side takes requests in and sends answers, with all its limits. What a request says is read and
//! done on the shard that it came to ([`on_shard`]), if it is short and its answer waits for nothing, and otherwise on
//! a thread of the API's own ([`on_thread`]), in the name of the process that it names. The protocol stands in
//! `docs/PUBLISHING.md` and `docs/openapi.json`.
//!
//! Invariants: nothing is done, and no body taken in, before the token has been compared; a request is answered once; a
//! push never waits: a full inbox is reported (429), and then nothing was pushed to any shard. A batch of lines is
//! processed a part at a time, so that no client waits for another's. The answers kept for
//! [`Idempotency-Key`](idempotency) are bounded and charged.

mod answer;
mod body;
mod guard;
mod idempotency;
mod lines;
mod on_shard;
mod on_thread;
mod perform;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod request;

pub use guard::{ApiToken, TokenTooShort};
pub use idempotency::IdempotencyKeys;
pub use lines::answers_of;
pub use request::JSON_BYTES_MAX;

use self::guard::ApiGuard;
use self::on_shard::ApiOnShard;
use self::on_thread::ApiOnThread;
use self::perform::Performer;
use crate::broker::{BrokerHandle, ServiceError};
use crate::gateway::{BoundAt, HeadCheck, HttpRule};
use crate::process_id::ProcessId;
use crossbeam_channel::bounded;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The process that answers; on the main listener its name is the beginning of the paths.
pub const PROCESS: &str = "push:pushring:sys";

/// Requests that may wait for the API's thread: one of each connection that `api_listen` may have. All of them are
/// charged; one with a long body waits only where the memory budget has room for it.
const WAITING_MAX: usize = 1024;

/// The API's process, and the clients that may use it.
pub struct ApiOptions {
    /// The token that everything here needs.
    pub token: ApiToken,
    /// In whose name a request acts that names no process; none: each has to name one.
    pub process: Option<ProcessId>,
    /// Answers to requests with an `Idempotency-Key`, shared by all listeners of the same API.
    pub keys: IdempotencyKeys,
}

/// Serves the API to clients of `served`, at `/api/…` where that is a broker for nothing else, at
/// `/push:pushring:sys/api/…` otherwise, and acts on `target`, which may be the same. Ends when `served` stops.
///
/// # Errors
/// See [`ServiceError`].
pub fn start(
    served: &BrokerHandle,
    whole: bool,
    target: BrokerHandle,
    options: ApiOptions,
) -> Result<JoinHandle<()>, ServiceError> {
    let ApiOptions { token, process: acting, keys } = options;
    let prefix: Arc<str> = if whole { String::new() } else { format!("/{PROCESS}") }.into();
    let (to_thread, admitted) = bounded(WAITING_MAX);
    let performer = Performer::new(target, acting);
    let on_thread = performer.clone();
    let guard: Arc<dyn HeadCheck> = Arc::new(ApiGuard::new(token, prefix.clone()));
    let process = served.on_shards(PROCESS, move |_shard| ApiOnShard {
        prefix: prefix.clone(),
        performer: performer.clone(),
        thread: to_thread.clone(),
    })?;
    let paths: &[BoundAt<'_>] = match whole {
        true => &[BoundAt::Whole("/"), BoundAt::Whole("/*rest")],
        false => &[BoundAt::Own("/*rest")],
    };
    for &path in paths {
        process.handle().bind_http_checked(path, HttpRule::default(), Some(guard.clone()))?;
    }
    let api = ApiOnThread::new(process, admitted, on_thread, keys);
    Ok(thread::Builder::new().name("push-api".to_owned()).spawn(move || api.run())?)
}
