//! The subprotocol `pushring.1`: what a channel that outlives its connection says beside its messages.
//!
//! Pure functions over bytes: tokens, the subprotocol element with which a client comes back, the hello and the control
//! texts. `docs/PROTOCOL.md` states the protocol for authors of clients.
//!
//! Invariants: no message carries a number, both sides count; what is not a message begins with [`MARK`], and a Text
//! that begins so is escaped by doubling it; a token is a secret, and nothing here prints one. It must not know
//! connections, shards, or where history lies.

pub mod element;
pub mod text;
pub mod token;

pub use element::{MalformedElement, ResumeAsk};
pub use text::{Control, MARK, ResumeAnswer, ResumeRefusal};
pub use token::{Keys, OtherRuns, PLACE_BYTES, ResumeToken, RunId, TokenMismatch};

/// The subprotocol, as it is offered and echoed.
pub const SUBPROTOCOL: &str = "pushring.1";
