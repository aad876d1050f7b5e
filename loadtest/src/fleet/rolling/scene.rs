//! State shared by the threads of a rolling restart.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::super::common::Settings;

/// A message: its sender's life, with a mark for those to all, and its number.
pub(super) type MessageId = (u32, u64);

/// Deliveries of a message that nodes have reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Said {
    pub deliveries: u64,
    /// A node has not reported.
    pub is_partial: bool,
}

/// Where a node is to be found in one of its lives.
#[derive(Debug, Clone)]
pub(super) struct Entrance {
    pub url: String,
    pub api_port: u16,
    pub token: String,
    /// Unique among all lives of all nodes.
    pub life: u32,
    /// It takes new clients.
    pub is_open: bool,
}

/// State shared by all threads.
pub(super) struct Scene<'a> {
    pub settings: &'a Settings,
    pub run: u32,
    pub entrances: Mutex<Vec<Option<Entrance>>>,
    /// Each client's node and channel, while it has one.
    pub channels: Mutex<Vec<Option<(usize, u32)>>>,
    pub said: Mutex<HashMap<MessageId, Said>>,
    pub present: AtomicUsize,
    pub is_last: AtomicBool,
    pub is_over: AtomicBool,
}

impl Scene<'_> {
    pub(super) fn entrance(&self, node: usize) -> Option<Entrance> {
        self.entrances.lock().expect("no thread panics with it")[node].clone()
    }

    pub(super) fn enter(&self, node: usize, entrance: Option<Entrance>) {
        self.entrances.lock().expect("no thread panics with it")[node] = entrance;
    }
}
