//! The two seams between threads: orders from any thread to a shard, and events from the shards to a process.

pub mod events;
pub mod fair;
mod gauge;
pub mod orders;
mod ring;
#[cfg(test)]
mod ring_tests;
mod room;
mod sleep;
mod sync;
mod wake_flag;
