//! What a node brings along: its own message type, its prints, and how it checks a password.
//!
//! Implemented by the node on a type of its own, so that neither side needs to own the other's types.

use super::message::KernelMessage;
use crate::process_id::ProcessId;

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

    /// A line for the terminal.
    fn print(&self, text: String) -> Self::Print;

    /// The token for a right password, made out to the node, and to the process if one is given. `password_hash` is what
    /// the login page sent: a secret. Called beside the shards, so it may take its time.
    ///
    /// # Errors
    /// None for a wrong password; an error for any other failure, whose words go to the terminal.
    fn login(
        &self,
        keyfile: &[u8],
        password_hash: &str,
        subdomain: Option<&ProcessId>,
    ) -> Result<Option<String>, String>;
}
