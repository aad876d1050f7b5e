//! The monoio runtime of a shard thread: the kernel interface that it uses, and the reason.
//!
//! Invariant: DEFER_TASKRUN is never set; with any task runnable its completions would not arrive.

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use std::future::Future;
use std::{fmt, io, str::FromStr};

/// Which of the kernel's interfaces drives a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverKind {
    /// io_uring where the kernel has and allows it, else epoll.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

impl FromStr for DriverKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(format!("no driver is called {text:?}: choose auto, uring or epoll")),
        }
    }
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// io_uring was demanded and cannot be had.
    #[error("no io_uring here ({0}): allow it (seccomp, sysctl kernel.io_uring_disabled), or use the epoll driver")]
    NoUring(String),
    /// Not even epoll: out of descriptors or memory.
    #[error("no epoll either: {0}")]
    NoEpoll(#[source] io::Error),
}

enum RuntimeDriver {
    Uring(monoio::Runtime<TimeDriver<IoUringDriver>>),
    Epoll(monoio::Runtime<TimeDriver<LegacyDriver>>),
}

/// The runtime of one thread.
pub struct ShardRuntime {
    driver: RuntimeDriver,
    why: String,
}

impl ShardRuntime {
    /// A runtime with timers. Make it on the thread that runs it.
    ///
    /// # Errors
    /// The requested kind is not available.
    pub fn new(kind: DriverKind) -> Result<Self, RuntimeError> {
        if kind == DriverKind::Epoll {
            return Self::epoll("as configured".to_owned());
        }
        match build_uring() {
            Ok((runtime, flags)) => {
                Ok(Self { driver: RuntimeDriver::Uring(runtime), why: format!("io_uring, {flags}") })
            }
            Err(why) if kind == DriverKind::Auto => Self::epoll(why),
            Err(why) => Err(RuntimeError::NoUring(why)),
        }
    }

    fn epoll(why: String) -> Result<Self, RuntimeError> {
        let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().map_err(RuntimeError::NoEpoll)?;
        Ok(Self { driver: RuntimeDriver::Epoll(runtime), why: format!("epoll, {why}") })
    }

    /// The driver in use: [`DriverKind::Uring`] or [`DriverKind::Epoll`].
    pub fn kind(&self) -> DriverKind {
        match self.driver {
            RuntimeDriver::Uring(_) => DriverKind::Uring,
            RuntimeDriver::Epoll(_) => DriverKind::Epoll,
        }
    }

    /// The driver in use and the reason, for the log.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Runs `future` and the tasks it spawns until it is done.
    pub fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match &mut self.driver {
            RuntimeDriver::Uring(runtime) => runtime.block_on(future),
            RuntimeDriver::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

/// Newer flags first; an older kernel answers EINVAL to those it does not know.
fn build_uring() -> Result<(monoio::Runtime<TimeDriver<IoUringDriver>>, &'static str), String> {
    if !monoio::utils::detect_uring() {
        return Err("this kernel does not offer io_uring, or not all that is needed of it".to_owned());
    }
    let mut single = io_uring::IoUring::builder();
    single.setup_single_issuer().setup_coop_taskrun();
    let mut coop = io_uring::IoUring::builder();
    coop.setup_coop_taskrun();
    let ladder =
        [(single, "single issuer, coop taskrun"), (coop, "coop taskrun"), (io_uring::IoUring::builder(), "plain")];
    let mut why = String::new();
    for (ring, flags) in ladder {
        match RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring).enable_timer().build() {
            Ok(runtime) => return Ok((runtime, flags)),
            Err(error) => why = format!("io_uring refused: {error}"),
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_can_be_forced_and_says_why() {
        let uring = ShardRuntime::new(DriverKind::Uring).unwrap();
        assert_eq!(uring.kind(), DriverKind::Uring);
        assert!(uring.why().starts_with("io_uring, "));
        let mut epoll = ShardRuntime::new(DriverKind::Epoll).unwrap();
        assert_eq!((epoll.kind(), epoll.why()), (DriverKind::Epoll, "epoll, as configured"));
        assert_eq!(epoll.block_on(async { 7 }), 7);
    }

    #[test]
    fn kinds_are_written_as_they_are_read() {
        for kind in [DriverKind::Auto, DriverKind::Uring, DriverKind::Epoll] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("kqueue".parse::<DriverKind>().is_err());
    }
}
