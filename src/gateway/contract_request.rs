//! An HTTP request as a process is told it.
//!
//! It must not know how a request is read, or checked.

use crate::admission::HeapBytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// An HTTP request as a process is told it (node contract, section 2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContractRequest {
    /// The other end of the connection.
    pub source: SocketAddr,
    /// The method.
    pub method: String,
    /// `http://`, the host without port, and the path, undecoded, without query and one trailing `/`.
    pub url: String,
    /// The path as bound, process id included.
    pub bound_path: Arc<str>,
    /// Names in lower case; of equal names the last; values that are not UTF-8 are empty.
    pub headers: BTreeMap<String, String>,
    /// Captures of the bound path, undecoded.
    pub url_params: BTreeMap<String, String>,
    /// The query, decoded; of equal names the last.
    pub query_params: BTreeMap<String, String>,
    /// Names in `headers` and `query_params` that the request has more than once. A process over a link is not told.
    pub repeated: BTreeSet<String>,
}

impl HeapBytes for ContractRequest {
    fn heap_bytes(&self) -> usize {
        self.method.heap_bytes()
            + self.url.heap_bytes()
            + self.headers.heap_bytes()
            + self.url_params.heap_bytes()
            + self.query_params.heap_bytes()
            + self.repeated.heap_bytes()
    }
}
