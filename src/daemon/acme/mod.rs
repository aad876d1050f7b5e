//! Certificates from an authority that speaks ACME (RFC 8555), requested when there is none, or when a third of the
//! current one's validity is left, on a thread of its own.
//!
//! Validation is over plain HTTP (HTTP-01): while an order is open the broker answers the authority's requests, and
//! only those. `schedule` decides on the time, `state` keeps files across restarts, `issue` talks to the authority.
//!
//! Invariants: nothing here delays clients, and a daemon without a certificate serves with a self-signed one until it
//! has a better one; account and keys are readable for this user alone, and never printed; an authority that refuses is
//! asked ever more seldom, also by a daemon that is started again and again: no attempt is made that cannot be noted.

#[cfg(feature = "acme")]
mod issue;
#[cfg(feature = "acme")]
mod schedule;
mod state;

use super::certificates::CertificateFiles;
use super::config::DaemonConfig;
use super::systemd;
use anyhow::{Context, ensure};
use state::{AcmeState, CERTIFICATE, PLACEHOLDER};
use std::path::PathBuf;

/// The setting that names the directory of the state.
const SETTING: &str = "tls_acme_state";

/// The default directory of the state: the one that systemd gives a service, or its usual place.
fn default_directory() -> PathBuf {
    systemd::directory("STATE_DIRECTORY").unwrap_or_else(|| "/var/lib/pushring".into()).join("acme")
}

/// Where the state of `config` is kept.
pub(crate) fn directory(config: &DaemonConfig) -> PathBuf {
    match config.tls_acme_state.as_os_str().is_empty() {
        true => default_directory(),
        false => config.tls_acme_state.clone(),
    }
}

/// The file with the certificate in use, and its key: the authority's, once it is there. None: no name is to
/// have one.
pub(crate) fn pair(config: &DaemonConfig) -> Option<CertificateFiles> {
    if config.tls_acme.0.is_empty() {
        return None;
    }
    let file = |name: &str| directory(config).join(name);
    // What may not be looked at is told as such when it is read.
    let is_there = |path: &PathBuf| path.try_exists().unwrap_or(true);
    let file = Some(file(CERTIFICATE)).filter(is_there).unwrap_or_else(|| file(PLACEHOLDER));
    Some(CertificateFiles { setting: SETTING, chain: file.clone(), key: file })
}

/// Returns whether this is the file of our own making that is used until the authority has issued one, which exists
/// only once the daemon was started.
pub(crate) fn is_placeholder(pair: &CertificateFiles) -> bool {
    pair.setting == SETTING && pair.chain.ends_with(PLACEHOLDER)
}

/// Checks the settings.
///
/// # Errors
/// By the key of one that cannot.
pub(crate) fn check(config: &DaemonConfig) -> anyhow::Result<()> {
    if config.tls_acme.0.is_empty() {
        return Ok(());
    }
    ensure!(cfg!(feature = "acme"), "tls_acme: this program was built without the feature acme");
    for name in &config.tls_acme.0 {
        ensure!(
            !name.starts_with('*'),
            "tls_acme: {name:?}: authorities validate a wildcard by DNS alone, which is not done here; name each host"
        );
        let is_name = name.contains('.')
            && name.parse::<std::net::IpAddr>().is_err()
            && name.split('.').all(|label| {
                let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
                is_plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
            });
        ensure!(is_name, "tls_acme: {name:?} is not a host name such as example.com");
    }
    ensure!(config.tls_listen.0.is_some(), "tls_acme: a certificate needs a TLS listener: set tls_listen");
    ensure!(config.listen.0.is_some(), "tls_acme: authorities validate over plain HTTP: listen cannot be off");
    ensure!(config.tls_acme_url.starts_with("https://"), "tls_acme_url: the URL must begin with https://");
    for contact in &config.tls_acme_contacts.0 {
        ensure!(contact.contains('@'), "tls_acme_contacts: {contact:?} is not an address such as admin@example.com");
    }
    Ok(())
}

/// Makes what is needed for a start: the directory, and where no certificate is, one of our own making.
///
/// # Errors
/// Nothing can be kept there.
pub(crate) fn prepare(config: &DaemonConfig) -> anyhow::Result<()> {
    if config.tls_acme.0.is_empty() {
        return Ok(());
    }
    let state = AcmeState::open(&directory(config))?;
    if state.read(CERTIFICATE)?.is_none() && state.read(PLACEHOLDER)?.is_none() {
        let names = config.tls_acme.0.clone();
        let made = rcgen::generate_simple_self_signed(names).context("no certificate could be made")?;
        let pem = made.cert.pem() + &made.signing_key.serialize_pem();
        state.write(PLACEHOLDER, pem.as_bytes())?;
        tracing::warn!("no certificate yet: until the authority issues one, browsers refuse the self-signed one");
    }
    Ok(())
}

#[cfg(feature = "acme")]
pub(crate) use keeper::start;

/// A program without the feature has refused its settings before.
#[cfg(not(feature = "acme"))]
pub(crate) fn start(
    _: &std::sync::Arc<super::program::Daemon>,
    _: &pushring::BrokerHandle,
    _: &DaemonConfig,
) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(feature = "acme")]
mod keeper {
    use super::issue::CertificateAuthority;
    use super::schedule::{self, FailedAttempts};
    use super::state::{AcmeState, CERTIFICATE, FAILURES};
    use super::{Context, DaemonConfig, directory, ensure};
    use crate::daemon::program::Daemon;
    use pushring::BrokerHandle;
    use pushring::internals::driver::background::BackgroundRuntime;
    use pushring::internals::driver::clock;
    use pushring::internals::tls::Certificate;
    use std::sync::{Arc, Weak};
    use std::thread;
    use std::time::Duration;

    /// How often the calendar is looked at while nothing is due: a clock that was wrong is found out.
    const LOOKED_AT_EVERY: Duration = Duration::from_secs(3600);

    /// Keeps the certificate of some names good.
    struct CertificateRenewal {
        daemon: Weak<Daemon>,
        broker: BrokerHandle,
        names: Vec<String>,
        authority: CertificateAuthority,
        state: AcmeState,
    }

    /// Keeps the certificate good on a thread of its own, as long as the daemon is there.
    ///
    /// # Errors
    /// There is no thread, or nothing can be kept.
    pub(crate) fn start(daemon: &Arc<Daemon>, broker: &BrokerHandle, config: &DaemonConfig) -> anyhow::Result<()> {
        if config.tls_acme.0.is_empty() {
            return Ok(());
        }
        let keeper = CertificateRenewal {
            daemon: Arc::downgrade(daemon),
            broker: broker.clone(),
            names: config.tls_acme.0.iter().map(|name| name.to_ascii_lowercase()).collect(),
            authority: CertificateAuthority::new(config),
            state: AcmeState::open(&directory(config))?,
        };
        let runtime = BackgroundRuntime::new().context("no runtime")?;
        let work = move || keeper.keep(&runtime);
        thread::Builder::new().name("acme".to_owned()).spawn(work).context("no thread for certificates")?;
        Ok(())
    }

    impl CertificateRenewal {
        fn keep(&self, runtime: &BackgroundRuntime) {
            let mut failed = self.failed_before();
            if let Some(pause) = failed.pause(clock::unix_s()).filter(|_| self.due_unix_s() <= clock::unix_s()) {
                tracing::warn!(
                    names = ?self.names, again_in_s = pause.as_secs(),
                    "no certificate was issued before this start, and the authority is left alone for a while; to ask at \
                     once, remove {} and start again",
                    self.state.path(FAILURES).display()
                );
            }
            while self.daemon.strong_count() > 0 {
                let now_unix_s = clock::unix_s();
                let not_due = Duration::from_secs(self.due_unix_s().saturating_sub(now_unix_s));
                let wait = not_due.max(failed.pause(now_unix_s).unwrap_or_default());
                if !wait.is_zero() {
                    thread::sleep(wait.min(LOOKED_AT_EVERY));
                    continue;
                }
                failed = failed.with_one_more(now_unix_s);
                match self.note(&failed).and_then(|()| runtime.get().block_on(self.issue_lasting())) {
                    Ok(until) => {
                        failed = self.none_failed();
                        tracing::info!(names = ?self.names, until, "a certificate was issued");
                        if let Err(error) = self.state.remove(FAILURES) {
                            let error = format!("{error:#}");
                            tracing::warn!(error, "the next certificate is asked for later than it could be");
                        }
                    }
                    Err(error) => {
                        let again_in_s = failed.pause(clock::unix_s()).unwrap_or_default().as_secs();
                        let error = format!("{error:#}");
                        tracing::error!(error, names = ?self.names, again_in_s, "no certificate was issued");
                    }
                }
            }
        }

        fn none_failed(&self) -> FailedAttempts {
            FailedAttempts::none(self.authority.url(), &self.names)
        }

        /// The attempts that failed before this start.
        fn failed_before(&self) -> FailedAttempts {
            let kept = self.state.read(FAILURES).and_then(|kept| {
                kept.map(|json| serde_json::from_slice(&json).context("the failed attempts cannot be read")).transpose()
            });
            let kept = kept.unwrap_or_else(|error| {
                let error = format!("{error:#}");
                tracing::warn!(error, "an authority may be asked for a certificate sooner than it likes");
                None
            });
            FailedAttempts::or_none(kept, self.authority.url(), &self.names)
        }

        /// Before the authority is asked: however this ends, the next daemon knows of it.
        fn note(&self, failed: &FailedAttempts) -> anyhow::Result<()> {
            self.state.write(FAILURES, &serde_json::to_vec(failed)?)
        }

        /// When a certificate is to be asked for: now, if there is none for all names.
        fn due_unix_s(&self) -> u64 {
            let held = self.state.read(CERTIFICATE).ok().flatten();
            let held = held.and_then(|pem| Certificate::from_pem(&pem, &pem).ok());
            let fits = |held: &Certificate| self.names.iter().all(|name| held.is_for(name));
            let due = |held: Certificate| schedule::due_unix_s(held.not_before_unix_s(), held.not_after_unix_s());
            held.filter(fits).map_or(0, due)
        }

        /// As [`issue`](Self::issue); that the next one is due at once is a failure like any: it would be asked for
        /// without end.
        async fn issue_lasting(&self) -> anyhow::Result<u64> {
            let until = self.issue().await?;
            let is_due = self.due_unix_s() <= clock::unix_s();
            ensure!(!is_due, "what was issued is over, or for other names: is this machine's clock right?");
            Ok(until)
        }

        /// Asks for a certificate, and uses it. Returns when it expires.
        async fn issue(&self) -> anyhow::Result<u64> {
            let issued = self.authority.issue(&self.names, &self.state, &self.broker).await;
            // The order is over, either way.
            self.broker.set_challenges(Default::default())?;
            let pem = issued?;
            let certificate = Certificate::from_pem(pem.as_bytes(), pem.as_bytes())
                .context("the authority's certificate is not for our key")?;
            self.state.write(CERTIFICATE, pem.as_bytes())?;
            if let Some(daemon) = self.daemon.upgrade() {
                daemon.reload_certificates()?;
            }
            Ok(certificate.not_after_unix_s())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_authority_would_sign_is_told() {
        let checked = |names: &str| {
            let config = DaemonConfig {
                tls_acme: names.parse().unwrap(),
                tls_listen: "127.0.0.1:443".parse().unwrap(),
                ..DaemonConfig::default()
            };
            check(&config).map_err(|error| error.to_string())
        };
        if cfg!(feature = "acme") {
            assert_eq!(checked("example.com, a-b.example.com"), Ok(()));
        }
        for names in ["*.example.com", "localhost", "127.0.0.1", "a_b.example.com", "-a.com", "a..com"] {
            assert!(checked(names).unwrap_err().starts_with("tls_acme: "), "{names}");
        }
        let off = DaemonConfig { tls_acme: "example.com".parse().unwrap(), ..DaemonConfig::default() };
        assert!(check(&off).is_err());
    }
}
