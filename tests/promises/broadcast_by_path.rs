//! A broadcast by path reaches the process' channels on that path, each once, and no others: not those of its other
//! paths, not closed ones, not excluded ones. The outcome counts exactly those.

use crate::support;
use pushring::ChannelId;
use pushring::{Audience, Broker, Config, Message, Outcome, Process};
use support::{Inbound, PATIENCE, connect, on_each_driver, recv};

const PROCESS: &str = "paths:demo:sys";

fn push(process: &Process, audience: Audience, except: &[ChannelId]) -> Outcome {
    let ticket =
        process.broadcast(Message::text("hello")).to(audience).except_all(except.iter().copied()).ask().send().unwrap();
    ticket.wait(PATIENCE).unwrap()
}

#[test]
fn each_path_is_an_audience_of_its_own() {
    on_each_driver(|_| {
        let broker = Broker::start(Config { shards: 2, driver: support::driver(), ..Config::default() }).unwrap();
        let process = broker.process(PROCESS).unwrap();
        let other = broker.process("other:demo:sys").unwrap();
        for path in ["/", "/a", "/b"] {
            process.bind(path, Default::default()).unwrap();
        }
        other.bind("/a", Default::default()).unwrap();
        let _stranger = connect(&broker, "/other:demo:sys/a");
        let mut inbound = Inbound::default();
        let mut open = |path: &str| {
            let client = connect(&broker, &format!("/{PROCESS}{path}"));
            (client, inbound.opened(&process))
        };
        let mut on_a: Vec<_> = (0..6).map(|_| open("/a")).collect();
        let on_b: Vec<_> = (0..3).map(|_| open("/b")).collect();
        let _root = open("/");

        let sent = |count| Outcome { sent: count, ..Outcome::default() };
        assert_eq!(push(&process, Audience::Path("/a".into()), &[]), sent(6));
        assert_eq!(push(&process, Audience::Path("/a".into()), &[on_a[2].1, on_b[0].1]), sent(5));
        assert_eq!(push(&process, Audience::Path("/nowhere".into()), &[]), Outcome::default());
        assert_eq!(push(&process, Audience::Process, &[]), sent(10));
        for (at, (client, _)) in on_a.iter_mut().enumerate() {
            for _ in 0..if at == 2 { 2 } else { 3 } {
                assert_eq!(recv(client).into_text().unwrap(), "hello");
            }
        }

        // The lists stay right when channels leave from their middle, and when the last one leaves.
        for at in [1, 0] {
            drop(on_a.remove(at));
            inbound.closed(&process);
        }
        drop(on_b);
        (0..3).for_each(|_| drop(inbound.closed(&process)));
        assert_eq!(push(&process, Audience::Path("/a".into()), &[]), sent(4));
        assert_eq!(push(&process, Audience::Path("/b".into()), &[]), Outcome::default());
        assert_eq!(push(&process, Audience::Process, &[]), sent(5));

        // A channel named twice gets it twice; each mention is counted, and so is each that reaches no channel.
        let first = on_a[0].1;
        let unknown = ChannelId::new(first.get() + 1_000_000);
        let counts = push(&process, Audience::Channels(vec![first, unknown, first]), &[]);
        assert_eq!(counts, Outcome { sent: 2, not_found: 1, ..Outcome::default() });
        assert_eq!(push(&other, Audience::Channels(vec![first]), &[]), Outcome { not_owner: 1, ..Outcome::default() });
    });
}
