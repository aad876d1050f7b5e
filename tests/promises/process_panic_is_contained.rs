//! A process that panics affects no other: its own channels are closed with 1011, its waiting requests answered 500,
//! its paths and its id are free again, and every other process and client goes on. One that merely ends closes its
//! channels with 1001. Either way each client gets what was pushed to it before.

use crate::support;
use pushring::internals::gateway::HttpRule;
use pushring::{AttachOptions, Broker, Event, Process};
use std::io::{Read, Write};
use std::net::TcpStream;
use support::{Client, Inbound, PATIENCE, Push, broker, on_each_driver, process, recv, recv_close, send, try_connect};

/// Runs a process on a thread of its own until it has been asked something and a client says how it is to end.
fn run(process: Process) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut inbound = Inbound::default();
        let (mut is_asked, mut last) = (false, None);
        loop {
            match inbound.next(&process) {
                Event::Http(_) => is_asked = true,
                Event::Message { channel, payload, .. } => last = Some((channel, payload)),
                _ => {}
            }
            if is_asked && let Some((channel, payload)) = last.take() {
                process.push(channel, Push::text("so be it")).try_send().unwrap();
                match &payload[..] {
                    b"panic" => panic!("as it was told to"),
                    b"end" => return,
                    other => panic!("{other:?}"),
                }
            }
        }
    })
}

/// A request that its process has been asked and does not answer.
fn ask(broker: &Broker, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(broker.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn status(stream: &mut TcpStream) -> String {
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn still_works(process: &Process, inbound: &mut Inbound, client: &mut Client) {
    send(client, "are you there?");
    match inbound.next(process) {
        Event::Message { channel, .. } => process.push(channel, Push::text("yes")).try_send().unwrap(),
        other => panic!("{other:?}"),
    }
    assert_eq!(recv(client).into_text().unwrap(), "yes");
}

#[test]
fn only_its_own_channels_end() {
    on_each_driver(|driver| {
        for (how, code) in [("panic", 1011), ("end", 1001)] {
            let broker = broker(driver, |_| {});
            let other = process(&broker, "other", AttachOptions::default());
            let mut inbound = Inbound::default();
            let (mut witness, _) = inbound.open(&broker, &other);
            let doomed = process(&broker, "doomed", AttachOptions::default());
            doomed.bind_http("/ask", HttpRule::default()).unwrap();
            let path = format!("/{}/", doomed.id());
            // Among them channels of both shards.
            let mut clients: Vec<_> = (0..8).map(|_| support::connect(&broker, &path)).collect();
            let mut asked = ask(&broker, "/doomed:test:sys/ask");
            still_works(&other, &mut inbound, &mut witness);
            let thread = run(doomed);
            send(&mut clients[3], how);
            assert_eq!(recv(&mut clients[3]).into_text().unwrap(), "so be it");
            for client in &mut clients {
                assert_eq!(recv_close(client).0, code, "{how}");
            }
            assert_eq!(thread.join().is_err(), how == "panic");
            assert_eq!(status(&mut asked), "500");
            still_works(&other, &mut inbound, &mut witness);
            assert!(try_connect(&broker, &path).is_err(), "nothing is bound there any more");
            let _again = process(&broker, "doomed", AttachOptions::default());
            let mut client = support::connect(&broker, &path);
            drop(_again);
            assert_eq!(recv_close(&mut client).0, 1001);
        }
    });
}
