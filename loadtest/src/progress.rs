//! A progress bar on stderr, shown only on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::sys::now_ns;

/// How often the bar is touched at most, so that it costs the measurement nothing.
const INTERVAL: Duration = Duration::from_millis(100);

/// The bar of one phase of a run.
pub struct Progress {
    bar: ProgressBar,
    due_ns: u64,
}

impl Progress {
    /// A bar of `length` steps. Nothing is drawn where stderr is no terminal.
    pub fn new(what: &str, length: u64) -> Self {
        let style = ProgressStyle::with_template("{msg:14} {wide_bar} {human_pos}/{human_len} {elapsed}")
            .expect("the template is a constant and valid");
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what.to_owned());
        Self { bar, due_ns: 0 }
    }

    /// Moves the bar to `position`, a few times a second at most.
    pub fn set(&mut self, position: u64) {
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
