//! A Kinode process of docs/QUICKSTART.md, in a program of its own.

use pushring::process_lib::http::{bind_ws_path, send_ws_push};
use pushring::process_lib::{self, Address, HttpServerRequest, WsMessageType, await_message, take_blob};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let process = process_lib::connect(std::path::Path::new("/tmp/pushring.sock"), "echo:rust:sys".parse()?)?;
    println!("attached as {}", process.our());
    process.run(init);
    Ok(())
}

/// Where the process starts: each client gets back what it sends.
pub fn init(our: Address) {
    bind_ws_path("/", false, false).expect("a path");
    loop {
        let Ok(message) = await_message() else { continue };
        if let Ok(HttpServerRequest::WebSocketPush {
            channel_id,
            message_type: kind @ (WsMessageType::Text | WsMessageType::Binary),
        }) = HttpServerRequest::from_bytes(message.body())
        {
            let Some(blob) = take_blob() else { continue };
            if let Err(error) = send_ws_push(our.node.clone(), channel_id, kind, blob) {
                eprintln!("{our}: {error}");
            }
        }
    }
}
