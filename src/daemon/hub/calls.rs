//! Webhooks: events of the hub's clients, sent to a backend by HTTP, in order, signed according to Standard Webhooks
//! (standardwebhooks.com).
//!
//! One request at a time carries the events that have gathered; it is repeated, at growing intervals with jitter, until
//! it is answered 2xx or given up; then its events are counted as lost, and the backend is told their number.
//!
//! Invariants: a backend delays the daemon's end by at most [`AT_END_MAX`], however many events wait and whatever it
//! does; the queue is bounded and charged ([`hub::WebhookQueue`]); each attempt is signed anew, with the time; the log
//! holds neither the secret nor more of the URL than its host.

use super::client::{HttpClient, check_url};
use super::{Counts, needs_hub};
use crate::daemon::config::DaemonConfig;
use crate::daemon::program::Daemon;
use crate::daemon::token;
use anyhow::{Context, ensure};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::Full;
use hyper::http::response::Parts;
use hyper::{Request, Uri};
use pushring::internals::driver::clock;
use pushring::internals::driver::retry::RetryPauses;
use pushring::internals::hub::{CallLimits, TakenEvents, WebhookEvent, WebhookQueue};
use sha2::Sha256;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Events, and their bytes, in one request: what a small backend handles at a time.
const BATCH_EVENTS_MAX: usize = 100;
const BATCH_BYTES_MAX: usize = 256 << 10;

/// The pauses behind failures.
const RETRIES: RetryPauses = RetryPauses { least: Duration::from_millis(500), most: Duration::from_secs(30) };

/// How long events are still delivered when the broker has stopped: with a whole drain it is within the patience of the
/// unit in `packaging/`.
const AT_END_MAX: Duration = Duration::from_secs(3);

/// The fewest bytes of a key (Standard Webhooks asks for 24).
const KEY_BYTES_MIN: usize = 24;

/// Checks the settings.
///
/// # Errors
/// By the key of one that cannot.
pub(super) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    for name in &config.hub_webhook_events.0 {
        ensure!(
            WebhookEvent::named(name).is_some(),
            "hub_webhook_events: there is no {name:?}; there are opened, closed, subscribed and message"
        );
    }
    if config.hub_webhook_url.is_empty() {
        return Ok(());
    }
    needs_hub(config, "hub_webhook_url")?;
    check_url("hub_webhook_url", &config.hub_webhook_url, true)?;
    ensure!(
        !config.hub_webhook_secret_file.as_os_str().is_empty(),
        "hub_webhook_url: its server needs a signature to check: set hub_webhook_secret_file"
    );
    ensure!(config.hub_webhook_events_max > 0, "hub_webhook_events_max: must be more than 0");
    ensure!(config.hub_webhook_bytes_max.0 > 0, "hub_webhook_bytes_max: must be more than 0");
    Ok(())
}

/// The limits of the queue for the backend, and the kinds of events it gets; none: there is no backend.
pub(crate) fn limits(config: &DaemonConfig) -> Option<CallLimits> {
    (!config.hub_webhook_url.is_empty()).then(|| CallLimits {
        told: config.hub_webhook_events.0.iter().filter_map(|name| WebhookEvent::named(name)).collect(),
        events_max: config.hub_webhook_events_max,
        bytes_max: config.hub_webhook_bytes_max.0,
    })
}

/// The key of a secret as Standard Webhooks writes it (`whsec_` and base64), or of any text or bytes.
fn key_of(secret: &[u8]) -> anyhow::Result<Vec<u8>> {
    let encoded = std::str::from_utf8(secret).ok().and_then(|text| text.trim().strip_prefix("whsec_"));
    let key = match encoded {
        Some(encoded) => BASE64.decode(encoded).ok().context("the part after whsec_ is not base64")?,
        None => secret.to_vec(),
    };
    ensure!(
        key.len() >= KEY_BYTES_MIN,
        "it holds {} bytes, too few: at least {KEY_BYTES_MIN}: openssl rand -base64 32",
        key.len()
    );
    Ok(key)
}

fn read_key(file: &Path) -> anyhow::Result<Vec<u8>> {
    key_of(&token::read_secret_bytes(file)?)
}

/// How many bytes the secret in a file has, if a key can be made of it.
pub(crate) fn secret_bytes(file: &Path) -> anyhow::Result<usize> {
    read_key(file)?;
    token::secret_bytes(file)
}

/// Delivers what is told to `calls`, on a thread that ends when they do.
///
/// # Errors
/// A setting is invalid.
pub(crate) fn start(daemon: &Daemon, config: &DaemonConfig, calls: WebhookQueue) -> anyhow::Result<JoinHandle<()>> {
    let uri = check_url("hub_webhook_url", &config.hub_webhook_url, true)?;
    let file = &config.hub_webhook_secret_file;
    let key = read_key(file).with_context(|| format!("hub_webhook_secret_file: {}", file.display()))?;
    let key = Hmac::new_from_slice(&key).expect("HMAC takes keys of any length");
    let client = HttpClient::new(&uri, &config.hub_webhook_ca).context("hub_webhook_ca")?;
    if uri.scheme_str() == Some("http") {
        tracing::warn!("hub_webhook_url is not encrypted: clients' messages can be read on the network; use https://");
    }
    let host = uri.host().unwrap_or_default().to_owned();
    let (give_up, counts) = (config.hub_webhook_give_up.duration(), daemon.hub_counts().clone());
    daemon.hub_counts().watch(calls.clone());
    let caller = WebhookCaller { calls, client, uri, host, key, give_up, counts };
    thread::Builder::new().name("webhooks".to_owned()).spawn(move || caller.run()).context("no thread for webhooks")
}

struct WebhookCaller {
    calls: WebhookQueue,
    client: HttpClient,
    uri: Uri,
    host: String,
    key: Hmac<Sha256>,
    give_up: Duration,
    counts: Arc<Counts>,
}

impl WebhookCaller {
    fn run(self) {
        let mut left = 0;
        while let Some(taken) = self.calls.take(BATCH_EVENTS_MAX, BATCH_BYTES_MAX) {
            let events = taken.events;
            let is_over = self.end().is_some_and(|end| Instant::now() >= end);
            if !is_over && self.deliver(&taken) {
                self.counts.events_delivered.fetch_add(events, Relaxed);
            } else {
                // The next request reports these losses.
                self.calls.lose(taken);
                left += if is_over { events } else { 0 };
            }
        }
        if left > 0 {
            tracing::error!(
                host = self.host,
                events = left,
                "the daemon ends: webhooks that were still waiting are lost"
            );
        }
        tracing::debug!("the hub's webhook calls have ended");
    }

    /// When the daemon waits no longer for what is still told; none: it goes on.
    fn end(&self) -> Option<Instant> {
        self.calls.closed_since().map(|since| since + AT_END_MAX)
    }

    /// Returns whether the backend has taken it.
    fn deliver(&self, taken: &TakenEvents) -> bool {
        let id = format!("msg_{:016x}", random());
        let until = Instant::now() + self.give_up;
        let mut failures = 0;
        loop {
            self.counts.calls.fetch_add(1, Relaxed);
            let (why, wanted) = match self.call(&id, &taken.body) {
                Ok(answer) if answer.status.is_success() => return true,
                Ok(answer) => (format!("it answers {}", answer.status), retry_after(&answer)),
                Err(error) => (format!("{error:#}"), Duration::ZERO),
            };
            self.counts.calls_failed.fetch_add(1, Relaxed);
            failures += 1;
            let pause = RETRIES.after(failures).max(wanted);
            if Instant::now() + pause >= until || self.calls.is_closed() {
                tracing::error!(
                    host = self.host,
                    why,
                    events = taken.events,
                    "a webhook was given up: its events are lost"
                );
                return false;
            }
            if failures == 1 {
                tracing::warn!(host = self.host, why, "a webhook failed: it will be sent again");
            }
            self.calls.wait_closed(pause);
        }
    }

    fn call(&self, id: &str, body: &Bytes) -> anyhow::Result<Parts> {
        let timestamp = clock::unix_s().to_string();
        let request = Request::post(&self.uri)
            .header("content-type", "application/json")
            .header("user-agent", concat!("pushring/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", id)
            .header("webhook-timestamp", &timestamp)
            .header("webhook-signature", signature(&self.key, id, &timestamp, body))
            .body(Full::new(body.clone()))?;
        self.client.send_for_status(request, || self.end())
    }
}

/// `v1,` and the base64 of what the key makes of `ID.TIMESTAMP.BODY`.
fn signature(key: &Hmac<Sha256>, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = key.clone();
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

/// The seconds that an answer asks for (RFC 9110 section 10.2.3), within reason; dates are left to HTTP caches.
fn retry_after(answer: &Parts) -> Duration {
    let asked = answer.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(asked.unwrap_or(0)).min(RETRIES.most)
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    rand::fill(&mut bytes).expect("the system has randomness, or could not have begun TLS either");
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Response;

    #[test]
    fn the_signature_is_the_standards() {
        // The example of the standard's own libraries.
        let key = key_of(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let key = Hmac::new_from_slice(&key).unwrap();
        let signed = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(key_of(b"whsec_?").is_err() && key_of(b"short").is_err());
        assert_eq!(key_of(&[7; 24]).unwrap(), [7; 24]);
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_within_bounds() {
        let answer = |value: &str| Response::builder().header("retry-after", value).body(()).unwrap().into_parts().0;
        assert_eq!(retry_after(&answer("7")), Duration::from_secs(7));
        assert_eq!(retry_after(&answer("99999")), RETRIES.most);
        assert_eq!(retry_after(&answer("Wed, 21 Oct 2015 07:28:00 GMT")), Duration::ZERO);
    }
}
