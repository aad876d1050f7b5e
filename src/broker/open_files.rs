//! How many clients the limit of open files leaves room for.

use crate::admission;
use crate::driver::sys;

/// The files that a shard opens as it starts: a listener for TLS, two rings, an epoll set and its duplicate, an
/// eventfd; and, briefly, the two socket pairs with which a ring is probed.
const FILES_PER_SHARD: usize = 11;

/// A reserve for files opened outside of the shards.
const FILES_SPARE: usize = 64;

/// How many files a process may have to open for a broker of `shards` shards with `limits`, besides those that it has
/// opened before.
pub fn files_needed(limits: &admission::ConnectionLimits, shards: usize) -> usize {
    let clients = limits.connections_max.saturating_add(limits.turned_away_max);
    clients.saturating_add(shards * FILES_PER_SHARD + FILES_SPARE)
}

/// `limits` as far as a process can keep them that may open `files_max` files and has opened `open` before the broker.
pub fn limits_within_files(
    limits: admission::ConnectionLimits,
    shards: usize,
    files_max: usize,
    open: usize,
) -> admission::ConnectionLimits {
    // A sixteenth where there are few.
    let spare = (files_max / 16).min(FILES_SPARE);
    limits.within_files(files_max.saturating_sub(open + shards * FILES_PER_SHARD + spare))
}

/// Lowers `limits` to what the limit of open files leaves for clients, of which `clients` have their files open
/// already.
pub(super) fn fit_to_open_files(
    limits: admission::ConnectionLimits,
    shards: usize,
    clients: usize,
) -> admission::ConnectionLimits {
    // Without a /proc to count in, the system's limit will show itself.
    let Ok((files_max, open)) = sys::open_files() else { return limits };
    let files_max = usize::try_from(files_max).unwrap_or(usize::MAX);
    let fitting = limits_within_files(limits.clone(), shards, files_max + clients, open);
    if fitting.connections_max < limits.connections_max {
        let (configured, connections_max) = (limits.connections_max, fitting.connections_max);
        tracing::warn!(
            connections_max,
            configured,
            files_max,
            "fewer connections than configured: the limit of open files allows no more"
        );
    }
    fitting
}
