//! A node ends its server by aborting the task, and then restarts it or exits. Every client is told, the port is free
//! at once, and no thread stays.
#![allow(missing_docs)]

mod node_support;
mod support;

use node_support::node_backend::adapter::{MyNode, NodeMessage};
use node_support::support::{Client, PATIENCE, Patient, driver, recv_close};
use node_support::{KEYFILE, NODE, SECRET, request};
use pushring::Config;
use pushring::node::{self, Dialect, NodeParts, NodeServer};
use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const APP: &str = "app:app:test.os";

/// The kernel's ends.
struct Kernel {
    to_server: mpsc::Sender<NodeMessage>,
    from_server: mpsc::Receiver<NodeMessage>,
    prints: mpsc::Receiver<String>,
}

fn parts(listen: SocketAddr) -> (NodeParts<MyNode>, Kernel) {
    let (to_server, from_kernel) = mpsc::channel(32);
    let (to_kernel, from_server) = mpsc::channel(100_000);
    let (print_sender, prints) = mpsc::channel(32);
    let parts = NodeParts {
        host: MyNode,
        our_node: NODE.into(),
        dialect: Dialect::Hyperdrive,
        listen,
        keyfile: KEYFILE.to_vec(),
        jwt_secret: SECRET.to_vec(),
        from_kernel,
        to_kernel,
        prints: print_sender,
        expose_local: false,
        control: None,
        config: Config { shards: 1, driver: driver(), ..node::config() },
    };
    (parts, Kernel { to_server, from_server, prints })
}

impl Kernel {
    /// Where the server listens, once it does.
    async fn address(&mut self) -> SocketAddr {
        let line = self.prints.recv().await.expect("it prints where it listens");
        line.rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{line}"))
    }

    async fn bind(&mut self) {
        let bind = br#"{"WebSocketBind":{"path":"/","authenticated":false,"extension":false}}"#;
        let message = request(1, &format!("{NODE}@{APP}"), bind, None, Some(5));
        self.to_server.send(NodeMessage(message)).await.unwrap();
        let NodeMessage(answer) = self.from_server.recv().await.unwrap();
        assert_eq!(answer.message.body(), br#"{"Ok":null}"#);
    }
}

fn connect(address: SocketAddr) -> Client {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    tungstenite::client(format!("ws://{address}/{APP}/"), Patient::new(stream)).unwrap().0
}

/// The same from 127.0.0.`last`.
fn connect_from(last: u8, address: SocketAddr) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    tungstenite::client(format!("ws://{address}/{APP}/"), Patient::new(stream)).unwrap().0
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// An address that no other test listens on.
fn own_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 11, 22, 33), 0)).unwrap();
    listener.local_addr().unwrap()
}

#[test]
fn a_thousand_servers_are_aborted_and_the_next_has_the_port_at_once() {
    let _turn = take_turn();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let address = own_address();
    let before = threads();
    for round in 0..1000_u64 {
        runtime.block_on(async {
            let (parts, mut kernel) = parts(address);
            let mut tasks = JoinSet::<anyhow::Result<()>>::new();
            tasks.spawn(async { node::http_server(parts).await.map_err(anyhow::Error::from) });
            match round % 4 {
                // Before anything has begun, or in the middle of its beginning.
                0 => {}
                1 => tokio::time::sleep(Duration::from_micros(37 * round % 4000)).await,
                2 => drop(kernel.address().await),
                _ => {
                    assert_eq!(kernel.address().await, address, "round {round}");
                    kernel.bind().await;
                    let mut client = connect(address);
                    tasks.shutdown().await;
                    assert_eq!(recv_close(&mut client).0, 1001);
                }
            }
            tasks.shutdown().await;
        });
    }
    let (parts, mut kernel) = parts(address);
    let (server, serving) = NodeServer::new(parts);
    runtime.block_on(async {
        let serving = tokio::spawn(serving);
        assert_eq!((kernel.address().await, server.address()), (address, Some(address)));
        serving.abort();
        server.shutdown(PATIENCE).await;
    });
    drop(runtime);
    let deadline = Instant::now() + PATIENCE;
    while threads() > before {
        assert!(Instant::now() < deadline, "{} threads stay", threads() - before);
        std::thread::yield_now();
    }
}

#[test]
fn a_server_that_never_ran_is_shut_down_at_once_and_a_foreign_port_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let foreign = TcpListener::bind((Ipv4Addr::new(127, 11, 22, 34), 0)).unwrap();
    let (server, serving) = NodeServer::new(parts(foreign.local_addr().unwrap()).0);
    runtime.block_on(server.shutdown(PATIENCE));
    assert_eq!(server.address(), None);
    drop(serving);
    let error = runtime.block_on(node::http_server(parts(foreign.local_addr().unwrap()).0)).unwrap_err();
    assert!(error.to_string().contains("is in use"), "{error}");
}

/// A node that ends has three seconds for its clients: the servers of another test do not take it from this one.
static TURN: Mutex<()> = Mutex::new(());

fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// More than a node's own server told of its end.
const CLIENTS_MAX: usize = 4000;

const CHILD: &str = "PUSHRING_TEST_NODE_CHILD";

/// A node that aborts its tasks and exits, as nodes do, once its stdin ends. Not a test: it runs in a process of its
/// own.
#[test]
#[ignore = "run by the test below, in a process of its own"]
fn the_node_that_exits() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (parts, mut kernel) = parts((Ipv4Addr::LOCALHOST, 0).into());
        let mut tasks = JoinSet::<anyhow::Result<()>>::new();
        tasks.spawn(async { node::http_server(parts).await.map_err(anyhow::Error::from) });
        let address = kernel.address().await;
        kernel.bind().await;
        pushring::internals::driver::sys::raise_open_files().unwrap();
        println!("\nlistening {address}");
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        tasks.shutdown().await;
        // As when `main` returns: nothing else of this process runs any more.
        std::process::exit(0);
    });
}

#[test]
fn a_node_that_exits_has_told_every_client() {
    let _turn = take_turn();
    // As many as this machine lets a program have, from as many addresses as it takes.
    let files = pushring::internals::driver::sys::raise_open_files().unwrap();
    let clients = usize::try_from(files / 2).unwrap_or(CLIENTS_MAX).saturating_sub(100).min(CLIENTS_MAX);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_node_that_exits", "--ignored", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut addresses = lines.filter_map(|line| line.strip_prefix("listening ").map(str::to_owned));
    let address: SocketAddr = addresses.next().expect("it listens").parse().unwrap();
    let mut clients: Vec<Client> = (0..clients).map(|at| connect_from(2 + (at % 100) as u8, address)).collect();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    for client in &mut clients {
        assert_eq!(recv_close(client).0, 1001);
    }
}
