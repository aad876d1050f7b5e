//! The public keys of the authority that signs the hub's tokens: fetched from its URL or read from a file, repeatedly,
//! by a thread of its own.
//!
//! Invariants: a set replaces the one before as a whole, so a removed key verifies nothing any more; a failed fetch is
//! logged, and leaves the set before in force; tokens with unknown keys cause at most one fetch in [`REST`], however
//! many there are and from however many clients.

use super::client::{HttpClient, check_url};
use super::{Counts, needs_hub};
use crate::daemon::config::DaemonConfig;
use crate::daemon::program::Daemon;
use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use pushring::internals::jwks::{KeySet, KeysWanted, SET_BYTES_MAX};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The least time between two fetches that were asked for.
const REST: Duration = Duration::from_secs(30);

/// How often a file is read: it is small.
const FILE_READ_EVERY: Duration = Duration::from_secs(5);

/// How long a file is left alone.
const FILE_REST: Duration = Duration::from_secs(1);

/// The least time between two fetches that were not asked for.
const REFRESH_MIN: Duration = REST;

/// Checks the settings.
///
/// # Errors
/// By the key of one that cannot.
pub(super) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    let (has_url, has_file) = (!config.auth_jwks_url.is_empty(), !config.auth_jwks_file.as_os_str().is_empty());
    if !has_url && !has_file {
        ensure!(
            config.auth_issuer.is_empty() && config.auth_audience.is_empty(),
            "auth_issuer: there is no authority without its keys: set auth_jwks_url or auth_jwks_file"
        );
        return Ok(());
    }
    let key = if has_url { "auth_jwks_url" } else { "auth_jwks_file" };
    needs_hub(config, key)?;
    ensure!(!(has_url && has_file), "auth_jwks_file: the keys come from auth_jwks_url already: name one of them");
    ensure!(
        config.hub_secret_file.as_os_str().is_empty(),
        "hub_secret_file: with an authority ({key}) no token is signed with a secret: leave it out"
    );
    ensure!(!config.auth_issuer.is_empty(), "auth_issuer: {key} needs it: the issuer (iss) of the tokens");
    ensure!(!config.auth_audience.is_empty(), "auth_audience: {key} needs it: the audience (aud) of the tokens");
    if has_url {
        check_url("auth_jwks_url", &config.auth_jwks_url, false)?;
        ensure!(config.auth_jwks_refresh.duration() >= REFRESH_MIN, "auth_jwks_refresh: at least 30s");
    }
    Ok(())
}

/// Where keys come from.
enum Source {
    Url { client: Box<HttpClient>, uri: Uri, refresh: Duration },
    File(PathBuf),
}

impl Source {
    /// None: there is no authority.
    fn of(config: &DaemonConfig) -> anyhow::Result<Option<Self>> {
        if !config.auth_jwks_url.is_empty() {
            let uri = check_url("auth_jwks_url", &config.auth_jwks_url, false)?;
            let client = Box::new(HttpClient::new(&uri, &config.auth_jwks_ca).context("auth_jwks_ca")?);
            return Ok(Some(Self::Url { client, uri, refresh: config.auth_jwks_refresh.duration() }));
        }
        let file = &config.auth_jwks_file;
        Ok((!file.as_os_str().is_empty()).then(|| Self::File(file.clone())))
    }

    fn read(&self) -> anyhow::Result<Bytes> {
        match self {
            Self::File(path) => {
                let mut text = Vec::new();
                File::open(path)?.take(SET_BYTES_MAX as u64 + 1).read_to_end(&mut text)?;
                ensure!(text.len() <= SET_BYTES_MAX, "it is over {SET_BYTES_MAX} bytes");
                Ok(text.into())
            }
            Self::Url { client, uri, .. } => {
                let request = Request::get(uri).header("accept", "application/json").body(Full::default())?;
                let answer = client.send(request, SET_BYTES_MAX, || None)?;
                ensure!(answer.status() == StatusCode::OK, "it answers {}", answer.status());
                Ok(answer.into_body())
            }
        }
    }

    /// The least time until a fetch may be asked for, and the time of the next one without being asked, after a
    /// success.
    fn pauses(&self) -> (Duration, Duration) {
        match self {
            Self::Url { refresh, .. } => (REST, *refresh),
            Self::File(_) => (FILE_REST, FILE_READ_EVERY),
        }
    }
}

/// The keys in use, and the way to ask for others.
#[derive(Clone)]
pub(crate) struct AuthorityKeys {
    /// Those.
    pub set: Arc<KeySet>,
    wanted: Arc<KeysWanted>,
    /// The thread to wake; known once it runs.
    fetcher: Arc<OnceLock<Thread>>,
}

/// The keys to begin with: those of the file, which has to be good; those of a URL are fetched by and by.
///
/// # Errors
/// The file holds none.
pub(crate) fn begin(config: &DaemonConfig) -> anyhow::Result<Option<AuthorityKeys>> {
    check(config)?;
    let Some(source) = Source::of(config)? else { return Ok(None) };
    let fetcher: Arc<OnceLock<Thread>> = Arc::default();
    let waken = fetcher.clone();
    let wanted = Arc::new(KeysWanted::new(move || {
        if let Some(thread) = waken.get() {
            thread.unpark();
        }
    }));
    let set = match &source {
        Source::Url { .. } => KeySet::none_yet(wanted.clone()),
        Source::File(path) => {
            let text = source.read().with_context(|| format!("auth_jwks_file: {}", path.display()))?;
            KeySet::parse(&text, Some(wanted.clone())).with_context(|| format!("auth_jwks_file: {}", path.display()))?
        }
    };
    Ok(Some(AuthorityKeys { set: Arc::new(set), wanted, fetcher }))
}

/// The number of keys to verify tokens with, for checks of the settings.
///
/// # Errors
/// They cannot be read.
pub(crate) fn read_once(config: &DaemonConfig) -> anyhow::Result<Option<usize>> {
    let Some(source) = Source::of(config)? else { return Ok(None) };
    Ok(Some(KeySet::parse(&source.read()?, None)?.usable_keys()))
}

/// Keeps the keys of `daemon` fresh on a thread of its own, as long as it is there.
///
/// # Errors
/// No thread.
pub(crate) fn start(daemon: &Arc<Daemon>, config: &DaemonConfig, keys: Option<AuthorityKeys>) -> anyhow::Result<()> {
    let (Some(keys), Some(source)) = (keys, Source::of(config)?) else { return Ok(()) };
    let keeper = KeyFetcher { daemon: Arc::downgrade(daemon), counts: daemon.hub_counts().clone(), source, keys };
    thread::Builder::new().name("jwks".to_owned()).spawn(move || keeper.keep()).context("no thread for keys")?;
    Ok(())
}

struct KeyFetcher {
    daemon: Weak<Daemon>,
    counts: Arc<Counts>,
    source: Source,
    keys: AuthorityKeys,
}

impl KeyFetcher {
    fn keep(self) {
        // Earlier requests are not lost: the keys are wanted from the start.
        let _ = self.keys.fetcher.set(thread::current());
        let mut last = None;
        loop {
            self.keys.wanted.begin();
            let is_fresh = match self.refresh(&mut last) {
                Ok(()) => true,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(
                        error,
                        "the keys of the tokens' authority were not read: those before stay in force"
                    );
                    // What is counted has been logged.
                    self.counts.key_fetches_failed.fetch_add(1, Relaxed);
                    false
                }
            };
            let (rest, refresh) = self.source.pauses();
            self.keys.wanted.rest();
            let now = Instant::now();
            self.wait(now + rest, || false);
            self.keys.wanted.end_rest();
            self.wait(now + if is_fresh { refresh } else { rest }, || self.keys.wanted.is_wanted());
            if self.daemon.strong_count() == 0 {
                return;
            }
        }
    }

    /// Until then, or until it is so.
    fn wait(&self, until: Instant, is_so: impl Fn() -> bool) {
        while !is_so() && self.daemon.strong_count() > 0 {
            match until.checked_duration_since(Instant::now()) {
                Some(rest) if !rest.is_zero() => thread::park_timeout(rest),
                _ => return,
            }
        }
    }

    fn refresh(&self, last: &mut Option<Bytes>) -> anyhow::Result<()> {
        self.counts.key_fetches.fetch_add(1, Relaxed);
        let text = self.source.read()?;
        if last.as_ref() == Some(&text) {
            return Ok(());
        }
        let set = KeySet::parse(&text, Some(self.keys.wanted.clone()))?;
        let keys = set.usable_keys();
        if let Some(daemon) = self.daemon.upgrade() {
            daemon.apply_keys(AuthorityKeys { set: Arc::new(set), ..self.keys.clone() })?;
        }
        self.counts.keys.store(keys as u64, Relaxed);
        match keys {
            0 => tracing::warn!("the tokens' authority has no usable key: RS256, ES256 or EdDSA"),
            keys => tracing::info!(keys, "keys of the tokens' authority read"),
        }
        *last = Some(text);
        Ok(())
    }
}
