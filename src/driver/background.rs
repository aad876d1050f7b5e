//! A runtime for what speaks with servers elsewhere, and whose end waits for nothing: a name is looked up on a thread
//! of the runtime's own, which cannot be stopped, and where no server of names answers that takes minutes.
//!
//! Invariant: dropping it waits for no such thread.

use std::io;
use tokio::runtime::{Builder, Runtime};

/// See the module.
#[derive(Debug)]
pub struct BackgroundRuntime(Option<Runtime>);

impl BackgroundRuntime {
    /// One that runs on the thread that blocks on it.
    ///
    /// # Errors
    /// The system has no descriptors for it.
    pub fn new() -> io::Result<Self> {
        Builder::new_current_thread().enable_all().build().map(|runtime| Self(Some(runtime)))
    }

    /// The runtime itself.
    pub fn get(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken where this is dropped")
    }
}

impl Drop for BackgroundRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn its_end_does_not_wait_for_the_look_up_of_a_name() {
        let runtime = BackgroundRuntime::new().unwrap();
        let (answer, asked) = mpsc::channel::<()>();
        runtime.get().spawn_blocking(move || asked.recv());
        // If this waited, it would for ever.
        drop(runtime);
        drop(answer);
    }
}
