//! The hub's rules of entry, and the broker that serves the API, from the settings.

use super::super::program::Secrets;
use super::{DaemonConfig, WordList};
use anyhow::{Context, ensure};
use pushring::internals::admission;
use pushring::internals::gateway::{self, Grant, HostPolicy, HubAccess, PublicKeys, Settings, TokenAuthority};
use pushring::internals::jwks::KeySet;
use std::net::SocketAddr;
use std::sync::Arc;

/// Connections to `api_listen`: backends keep a few open each.
const API_CONNECTIONS_MAX: usize = 1024;

/// The memory of the API's requests, beside `memory_budget`: four of the largest messages, twice as they arrive.
const API_MEMORY_BYTES_MAX: usize = 128 << 20;

impl DaemonConfig {
    /// The configuration of the broker that serves the API at its own address: one shard without channels.
    ///
    /// # Errors
    /// A value that cannot be applied, named by its key.
    pub(crate) fn api_broker(&self, listen: SocketAddr) -> anyhow::Result<pushring::Config> {
        let config = self.broker(Secrets::default())?;
        let defaults = pushring::Config::default();
        let settings = Settings { hosts: HostPolicy::Any, ..Settings::default() };
        Ok(pushring::Config {
            listen,
            opens_later: config.opens_later,
            shards: 1,
            driver: config.driver,
            settings,
            admission: admission::ConnectionLimits {
                connections_max: API_CONNECTIONS_MAX,
                ..defaults.admission.clone()
            },
            memory_bytes_max: Some(API_MEMORY_BYTES_MAX),
            shard: config.shard,
            ..defaults
        })
    }

    /// The settings of a hub that say something, though there is no hub.
    ///
    /// # Errors
    /// The settings are no plain TOML.
    pub(crate) fn idle_hub_settings(&self) -> anyhow::Result<Vec<String>> {
        if self.hub {
            return Ok(Vec::new());
        }
        let defaults = toml::Table::try_from(Self::default())?;
        let is_idle =
            |(key, value): &(String, toml::Value)| key.starts_with("hub_") && defaults.get(key) != Some(value);
        Ok(toml::Table::try_from(self)?.into_iter().filter(is_idle).map(|(key, _)| key).collect())
    }

    /// The hub's rules of entry; none: there is no hub.
    pub(super) fn hub_access(&self, secrets: &Secrets) -> anyhow::Result<Option<Arc<HubAccess>>> {
        crate::daemon::hub::check(self)?;
        if !self.hub {
            return Ok(None);
        }
        let has_authority = !self.auth_issuer.is_empty();
        let has_tokens = has_authority || !self.hub_secret_file.as_os_str().is_empty();
        ensure!(
            has_tokens || self.hub_open,
            "hub: clients need a token (hub_secret_file, auth_jwks_url or auth_jwks_file), or hub_open lets them in"
        );
        ensure!(!self.hub_audience.is_empty(), "hub_audience: a name");
        let patterns = |key: &str, list: &WordList| {
            gateway::patterns(&list.0)
                .with_context(|| format!("{key}: names of topics, or beginnings of names and `*`"))
        };
        let grant = Grant {
            may_subscribe: patterns("hub_open_subscribe", &self.hub_open_subscribe)?,
            may_publish: patterns("hub_open_publish", &self.hub_open_publish)?,
            ..Grant::default()
        };
        let open = self.hub_open.then(|| Arc::new(grant));
        // Checking the settings requires no keys.
        let keys = || secrets.keys.as_ref().map_or_else(Arc::<KeySet>::default, |keys| keys.set.clone());
        let authority = has_authority.then(|| TokenAuthority {
            issuer: self.auth_issuer.clone(),
            audience: self.auth_audience.clone(),
            keys: keys() as Arc<dyn PublicKeys>,
        });
        let lifetime_max_s = self.hub_token_lifetime_max.0.div_ceil(1000);
        Ok(Some(Arc::new(HubAccess {
            secret: secrets.hub.clone(),
            audience: self.hub_audience.clone(),
            authority,
            lifetime_max_s: (lifetime_max_s > 0).then_some(lifetime_max_s),
            open,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_hub_that_there_is_not_are_named() {
        let idle = |text: &str| DaemonConfig::layered(text, &Default::default()).unwrap().idle_hub_settings().unwrap();
        let written = "hub_open = true\nhub_audience = \"a\"\nhub_open_publish = [\"public.*\"]";
        assert_eq!(idle(written), ["hub_audience", "hub_open", "hub_open_publish"]);
        assert_eq!(idle(&format!("hub = true\n{written}")), [""; 0]);
        // As `pushring config` prints them.
        assert_eq!(idle(&toml::to_string(&DaemonConfig::default()).unwrap()), [""; 0]);
    }

    #[test]
    fn an_open_hub_lets_anybody_hear_what_is_public_and_say_nothing() {
        let config = DaemonConfig { hub: true, hub_open: true, ..DaemonConfig::default() };
        let access = config.hub_access(&Secrets::default()).unwrap().unwrap();
        let open = access.open.as_ref().unwrap();
        for (topic, is_heard) in [("public.news", true), ("public.", false), ("public", false), ("news", false)] {
            assert_eq!((open.may_subscribe(topic), open.may_publish(topic)), (is_heard, false), "{topic}");
        }
        assert_eq!(access.lifetime_max_s, Some(24 * 3600));
        let closed = DaemonConfig { hub: true, ..DaemonConfig::default() };
        let error = closed.hub_access(&Secrets::default()).unwrap_err().to_string();
        assert!(error.starts_with("hub: clients need a token"), "{error}");
    }
}
