//! Compressing broadcasts on the threads that push them.
//!
//! Invariant: a push never waits for another one's compression; as many compressors are made as threads push at a time,
//! and few are kept.

use crate::proto::deflate::Deflater;
use crate::shard::Deflate;
use crate::shard::command::{PushFrame, PushKind};
use crate::shard::deflate::{Compressed, Windows};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Compressors kept for the next broadcast; some 300 KB each.
const IDLE_MAX: usize = 4;

/// See the module.
pub(super) struct Compression {
    level: AtomicU8,
    bytes_min: AtomicUsize,
    idle: Mutex<Vec<Deflater>>,
    made: AtomicU64,
}

impl Compression {
    pub(super) fn new(settings: Deflate) -> Self {
        let Deflate { level, bytes_min, .. } = settings;
        Self { level: level.into(), bytes_min: bytes_min.into(), idle: Mutex::default(), made: AtomicU64::new(0) }
    }

    /// Compresses so from now on. Broadcasts that are being compressed may still be as before.
    pub(super) fn set(&self, settings: Deflate) {
        self.level.store(settings.level, Ordering::Relaxed);
        self.bytes_min.store(settings.bytes_min, Ordering::Relaxed);
        // They have the level that they were made with.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How often a message was compressed.
    pub(super) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// The message compressed for every window that the owner's channels use; `None` where there is none, or where
    /// it does not pay.
    pub(super) fn compress(&self, frame: &PushFrame, windows: &Windows) -> Option<Arc<Compressed>> {
        let is_message = matches!(frame.kind, PushKind::Message(_));
        if !is_message
            || frame.payload.len() < self.bytes_min.load(Ordering::Relaxed)
            || windows.in_use().next().is_none()
        {
            return None;
        }
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut deflater = idle.unwrap_or_else(|| Deflater::new(self.level.load(Ordering::Relaxed).into()));
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
