//! The thread of a shard: its initial state, its main function, and how its end is reported.

use super::{BrokerShared, DirectoryCell, StartError};
use crate::driver::clock::Clock;
use crate::driver::flush_send::SendFlush;
use crate::driver::flush_uring::UringFlush;
use crate::driver::kernel_sockets::Listeners;
use crate::driver::probe::Probe;
use crate::driver::pump::Pump;
use crate::driver::runtime::{DriverKind, ShardRuntime};
use crate::driver::sys;
use crate::driver::wake::WakeFd;
use crate::queue::orders::{self as inbox, Inbox};
use crate::shard::command::Command;
use crate::shard::flush::Flush;
use crate::shard::turn::Inboxes;
use crate::shard::{Common, Shard};
use crossbeam_channel::Sender;
use rpds::HashTrieMapSync;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The number of a shard whose thread has ended, and why, if it was not told to.
pub(super) type ThreadEnd = (usize, Result<(), String>);

/// An eventfd that the inbox and the pump share.
pub(super) struct SharedWake(pub Arc<WakeFd>);

impl inbox::Wake for SharedWake {
    fn wake(&self) {
        self.0.wake();
    }
}

/// All that a shard's thread begins with.
pub(super) struct ShardThread {
    pub index: usize,
    pub shards: usize,
    pub core: Option<usize>,
    pub driver: DriverKind,
    pub common: Common,
    pub clock: Clock,
    pub inbox: Inbox<Command>,
    pub listeners: Listeners,
    pub wake: Arc<WakeFd>,
    pub probe: Arc<Probe>,
    pub last_shard: Arc<LastShard>,
    pub shared: Weak<BrokerShared>,
    pub peers: Inboxes,
    pub opens_later: bool,
    /// The log subscriber of the thread that started the broker, for the shards' threads.
    pub log: tracing::Dispatch,
}

/// Empties the directory when the last shard has let go of it: no process is attached to a broker that has stopped. It
/// holds the last senders of the processes' queues, and dropping them tells the processes that no event will follow.
pub(super) struct LastShard(pub Arc<DirectoryCell>);

impl Drop for LastShard {
    fn drop(&mut self) {
        // A concurrent change of the directory has copied it before, and would put the copy back after this. No
        // change waits for shards that have ended.
        let mut adopted = self.0.adopted();
        let mut directory = self.0.directory();
        directory.owners = HashTrieMapSync::default();
        directory.processes = HashTrieMapSync::default();
        directory.resolve = None;
        directory.system = None;
        *adopted = Arc::new(directory.clone());
    }
}

impl ShardThread {
    /// The life of a shard's thread.
    pub(super) fn work(self, ready: &Sender<Result<DriverKind, StartError>>, ended: Sender<ThreadEnd>) {
        let _log = tracing::dispatcher::set_default(&self.log);
        // Dropped behind all else of this shard, the directory that it has adopted included.
        let _last_shard = self.last_shard.clone();
        let index = self.index;
        let exit = ThreadExit::new(index, ended, self.shared.clone());
        let (mut runtime, pump) = match self.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                // The starter has the error and is told nothing else.
                let _ = ready.send(Err(error));
                return exit.tell(Ok(()));
            }
        };
        let _ = ready.send(Ok(runtime.kind()));
        let result = runtime.block_on(async { pump.run() });
        if let Err(error) = &result {
            tracing::error!(shard = index, %error, "a shard cannot go on: the broker stops");
        }
        exit.tell(result.map_err(|error| error.to_string()));
    }

    fn prepare(self) -> Result<(ShardRuntime, Pump), StartError> {
        if let Some(core) = self.core {
            sys::pin_to_core(core)?;
        }
        let runtime = ShardRuntime::new(self.driver)?;
        tracing::debug!(shard = self.index, driver = runtime.why(), "shard started");
        let flusher: Box<dyn Flush> = match runtime.kind() {
            DriverKind::Epoll => Box::new(SendFlush),
            DriverKind::Auto | DriverKind::Uring => match UringFlush::new() {
                Ok(flusher) => Box::new(flusher),
                Err(error) => {
                    tracing::warn!(%error, "no io_uring for sends: each is a send(2) of its own, at a higher cost");
                    Box::new(SendFlush)
                }
            },
        };
        // Where channel ids start, and what makes request ids hard to guess.
        let seed = RandomState::new().hash_one(self.index);
        let (index, shards) = (self.index as u32, self.shards as u32);
        if let Some(tls) = &self.common.config.tls {
            tls.prepare_thread();
        }
        let shard = Shard::new(index, shards, self.common, flusher, seed, self.clock.now_ms());
        let shard = if self.opens_later { shard.closed() } else { shard };
        let pump = Pump::new(shard, self.inbox, self.listeners, &self.wake, self.clock, self.probe)?.among(self.peers);
        Ok((runtime, pump))
    }
}

/// Notifies the broker that a shard's thread has ended, even by a panic. One that was not told to takes the others
/// with it, whether or not anybody waits for the broker: never N − 1 shards, for a part of all channels would be gone
/// without a word.
struct ThreadExit {
    shard: usize,
    ended: Sender<ThreadEnd>,
    shared: Weak<BrokerShared>,
    result: Result<(), String>,
}

impl ThreadExit {
    fn new(shard: usize, ended: Sender<ThreadEnd>, shared: Weak<BrokerShared>) -> Self {
        Self { shard, ended, shared, result: Err("it panicked".to_owned()) }
    }

    fn tell(mut self, result: Result<(), String>) {
        self.result = result;
    }
}

impl Drop for ThreadExit {
    fn drop(&mut self) {
        if let (Err(_), Some(shared)) = (&self.result, self.shared.upgrade()) {
            shared.stop(Duration::ZERO, None);
        }
        let _ = self.ended.send((self.shard, std::mem::replace(&mut self.result, Ok(()))));
    }
}
