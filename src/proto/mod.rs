//! RFC 6455, the WebSocket protocol, by hand and sans-IO: bytes in, events and bytes out.
//!
//! Inbound: [`upgrade::negotiate`] checks the request head, [`upgrade::append_response`] writes the 101, and from then
//! on [`WebSocketConnection::receive`] consumes the client's bytes, unmasks them in place and returns one [`Received`]
//! at a time. Outbound: [`frame::server_header`], [`close::ClosePayload`], and [`deflate::Deflater`] where
//! permessage-deflate (RFC 7692) was agreed.
//!
//! Invariants:
//! - Any split of the same bytes gives the same events: [`WebSocketConnection`] keeps a frame or message that is not
//!   whole.
//! - A frame is checked by its header, before its payload arrives and before anything is allocated for it.
//! - Every fault of the peer is a [`Violation`], and every violation has a close code and a reason.
//! - No input panics.
//!
//! It must not know sockets, clocks, randomness, threads, channels, or the meaning of messages.

mod assembler;
pub mod client;
pub mod close;
pub mod connection;
pub mod deflate;
pub mod extension;
pub mod frame;
pub mod mask;
mod message;
pub mod upgrade;
pub mod utf8;
mod violation;

pub use close::CloseReceived;
pub use connection::{Received, Scratch, WebSocketConnection, WholeMessage};
pub use frame::{MessageKind, Opcode, ServerHeader, server_frame_len, server_header};
pub use message::{MessageLimits, Payload};
pub use upgrade::{Upgrade, UpgradeError};
pub use violation::Violation;
