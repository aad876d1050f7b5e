//! A push broker for WebSocket clients on Linux: thread per core, shared nothing, io_uring.

pub mod channel;
pub mod gateway;
pub mod http;
pub mod process_id;
pub mod shard;
