//! A process without a kernel pushes to a channel of another node with `send_ws_push(node, …)`: over the fleet, and
//! only where the channel's owner has let it in, by the name of its node, as pushes from other nodes are let in by a
//! kernel's.

use super::fleet::{report, wait_for};
use crate::support;

use pushring::Broker;
use pushring::fleet::{Fleet, Name, Options};
use pushring::process_lib::http::{bind_ws_path, send_ws_push};
use pushring::process_lib::{
    self, Address, HttpServerAction, HttpServerRequest, LazyLoadBlob, Request, WsMessageType, await_message, get_blob,
};
use std::sync::mpsc;
use support::nats::Nats;
use support::{broker, connect_once_bound, recv, send};

const SERVER: (&str, &str, &str, &str) = ("our", "http_server", "distro", "sys");

fn start(nats: &Nats, node: &str) -> (Broker, Fleet) {
    let broker = broker(support::driver(), |config| config.settings.user = node.into());
    let name = Name::of_node(node).unwrap();
    let fleet = Fleet::start(&broker.handle(), Options { servers: vec![nats.url()], ..Options::new(name) }).unwrap();
    (broker, fleet)
}

/// Tells a client its channel, and lets the guest in or out on its command.
fn owner(_: Address) {
    bind_ws_path("/", false, false).unwrap();
    while let Ok(message) = await_message() {
        let Ok(HttpServerRequest::WebSocketPush { channel_id, .. }) = HttpServerRequest::from_bytes(message.body())
        else {
            continue;
        };
        let address = "alice.os@guest:test:sys".to_owned();
        let action = match &get_blob().unwrap().bytes[..] {
            b"in" => Some(HttpServerAction::WebSocketGrant { channel_id: Some(channel_id), address }),
            b"out" => Some(HttpServerAction::WebSocketRevoke { channel_id: Some(channel_id), address }),
            _ => None,
        };
        if let Some(action) = action {
            let request = Request::to(SERVER).body(serde_json::to_vec(&action).unwrap());
            let answer = request.send_and_await_response(5).unwrap().unwrap();
            let answer: serde_json::Value = serde_json::from_slice(answer.body()).unwrap();
            assert!(answer.get("Ok").is_some(), "{answer}");
        }
        send_ws_push("our".into(), channel_id, WsMessageType::Text, text(&channel_id.to_string())).unwrap();
    }
}

fn text(text: &str) -> LazyLoadBlob {
    LazyLoadBlob { mime: None, bytes: text.into() }
}

#[test]
fn owners_let_processes_of_other_nodes_in_or_not() {
    let Some(nats) = Nats::start("") else { return };
    let ((alice, _alices), (bob, _bobs)) = (start(&nats, "alice.os"), start(&nats, "bob.os"));
    let _owner = process_lib::spawn_on(&bob.handle(), "owner:test:sys".parse().unwrap(), owner).unwrap();
    let (say, said) = mpsc::channel::<(u32, &str)>();
    let _guest = process_lib::spawn_on(&alice.handle(), "guest:test:sys".parse().unwrap(), move |_| {
        for (channel, what) in said {
            send_ws_push("bob.os".into(), channel, WsMessageType::Text, text(what)).unwrap();
        }
    });
    for (broker, other) in [(&alice, "bob-os"), (&bob, "alice-os")] {
        wait_for(broker, "each hears the other", |report| {
            report.connected && report.nodes.iter().any(|node| node.node == other)
        });
    }
    let heard = || report(&bob).counts.received;
    let mut client = connect_once_bound(&bob, "/owner:test:sys/");
    let mut ask = |what: &str| {
        send(&mut client, what);
        recv(&mut client).into_text().unwrap().to_string()
    };
    let channel: u32 = ask("who am I").parse().unwrap();
    let push_unheard = |what| {
        let before = heard();
        say.send((channel, what)).unwrap();
        wait_for(&bob, "it has come", |report| report.counts.received > before);
    };
    push_unheard("without a grant");
    assert_eq!(ask("in"), channel.to_string(), "what came without a grant reached nobody");
    say.send((channel, "with a grant")).unwrap();
    assert_eq!(recv(&mut client).into_text().unwrap().as_str(), "with a grant");
    let mut ask = |what: &str| {
        send(&mut client, what);
        recv(&mut client).into_text().unwrap().to_string()
    };
    assert_eq!(ask("out"), channel.to_string());
    push_unheard("too late");
    assert_eq!(ask("who am I"), channel.to_string(), "it is let in no more");
}
