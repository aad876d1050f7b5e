//! Event streams (`text/event-stream`, HTML Living Standard 9.2): what a channel that only receives is sent instead of frames,
//! and what asks for one.
//!
//! Pure functions over bytes. Invariants: an event ends with the first empty line in it, and begins with a byte that no frame of
//! ours begins with, so whoever walks over a queue of either finds where the next one starts; a message's event is the same
//! for all who listen; nothing that a process pushes can end an event early or look like another field. It must not know
//! connections, shards, or where history lies.

mod event;
mod id;
mod request;

pub use event::{COMMENT, close, control, event_len, gap, hello, is_event, message};
pub use id::EventId;
pub use request::{SseAsk, asked, last_event, preflight, said_by, shared_with, start};
