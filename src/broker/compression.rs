//! Compressing broadcasts on the threads that push them.
//!
//! Invariant: a push never waits for another one's compression; as many compressors are made as threads push at a time,
//! and few are kept.

use crate::proto::deflate::Deflater;
use crate::shard::Deflate;
use crate::shard::command::{PushFrame, PushKind};
use crate::shard::deflate::{Compressed, Windows};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Compressors kept for the next broadcast; some 300 KB each.
const IDLE_MAX: usize = 4;

/// See the module.
pub(super) struct Compression {
    settings: Deflate,
    idle: Mutex<Vec<Deflater>>,
    made: AtomicU64,
}

impl Compression {
    pub fn new(settings: Deflate) -> Self {
        Self { settings, idle: Mutex::default(), made: AtomicU64::new(0) }
    }

    /// How often a message was compressed.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// The message compressed for every window that the owner's channels use; `None` where there is none, or where
    /// it does not pay.
    pub fn compress(&self, frame: &PushFrame, windows: &Windows) -> Option<Arc<Compressed>> {
        let is_message = matches!(frame.kind, PushKind::Message(_));
        if !is_message || frame.payload.len() < self.settings.bytes_min || windows.in_use().next().is_none() {
            return None;
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut deflater = idle.unwrap_or_else(|| Deflater::new(self.settings.level.into()));
        let counted = windows.in_use().inspect(|_| {
            self.made.fetch_add(1, Ordering::Relaxed);
        });
        let compressed = Compressed::new(&mut deflater, &frame.payload, counted);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(deflater);
        }
        compressed.map(Arc::new)
    }
}
