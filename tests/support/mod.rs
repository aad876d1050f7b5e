//! What the promise tests share: a broker with the demo processes, and blocking WebSocket clients.
#![allow(dead_code, missing_docs)]

use pushring::broker::{Broker, Config};
use pushring::demo;
use std::net::TcpStream;
use std::time::Duration;
use tungstenite::{Message, WebSocket};

/// The node secret of the tests.
pub const SECRET: &[u8] = b"a secret that only the tests know";

/// Long enough that only a hang takes it.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub type Client = WebSocket<TcpStream>;

/// A broker with the demo processes. `PUSHRING_TEST_DRIVER` may ask for `uring` or `epoll`.
pub fn demo(change: impl FnOnce(&mut Config)) -> Broker {
    let mut config = Config { shards: 2, ..Config::default() };
    config.settings.secret = Some(pushring::gateway::Secret::new(SECRET).unwrap());
    if let Ok(driver) = std::env::var("PUSHRING_TEST_DRIVER") {
        config.driver = driver.parse().unwrap();
    }
    change(&mut config);
    let broker = Broker::start(config).unwrap();
    demo::start(&broker.handle()).unwrap();
    broker
}

/// A client of `path`.
pub fn connect(broker: &Broker, path: &str) -> Client {
    try_connect(broker, path).unwrap()
}

pub fn try_connect(broker: &Broker, path: &str) -> Result<Client, Box<dyn std::error::Error>> {
    let address = broker.address();
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(tungstenite::client(format!("ws://{address}{path}"), stream)?.0)
}

pub fn send(client: &mut Client, message: impl Into<Message>) {
    client.send(message.into()).unwrap();
}

/// The next data message.
pub fn recv(client: &mut Client) -> Message {
    loop {
        let message = client.read().unwrap();
        if message.is_text() || message.is_binary() {
            return message;
        }
    }
}

/// The close frame with which the server ends this client's channel.
pub fn recv_close(client: &mut Client) -> (u16, String) {
    loop {
        if let Message::Close(frame) = client.read().unwrap() {
            let frame = frame.expect("a close frame with a code");
            return (frame.code.into(), frame.reason.to_string());
        }
    }
}
