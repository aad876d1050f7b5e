//! What the daemon does at each signal. None of those that operators and terminals send ends it without a word to its
//! clients.

use super::log;
use super::systemd;
use anyhow::Context;
use pushring::control::{Answer, Operator, Request};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::Signals;
use std::thread;
use std::time::Duration;

/// What is asked of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Stop,
    /// Read the settings again.
    Reload,
    /// Nothing, as far as this program is concerned.
    Ignore,
    /// A file may not grow: the write tells (setrlimit(2), RLIMIT_FSIZE).
    FileTooLarge,
}

const SIGNALS: [(i32, Order); 7] = [
    (SIGTERM, Order::Stop),
    (SIGINT, Order::Stop),
    (SIGQUIT, Order::Stop),
    (SIGHUP, Order::Reload),
    (SIGUSR1, Order::Ignore),
    (SIGUSR2, Order::Ignore),
    (SIGXFSZ, Order::FileTooLarge),
];

/// From now on signals wait for [`obey`].
///
/// # Errors
/// The system refuses.
pub fn catch() -> anyhow::Result<Signals> {
    Signals::new(SIGNALS.map(|(signal, _)| signal)).context("cannot handle signals")
}

/// Obeys signals until the program ends: stops the broker at the first that says so, gently, and ends the program as it
/// is at the second.
///
/// # Errors
/// There is no thread.
pub fn obey(mut signals: Signals, operator: Operator, timeout: Duration) -> anyhow::Result<()> {
    let wait = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            let order = SIGNALS.iter().find(|(known, _)| *known == signal).map(|(_, order)| *order);
            let name = signal_hook::low_level::signal_name(signal);
            match order {
                Some(Order::Stop) if stopping => {
                    tracing::warn!(name, "a second signal: ending at once");
                    log::flush();
                    // What shells expect of a program that a signal ended.
                    std::process::exit(128 + signal);
                }
                Some(Order::Stop) => {
                    stopping = true;
                    tracing::info!(name, ?timeout, "stopping: closing every channel with 1001");
                    systemd::stopping();
                    operator.broker().stop(timeout);
                }
                Some(Order::Reload) => reload(&operator, name),
                Some(Order::Ignore) => tracing::info!(name, "a signal that means nothing here"),
                Some(Order::FileTooLarge) | None => {}
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).context("no thread for signals")?;
    Ok(())
}

/// Has the settings read again, and tells the service manager, which waits for it.
fn reload(operator: &Operator, name: Option<&'static str>) {
    systemd::reloading();
    match operator.answer(Request::Reload {}) {
        Answer::Reloaded(changes) => tracing::info!(name, ?changes, "the settings were read again"),
        Answer::Refused(why) => tracing::warn!(name, why, "the settings stay as they are"),
        _ => {}
    }
    systemd::ready(&operator.overview().about.address.to_string());
}
