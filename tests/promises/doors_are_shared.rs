//! Where few places serve many peers, a crowd keeps no other peer out, and a stop ends whatever is under way: the owner
//! of a node logs in beside a flood of logins from everywhere, and the other processes learn of a stop while one with
//! thousands of paths is taken down.

use crate::node_support::support::{self, PATIENCE};
use crate::node_support::{KEYFILE, NODE, NodeMessage, SECRET, listening};

use pushring::node::{self, Dialect, Host, KernelMessage, NodeParts};
use pushring::{AttachOptions, Config};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// A node that takes its time for each password, as decrypting a keyfile does, and begins with the first when it may.
#[derive(Clone, Default)]
struct SlowNode {
    may_begin: Arc<AtomicBool>,
    checked: Arc<AtomicUsize>,
}

impl Host for SlowNode {
    type Message = NodeMessage;
    type Print = String;

    fn to_ours(&self, message: NodeMessage) -> Option<KernelMessage> {
        Some(message.0)
    }

    fn to_node(&self, message: KernelMessage) -> NodeMessage {
        NodeMessage(message)
    }

    fn print(&self, _: u8, text: String) -> String {
        text
    }

    fn is_password(&self, keyfile: &[u8], hash: &str) -> bool {
        while !self.may_begin.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(5));
        self.checked.fetch_add(1, Ordering::Relaxed);
        keyfile == hash.as_bytes()
    }
}

/// A login with this hash that has been sent, from an address of our choice.
fn ask_to_log_in(from: [u8; 4], to: SocketAddr, hash: &str) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = format!(r#"{{"password_hash":"{hash}","subdomain":""}}"#);
    write!(
        stream,
        "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

#[test]
fn a_flood_of_logins_from_everywhere_keeps_the_owner_of_a_node_out_for_a_moment_at_most() {
    let node = SlowNode::default();
    let (to_server, from_kernel) = mpsc::channel(32);
    let (to_kernel, from_server) = mpsc::channel(100_000);
    let (prints, mut printed) = mpsc::channel(32);
    let parts = NodeParts {
        host: node.clone(),
        our_node: NODE.into(),
        dialect: Dialect::Kinode,
        listen: ([127, 0, 0, 1], 0).into(),
        keyfile: KEYFILE.to_vec(),
        jwt_secret: SECRET.to_vec(),
        from_kernel,
        to_kernel,
        prints,
        expose_local: false,
        control: None,
        config: Config { shards: 2, driver: support::driver(), ..node::config() },
    };
    let server = thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(node::http_server(parts)).map_err(|error| error.to_string())
    });
    let address = listening(&mut printed);
    // More than there are places for (512), from more addresses than there are turns to wait for.
    let addresses = (0..60_u8).flat_map(|at| (0..10).map(move |_| [127, 0, 1 + at % 3, 1 + at]));
    let flood: Vec<TcpStream> = addresses.map(|from| ask_to_log_in(from, address, "0xwrong")).collect();
    let mut owner = ask_to_log_in([127, 0, 0, 7], address, std::str::from_utf8(KEYFILE).unwrap());
    // However long it took to get so far, none of them was answered meanwhile.
    node.may_begin.store(true, Ordering::Relaxed);
    let mut answer = [0; 12];
    owner.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    // One of each address, those before the flood was there, and some that came beside it.
    let before = node.checked.load(Ordering::Relaxed);
    assert!(before < 590, "{before} others were checked first");
    drop((flood, owner, to_server, from_server));
    server.join().unwrap().unwrap();
}

#[test]
fn a_stop_while_a_process_with_many_paths_goes_is_learned_of_by_the_others() {
    for round in 0..4 {
        let broker = support::broker(support::driver(), |_| {});
        let [many, other] = ["many", "other"].map(|name| support::process(&broker, name, AttachOptions::default()));
        (0..2_000).for_each(|path| many.bind(&format!("/{path}"), Default::default()).unwrap());
        let goes = thread::spawn(move || drop(many));
        // At any moment of it.
        thread::sleep(Duration::from_micros(300 * round));
        let stops = thread::spawn(move || broker.stop(Duration::ZERO));
        let mut events = Vec::new();
        while let Ok(count) = other.recv_batch(&mut events, PATIENCE) {
            assert!(count > 0, "nobody has told it of the stop");
            events.clear();
        }
        goes.join().unwrap();
        stops.join().unwrap().unwrap();
    }
}
