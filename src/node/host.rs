//! What a node provides: its own message type, its terminal prints, and the check of a password.
//!
//! Implemented by the node on a type of its own, so that neither side needs to own the other's types.

use super::message::KernelMessage;

/// A node, as the HTTP server needs it. Conversions should move, not copy: blobs may be large.
pub trait Host: Send + Sync + 'static {
    /// The node's KernelMessage.
    type Message: Send + 'static;
    /// What the node prints to its terminal.
    type Print: Send + 'static;

    /// A message of the node as ours; none if it is nothing for the HTTP server.
    fn to_ours(&self, message: Self::Message) -> Option<KernelMessage>;

    /// A message of ours as the node's.
    fn to_node(&self, message: KernelMessage) -> Self::Message;

    /// A line for the terminal, as the HTTP server's; `verbosity` is the node's own: 0 is for everybody, 2 for whoever
    /// wants to see what the runtime does.
    fn print(&self, verbosity: u8, text: String) -> Self::Print;

    /// Returns whether `password_hash`, which the login page sent, opens the keyfile. Both are secrets. Called beside
    /// the shards, one at a time, so it may take its time.
    fn is_password(&self, keyfile: &[u8], password_hash: &str) -> bool;
}
