//! The shape a careful engineer builds from well-known parts: tokio-tungstenite on one thread, a task and an unbounded
//! queue per connection, payloads shared (`Bytes`), and all that waits for a connection written with one flush.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Role, greeting};

type Queues = HashMap<u32, UnboundedSender<Message>>;

/// The connections by id, relay's apart because its messages go to all of them.
#[derive(Default)]
struct Registry {
    next_id: Cell<u32>,
    relay: RefCell<Queues>,
    unicast: RefCell<Queues>,
}

impl Registry {
    fn queues(&self, role: Role) -> Option<&RefCell<Queues>> {
        match role {
            Role::Relay => Some(&self.relay),
            Role::Unicast => Some(&self.unicast),
            Role::Echo | Role::Registration => None,
        }
    }
}

/// Serves until the process ends.
pub(crate) fn serve(listen: SocketAddr, tls: Option<&Path>) -> anyhow::Result<()> {
    let tls = tls.map(acceptor).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, accept(listen, tls))
}

/// TLS 1.3 with tickets, by the chain and key in `pem`.
fn acceptor(pem: &Path) -> anyhow::Result<TlsAcceptor> {
    let provider = aws_lc_rs::default_provider();
    let chain = CertificateDer::pem_file_iter(pem)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(pem)?)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Binds as a server does that expects a storm of connections.
pub(crate) fn listen_on(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("binding {address}"))?;
    Ok(socket.listen(4096)?)
}

async fn accept(listen: SocketAddr, tls: Option<TlsAcceptor>) -> anyhow::Result<()> {
    let listener = listen_on(listen)?;
    println!("listening on http://{}", listener.local_addr()?);
    let registry = Rc::new(Registry::default());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (registry, tls) = (Rc::clone(&registry), tls.clone());
        tokio::task::spawn_local(async move {
            // A client that breaks off, or speaks no WebSocket or TLS, is that client's matter.
            let _ = match tls {
                None => serve_connection(stream, &registry).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve_connection(stream, &registry).await,
                    Err(error) => Err(error.into()),
                },
            };
        });
    }
}

/// A connection's bytes, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

async fn serve_connection(stream: impl Stream, registry: &Registry) -> Result<(), Error> {
    let mut role = None;
    // The default read buffer of 128 KiB per connection would be this server's whole memory.
    let config = WebSocketConfig::default().read_buffer_size(4096);
    #[allow(clippy::result_large_err)] // the callback's signature is the library's
    let by_path = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        role = Role::of_path(request.uri().path());
        if role.is_some() {
            return Ok(response);
        }
        let mut refusal = ErrorResponse::new(Some("no such path".into()));
        *refusal.status_mut() = StatusCode::NOT_FOUND;
        Err(refusal)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async_with_config(stream, by_path, Some(config)).await?;
    let id = registry.next_id.get() + 1;
    registry.next_id.set(id);
    let role = match role {
        Some(Role::Registration) => match register(&mut socket, id).await? {
            Some(role) => role,
            None => return socket.close(None).await,
        },
        Some(role) => role,
        None => return Ok(()),
    };
    let (sender, queue) = unbounded_channel();
    if role == Role::Unicast {
        socket.send(Message::text(greeting(id))).await?;
    }
    if let Some(queues) = registry.queues(role) {
        queues.borrow_mut().insert(id, sender.clone());
    }
    let result = converse(&mut socket, id, role, registry, &sender, queue).await;
    if let Some(queues) = registry.queues(role) {
        queues.borrow_mut().remove(&id);
    }
    result
}

async fn register(socket: &mut WebSocketStream<impl Stream>, id: u32) -> Result<Option<Role>, Error> {
    let Some(message) = socket.next().await else { return Ok(None) };
    let role = message?.to_text().ok().and_then(Role::of_registration);
    if role.is_some() {
        socket.send(Message::text(greeting(id))).await?;
    }
    Ok(role)
}

async fn converse(
    socket: &mut WebSocketStream<impl Stream>,
    id: u32,
    role: Role,
    registry: &Registry,
    own: &UnboundedSender<Message>,
    mut queue: UnboundedReceiver<Message>,
) -> Result<(), Error> {
    loop {
        tokio::select! {
            biased;
            Some(message) = queue.recv() => {
                socket.feed(message).await?;
                while let Ok(more) = queue.try_recv() {
                    socket.feed(more).await?;
                }
                socket.flush().await?;
            }
            incoming = socket.next() => match incoming {
                Some(Ok(message)) if message.is_text() || message.is_binary() => {
                    route(message, id, role, registry, own);
                }
                Some(Ok(_)) => socket.flush().await?,
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
        }
    }
}

/// Puts a message into the queues it is for. A queue whose task has ended takes nothing, which is right.
fn route(message: Message, id: u32, role: Role, registry: &Registry, own: &UnboundedSender<Message>) {
    match role {
        Role::Echo | Role::Registration => {
            let _ = own.send(message);
        }
        Role::Relay => {
            for (_, queue) in registry.relay.borrow().iter().filter(|&(&other, _)| other != id) {
                let _ = queue.send(message.clone());
            }
        }
        Role::Unicast => {
            let payload = message.into_data();
            let Some(target) = payload.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes)) else { return };
            if let Some(queue) = registry.unicast.borrow().get(&target) {
                let _ = queue.send(Message::Binary(payload.slice(4..)));
            }
        }
    }
}
