//! The connection to NATS: its options, its retries, and its reports on itself.
//!
//! Invariants: it is retried for ever, after a random wait; no address and no log line has a secret.

use super::Options;
use super::engine::FleetStartError;
use super::outbox::State;
use super::secret::SecretKind as Secret;
use super::subject::Subjects;
use crate::driver::retry::RetryPauses;
use async_nats::{ConnectOptions, Event, ServerAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A silent server is asked after this long, and is gone when it has not answered twice.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long NATS may take to answer, when a connection is made and later.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The waits before another attempt to connect: recovery within 5 s leaves room for one and for the attempt.
const RETRIES: RetryPauses = RetryPauses { least: Duration::from_millis(100), most: Duration::from_secs(2) };

/// Messages that one subscription may hold: as many as one turn of the connection can read. A turn reads 128 times a
/// buffer of 64 KiB (tokio's budget), and a message has 120 bytes at least.
const SUBSCRIPTION_MESSAGES_MAX: usize = 72 * 1024;

/// Messages between the engine and the connection on its thread, beside the queue.
pub(super) const ON_THE_WAY_MAX: usize = 16;

/// Refusals of NATS that come to one line of the log.
const REFUSALS_PER_LINE: u64 = 256;

/// The address of a server.
///
/// # Errors
/// It is none, or has a secret.
pub(super) fn server(text: &str) -> Result<ServerAddr, FleetStartError> {
    // Secrets have no place in settings.
    let is_fit = (text.starts_with("nats://") || text.starts_with("tls://")) && !text.contains('@');
    let address = text.parse().ok().filter(|_| is_fit);
    address.ok_or_else(|| FleetStartError::Server(without_secret(text)))
}

/// An address as it may be shown.
fn without_secret(text: &str) -> String {
    text.rsplit('@').next().unwrap_or("").chars().take(200).collect()
}

/// With what a node connects.
///
/// # Errors
/// Its credentials cannot be used.
pub(super) fn connect_options(options: &Options, state: &Arc<State>) -> Result<ConnectOptions, FleetStartError> {
    let subjects = Subjects::new(options.fleet.clone());
    let state = state.clone();
    let mut connect = ConnectOptions::new()
        .name(format!("pushring {}", options.node))
        .no_echo()
        .ping_interval(PING_INTERVAL)
        .connection_timeout(ANSWER_TIMEOUT)
        .request_timeout(Some(ANSWER_TIMEOUT))
        .max_reconnects(None)
        .reconnect_delay_callback(|failures| RETRIES.after(failures.try_into().unwrap_or(u32::MAX)))
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .client_capacity(ON_THE_WAY_MAX)
        .custom_inbox_prefix(subjects.inbox(&options.node))
        .event_callback(move |event| {
            let state = state.clone();
            async move { hear_event(&state, &event) }
        });
    if let Some(file) = &options.ca_file {
        connect = connect.add_root_certificates(file.clone());
    }
    Ok(match options.credentials.clone().map(|credentials| credentials.0) {
        None => connect,
        Some(Secret::Password(user, password)) => connect.user_and_password(user, password),
        Some(Secret::Seed(seed)) => connect.nkey(seed),
        Some(Secret::Jwt(text)) => {
            connect.credentials(&text).map_err(|error| FleetStartError::Credentials(error.to_string()))?
        }
    })
}

/// How long a node waits until it leaves a server that is about to stop, so that nodes do not leave all together.
pub(super) fn pause_before_leaving() -> Duration {
    RETRIES.after(u32::MAX)
}

/// Notes whether NATS is reached. Events may be lost behind others, so the engine looks by itself too.
pub(super) fn note_connected(state: &State, is_connected: bool) {
    if state.is_connected.swap(is_connected, Ordering::AcqRel) == is_connected {
        return;
    }
    match is_connected {
        true => tracing::info!("fleet: connected with NATS"),
        false => tracing::warn!("fleet: NATS is unreachable, and with it the other nodes"),
    }
}

/// Notes what the connection tells.
fn hear_event(state: &State, event: &Event) {
    match event {
        Event::Connected => {
            note_connected(state, true);
            state.changed.notify_one();
        }
        Event::Disconnected | Event::Closed => {
            note_connected(state, false);
            state.changed.notify_one();
        }
        Event::ServerError(error) => {
            // One for each push, perhaps: the first of every few hundred is told, all are counted.
            let count = &mut state.report().counts.server_errors;
            *count += 1;
            if (*count - 1).is_multiple_of(REFUSALS_PER_LINE) {
                tracing::error!(%error, count = *count, "fleet: NATS refused a request: check this node's permissions (docs/FLEET.md)");
            }
        }
        Event::LameDuckMode => {
            state.is_lame.store(true, Ordering::Release);
            state.changed.notify_one();
            tracing::warn!("fleet: the NATS server is about to stop; connecting to another one");
        }
        Event::SlowConsumer(_) => {
            tracing::warn!("fleet: messages came faster than the shards take them; some are lost")
        }
        Event::ClientError(error) => tracing::debug!(%error, "fleet: NATS"),
        Event::Draining => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_no_secrets() {
        assert!(server("nats://127.0.0.1:4222").is_ok() && server("tls://nats.example.com").is_ok());
        for text in ["nats://user:hunter2@host:4222", "nats://token@host", "http://host", ""] {
            let Err(error) = server(text) else { panic!("{text}") };
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn it_is_told_whether_nats_is_reached() {
        let state = State::default();
        let is_connected = || state.is_connected.load(Ordering::Acquire);
        hear_event(&state, &Event::Connected);
        assert!(is_connected());
        hear_event(&state, &Event::Disconnected);
        assert!(!is_connected());
        // The engine has seen changes that events have not reported.
        note_connected(&state, true);
        assert!(is_connected());
    }
}
