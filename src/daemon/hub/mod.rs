//! The hub's operation: the keys of its tokens' authority, and the backend that receives events of its clients.
//!
//! Both talk to servers elsewhere, on threads of their own; results are counted here.
//!
//! Invariants: no shard and no client waits for any of it; requests and answers are bounded in size and time.

mod calls;
mod client;
mod keys;

pub(crate) use calls::{limits as call_limits, secret_bytes as webhook_secret_bytes, start as start_calls};
pub(crate) use keys::{AuthorityKeys, begin as begin_keys, read_once as read_keys_once, start as start_keys};

use super::config::DaemonConfig;
use anyhow::ensure;
use pushring::control::HubCounts;
use pushring::internals::hub::WebhookQueue;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Checks the settings.
///
/// # Errors
/// By the key of one that cannot.
pub(crate) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    keys::check(config)?;
    calls::check(config)
}

/// Counts of the hub's requests to others.
#[derive(Default)]
pub(crate) struct Counts {
    key_fetches: AtomicU64,
    key_fetches_failed: AtomicU64,
    keys: AtomicU64,
    calls: AtomicU64,
    calls_failed: AtomicU64,
    events_delivered: AtomicU64,
    /// What waits for the backend, if there is one.
    webhooks: OnceLock<WebhookQueue>,
}

impl Counts {
    /// Events for the backend wait in `webhooks`.
    fn watch(&self, webhooks: WebhookQueue) {
        // There is one backend.
        let _ = self.webhooks.set(webhooks);
    }

    /// As operators are told.
    pub(crate) fn told(&self) -> HubCounts {
        let of = |count: &AtomicU64| count.load(Relaxed);
        HubCounts {
            key_fetches: of(&self.key_fetches),
            key_fetches_failed: of(&self.key_fetches_failed),
            keys: of(&self.keys),
            webhook_calls: of(&self.calls),
            webhook_calls_failed: of(&self.calls_failed),
            webhook_events_delivered: of(&self.events_delivered),
            webhook_events_lost: self.webhooks.get().map_or(0, WebhookQueue::lost),
            webhook_events_waiting: self.webhooks.get().map_or(0, |webhooks| webhooks.waiting() as u64),
        }
    }
}

/// A setting of the hub is of use only with it.
fn needs_hub(config: &DaemonConfig, key: &str) -> anyhow::Result<()> {
    ensure!(config.hub, "{key}: it is the hub's: set hub as well");
    Ok(())
}
