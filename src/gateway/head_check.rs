//! What a process says of a request for a path of its own by the head alone, so that no body is taken in, nor charged
//! to anybody, of a request that is refused.
//!
//! It must not know bodies.

use super::contract_request::ContractRequest;
use crate::http::PreparedResponse;
use std::fmt;

/// Judges requests by their heads, on the shards: before their bodies are taken in, and again once they are whole. It
/// must be quick, and must not wait.
pub trait HeadCheck: fmt::Debug + Send + Sync {
    /// Whether the process is to be asked.
    ///
    /// # Errors
    /// The refusal to send instead.
    fn check(&self, request: &ContractRequest) -> Result<(), PreparedResponse>;
}
