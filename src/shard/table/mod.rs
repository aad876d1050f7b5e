//! Who is connected: connections and channels from their beginning to their end, and when each is looked at again.

mod closing;
pub(super) mod connection;
pub(super) mod deadlines;
mod entering;
pub(super) mod opening;
pub(super) mod wheel;
