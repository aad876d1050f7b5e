//! The state that outlives a connection: which peer is attached, what is kept for it, and until when.
//!
//! A session begins with the first hello of an id and ends with a bye, a violation, the broker, or when the peer did
//! not come back for `owner_grace`. In between it is connected or detached; detached, its process stays attached to the
//! broker, its queue fills, and then its clients are not read. Invariants: one session for each id, one connection for
//! each session; the reason for the end of a session is given once; the id is free only when the broker has forgotten
//! the process.

use super::config::{CLAIMS_PER_SESSION_MAX, LinkConfig, WINDOW};
use super::frame::LinkFrame;
use super::frame_queue::{FrameQueue, LinkDirection};
use super::kernel_actor::KernelActor;
use super::wire::{
    ByeCode, Hello, HelloRefused, LinkWindow, LiveChannel, RefusedCode, ToPeer, VERSION_MAX, VERSION_MIN,
};
use crate::admission::{Charge, HeapBytes, HeldAs, ProcessMemory};
use crate::broker::{BrokerHandle, Drain, ProcessHandle};
use crate::driver::peer_socket::{Credential, PeerStream};
use crate::process_id::ProcessId;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Whose session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SessionKey {
    Process(ProcessId),
    /// There is one node.
    Kernel,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// The peer said so.
    Bye,
    /// The peer said that it failed.
    Failed,
    /// The peer broke the protocol.
    Violation,
    /// The peer did not come back in time.
    Grace,
    /// The broker has stopped.
    Stopped,
}

/// Beside a frame to a peer.
#[derive(Debug)]
pub(super) enum FrameMark {
    Event,
    Opened(Box<LiveChannel>),
    Closed(u32),
    /// It answers a question; not written yet.
    Answer,
}

/// The broker's frames.
pub(super) struct Outward;

impl LinkDirection for Outward {
    type Mark = FrameMark;

    fn ack(received: u64) -> LinkFrame {
        LinkFrame::bare(&ToPeer::Ack { received })
    }

    fn beat() -> LinkFrame {
        LinkFrame::bare(&ToPeer::Beat {})
    }

    fn written(mark: &mut FrameMark, asks: &mut usize) {
        if matches!(mark, FrameMark::Answer) {
            *mark = FrameMark::Event;
            *asks -= 1;
        }
    }

    fn mark_bytes(mark: &FrameMark) -> usize {
        if let FrameMark::Opened(channel) = mark { channel.heap_bytes() } else { 0 }
    }
}

/// Carries out the peer's orders.
pub(super) enum Actor {
    Process(ProcessHandle),
    Kernel(Box<KernelActor>),
}

/// See the module.
pub(super) struct Session {
    pub frames: FrameQueue<Outward>,
    pub actor: Actor,
    /// The channels that are open as far as the peer has acknowledged.
    live: Mutex<Live>,
    end: OnceLock<SessionEnd>,
}

impl Session {
    pub(super) fn new(actor: Actor, memory: &ProcessMemory) -> Self {
        let frames = FrameQueue::new(WINDOW).charged(memory.charge_anyway(HeldAs::Link, 0));
        let live = Live { channels: BTreeMap::new(), charge: memory.charge_anyway(HeldAs::Link, 0) };
        Self { frames, actor, live: Mutex::new(live), end: OnceLock::new() }
    }

    /// The peer has so many frames.
    pub(super) fn acknowledge(&self, received: u64) -> Result<(), super::frame_queue::NeverSent> {
        let mut live = lock(&self.live);
        self.frames.acknowledge(received, |mark| match mark {
            FrameMark::Opened(channel) => live.insert(*channel),
            FrameMark::Closed(channel) => live.remove(channel),
            FrameMark::Event | FrameMark::Answer => {}
        })
    }

    /// Where what is kept for it is charged.
    pub(super) fn memory(&self) -> &ProcessMemory {
        match &self.actor {
            Actor::Process(process) => process.memory(),
            Actor::Kernel(kernel) => kernel.memory(),
        }
    }

    /// How many channels are open as far as the peer has acknowledged.
    pub(super) fn live(&self) -> usize {
        lock(&self.live).channels.len()
    }

    /// Some of them, by number, behind `after`: as many as so many bytes hold, and one in any case.
    pub(super) fn live_after(&self, after: Option<u32>, bytes_max: usize) -> Vec<LiveChannel> {
        lock(&self.live).after(after, bytes_max)
    }

    /// Frames that the peer has of ours, and that we have of its.
    pub(super) fn counts(&self) -> (u64, u64) {
        let (acknowledged, executed) = self.frames.counts();
        match &self.actor {
            Actor::Process(_) => (acknowledged, executed),
            // Frames that wait to be carried out must not be sent again.
            Actor::Kernel(kernel) => (acknowledged, kernel.inbox.received()),
        }
    }

    /// Ends it; `last` is the last frame to the peer. Only the first call counts.
    pub(super) fn end(&self, end: SessionEnd, last: Option<LinkFrame>) {
        if self.end.set(end).is_ok() {
            self.frames.end(last);
            // The thread that waits for the broker's events has to see it.
            match &self.actor {
                Actor::Process(owner) => owner.wake(),
                Actor::Kernel(kernel) => kernel.close(),
            }
        }
    }

    /// Why it ended. A session that just vanished has failed.
    pub(super) fn why(&self) -> SessionEnd {
        self.end.get().copied().unwrap_or(SessionEnd::Failed)
    }
}

/// The channels of which a peer that comes back is told, and their charge.
struct Live {
    channels: BTreeMap<u32, LiveChannel>,
    charge: Charge,
}

impl Live {
    /// The memory of an entry beside its text, with its place in the map.
    const ENTRY_BYTES: usize = (size_of::<u32>() + size_of::<LiveChannel>()) * 11 / 8;

    fn after(&self, after: Option<u32>, bytes_max: usize) -> Vec<LiveChannel> {
        let mut bytes = 0;
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let some = self.channels.range(behind).map(|(_, channel)| channel).take_while(|channel| {
            let is_first = bytes == 0;
            bytes += Self::ENTRY_BYTES + channel.heap_bytes();
            is_first || bytes <= bytes_max
        });
        some.cloned().collect()
    }

    fn insert(&mut self, channel: LiveChannel) {
        let more = Self::ENTRY_BYTES + channel.heap_bytes();
        self.charge.resize(self.charge.bytes() + more);
        self.channels.insert(channel.channel, channel);
    }

    fn remove(&mut self, channel: u32) {
        if let Some(channel) = self.channels.remove(&channel) {
            let less = Self::ENTRY_BYTES + channel.heap_bytes();
            self.charge.resize(self.charge.bytes() - less);
        }
    }
}

impl HeapBytes for LiveChannel {
    fn heap_bytes(&self) -> usize {
        let Self { process, path, source, forwarded_for, .. } = self;
        process.heap_bytes() + path.heap_bytes() + source.heap_bytes() + forwarded_for.heap_bytes()
    }
}

/// The attached peers.
pub(super) struct Registry {
    pub broker: BrokerHandle,
    pub config: LinkConfig,
    entries: Mutex<SessionEntries>,
    changed: Condvar,
    /// From when until when channels are closed, once the broker drains.
    draining: OnceLock<[Instant; 2]>,
}

#[derive(Default)]
struct SessionEntries {
    by_key: HashMap<SessionKey, SessionEntry>,
    /// Connections that have a session or wait for one.
    claims: HashMap<SessionKey, usize>,
    stopping: bool,
}

struct SessionEntry {
    session: Arc<Session>,
    secret: String,
    credential: Credential,
    /// The connection that has it; none: detached since.
    stream: Result<Arc<PeerStream>, Instant>,
    /// Counts connections.
    number: u64,
    /// Whether the connection is told of a drain.
    wants_drain: bool,
}

/// Lets a session go when whatever runs behind it ends, even by a panic.
pub(super) struct Forget {
    pub session: Arc<Session>,
    pub registry: Arc<Registry>,
    pub key: SessionKey,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.session.end(SessionEnd::Failed, None);
        self.registry.remove(&self.key, &self.session);
    }
}

/// What a peer wants to be.
pub(super) trait AskedSession {
    /// Whose session it asks for.
    fn key(&self) -> SessionKey;

    /// Begins the part of the broker behind the session.
    ///
    /// # Errors
    /// The refusal for the peer.
    fn begin(&self, registry: &Arc<Registry>) -> Result<Arc<Session>, HelloRefused>;

    /// Judges it as the successor of the peer that had the session.
    ///
    /// # Errors
    /// The refusal for the peer.
    fn succeed(&self, registry: &Registry, session: &Session) -> Result<(), HelloRefused>;
}

/// A session that a connection has taken.
pub(super) struct SessionClaim {
    pub session: Arc<Session>,
    pub secret: String,
    number: u64,
    claiming: Claiming,
}

/// A connection that asks for a session, counted until it is dropped.
struct Claiming {
    key: SessionKey,
    registry: Arc<Registry>,
}

impl Drop for Claiming {
    fn drop(&mut self) {
        let mut entries = lock(&self.registry.entries);
        if let Some(count) = entries.claims.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                entries.claims.remove(&self.key);
            }
        }
        self.registry.changed.notify_all();
    }
}

impl Registry {
    pub(super) fn new(broker: BrokerHandle, config: LinkConfig) -> Arc<Self> {
        let (entries, changed, draining) = (Mutex::default(), Condvar::new(), OnceLock::new());
        let registry = Arc::new(Self { broker, config, entries, changed, draining });
        let told = Arc::downgrade(&registry);
        registry.broker.when_draining(move |drain| {
            if let Some(registry) = told.upgrade() {
                registry.tell_draining(drain);
            }
        });
        registry
    }

    /// Tells all peers that ask for it, now and from now on.
    fn tell_draining(&self, drain: Drain) {
        let begins = Instant::now() + Duration::from_millis(drain.grace_ms);
        let _ = self.draining.set([begins, begins + Duration::from_millis(drain.over_ms)]);
        let entries = lock(&self.entries);
        for entry in entries.by_key.values().filter(|entry| entry.wants_drain) {
            self.notice_draining(&entry.session);
        }
    }

    /// Tells a connection that asked for it, if the broker drains.
    pub(super) fn notice_draining(&self, session: &Session) {
        if let Some(ends) = self.draining.get() {
            let now = Instant::now();
            let [begins_in_ms, ends_in_ms] = ends.map(|at| at.saturating_duration_since(now).as_millis() as u64);
            session.frames.notice(LinkFrame::bare(&ToPeer::Draining { begins_in_ms, ends_in_ms }));
        }
    }

    /// Takes the session that `hello` asks for, or begins one.
    ///
    /// # Errors
    /// The refusal for the peer.
    pub(super) fn claim(
        self: &Arc<Self>,
        asked: &dyn AskedSession,
        hello: &Hello,
        credential: Credential,
        stream: &Arc<PeerStream>,
        deadline: Instant,
    ) -> Result<SessionClaim, HelloRefused> {
        let key = &asked.key();
        let claiming = self.begin_claim(key)?;
        let mut entries = lock(&self.entries);
        // One that has ended is about to go.
        while entries.by_key.get(key).is_some_and(|entry| entry.session.frames.has_ended()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(refused(RefusedCode::Taken, "its last session is still ending"));
            }
            entries = self.changed.wait_timeout(entries, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if entries.stopping {
            return Err(refused(RefusedCode::Stopped, "the broker stops"));
        }
        let attached = entries.by_key.len();
        let by_key = &mut entries.by_key;
        let entry = match by_key.get_mut(key) {
            Some(entry) => {
                entry.judge(hello, credential)?;
                if hello.session.is_none() {
                    asked.succeed(self, &entry.session)?;
                    // The one before may still be there; it has lost its session.
                    entry.secret = new_secret()?;
                }
                entry
            }
            None if hello.session.is_some() => return Err(session_gone()),
            None if attached >= self.config.peers_max => {
                return Err(refused(RefusedCode::Full, "as many are attached as may be"));
            }
            None => {
                let secret = new_secret()?;
                let session = asked.begin(self)?;
                let stream = Err(Instant::now());
                let entry = SessionEntry { session, secret, credential, stream, number: 0, wants_drain: false };
                by_key.entry(key.clone()).or_insert(entry)
            }
        };
        entry.number += 1;
        entry.wants_drain = hello.wants_drain;
        if let Ok(before) = std::mem::replace(&mut entry.stream, Ok(stream.clone())) {
            before.shutdown();
        }
        let (session, secret, number) = (entry.session.clone(), entry.secret.clone(), entry.number);
        drop(entries);
        let claim = SessionClaim { session, secret, number, claiming };
        // Frames read from the previous connection are carried out first.
        if !claim.session.frames.wait_disconnected(deadline.saturating_duration_since(Instant::now())) {
            return Err(refused(RefusedCode::Taken, "its last connection is still busy"));
        }
        Ok(claim)
    }

    /// Forgets a session whose process the broker has forgotten. Another of the same key, which began since, stays.
    fn remove(&self, key: &SessionKey, session: &Arc<Session>) {
        let mut entries = lock(&self.entries);
        if entries.by_key.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.session, session)) {
            entries.by_key.remove(key);
        }
        self.changed.notify_all();
    }

    /// Counts a connection that asks for a session, unless there are enough of them.
    fn begin_claim(self: &Arc<Self>, key: &SessionKey) -> Result<Claiming, HelloRefused> {
        let mut entries = lock(&self.entries);
        let count = entries.claims.entry(key.clone()).or_default();
        if *count >= CLAIMS_PER_SESSION_MAX {
            return Err(refused(RefusedCode::Taken, "others wait for that session already"));
        }
        *count += 1;
        Ok(Claiming { key: key.clone(), registry: self.clone() })
    }

    /// How many are connected now; those that were lost and may come back are not.
    pub(super) fn connected(&self) -> usize {
        lock(&self.entries).by_key.values().filter(|entry| entry.stream.is_ok()).count()
    }

    /// Ends sessions whose peers do not come back, until the registry stops.
    pub(super) fn keep(&self) {
        let mut entries = lock(&self.entries);
        while !entries.stopping {
            let now = Instant::now();
            let mut next: Option<Instant> = None;
            for (key, entry) in &entries.by_key {
                let Err(since) = entry.stream else { continue };
                if entry.session.frames.has_ended() {
                    continue;
                }
                let until = since + self.config.owner_grace;
                if until <= now {
                    tracing::info!(?key, "the peer did not come back in time: its channels are closed with 1012");
                    entry.session.end(SessionEnd::Grace, None);
                } else {
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
            }
            entries = match next {
                None => self.changed.wait(entries).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let timeout = next.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(entries, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Begins no more sessions, and ends those that there are, with `last` as the last frame. Those of a broker that
    /// has stopped end by themselves, behind their last events. Returns when their connections are over, or cuts them
    /// after `patience`.
    pub(super) fn stop(&self, last: &LinkFrame, patience: Duration) {
        let end_them = !self.broker.reports().is_empty();
        let until = Instant::now() + patience;
        let mut entries = lock(&self.entries);
        entries.stopping = true;
        self.changed.notify_all();
        for entry in entries.by_key.values().filter(|_| end_them) {
            entry.session.end(SessionEnd::Stopped, Some(last.clone()));
        }
        while !entries.by_key.is_empty() || !entries.claims.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            entries = self.changed.wait_timeout(entries, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        for entry in entries.by_key.values() {
            entry.session.end(SessionEnd::Stopped, None);
            entry.stream.iter().for_each(|stream| stream.shutdown());
        }
    }
}

impl SessionEntry {
    /// Returns an error unless `hello` may have this session. It changes hands only while it is detached, to the same
    /// user or with the same token, or at any time to a peer that knows its secret.
    fn judge(&self, hello: &Hello, credential: Credential) -> Result<(), HelloRefused> {
        if let Some(secret) = &hello.session {
            let may = credential == self.credential && super::token::is_same(secret.as_bytes(), self.secret.as_bytes());
            return if may { Ok(()) } else { Err(session_gone()) };
        }
        if self.stream.is_ok() || credential != self.credential {
            return Err(refused(RefusedCode::Taken, "another is attached"));
        }
        Ok(())
    }
}

fn new_secret() -> Result<String, HelloRefused> {
    random_secret().map_err(|_| refused(RefusedCode::Full, "there is no randomness"))
}

impl SessionClaim {
    /// Whose session.
    pub(super) fn key(&self) -> &SessionKey {
        &self.claiming.key
    }

    /// Connects the session's frame queue. Returns its number for the connection; none: another has taken the session
    /// since.
    pub(super) fn connect(&self, window: LinkWindow) -> Option<u64> {
        let entries = lock(&self.claiming.registry.entries);
        let is_current = entries.by_key.get(self.key()).is_some_and(|entry| entry.number == self.number);
        is_current.then(|| self.session.frames.connect(window))
    }
}

impl Drop for SessionClaim {
    fn drop(&mut self) {
        let mut entries = lock(&self.claiming.registry.entries);
        if let Some(entry) = entries.by_key.get_mut(self.key()).filter(|entry| entry.number == self.number) {
            entry.stream = Err(Instant::now());
        }
        // The keeper looks again when the claim itself is gone.
    }
}

/// The frame that ends a session.
pub(super) fn bye(code: ByeCode, reason: &str) -> LinkFrame {
    LinkFrame::bare(&ToPeer::Bye { code, reason: reason.to_owned() })
}

pub(super) fn refused(code: RefusedCode, reason: &str) -> HelloRefused {
    HelloRefused { code, reason: reason.to_owned(), version_min: VERSION_MIN, version_max: VERSION_MAX }
}

fn session_gone() -> HelloRefused {
    refused(RefusedCode::Session, "that session has ended, and its channels with it")
}

/// 128 bits, in hexadecimal.
fn random_secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut text = String::with_capacity(32);
    bytes.iter().for_each(|byte| write!(text, "{byte:02x}").expect("a String takes every write"));
    Ok(text)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one call on a map, or one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Ledger;
    use crate::broker::{AttachOptions, Broker, Config};
    use crate::link::wire::ToPeer;
    use crate::queue::events::{QueueLimits, process_queue};

    #[test]
    fn every_live_channel_is_listed_once_in_frames_that_a_peer_takes() {
        const FRAME_BYTES: usize = 4096;
        let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
        let charge = queue.memory_of("p:test:sys".parse().unwrap()).charge_anyway(HeldAs::Link, 0);
        let mut live = Live { channels: BTreeMap::new(), charge };
        let last = [u32::MAX - 1, u32::MAX];
        for channel in (0..500).chain(last) {
            // Of the last, one alone is more than a frame may hold.
            let path = "/x".repeat(if channel == u32::MAX { FRAME_BYTES } else { channel as usize % 97 });
            let (process, source) = (Some("p:test:sys".to_owned()), Some("127.0.0.1:50000".to_owned()));
            let forwarded_for = Some("f".repeat(channel as usize % 89));
            let (registered, extension) = (false, false);
            live.insert(LiveChannel { channel, process, path, source, forwarded_for, registered, extension });
        }
        let (mut after, mut listed) = (None, Vec::new());
        loop {
            let channels = live.after(after, FRAME_BYTES);
            let Some(last) = channels.last() else { break };
            after = Some(last.channel);
            listed.extend(channels.iter().map(|channel| channel.channel));
            let is_one = channels.len() == 1;
            let frame = LinkFrame::bare(&ToPeer::Live { channels });
            assert!(is_one || frame.fits(FRAME_BYTES, 0), "{} bytes", frame.bytes());
        }
        assert!(listed.into_iter().eq((0..500).chain(last)));
    }

    #[test]
    fn a_session_that_ends_late_does_not_take_its_successor_away() {
        let broker = Broker::start(Config { shards: 1, ..Config::default() }).unwrap();
        let registry = Registry::new(broker.handle(), LinkConfig::default());
        let begin = || {
            let process = broker.handle().process("p:test:sys", AttachOptions::default()).unwrap();
            let handle = process.handle().clone();
            let memory = handle.memory().clone();
            Arc::new(Session::new(Actor::Process(handle), &memory))
        };
        let key = SessionKey::Process("p:test:sys".parse().unwrap());
        let forget = |session: &Arc<Session>| {
            let (session, registry, key) = (session.clone(), registry.clone(), key.clone());
            Forget { session, registry, key }
        };
        let (late, now) = (begin(), begin());
        let entry = SessionEntry {
            session: now.clone(),
            secret: String::new(),
            credential: Credential::User(0),
            stream: Err(Instant::now()),
            number: 1,
            wants_drain: false,
        };
        lock(&registry.entries).by_key.insert(key.clone(), entry);
        drop(forget(&late));
        assert!(lock(&registry.entries).by_key.contains_key(&key) && !now.frames.has_ended());
        drop(forget(&now));
        assert!(!lock(&registry.entries).by_key.contains_key(&key) && now.frames.has_ended());
    }
}
