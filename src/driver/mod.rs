//! The only code that does I/O and reads clocks: sockets, rings, runtimes, wake-ups.
//!
//! Each file is one primitive that must not know the others' callers; the pump combines them with a shard. Undocumented
//! behaviour of the kernel is verified at start ([`flush_uring`]) or pinned by a test.

pub mod available;
#[cfg(any(feature = "daemon", feature = "fleet"))]
pub mod background;
pub mod clock;
pub mod epoll;
mod flush_proof;
pub mod flush_send;
pub mod flush_uring;
pub(crate) mod freed_memory;
pub mod kernel_sockets;
pub mod listen;
pub mod malloc;
// Half of it is for links alone.
#[cfg(feature = "control")]
#[cfg_attr(not(feature = "link"), allow(dead_code, unreachable_pub))]
pub(crate) mod peer_socket;
pub mod probe;
pub mod pump;
pub mod retry;
pub mod runtime;
pub mod sys;
#[cfg(feature = "control")]
#[cfg_attr(not(feature = "link"), allow(dead_code))]
mod tls_stream;
pub mod wake;
