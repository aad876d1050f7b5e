//! Communication with a service manager: sd_notify(3), sd_listen_fds(3), and the watchdog of systemd.service(5).
//! Without one, nothing happens.

use anyhow::{Context, ensure};
use listenfd::ListenFd;
use pushring::BrokerHandle;
use sd_notify::NotifyState;
use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

/// How often `systemctl status` gets new counts.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The directory that a unit gives this program under a variable's name; of several the first.
pub(crate) fn directory(variable: &str) -> Option<PathBuf> {
    first(&std::env::var_os(variable)?)
}

/// Several directories stand there with colons between them (systemd.exec(5)).
fn first(directories: &OsStr) -> Option<PathBuf> {
    let first = directories.as_bytes().split(|&byte| byte == b':').next()?;
    (!first.is_empty()).then(|| OsStr::from_bytes(first).into())
}

/// The listener that a socket unit has opened for this program. Call it before other threads exist: it removes the
/// environment variables, which child processes must not see.
///
/// # Errors
/// It is no listener of TCP, or there are several.
pub(crate) fn listener() -> anyhow::Result<Option<TcpListener>> {
    let mut inherited = ListenFd::from_env();
    let count = inherited.len();
    ensure!(count <= 1, "systemd hands over {count} sockets: give pushring.socket one ListenStream= with a port");
    if count == 0 {
        return Ok(None);
    }
    inherited.take_tcp_listener(0).context("systemd hands over no TCP listener: see ListenStream= in pushring.socket")
}

/// Serving has begun, or goes on after the settings have been read again.
pub(crate) fn ready(address: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving at {address}"))]);
}

/// The settings are being read again. [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "no clock for the service manager"),
    }
}

/// The end has begun.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping: clients are told")]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager could not be notified");
    }
}

/// Reports that `broker` runs, and its counts, as long as all shards answer.
///
/// # Errors
/// The thread could not be started.
pub(crate) fn keep_informed(broker: BrokerHandle) -> anyhow::Result<()> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(());
    }
    let watchdog = sd_notify::watchdog_enabled();
    // Half of what it waits (sd_watchdog_enabled(3)).
    let every = watchdog.map_or(STATUS_EVERY, |limit| STATUS_EVERY.min(limit / 2));
    let work = move || {
        loop {
            thread::sleep(every);
            let reports = broker.reports();
            if reports.is_empty() {
                return;
            }
            let sum = |count: fn(&pushring::Report) -> usize| reports.iter().map(count).sum::<usize>();
            let (channels, connections) = (sum(|shard| shard.channels), sum(|shard| shard.connections));
            let status = format!("{channels} channels, {connections} connections on {} shards", reports.len());
            tell(&[NotifyState::Status(&status)]);
            if watchdog.is_some() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    };
    thread::Builder::new()
        .name("service-manager".to_owned())
        .spawn(work)
        .context("no thread for the service manager")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_directories_the_first_counts() {
        let of = |text: &str| first(text.as_ref());
        assert_eq!(of("/var/lib/pushring"), Some(PathBuf::from("/var/lib/pushring")));
        assert_eq!(of("/var/lib/pushring:/var/lib/more"), Some(PathBuf::from("/var/lib/pushring")));
        assert_eq!(of(""), None);
    }
}
