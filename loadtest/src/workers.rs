//! Several OS processes that share one run, because one process may open only so many sockets.
//!
//! Invariants: worker 0 is the process that was started and decides; the others follow its phase and report once, as
//! JSON through a pipe. Each writes only its own row of the board.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::{self, Forked, SharedCounters};

/// Where the run is. Each worker moves on when worker 0 says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub(crate) enum Phase {
    /// Connecting, then holding the connections.
    Connect = 0,
    /// Messages that do not count, until each client has received one.
    Warm = 1,
    /// The messages that count.
    Run = 2,
    /// Nothing more is published.
    Drain = 3,
    /// The run failed or is over: report and end.
    End = 4,
}

/// A figure that each worker shows the others.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub(crate) enum Figure {
    /// Connections open.
    Open = 0,
    /// Clients that got the warm-up's last message.
    Warm = 1,
    /// Clients that got any message of the warm-up.
    Reached = 2,
    /// All its clients have every message before this one.
    Complete = 3,
    /// 1 when nothing more is to come.
    Done = 4,
    /// When the last message arrived.
    LastArrival = 5,
    /// 1 when it cannot go on.
    Failed = 6,
}

const FIGURES: usize = 8;
const GLOBALS: usize = 8;
const PHASE: usize = 0;
const PUBLISHED: usize = 1;

/// State shared by the workers.
#[derive(Debug)]
pub(crate) struct Board {
    counters: SharedCounters,
    workers: usize,
}

impl Board {
    /// A board for `workers` processes.
    pub(crate) fn new(workers: usize) -> anyhow::Result<Self> {
        let counters = SharedCounters::new(GLOBALS + workers * FIGURES).context("sharing memory")?;
        Ok(Self { counters, workers })
    }

    fn cell(&self, worker: usize, figure: Figure) -> &AtomicU64 {
        &self.counters.all()[GLOBALS + worker * FIGURES + figure as usize]
    }

    /// Shows a figure of `worker`.
    pub(crate) fn show(&self, worker: usize, figure: Figure, value: u64) {
        self.cell(worker, figure).store(value, Ordering::Release);
    }

    fn all(&self, figure: Figure) -> impl Iterator<Item = u64> + '_ {
        (0..self.workers).map(move |worker| self.cell(worker, figure).load(Ordering::Acquire))
    }

    /// A figure added up over all workers.
    pub(crate) fn sum(&self, figure: Figure) -> u64 {
        self.all(figure).sum()
    }

    /// The smallest of all workers.
    pub(crate) fn min(&self, figure: Figure) -> u64 {
        self.all(figure).min().unwrap_or(0)
    }

    /// The largest of all workers.
    pub(crate) fn max(&self, figure: Figure) -> u64 {
        self.all(figure).max().unwrap_or(0)
    }

    /// The phase worker 0 has set.
    pub(crate) fn phase(&self) -> Phase {
        match self.counters.all()[PHASE].load(Ordering::Acquire) {
            0 => Phase::Connect,
            1 => Phase::Warm,
            2 => Phase::Run,
            3 => Phase::Drain,
            _ => Phase::End,
        }
    }

    /// Lets all workers continue.
    pub(crate) fn set_phase(&self, phase: Phase) {
        self.counters.all()[PHASE].store(phase as u64, Ordering::Release);
    }

    /// How many messages were published.
    pub(crate) fn published(&self) -> u64 {
        self.counters.all()[PUBLISHED].load(Ordering::Acquire)
    }

    /// Sets how many messages were published.
    pub(crate) fn set_published(&self, count: u64) {
        self.counters.all()[PUBLISHED].store(count, Ordering::Release);
    }
}

/// The workers other than worker 0.
#[derive(Debug)]
pub(crate) struct Workers<'a> {
    board: &'a Board,
    children: Vec<Forked>,
}

impl<'a> Workers<'a> {
    /// Forks workers 1.. of `board`; each runs `work` with its number and reports what it returns.
    pub(crate) fn start<T: Serialize>(
        board: &'a Board,
        work: impl Fn(usize) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        let mut crew = Self { board, children: Vec::new() };
        for worker in 1..board.workers {
            let child = sys::fork(|mut pipe| {
                let result = work(worker).and_then(|outcome| Ok(pipe.write_all(&serde_json::to_vec(&outcome)?)?));
                match result {
                    Ok(()) => 0,
                    Err(error) => {
                        board.show(worker, Figure::Failed, 1);
                        eprintln!("loadtest: worker {worker}: {error:#}");
                        1
                    }
                }
            });
            crew.children.push(child.context("forking a worker")?);
        }
        Ok(crew)
    }

    /// Fails if a worker cannot go on.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.board.sum(Figure::Failed) > 0 { bail!("a worker process failed") } else { Ok(()) }
    }

    /// Ends the run and collects what the workers report.
    pub(crate) fn join<T: DeserializeOwned>(mut self) -> anyhow::Result<Vec<T>> {
        self.board.set_phase(Phase::End);
        let mut outcomes = Vec::new();
        for mut child in std::mem::take(&mut self.children) {
            let mut json = Vec::new();
            child.report.read_to_end(&mut json)?;
            let code = sys::wait_for(child.pid)?;
            if code != 0 {
                bail!("a worker process ended with {code}");
            }
            outcomes.push(serde_json::from_slice(&json).context("reading a worker's report")?);
        }
        Ok(outcomes)
    }
}

impl Drop for Workers<'_> {
    fn drop(&mut self) {
        self.board.set_phase(Phase::End);
        for child in &self.children {
            // The run has failed already; what matters is that no worker stays behind.
            let _ = sys::wait_for(child.pid);
        }
    }
}

/// Clients of worker `worker` when `clients` are shared among `workers`.
pub(crate) fn share_of(clients: usize, workers: usize, worker: usize) -> usize {
    clients / workers + usize::from(worker < clients % workers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for workers in 1..5 {
            assert_eq!((0..workers).map(|worker| share_of(10, workers, worker)).sum::<usize>(), 10);
        }
    }

    #[test]
    fn each_worker_has_its_own_row() {
        let board = Board::new(2).unwrap();
        board.show(0, Figure::Complete, 7);
        board.show(1, Figure::Complete, 5);
        assert_eq!((board.min(Figure::Complete), board.max(Figure::Complete), board.sum(Figure::Open)), (5, 7, 0));
        board.set_phase(Phase::Drain);
        board.set_published(9);
        assert_eq!((board.phase(), board.published()), (Phase::Drain, 9));
    }
}
