//! Event streams (`text/event-stream`, HTML Living Standard 9.2): the encoding for channels that only receive, and the
//! requests that open them.
//!
//! Pure functions over bytes. Invariants: an event ends with the first empty line in it, and begins with a byte with
//! which no server frame begins, so code that walks over a queue of either finds where the next one starts; a message's
//! event is the same for all listeners; nothing that a process pushes can end an event early or look like another
//! field. It must not depend on connections, shards, or where history is kept.

mod event;
mod id;
mod request;

pub use event::{COMMENT, close, control, event_len, gap, hello, is_event, message};
pub use id::EventId;
pub use request::{SseAsk, asked, last_event, preflight, said_by, shared_with, start};
