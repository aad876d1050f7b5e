//! The synchronisation that `gauge`, `room` and `wake_flag` use: the standard library's here, loom's in the model.

pub(super) use std::sync::Mutex;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
