//! A node whose kernel is the test: it sends the drop-in what processes ask for and sees all that comes back.
#![allow(dead_code, missing_docs)]

#[allow(dead_code)]
#[path = "../../examples/node_backend.rs"]
pub mod node_backend;
pub(crate) use crate::support;

pub use node_backend::adapter::{MyNode, NodeMessage};
pub use node_backend::kernel::{KEYFILE, NODE, SECRET};
use pushring::Config;
use pushring::internals::gateway::{Claims, Secret, mint};
use pushring::link;
use pushring::node::Dialect;
use pushring::node::{self, Address, KernelMessage, LazyLoadBlob, Request, Response, http_server_process};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;
use support::{Client, PATIENCE, recv, send};
use tokio::sync::mpsc;

/// See the module.
pub struct Node {
    pub address: SocketAddr,
    pub to_server: Option<mpsc::Sender<NodeMessage>>,
    /// A second end, as other modules of a node have one.
    pub to_kernel: mpsc::Sender<NodeMessage>,
    pub from_server: mpsc::Receiver<NodeMessage>,
    pub server: JoinHandle<Result<(), String>>,
}

/// A test's options; the rest is as in a node.
pub struct Options {
    pub dialect: Dialect,
    pub kernel_messages_max: usize,
    pub expose_local: bool,
    pub control: Option<std::path::PathBuf>,
    pub config: Config,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dialect: Dialect::Kinode,
            kernel_messages_max: 100_000,
            expose_local: false,
            control: None,
            config: Config { shards: 2, driver: support::driver(), ..node::config() },
        }
    }
}

impl Node {
    pub fn start(options: Options) -> Self {
        let (to_server, from_kernel) = mpsc::channel(32);
        let (to_kernel, from_server) = mpsc::channel(options.kernel_messages_max);
        let (prints, mut printed) = mpsc::channel(32);
        let parts = node::NodeParts {
            host: MyNode,
            our_node: NODE.into(),
            dialect: options.dialect,
            listen: ([127, 0, 0, 1], 0).into(),
            keyfile: KEYFILE.to_vec(),
            jwt_secret: SECRET.to_vec(),
            from_kernel,
            to_kernel: to_kernel.clone(),
            prints,
            expose_local: options.expose_local,
            control: options.control,
            config: options.config,
        };
        let server = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(node::http_server(parts)).map_err(|error| error.to_string())
        });
        let line: String = printed.blocking_recv().unwrap();
        let address = line.rsplit(' ').next().unwrap().parse().unwrap();
        Self { address, to_server: Some(to_server), to_kernel, from_server, server }
    }

    /// The same node with its server in another program, so to say.
    pub fn attach(path: &std::path::Path) -> Self {
        let (mut node, mut prints) = Self::attach_at(path);
        node.address = listening(&mut prints);
        node
    }

    /// The same where no broker may be listening yet, and the node's prints; its address is not known then.
    pub fn attach_at(path: &std::path::Path) -> (Self, mpsc::Receiver<String>) {
        Self::attach_through(path.into())
    }

    /// The same through any door.
    pub fn attach_through(endpoint: link::Endpoint) -> (Self, mpsc::Receiver<String>) {
        Self::attach_with(endpoint, |_| {})
    }

    /// The same with other parts.
    pub fn attach_with(
        endpoint: link::Endpoint,
        change: impl FnOnce(&mut link::KernelParts<MyNode>),
    ) -> (Self, mpsc::Receiver<String>) {
        let (to_server, from_kernel) = mpsc::channel(32);
        let (to_kernel, from_server) = mpsc::channel(100_000);
        let (prints, printed) = mpsc::channel(32);
        let mut parts = link::KernelParts {
            host: MyNode,
            our_node: NODE.into(),
            endpoint,
            keyfile: KEYFILE.to_vec(),
            jwt_secret: SECRET.to_vec(),
            expose_local: None,
            public_mode: false,
            simulation_mode: false,
            policy: Default::default(),
            from_kernel,
            to_kernel: to_kernel.clone(),
            prints,
        };
        change(&mut parts);
        let server = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(link::http_server(parts)).map_err(|error| error.to_string())
        });
        let address = ([0, 0, 0, 0], 0).into();
        (Self { address, to_server: Some(to_server), to_kernel, from_server, server }, printed)
    }

    pub fn hand_in(&self, message: KernelMessage) {
        self.to_server.as_ref().unwrap().blocking_send(NodeMessage(message)).unwrap();
    }

    /// A request without an expected answer.
    pub fn tell(&self, id: u64, source: &str, body: &str, blob: Option<&[u8]>) {
        self.hand_in(request(id, source, body.as_bytes(), blob, None));
    }

    /// A request that expects an answer, which is the next thing the kernel hears; its body.
    #[track_caller]
    pub fn ask(&mut self, source: &str, body: &str, blob: Option<&[u8]>) -> String {
        self.hand_in(request(77, source, body.as_bytes(), blob, Some(5)));
        let (id, target, body) = self.heard();
        assert_eq!((id, target.as_str()), (77, source), "{body}");
        body
    }

    /// A process' answer to an HTTP request.
    pub fn respond(&self, id: u64, source: &str, body: &str, blob: Option<&[u8]>) {
        let mut message = request(id, source, b"", blob, None);
        message.message = node::Message::Response((Response { body: body.into(), ..Response::default() }, None));
        self.hand_in(message);
    }

    #[track_caller]
    pub fn next(&mut self) -> KernelMessage {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            match self.from_server.try_recv() {
                Ok(message) => return message.0,
                Err(_) if std::time::Instant::now() < until => std::thread::sleep(Duration::from_micros(200)),
                Err(error) => panic!("nothing comes from the server: {error}"),
            }
        }
    }

    /// The next message: its id, target and body.
    #[track_caller]
    pub fn heard(&mut self) -> (u64, String, String) {
        let message = self.next();
        let body = String::from_utf8(message.message.body().to_vec()).unwrap();
        (message.id, message.target.to_string(), body)
    }

    /// Nothing is on its way: what a process asks now is answered next.
    #[track_caller]
    pub fn is_quiet(&mut self) {
        assert_eq!(self.ask(&format!("{NODE}@quiet:test:sys"), "\"?\"", None), r#"{"Err":"MalformedRequest"}"#);
    }

    /// A registered channel of `process`; its WebSocketOpen is left to be heard.
    pub fn register(&self, process: &str) -> (Client, u64) {
        let mut client = self.client("/");
        let register = serde_json::json!({"auth_token": token(None), "target_process": process, "encrypted": false});
        send(&mut client, register.to_string());
        let reply: serde_json::Value = serde_json::from_str(recv(&mut client).to_text().unwrap()).unwrap();
        (client, reply["channel_id"].as_u64().unwrap())
    }

    pub fn client(&self, path: &str) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        tungstenite::client(format!("ws://{}{path}", self.address), support::Patient::new(stream)).unwrap().0
    }

    /// Binds `path` of `process` for WebSocket, open to all.
    #[track_caller]
    pub fn bind(&mut self, process: &str, path: &str) {
        let bind = format!(r#"{{"WebSocketBind":{{"path":"{path}","authenticated":false,"extension":false}}}}"#);
        assert_eq!(self.ask(&format!("{NODE}@{process}"), &bind, None), r#"{"Ok":null}"#);
    }

    /// Opens a channel at a bound path and takes its WebSocketOpen.
    #[track_caller]
    pub fn open(&mut self, path: &str) -> (Client, u64) {
        let client = self.client(path);
        let body = self.heard().2;
        let event: serde_json::Value = serde_json::from_str(&body).unwrap();
        (client, event["WebSocketOpen"]["channel_id"].as_u64().unwrap_or_else(|| panic!("no open: {body}")))
    }

    /// Sends an HTTP request and leaves the response to be read.
    pub fn begin_http(&self, head_and_body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(head_and_body.as_bytes()).unwrap();
        stream
    }
}

/// Where the server of a node listens, once it says so.
pub fn listening(prints: &mut mpsc::Receiver<String>) -> SocketAddr {
    loop {
        let line = prints.blocking_recv().expect("it says where it listens");
        if let Some(address) = line.strip_prefix("http-server: listening on ") {
            return address.parse().unwrap();
        }
    }
}

/// All that a connection still gives: status and everything.
pub fn http_response(mut stream: TcpStream) -> (u16, String) {
    let mut response = Vec::new();
    stream.read_to_end(&mut response).unwrap();
    let response = String::from_utf8_lossy(&response).into_owned();
    (response[9..12].parse().unwrap(), response)
}

pub fn request(
    id: u64,
    source: &str,
    body: &[u8],
    blob: Option<&[u8]>,
    expects_response: Option<u64>,
) -> KernelMessage {
    KernelMessage {
        id,
        source: source.parse().unwrap(),
        target: Address::new(NODE, http_server_process()),
        rsvp: None,
        message: node::Message::Request(Request { body: body.to_vec(), expects_response, ..Request::default() }),
        lazy_load_blob: blob.map(|bytes| LazyLoadBlob { mime: None, bytes: bytes.to_vec() }),
    }
}

pub fn token(subdomain: Option<&str>) -> String {
    let subdomain = subdomain.map(ToString::to_string);
    let claims = Claims { username: NODE.into(), subdomain, expiration: 4_000_000_000 };
    mint(&Secret::new(SECRET).unwrap(), &claims)
}

pub fn push(channel: u64) -> String {
    format!(r#"{{"WebSocketPush":{{"channel_id":{channel},"message_type":"Text"}}}}"#)
}
