//! The daemon around the broker: command line, settings, log, signals.
//!
//! Invariants: stdout carries only what was asked for, the log goes to stderr; no secret is in either.

pub mod acme;
pub mod admin;
pub mod ask;
pub mod certificates;
pub mod cli;
pub mod config;
pub mod control;
pub mod doctor;
pub mod fleet;
pub mod groups;
pub mod hub;
pub mod init;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod plain;
pub mod program;
pub mod serve;
pub mod signals;
pub mod systemd;
pub mod table;
pub mod token;
pub mod twins;
pub mod units;
pub mod users;
