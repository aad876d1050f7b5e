//! The daemon's signals. None that operators or terminals send ends it without telling its clients.

use super::log;
use super::program::Daemon;
use super::systemd;
use anyhow::Context;
use pushring::control::{ControlRequest, Operator, Program};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::thread;

/// The action for a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SignalOrder {
    Stop,
    /// Read the settings again.
    Reload,
    /// Nothing, as far as this program is concerned.
    Ignore,
    /// A file may not grow: the write tells (setrlimit(2), RLIMIT_FSIZE).
    FileTooLarge,
}

const SIGNALS: [(i32, SignalOrder); 7] = [
    (SIGTERM, SignalOrder::Stop),
    (SIGINT, SignalOrder::Stop),
    (SIGQUIT, SignalOrder::Stop),
    (SIGHUP, SignalOrder::Reload),
    (SIGUSR1, SignalOrder::Ignore),
    (SIGUSR2, SignalOrder::Ignore),
    (SIGXFSZ, SignalOrder::FileTooLarge),
];

/// From now on signals wait for [`handle`].
///
/// # Errors
/// The system refuses.
pub(crate) fn catch() -> anyhow::Result<Signals> {
    Signals::new(SIGNALS.map(|(signal, _)| signal)).context("cannot handle signals")
}

/// Obeys signals until the program ends: at the first that says so, drains the broker or stops it gently; at the second
/// ends the program as it is.
///
/// # Errors
/// There is no thread.
pub(crate) fn handle(mut signals: Signals, operator: Operator, daemon: Arc<Daemon>) -> anyhow::Result<()> {
    let wait = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            let order = SIGNALS.iter().find(|(known, _)| *known == signal).map(|(_, order)| *order);
            let name = signal_hook::low_level::signal_name(signal);
            match order {
                Some(SignalOrder::Stop) if stopping => {
                    tracing::warn!(name, "a second signal: ending at once");
                    log::flush();
                    // Shells expect this status of a program ended by a signal.
                    std::process::exit(128 + signal);
                }
                Some(SignalOrder::Stop) => {
                    stopping = true;
                    stop(name, &operator, &daemon);
                }
                Some(SignalOrder::Reload) => reload(&operator, name),
                Some(SignalOrder::Ignore) => tracing::info!(name, "a signal without a meaning here was ignored"),
                Some(SignalOrder::FileTooLarge) | None => {}
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("no thread for signals")?;
    Ok(())
}

/// Has the settings read again, and tells the service manager, which waits for it.
fn reload(operator: &Operator, name: Option<&'static str>) {
    tracing::info!(name, "the settings are read again");
    systemd::reloading();
    // The log has the result.
    let _ = operator.answer(ControlRequest::Reload {});
    systemd::ready(&operator.overview().about.address.to_string());
}

fn stop(signal: Option<&'static str>, operator: &Operator, daemon: &Daemon) {
    systemd::stopping();
    let config = daemon.config();
    if config.drain_over.0 > 0 {
        tracing::info!(signal, "stopping after a drain (drain_over)");
        return operator.drain(daemon.drain());
    }
    let timeout = config.stop_timeout.duration();
    tracing::info!(signal, ?timeout, "stopping: closing every channel with 1001");
    operator.broker().stop(timeout);
}
