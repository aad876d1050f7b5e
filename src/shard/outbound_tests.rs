//! Filled in next to the queue it tests.
