//! pushring in place of a node's own HTTP server: a small stand-in kernel, and a process that echoes.
//!
//! `adapter` is all that a node writes itself. Run it, with an address to listen on if it is not to be 127.0.0.1:8080,
//! and connect to `ws://ADDRESS/wsecho:wsecho:sys/`; `http://ADDRESS/login` takes the password `correct horse`. With
//! the path of a link instead, its clients are served by a daemon: `pushring serve --node fake.os --dialect hyperdrive
//! --link PATH`.

use std::net::SocketAddr;

/// The node's adapter: its types on one side, ours on the other.
pub mod adapter {
    use pushring::node::{self, Host, KernelMessage};

    /// The node's own message type; here a thin one.
    #[derive(Debug)]
    pub struct NodeMessage(pub KernelMessage);

    /// The type that the node implements [`Host`] on.
    pub struct MyNode;

    impl Host for MyNode {
        type Message = NodeMessage;
        type Print = String;

        fn to_ours(&self, message: NodeMessage) -> Option<node::KernelMessage> {
            Some(message.0)
        }

        fn to_node(&self, message: node::KernelMessage) -> NodeMessage {
            NodeMessage(message)
        }

        fn print(&self, _: u8, text: String) -> String {
            text
        }

        /// A node decrypts its keyfile here; this one's keyfile is the hash itself.
        fn is_password(&self, keyfile: &[u8], hash: &str) -> bool {
            keyfile == hash.as_bytes()
        }
    }
}

/// A kernel that routes messages between processes and the HTTP server, and nothing more.
pub mod kernel {
    use super::adapter::{MyNode, NodeMessage};
    use crossbeam_channel::{Receiver, Sender, unbounded};
    use pushring::link;
    use pushring::node::Dialect;
    use pushring::node::{self, Address, KernelMessage, OUR, is_http_server};
    use pushring::process_lib::{self, Mailbox, ProcessId};
    use std::net::SocketAddr;
    use std::path::PathBuf;
    use std::thread;
    use tokio::sync::mpsc;

    /// The name of the node.
    pub const NODE: &str = "fake.os";
    /// The key of its tokens.
    pub const SECRET: &[u8] = b"the stand-in node's secret";
    /// Its keyfile, which is also the only password hash that opens it: that of `correct horse`.
    pub const KEYFILE: &[u8] = b"0xe45301217bcb4cc1da2649e7ae668a53c0d4be7a68f07d48b7116b8f526a5b68";
    /// As in nodes: messages to the kernel's loop, and to the HTTP server.
    const QUEUES: (usize, usize) = (100_000, 32);

    /// Where clients are served.
    #[derive(Debug, Clone)]
    pub enum At {
        /// In this program, at this address.
        Listen(SocketAddr),
        /// In a daemon with this link.
        Link(PathBuf),
    }

    impl From<SocketAddr> for At {
        fn from(listen: SocketAddr) -> Self {
            Self::Listen(listen)
        }
    }

    /// Which way a message went.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Direction {
        /// From the HTTP server to the kernel.
        FromServer,
        /// From the kernel to the HTTP server.
        ToServer,
    }

    /// A running node. Dropping it stops everything.
    pub struct Node {
        /// Where its server listens.
        pub address: SocketAddr,
        /// The messages between node kernel and server, as nodes record them.
        pub recorded: Receiver<(Direction, KernelMessage)>,
        stop: Option<tokio::sync::oneshot::Sender<()>>,
        thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
    }

    impl Drop for Node {
        fn drop(&mut self) {
            drop(self.stop.take());
            if let Some(Ok(Err(error))) = self.thread.take().map(thread::JoinHandle::join) {
                eprintln!("the node ended: {error:#}");
            }
        }
    }

    impl Node {
        /// Waits until the server ends.
        ///
        /// # Errors
        /// Why it ended.
        pub fn wait(mut self) -> anyhow::Result<()> {
            let thread = self.thread.take().expect("only waiting and dropping take it");
            thread.join().map_err(|_| anyhow::anyhow!("the node panicked"))?
        }
    }

    /// Starts a node with one process.
    ///
    /// # Errors
    /// The server does not start.
    pub fn start(
        at: impl Into<At>,
        expose_local: bool,
        process: ProcessId,
        init: impl FnOnce(Address) + Send + 'static,
    ) -> anyhow::Result<Node> {
        let (record, recorded) = unbounded();
        let (stop, stopping) = tokio::sync::oneshot::channel();
        let (prints, mut printed) = mpsc::channel(32);
        let at = at.into();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
            runtime.block_on(run(at, expose_local, process, init, prints, record, stopping))
        });
        let address = loop {
            let line = printed.blocking_recv().ok_or_else(|| anyhow::anyhow!("the server did not start"))?;
            if let Some(address) = line.strip_prefix("http-server: listening on ") {
                break address.parse()?;
            }
        };
        thread::spawn(move || while printed.blocking_recv().is_some() {});
        Ok(Node { address, recorded, stop: Some(stop), thread: Some(thread) })
    }

    /// Where a node spawned its own server.
    async fn listen_at(
        listen: SocketAddr,
        expose_local: bool,
        host: MyNode,
        from_kernel: mpsc::Receiver<NodeMessage>,
        to_kernel: mpsc::Sender<NodeMessage>,
        prints: mpsc::Sender<String>,
    ) -> anyhow::Result<()> {
        let served = node::http_server(node::NodeParts {
            host,
            our_node: NODE.to_string(),
            dialect: Dialect::Hyperdrive,
            listen,
            keyfile: KEYFILE.to_vec(),
            jwt_secret: SECRET.to_vec(),
            from_kernel,
            to_kernel,
            prints,
            expose_local,
            control: None,
            config: pushring::Config { shards: 2, ..node::config() },
        });
        Ok(served.await?)
    }

    /// The same with the server in another program.
    async fn attach_to(
        path: PathBuf,
        expose_local: bool,
        host: MyNode,
        from_kernel: mpsc::Receiver<NodeMessage>,
        to_kernel: mpsc::Sender<NodeMessage>,
        prints: mpsc::Sender<String>,
    ) -> anyhow::Result<()> {
        let served = link::http_server(link::KernelParts {
            host,
            our_node: NODE.to_string(),
            endpoint: path.into(),
            keyfile: KEYFILE.to_vec(),
            jwt_secret: SECRET.to_vec(),
            // The daemon may have been told so itself.
            expose_local: expose_local.then_some(true),
            public_mode: false,
            simulation_mode: false,
            policy: pushring::Policy::default(),
            from_kernel,
            to_kernel,
            prints,
        });
        Ok(served.await?)
    }

    async fn run(
        at: At,
        expose_local: bool,
        process: ProcessId,
        init: impl FnOnce(Address) + Send + 'static,
        prints: mpsc::Sender<String>,
        record: Sender<(Direction, KernelMessage)>,
        mut stopping: tokio::sync::oneshot::Receiver<()>,
    ) -> anyhow::Result<()> {
        let (to_loop, mut from_all) = mpsc::channel::<NodeMessage>(QUEUES.0);
        let (to_server, from_kernel) = mpsc::channel(QUEUES.1);
        let host = MyNode;
        let to_kernel = to_loop.clone();
        let mut server = match at {
            At::Listen(listen) => tokio::spawn(listen_at(listen, expose_local, host, from_kernel, to_kernel, prints)),
            At::Link(path) => tokio::spawn(attach_to(path, expose_local, host, from_kernel, to_kernel, prints)),
        };
        let (to_process, mailbox) = std::sync::mpsc::channel();
        let (from_process, sent) = std::sync::mpsc::sync_channel(1024);
        let our = Address::new(NODE, process.clone());
        process_lib::spawn(our, Box::new(Mailbox::new(from_process, mailbox)), init)?;
        thread::spawn(move || sent.iter().all(|message| to_loop.blocking_send(NodeMessage(message)).is_ok()));

        loop {
            let NodeMessage(mut message) = tokio::select! {
                ended = &mut server => return ended?,
                _ = &mut stopping => { server.abort(); return Ok(()) }
                message = from_all.recv() => message.expect("the server holds a sender"),
            };
            let from_server = is_http_server(&message.source.process);
            if from_server {
                // The receiver may be gone.
                let _ = record.send((Direction::FromServer, message.clone()));
            }
            for address in [Some(&mut message.source), Some(&mut message.target), message.rsvp.as_mut()] {
                if let Some(address) = address.filter(|address| address.node == OUR) {
                    address.node = NODE.to_string();
                }
            }
            if message.target.node != NODE {
                continue; // A node would send it over the network.
            }
            if is_http_server(&message.target.process) {
                let _ = record.send((Direction::ToServer, message.clone()));
                to_server.send(NodeMessage(message)).await?;
            } else if message.target.process == process {
                to_process.send(message)?;
            }
        }
    }
}

/// A process that echoes, and does what its clients say.
pub mod wsecho {
    use pushring::process_lib::http::{self, send_ws_push};
    use pushring::process_lib::{
        Address, HttpServerAction, HttpServerRequest, LazyLoadBlob, Message, MessageType, Request, Response,
        WsMessageType, await_message, get_blob,
    };
    use std::collections::{BTreeMap, HashMap};

    const HTTP: (&str, &str, &str, &str) = ("our", "http-server", "distro", "sys");

    fn blob(bytes: impl Into<Vec<u8>>) -> LazyLoadBlob {
        LazyLoadBlob { mime: None, bytes: bytes.into() }
    }

    fn push_body(channel_id: u32, message_type: WsMessageType) -> Vec<u8> {
        HttpServerRequest::WebSocketPush { channel_id, message_type }.to_bytes()
    }

    /// Sends raw bytes to the server and words what comes back.
    fn ask(body: Vec<u8>, blob: Option<LazyLoadBlob>) -> String {
        let mut request = Request::to(HTTP).body(body);
        request.blob = blob;
        match request.send_and_await_response(2) {
            Ok(Ok(message)) => format!("{} src={}", String::from_utf8_lossy(message.body()), message.source()),
            Ok(Err(error)) => format!("senderror {:?}", error.kind),
            Err(error) => format!("builderror {error:?}"),
        }
    }

    fn bind() -> anyhow::Result<()> {
        http::bind_ws_path("/", false, false)?;
        http::bind_ws_path("/authed", true, false)?;
        http::bind_ext_path("/ext")?;
        http::secure_bind_ws_path("/wssecure", false)?;
        http::bind_http_static_path("/static", false, false, Some("text/css".into()), b"body{}".to_vec())?;
        let page = b"<h1>authed</h1>".to_vec();
        http::bind_http_static_path("/authstatic", true, false, Some("text/html".into()), page)?;
        http::bind_http_path("/dyn", false, false)?;
        http::bind_http_path("/dyn/:id", false, false)?;
        http::bind_http_path("/silent", false, false)?;
        http::bind_http_path("/local", false, true)?;
        http::bind_http_path("/authdyn", true, false)?;
        http::secure_bind_http_path("/secure")
    }

    #[derive(Default)]
    struct Echo {
        node: String,
        channels: BTreeMap<u32, String>,
        log: Vec<String>,
    }

    /// Where the process starts.
    pub fn init(our: Address) {
        let mut echo = Echo { node: our.node, ..Echo::default() };
        if let Err(error) = bind() {
            eprintln!("wsecho: {error:#}");
        }
        loop {
            match await_message() {
                Ok(message) => {
                    if let Err(error) = echo.handle(&message) {
                        eprintln!("wsecho: {error:#}");
                    }
                }
                Err(error) => echo.log.push(format!("send error {:?}", error.kind)),
            }
        }
    }

    impl Echo {
        fn handle(&mut self, message: &Message) -> anyhow::Result<()> {
            let bytes = get_blob().map(|blob| blob.bytes).unwrap_or_default();
            if !message.is_request() {
                let body = String::from_utf8_lossy(message.body());
                self.log.push(format!("response from {} body={body} blob={bytes:?}", message.source()));
                return Ok(());
            }
            let Ok(request) = HttpServerRequest::from_bytes(message.body()) else {
                // From the RPC path: any bytes.
                let reply = format!("rpc-reply to {}", String::from_utf8_lossy(message.body()));
                return Response::new().body(reply).blob_mime("text/x-rpc").blob_bytes(bytes).send();
            };
            match request {
                HttpServerRequest::WebSocketOpen { channel_id, path, .. } => {
                    self.channels.insert(channel_id, path);
                }
                HttpServerRequest::WebSocketClose(channel_id) => {
                    self.channels.remove(&channel_id);
                }
                HttpServerRequest::Http(request) if request.bound_path(None).ends_with("/silent") => {
                    self.log.push("silent hit".into());
                }
                HttpServerRequest::Http(request) => {
                    let fields = [("Content-Type", "application/json"), ("X-Echo", "1"), ("Set-Cookie", "a=1; b=2")];
                    let headers: HashMap<String, String> = fields.map(|(k, v)| (k.into(), v.into())).into();
                    let body = String::from_utf8_lossy(&bytes);
                    let path = request.path()?;
                    let out = serde_json::json!({"path": path, "req": request, "body": body, "log": self.log});
                    http::send_response(201_u16, Some(headers), serde_json::to_vec(&out)?)?;
                }
                HttpServerRequest::WebSocketPush { channel_id, message_type: WsMessageType::Text } => {
                    self.command(channel_id, bytes)?;
                }
                HttpServerRequest::WebSocketPush { channel_id, message_type: WsMessageType::Binary } => {
                    self.push(channel_id, WsMessageType::Binary, bytes)?;
                }
                HttpServerRequest::WebSocketPush { message_type, .. } => {
                    self.log.push(format!("{message_type:?} len={}", bytes.len()));
                }
            }
            Ok(())
        }

        fn push(&self, channel_id: u32, kind: WsMessageType, bytes: impl Into<Vec<u8>>) -> anyhow::Result<()> {
            send_ws_push(self.node.clone(), channel_id, kind, blob(bytes))
        }

        fn say(&self, channel_id: u32, text: String) -> anyhow::Result<()> {
            self.push(channel_id, WsMessageType::Text, text)
        }

        fn command(&mut self, channel: u32, bytes: Vec<u8>) -> anyhow::Result<()> {
            use WsMessageType::{Close, Ping, Pong, Text};
            let line = String::from_utf8_lossy(&bytes).into_owned();
            let words: Vec<&str> = line.split(' ').collect();
            let answer = match words[0] {
                "fanout" => return self.fan_out(channel, words[1].parse()?, words[2].parse()?),
                "pushack" => ask(push_body(channel, Text), Some(blob("acked"))),
                "unknown" => ask(push_body(channel ^ 1, Text), Some(blob("x"))),
                "noblob" => ask(push_body(channel, Text), None),
                "longping" => ask(push_body(channel, Ping), Some(blob(vec![b'p'; 126]))),
                "malformed" => ask(b"{\"Nope\":1}".to_vec(), None),
                "openreq" => {
                    ask(format!(r#"{{"WebSocketOpen":{{"path":"/","channel_id":{channel}}}}}"#).into_bytes(), None)
                }
                "closeunknown" => ask(serde_json::to_vec(&HttpServerAction::WebSocketClose(channel ^ 1))?, None),
                "unbind" => {
                    format!("{:?} {:?}", http::unbind_http_path("/static"), http::unbind_ws_path("/authed"))
                }
                "unknown-noreply" => {
                    return Request::to(HTTP).body(push_body(channel ^ 1, Text)).blob(blob("x")).send();
                }
                "ping" => return self.push(channel, Ping, "pp"),
                "pong" => return self.push(channel, Pong, "qq"),
                "badutf8" => return self.push(channel, Text, [0x61, 0xff, 0xfe, 0x62]),
                "closeme" => {
                    self.channels.remove(&channel);
                    let close = serde_json::to_vec(&HttpServerAction::WebSocketClose(channel))?;
                    return Request::to(HTTP).body(close).send();
                }
                "closepush" => {
                    let answer = ask(push_body(channel, Close), Some(blob("")));
                    self.channels.remove(&channel);
                    self.log.push(format!("closepush {answer}"));
                    return Ok(());
                }
                "extpush" => {
                    let response = words.get(1) == Some(&"resp");
                    let reply = if response { MessageType::Response } else { MessageType::Request };
                    let body = extension_push(channel, WsMessageType::Binary, reply)?;
                    return Request::to(HTTP).body(body).blob(blob("ext-payload")).expects_response(3).send();
                }
                "exttext" => {
                    let answer = ask(extension_push(channel, Text, MessageType::Request)?, Some(blob("x")));
                    self.log.push(format!("exttext {answer}"));
                    return Ok(());
                }
                _ => return self.push(channel, Text, bytes),
            };
            self.say(channel, format!("{} {answer}", words[0]))
        }

        fn fan_out(&self, channel: u32, count: usize, size_bytes: usize) -> anyhow::Result<()> {
            let start = std::time::Instant::now();
            for at in 0..count {
                let mut payload = format!("f{at} ").into_bytes();
                payload.resize(size_bytes.max(payload.len()), b'x');
                for channel in self.channels.keys() {
                    self.push(*channel, WsMessageType::Binary, payload.clone())?;
                }
            }
            let took_us = start.elapsed().as_micros();
            self.say(channel, format!("fanout-done {} chans {took_us} us", self.channels.len()))
        }
    }

    fn extension_push(channel_id: u32, kind: WsMessageType, reply: MessageType) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&HttpServerAction::WebSocketExtPushOutgoing {
            channel_id,
            message_type: kind,
            desired_reply_type: reply,
        })
    }
}

/// Runs the node until it is interrupted.
fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let at = match argument.parse::<SocketAddr>() {
        Ok(listen) => listen.into(),
        Err(_) => kernel::At::Link(argument.into()),
    };
    let node = kernel::start(at, true, "wsecho:wsecho:sys".parse()?, wsecho::init)?;
    println!("ws://{}/wsecho:wsecho:sys/ echoes", node.address);
    for (direction, message) in node.recorded.clone() {
        println!("{direction:?} {} {:?}", message.source, String::from_utf8_lossy(message.message.body()));
    }
    node.wait()
}
