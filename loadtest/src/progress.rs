//! A progress bar on stderr, shown only on a terminal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::sys::now_ns;

/// How often the bar is touched at most, so that it costs the measurement nothing.
const INTERVAL: Duration = Duration::from_millis(100);

/// Set where a bar of its own tells of many runs: those of the single runs would only draw over it.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Draws no bar that is made from now on.
pub(crate) fn hide() {
    HIDDEN.store(true, Ordering::Relaxed);
}

/// The bar of one phase of a run.
pub(crate) struct Progress {
    bar: ProgressBar,
    due_ns: u64,
}

impl Progress {
    /// A bar of `length` steps. Nothing is drawn where stderr is no terminal.
    pub(crate) fn new(what: &str, length: u64) -> Self {
        let style = ProgressStyle::with_template("{msg:14} {wide_bar} {human_pos}/{human_len} {elapsed}")
            .expect("the template is a constant and valid");
        let hidden = HIDDEN.load(Ordering::Relaxed);
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(length), target).with_style(style);
        bar.set_message(what.to_owned());
        Self { bar, due_ns: 0 }
    }

    /// Moves the bar one step on and says what this step is.
    pub(crate) fn step(&mut self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
        self.bar.tick();
    }

    /// Takes the bar away while `print` prints.
    pub(crate) fn suspend(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Moves the bar to `position`, a few times a second at most.
    pub(crate) fn set(&mut self, position: u64) {
        let now = now_ns();
        if now >= self.due_ns {
            self.due_ns = now + INTERVAL.as_nanos() as u64;
            self.bar.set_position(position);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
