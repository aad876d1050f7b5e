//! The number of connections, in all and per client, and the rate of a client's handshakes.
//!
//! Each client has one entry in a striped table: its connections, and the state of a token bucket (kept as the time at
//! which the bucket is full again). Invariants: an entry without connections lives until its bucket is full, at most a
//! second; expired entries are swept before a stripe grows. So a table has at most twice as many entries as there are
//! connections, and handshakes of one second.

use super::counter::{ProcessCount, count_down, count_up};
use super::notices::Notices;
use super::prefix::Prefix;
use super::waiting::{EvictFrom, EvictedChannel, Waiting, WaitingEntry};
use crate::gateway::IpPrefix;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Shards rarely meet in one of so many stripes.
const STRIPES: usize = 64;

/// A stripe is not swept before it has so many entries.
const SWEEP_ENTRIES_MIN: usize = 64;

const SECOND_US: u64 = 1_000_000;

/// The last of so many parts of all connections goes to processes with less than an equal share.
const PARTS_FOR_SHARES: usize = 8;

/// How many may connect, and how fast. A client is an IPv4 address or an IPv6 /64; see [`Prefix`].
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Connections in all; more are answered 503. Default 100,000: some 30 MB of our memory, and 400 MB of the
    /// kernel's.
    pub connections_max: usize,
    /// Connections of one client; more are answered 503. 0 is no limit. Default 32,768: more than one IPv4 address has
    /// ephemeral ports for (28,232 unless widened), so an office behind one address and a load test pass, and yet no
    /// address can take more than a third of all.
    pub connections_per_ip_max: u32,
    /// Connections of one process: its channels, and requests that wait for its answer; more are answered 503. 0 is no
    /// limit of its own, the default. Whatever it is: while fewer than an eighth of `connections_max` are free, a
    /// process gets one only if it has less than an equal share of all, so that none can take the last ones from the
    /// others.
    pub connections_per_process_max: usize,
    /// Upgrade requests per second of one client, and as many at once; more are answered 503. 0 is no limit. Default
    /// 20,000: at the measured 15 µs each, one address costs at most a third of one core, and all clients behind one
    /// address may come back within two seconds.
    pub handshakes_per_ip_per_s_max: u32,
    /// Addresses to which the two limits per client do not apply. Default none.
    pub per_ip_exempt: Vec<IpPrefix>,
    /// Clients over a limit that are answered at the same time; more are let go without a word. Default 1,024: each
    /// holds a descriptor for as long as it takes to be told, 2 s if it does not close by itself.
    pub turned_away_max: usize,
    /// Subscriptions of channels to topics, in all; more are refused. Default 1,600,000: sixteen for each connection
    /// that there may be. While fewer than an eighth are free, a process gets one only if it has less than an equal
    /// share.
    pub subscriptions_max: usize,
}

impl ConnectionLimits {
    /// These limits for an OS process that has `files_left` descriptors left for clients. A client over a limit needs
    /// one too, in order to be told so: otherwise the system's limit would be reached first, and clients beyond that
    /// wait without an answer.
    pub fn within_files(self, files_left: usize) -> Self {
        let turned_away_max = self.turned_away_max.min(files_left / 8);
        let connections_max = self.connections_max.min((files_left - turned_away_max).max(1));
        Self { connections_max, turned_away_max, ..self }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            connections_per_ip_max: 32_768,
            connections_per_process_max: 0,
            handshakes_per_ip_per_s_max: 20_000,
            per_ip_exempt: Vec::new(),
            turned_away_max: 1024,
            subscriptions_max: 1_600_000,
        }
    }
}

/// The limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitReached {
    /// Connections in all.
    Total,
    /// Connections of this client.
    PerIp,
}

/// See the module.
#[derive(Debug)]
pub struct Connections {
    /// Read at each accept, changed by operators.
    limits: RwLock<ConnectionLimits>,
    total: AtomicUsize,
    turned_away: AtomicUsize,
    subscriptions: AtomicUsize,
    notices: Notices,
    waiting: Waiting,
    stripes: Box<[Stripe]>,
    /// A client that knew its keys could fill one stripe.
    keys: RandomState,
}

/// On cache lines of its own: prefetching takes them in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Stripe(Mutex<ClientEntries>);

#[derive(Debug)]
struct ClientEntries {
    of: HashMap<Prefix, ClientEntry, RandomState>,
    /// Sweep before there are more entries than this.
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct ClientEntry {
    connections: u32,
    /// When the bucket is full again, µs.
    full_at_us: u64,
    /// The same for handshakes of TLS.
    tls_full_at_us: u64,
}

impl ClientEntry {
    fn says_something(&self, now_us: u64) -> bool {
        self.connections > 0 || self.full_at_us.max(self.tls_full_at_us) > now_us
    }
}

impl Default for Connections {
    /// The default limits, with keys of the moment.
    fn default() -> Self {
        Self::new(ConnectionLimits::default(), RandomState::new())
    }
}

impl Connections {
    /// No connections yet. `keys` decide the place of a client's entry, and should be hard to guess.
    pub fn new(limits: ConnectionLimits, keys: RandomState) -> Self {
        let entries = || ClientEntries { of: HashMap::with_hasher(keys.clone()), sweep_at: SWEEP_ENTRIES_MIN };
        let stripes = (0..STRIPES).map(|_| Stripe(Mutex::new(entries()))).collect();
        Self {
            limits: RwLock::new(limits),
            total: AtomicUsize::new(0),
            turned_away: AtomicUsize::new(0),
            subscriptions: AtomicUsize::new(0),
            notices: Notices::default(),
            waiting: Waiting::default(),
            stripes,
            keys,
        }
    }

    /// The events that operators are told of.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    /// The limits in force.
    pub fn limits(&self) -> ConnectionLimits {
        self.current().clone()
    }

    /// Applies these limits from now on. Existing connections stay.
    pub fn set_limits(&self, limits: ConnectionLimits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    fn current(&self) -> RwLockReadGuard<'_, ConnectionLimits> {
        self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client that an address counts for; `None` if it is not counted.
    pub fn client(&self, ip: IpAddr) -> Option<Prefix> {
        let exempt = self.current().per_ip_exempt.iter().any(|prefix| prefix.contains(ip));
        (!exempt).then(|| ip.into())
    }

    /// Counts a connection, in all and of `client`.
    ///
    /// # Errors
    /// A limit is reached; nothing was counted.
    pub fn enter(&self, client: Option<Prefix>, now_ms: u64) -> Result<(), LimitReached> {
        let max = self.current().connections_max;
        count_up(&self.total, max).ok_or(LimitReached::Total)?;
        let of_client = client.map_or(Ok(()), |client| self.enter_client(client, now_ms));
        if of_client.is_err() {
            count_down(&self.total);
        }
        of_client
    }

    /// Counts a connection that is counted in all already as `client`'s.
    ///
    /// # Errors
    /// [`LimitReached::PerIp`]; nothing was counted.
    pub fn enter_client(&self, client: Prefix, now_ms: u64) -> Result<(), LimitReached> {
        let max = match self.current().connections_per_ip_max {
            0 => u32::MAX,
            max => max,
        };
        let mut entries = self.entries(client);
        let entry = entries.entry(client, now_ms);
        if entry.connections >= max {
            return Err(LimitReached::PerIp);
        }
        entry.connections += 1;
        Ok(())
    }

    /// Counts a connection, which is counted in all already, as one of a process; `processes` are attached. `false`: it
    /// has as many as it may, and nothing was counted.
    pub fn enter_process(&self, of: &ProcessCount, processes: usize) -> bool {
        let (all_max, own_max) = {
            let limits = self.current();
            (limits.connections_max, limits.connections_per_process_max)
        };
        let mut max = if own_max == 0 { usize::MAX } else { own_max };
        if self.total() > all_max - all_max / PARTS_FOR_SHARES {
            max = max.min((all_max / processes.max(1)).max(1));
        }
        of.enter(max)
    }

    /// Counts a subscription to a topic, in all and as one of a process; `processes` are attached. `false`: there are
    /// as many as there may be, and nothing was counted.
    pub fn enter_subscription(&self, of: &ProcessCount, processes: usize) -> bool {
        let all_max = self.current().subscriptions_max;
        let is_tight = self.subscriptions.load(Ordering::Relaxed) >= all_max - all_max / PARTS_FOR_SHARES;
        let max = if is_tight { (all_max / processes.max(1)).max(1) } else { usize::MAX };
        if !of.enter(max) {
            return false;
        }
        let is_in = count_up(&self.subscriptions, all_max).is_some();
        if !is_in {
            of.leave();
        }
        is_in
    }

    /// The end of a subscription that was counted.
    pub fn leave_subscription(&self, of: &ProcessCount) {
        of.leave();
        count_down(&self.subscriptions);
    }

    /// The end of a connection that was counted.
    pub fn leave(&self, client: Option<Prefix>, now_ms: u64) {
        count_down(&self.total);
        let Some(client) = client else { return };
        let mut entries = self.entries(client);
        let entry = entries.of.get_mut(&client).expect("a leaver was counted");
        entry.connections = entry.connections.checked_sub(1).expect("a leaver was counted");
        if !entry.says_something(now_ms * 1000) {
            entries.of.remove(&client);
        }
    }

    /// A counted connection is gone, and what it was for waits for another, counted as before: `id` is its shard's name
    /// for it. The answer is for [`end_wait`](Self::end_wait).
    pub fn begin_wait(&self, id: u32, client: Option<Prefix>, process: &Arc<ProcessCount>) -> u64 {
        self.waiting.enter(WaitingEntry { id, client, process: process.clone() })
    }

    /// It waits no more. Returns whether it is counted still; else it was let go of.
    pub fn end_wait(&self, entry: u64) -> bool {
        self.waiting.leave(entry).is_some()
    }

    /// Uncounts the longest waiting channel concerned, as a connection, as its client's and as its process'. Its shard
    /// is to be told.
    pub fn evict(&self, of: EvictFrom<'_>, now_ms: u64) -> Option<EvictedChannel> {
        let (entry, WaitingEntry { id, client, process }) = self.waiting.take(of)?;
        self.leave(client, now_ms);
        process.leave();
        Some(EvictedChannel { id, entry })
    }

    /// Takes a token for one handshake of `client`; `false` if it has none left.
    pub fn take_handshake(&self, client: Prefix, now_ms: u64) -> bool {
        let rate = u64::from(self.current().handshakes_per_ip_per_s_max);
        if rate == 0 {
            return true;
        }
        let mut entries = self.entries(client);
        take_token(&mut entries.entry(client, now_ms).full_at_us, rate, now_ms)
    }

    /// Takes a token for one handshake of TLS of `client`, which may do `per_s_max` of them; `false` if it has none
    /// left.
    pub fn take_tls_handshake(&self, client: Prefix, per_s_max: u32, now_ms: u64) -> bool {
        let mut entries = self.entries(client);
        take_token(&mut entries.entry(client, now_ms).tls_full_at_us, per_s_max.max(1).into(), now_ms)
    }

    /// Counts a client that is over a limit, to be answered and then let go; `false` if too many are at it already.
    pub fn begin_turning_away(&self) -> bool {
        count_up(&self.turned_away, self.current().turned_away_max).is_some()
    }

    /// Such a client is gone.
    pub fn end_turning_away(&self) {
        count_down(&self.turned_away);
    }

    /// Connections in all, without those that are being turned away.
    pub fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    fn entries(&self, client: Prefix) -> MutexGuard<'_, ClientEntries> {
        let stripe = self.keys.hash_one(client) as usize % STRIPES;
        // A panic leaves the map whole; the broker ends anyway.
        self.stripes[stripe].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientEntries {
    /// The client's entry, made if it has none.
    fn entry(&mut self, client: Prefix, now_ms: u64) -> &mut ClientEntry {
        if self.of.len() >= self.sweep_at && !self.of.contains_key(&client) {
            self.of.retain(|_, entry| entry.says_something(now_ms * 1000));
            // Each entry is looked at as often as one is added: a constant cost.
            self.sweep_at = (self.of.len() * 2).max(SWEEP_ENTRIES_MIN);
            self.of.shrink_to(self.sweep_at);
        }
        self.of.entry(client).or_default()
    }
}

/// Takes one of `rate` tokens of a second; `false` if none is left.
fn take_token(full_at_us: &mut u64, rate: u64, now_ms: u64) -> bool {
    let now_us = now_ms * 1000;
    // A full bucket holds what comes in within a second.
    let after_us = (*full_at_us).max(now_us) + (SECOND_US / rate).max(1);
    let has_one = after_us <= now_us + SECOND_US;
    if has_one {
        *full_at_us = after_us;
    }
    has_one
}

#[cfg(test)]
#[path = "connections_tests.rs"]
mod tests;
