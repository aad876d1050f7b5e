//! A push broker for WebSocket clients on Linux: thread per core, shared nothing, io_uring.

pub mod broker;
pub mod channel;
pub mod demo;
pub mod driver;
pub mod gateway;
pub mod http;
pub mod inbox;
pub mod node;
pub mod process_id;
pub mod process_lib;
pub mod proto;
pub mod shard;
