//! The running daemon as its operators see it: reloads of the settings, drains, lost log lines.
//!
//! Invariants: a reload is checked as a whole first, and an error in it changes nothing; settings that need a restart
//! keep their values until then, which is reported each time; no reload closes a socket.

use super::certificates::Certificates;
use super::config::{DaemonConfig, TakesEffect, takes_effect};
use super::fleet;
use super::hub::{self, AuthorityKeys};
use super::log;
use super::token::{self, read_secret};
use anyhow::{Context, ensure};
use pushring::control::{Changes, HubCounts, LastReload, LogCounts, Program};
use pushring::internals::gateway::{Claims, Secret, mint};
use pushring::{BrokerHandle, Drain, link};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How a drain goes that is asked for where `drain_over` is not set, in milliseconds.
const DRAIN_OVER_MS: u64 = 60_000;

/// Where the daemon's settings come from, each time that they are read.
pub(crate) type ConfigSource = Box<dyn Fn() -> anyhow::Result<DaemonConfig> + Send + Sync>;

/// See the module.
pub(crate) struct Daemon {
    source: ConfigSource,
    broker: BrokerHandle,
    /// The key of tokens where no file has one.
    own_secret: Option<Secret>,
    hub_counts: Arc<hub::Counts>,
    last_reload: Mutex<Option<LastReload>>,
    /// Held while the settings are read again.
    reloading: Mutex<()>,
    current: Mutex<ActiveConfig>,
    /// The link's own listener, where it speaks TLS.
    link: Option<link::Acceptor>,
}

/// The configuration in force.
struct ActiveConfig {
    config: DaemonConfig,
    secrets: Secrets,
    certificates: Certificates,
    link_certificates: Certificates,
}

/// The broker's configuration, at the start or after a reload.
pub(crate) fn broker_config(
    config: &DaemonConfig,
    secrets: Secrets,
    certificates: &Certificates,
) -> anyhow::Result<pushring::Config> {
    let mut broker = config.broker(secrets)?;
    broker.shard.tls = certificates.server().cloned();
    Ok(broker)
}

/// Checks the settings as a whole, also what only a start obeys.
///
/// # Errors
/// By the key of one that cannot.
pub(crate) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    config.broker(Secrets::default())?;
    config.link(None)?;
    fleet::check(config)
}

/// Reads the tokens that a start reads.
///
/// # Errors
/// One of them is none.
fn check_tokens(config: &DaemonConfig) -> anyhow::Result<()> {
    let is_named = |path: &Path| !path.as_os_str().is_empty();
    if is_named(&config.link_token_file) {
        token::read_link_token(&config.link_token_file)?;
    }
    if is_named(&config.admin_token_file) {
        token::read_admin_token(&config.admin_token_file)?;
    }
    if is_named(&config.api_token_file) {
        token::read_api_token(&config.api_token_file)?;
    }
    if !config.hub_webhook_url.is_empty() {
        hub::webhook_secret_bytes(&config.hub_webhook_secret_file).context("hub_webhook_secret_file")?;
    }
    Ok(())
}

/// The keys of tokens.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    /// The one that tokens are signed with.
    pub first: Option<Secret>,
    /// One that is accepted too.
    pub second: Option<Secret>,
    /// The one that the hub's tokens are signed with.
    pub hub: Option<Secret>,
    /// Those of the authority that signs them instead. They come and go by themselves, whatever is read again.
    pub keys: Option<AuthorityKeys>,
}

impl Secrets {
    /// Reads the files that `config` names; `own` where it names none.
    ///
    /// # Errors
    /// A file cannot be read, or holds no secret.
    pub(crate) fn read(config: &DaemonConfig, own: Option<&Secret>) -> anyhow::Result<Self> {
        let read = |setting: &str, path: &Path| match path.as_os_str().is_empty() {
            true => Ok(None),
            false => read_secret(setting, path).map(Some),
        };
        let first = read("jwt_secret_file", &config.jwt_secret_file)?.or_else(|| own.cloned());
        let second = read("jwt_second_secret_file", &config.jwt_second_secret_file)?;
        let hub = read("hub_secret_file", &config.hub_secret_file)?;
        let is_login =
            [&first, &second].into_iter().any(|login| login.is_some() && is_same(login.as_ref(), hub.as_ref()));
        ensure!(
            !is_login,
            "hub_secret_file: it holds the secret of logins, so a token of one would open the other: make a new one with \
             head -c 32 /dev/urandom"
        );
        Ok(Self { first, second, hub, keys: None })
    }
}

/// Returns whether two keys sign alike: keys themselves are never shown, nor compared.
fn is_same(one: Option<&Secret>, other: Option<&Secret>) -> bool {
    let claims = Claims { username: String::new(), subdomain: None, expiration: 0 };
    one.map(|key| mint(key, &claims)) == other.map(|key| mint(key, &claims))
}

impl Daemon {
    /// A daemon that began with `config`, `secrets` and `certificates`.
    pub(crate) fn new(
        source: ConfigSource,
        broker: BrokerHandle,
        (config, secrets, certificates): (DaemonConfig, Secrets, Certificates),
        (link, link_certificates): (Option<link::Acceptor>, Certificates),
        own_secret: Option<Secret>,
    ) -> Self {
        let current = Mutex::new(ActiveConfig { config, secrets, certificates, link_certificates });
        let (hub_counts, last_reload, reloading) = Default::default();
        Self { source, broker, own_secret, hub_counts, last_reload, reloading, current, link }
    }

    /// Counts of the hub's requests to others.
    pub(crate) fn hub_counts(&self) -> &Arc<hub::Counts> {
        &self.hub_counts
    }

    /// Obeys these keys of the authority of the hub's tokens from now on.
    ///
    /// # Errors
    /// The broker has stopped.
    pub(crate) fn apply_keys(&self, keys: AuthorityKeys) -> anyhow::Result<()> {
        let mut current = self.current();
        let secrets = Secrets { keys: Some(keys), ..current.secrets.clone() };
        self.broker.reload(&broker_config(&current.config, secrets.clone(), &current.certificates)?)?;
        current.secrets = secrets;
        Ok(())
    }

    /// Returns whether the file of a certificate has changed since it was read.
    pub(crate) fn have_certificates_changed(&self) -> bool {
        let current = self.current();
        current.certificates.have_changed() || current.link_certificates.have_changed()
    }

    /// Shows `wanted` to processes that attach from now on.
    fn show_on_link(&self, wanted: &Certificates) -> anyhow::Result<()> {
        self.link.as_ref().map_or(Ok(()), |link| Ok(link.set_certificates(wanted.all())?))
    }

    /// Reads the certificates again; returns whether they are others.
    ///
    /// # Errors
    /// One cannot be read that was not read before; then nothing has changed.
    pub(crate) fn reload_certificates(&self) -> anyhow::Result<bool> {
        let mut current = self.current();
        let certificates = Certificates::read(&current.config, &current.certificates)?;
        let link_certificates = Certificates::read_link(&current.config, &current.link_certificates)?;
        self.show_on_link(&link_certificates)?;
        let on_link = link_certificates.differ(&current.link_certificates);
        current.link_certificates = link_certificates;
        let differ = certificates.differ(&current.certificates);
        if differ {
            self.broker.reload(&broker_config(&current.config, current.secrets.clone(), &certificates)?)?;
        }
        current.certificates = certificates;
        Ok(differ || on_link)
    }

    /// The settings in force.
    pub(crate) fn config(&self) -> DaemonConfig {
        self.current().config.clone()
    }

    fn last_reload(&self) -> MutexGuard<'_, Option<LastReload>> {
        // It is replaced as a whole.
        self.last_reload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> MutexGuard<'_, ActiveConfig> {
        // The state that a panic left is whole: it was not changed yet, or wholly.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload_settings(&self) -> anyhow::Result<Changes> {
        let wanted = (self.source)()?;
        for name in wanted.old_names() {
            tracing::warn!("{name}");
        }
        // An error in what only a restart would apply is better reported now than then.
        check(&wanted)?;
        check_tokens(&wanted)?;
        let secrets = Secrets::read(&wanted, self.own_secret.as_ref())?;
        let mut current = self.current();
        let secrets = Secrets { keys: current.secrets.keys.clone(), ..secrets };
        let (config, mut changes) = effective_now(&current.config, &wanted)?;
        let certificates = Certificates::read(&config, &current.certificates)?;
        let link_certificates = Certificates::read_link(&config, &current.link_certificates)?;
        for (key, before, after) in [
            ("jwt_secret_file", &current.secrets.first, &secrets.first),
            ("jwt_second_secret_file", &current.secrets.second, &secrets.second),
            ("hub_secret_file", &current.secrets.hub, &secrets.hub),
        ] {
            if !is_same(before.as_ref(), after.as_ref()) && !changes.now.iter().any(|changed| changed == key) {
                changes.now.push(key.to_owned());
            }
        }
        if certificates.differ(&current.certificates) && !changes.new_connections.iter().any(|key| key == "tls_certs") {
            changes.new_connections.push("tls_certs".to_owned());
        }
        if link_certificates.differ(&current.link_certificates) {
            changes.new_connections.push("link_tls_certs".to_owned());
        }
        let filter = log::parse_filter(&config.log)?;
        let broker = broker_config(&config, secrets.clone(), &certificates);
        let broker = broker.with_context(|| {
            format!("restart the daemon: what it can change now does not go without {}", changes.restart.join(", "))
        });
        self.broker.reload(&broker?)?;
        if config.log != current.config.log {
            log::set_filter(filter)?;
        }
        self.show_on_link(&link_certificates)?;
        *current = ActiveConfig { config, secrets, certificates, link_certificates };
        Ok(changes)
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |passed| passed.as_millis() as u64)
}

/// The settings that are in force without a restart once `wanted` is read over `current`, and what has changed.
fn effective_now(current: &DaemonConfig, wanted: &DaemonConfig) -> anyhow::Result<(DaemonConfig, Changes)> {
    let (before, after) = (toml::Table::try_from(current)?, toml::Table::try_from(wanted)?);
    let mut effective = after.clone();
    let mut changes = Changes::default();
    for (key, value) in &before {
        if after.get(key) == Some(value) {
            continue;
        }
        let key = key.clone();
        match takes_effect(&key).expect("a key of the configuration is a setting") {
            TakesEffect::Now => changes.now.push(key),
            TakesEffect::NewConnections => changes.new_connections.push(key),
            TakesEffect::Restart => {
                effective.insert(key.clone(), value.clone());
                changes.restart.push(key);
            }
        }
    }
    Ok((DaemonConfig { sources: wanted.sources.clone(), ..effective.try_into()? }, changes))
}

impl Program for Daemon {
    fn reload(&self) -> Result<Changes, String> {
        // Of two at a time, the one that read the files first could have the last word.
        let _one_at_a_time = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let reloaded = self.reload_settings().map_err(|error| format!("{error:#}"));
        *self.last_reload() = Some(LastReload {
            unix_ms: unix_ms(),
            changes: reloaded.clone().unwrap_or_default(),
            failed: reloaded.as_ref().err().cloned(),
        });
        let changes = reloaded.inspect_err(|why| {
            tracing::error!(why, "the reload failed: the settings are unchanged");
        })?;
        let Changes { now, new_connections, restart } = &changes;
        tracing::info!(?now, ?new_connections, ?restart, "settings read again");
        if !restart.is_empty() {
            tracing::warn!(?restart, "these settings have changed and take effect only after a restart");
        }
        Ok(changes)
    }

    fn last_reload(&self) -> Option<LastReload> {
        self.last_reload().clone()
    }

    fn drain(&self) -> Drain {
        let config = self.config();
        let over_ms = if config.drain_over.0 == 0 { DRAIN_OVER_MS } else { config.drain_over.0 };
        Drain { grace_ms: config.drain_grace.0, over_ms, within_ms: config.stop_timeout.0 }
    }

    fn log_counts(&self) -> LogCounts {
        log::counts()
    }

    fn hub_counts(&self) -> Option<HubCounts> {
        self.config().hub.then(|| self.hub_counts.told())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_stays_and_is_told_each_time() {
        let current = DaemonConfig::default();
        let wanted = DaemonConfig {
            shards: 7,
            deflate: !current.deflate,
            policy: crate::daemon::config::PolicyValue(pushring::Policy::DropNewest),
            ..DaemonConfig::default()
        };
        for _ in 0..2 {
            let (effective, changes) = effective_now(&current, &wanted).unwrap();
            assert_eq!(effective, DaemonConfig { shards: current.shards, ..wanted.clone() });
            assert_eq!((changes.now, changes.restart), (vec!["policy".to_owned()], vec!["shards".to_owned()]));
            assert_eq!(changes.new_connections, ["deflate"]);
        }
        let (same, changes) = effective_now(&current, &current).unwrap();
        assert_eq!((same, changes), (current, Changes::default()));
    }
}
