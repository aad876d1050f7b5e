//! The admin listener: probes, metrics, and a page for operators, beside the clients' listeners.
//!
//! It has a thread, a runtime and a small number of connections of its own, and asks the broker as the control socket
//! does ([`Operator`]). Invariants: a full or busy admin listener delays no client and stops no daemon; each request is
//! checked by [`guard`] first; a request that changes something is a POST of JSON.

mod answers;
mod guard;
mod places;

pub(crate) use guard::{AdminGuard, AdminToken};

use self::places::{AdminPlaces, CONNECTIONS_MAX};
use anyhow::Context;
use axum::Router;
use axum::extract::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pushring::control::Operator;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};

/// How long a head may take, and a connection stay without a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Questions that wait for shards at a time, a thread each while they do.
const ASKING_MAX: usize = 4;

/// After an accept that failed, most likely for want of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// The settings of the listener.
pub(crate) struct AdminParts {
    /// The broker, and the program around it.
    pub operator: Operator,
    /// The rules of entry.
    pub guard: AdminGuard,
    /// Further conditions for the daemon to be ready.
    pub needs: Vec<ReadyCondition>,
}

/// Something that the daemon must have to be ready.
pub(crate) struct ReadyCondition {
    /// Its name in the answer.
    pub name: &'static str,
    /// Whether it is there, and why not.
    pub is_met: Box<dyn Fn() -> Result<String, String> + Send + Sync>,
}

/// A running admin listener. Dropping it closes it.
pub(crate) struct Admin {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Listens at `address`.
    ///
    /// # Errors
    /// The address is taken or not ours, or there is no thread.
    pub(crate) fn start(address: SocketAddr, parts: AdminParts) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ASKING_MAX)
            .thread_name("admin-ask")
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let router = answers::router(Arc::new(parts));
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    served = accept(listener, router) => {
                        if let Err(error) = served {
                            tracing::error!(%error, "the admin listener has ended");
                        }
                    }
                    _ = stopped => {}
                }
            });
            // A question that waits for a shard is not waited for.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(serve).context("no thread for it")?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic has been reported where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Connections, and what ends each of them.
type Places = Arc<Mutex<AdminPlaces<Arc<Notify>>>>;

fn lock(places: &Places) -> MutexGuard<'_, AdminPlaces<Arc<Notify>>> {
    // Every change is one call.
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: std::net::TcpListener, router: Router) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Places::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin listener did not accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let end = Arc::new(Notify::new());
        let Some((number, gone)) = lock(&places).enter(peer.ip(), end.clone()) else {
            tracing::warn!(%peer, connections_max = CONNECTIONS_MAX, "the admin listener is full: a connection was closed");
            continue;
        };
        if let Some(gone) = gone {
            tracing::debug!(%peer, "the admin listener is full: an older connection makes room");
            gone.notify_one();
        }
        let (router, places) = (router.clone().layer(Extension(peer)), places.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serve(stream, router) => {}
                () = end.notified() => {}
            }
            lock(&places).leave(number);
        });
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(16 * 1024);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended");
    }
}
