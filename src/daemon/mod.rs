//! The daemon around the broker: command line, settings, log, signals.
//!
//! Invariants: stdout carries only the requested output, the log goes to stderr; no secret is in either.

pub(crate) mod acme;
pub(crate) mod admin;
pub(crate) mod ask;
pub(crate) mod certificates;
pub(crate) mod cli;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod doctor;
pub(crate) mod fleet;
pub(crate) mod groups;
pub(crate) mod hub;
pub(crate) mod init;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod metrics;
pub(crate) mod plain;
pub(crate) mod program;
pub(crate) mod serve;
pub(crate) mod signals;
pub(crate) mod systemd;
pub(crate) mod table;
pub(crate) mod token;
pub(crate) mod twins;
pub(crate) mod units;
pub(crate) mod users;
