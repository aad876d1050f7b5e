//! A message to a topic reaches the channels that are subscribed to it, each once, in order after earlier orders, and
//! no others; the outcome counts exactly those, and shards without subscribers are not told. A channel that closes has
//! left; a channel that is unknown, closing or over a limit is not subscribed, and the outcome says so.

use crate::support;

use pushring::{
    AttachOptions, Audience, Broker, ChannelId, Event, Message, Outcome, Process, PushError, TOPIC_BYTES_MAX,
    TopicReport,
};
use support::{Client, Inbound, PATIENCE, broker, on_each_driver, process, recv};

fn publish(process: &Process, topic: &str, text: &str, except: &[ChannelId]) -> Outcome {
    let publish = process.broadcast(Message::text(text)).to(Audience::Topic(topic.into()));
    publish.except_all(except.iter().copied()).ask().send().unwrap().wait(PATIENCE).unwrap()
}

fn subscribe(process: &Process, channel: ChannelId, topic: &str) -> Outcome {
    process.subscribe(channel, topic).ask().send().unwrap().wait(PATIENCE).unwrap()
}

fn unsubscribe(process: &Process, channel: ChannelId, topic: &str) -> Outcome {
    process.unsubscribe(channel, topic).ask().send().unwrap().wait(PATIENCE).unwrap()
}

fn sent(count: usize) -> Outcome {
    Outcome { sent: count, ..Outcome::default() }
}

fn topics(process: &Process) -> Vec<(String, usize)> {
    let reports = process.topics("", None, 100).into_iter();
    reports.map(|TopicReport { topic, subscribers }| (topic.to_string(), subscribers)).collect()
}

/// All that a client has got before the text that ends it.
fn texts(process: &Process, client: &mut Client, channel: ChannelId) -> Vec<String> {
    process.push(channel, Message::text("end")).send().unwrap();
    let mut texts = Vec::new();
    loop {
        match recv(client).into_text().unwrap().to_string() {
            end if end == "end" => return texts,
            text => texts.push(text),
        }
    }
}

fn open(broker: &Broker, process: &Process, inbound: &mut Inbound, count: usize) -> Vec<(Client, ChannelId)> {
    (0..count).map(|_| inbound.open(broker, process)).collect()
}

#[test]
fn each_topic_is_an_audience_of_its_own() {
    on_each_driver(|driver| {
        let broker = broker(driver, |_| {});
        let (rooms, other) =
            (process(&broker, "rooms", AttachOptions::default()), process(&broker, "other", AttachOptions::default()));
        let (mut inbound, mut others) = (Inbound::default(), Inbound::default());
        let mut clients = open(&broker, &rooms, &mut inbound, 6);
        let (_stranger, strangers) = others.open(&broker, &other);
        let ids: Vec<ChannelId> = clients.iter().map(|(_, id)| *id).collect();

        assert_eq!(publish(&rooms, "a", "nobody is there", &[]), Outcome::default());
        for &id in &ids[..4] {
            assert_eq!(subscribe(&rooms, id, "a"), sent(1));
        }
        assert_eq!(subscribe(&rooms, ids[3], "b"), sent(1));
        assert_eq!(subscribe(&rooms, ids[0], "a"), sent(1), "again changes nothing");
        assert_eq!(topics(&rooms), [("a".to_owned(), 4), ("b".to_owned(), 1)]);
        // A name means something within its process.
        assert_eq!(subscribe(&other, strangers, "a"), sent(1));
        assert_eq!(publish(&rooms, "a", "to a", &[]), sent(4));
        assert_eq!(publish(&rooms, "a", "but one", &[ids[1], ids[5]]), sent(3));
        assert_eq!(publish(&rooms, "b", "to b", &[]), sent(1));
        assert_eq!(publish(&rooms, "A", "another name", &[]), Outcome::default());
        // Orders after a subscription or its end take it into account, even without waiting.
        rooms.subscribe(ids[5], "a").send().unwrap();
        rooms.broadcast(Message::text("with the sixth")).to(Audience::Topic("a".into())).send().unwrap();
        rooms.unsubscribe(ids[5], "a").send().unwrap();
        assert_eq!(publish(&rooms, "a", "without", &[]), sent(4));
        assert_eq!(unsubscribe(&rooms, ids[0], "a"), sent(1));
        assert_eq!(unsubscribe(&rooms, ids[0], "a"), sent(1), "again changes nothing");
        assert_eq!(publish(&rooms, "a", "last", &[]), sent(3));

        let got = |at: usize, clients: &mut Vec<(Client, ChannelId)>| texts(&rooms, &mut clients[at].0, ids[at]);
        assert_eq!(got(0, &mut clients), ["to a", "but one", "with the sixth", "without"]);
        assert_eq!(got(1, &mut clients), ["to a", "with the sixth", "without", "last"]);
        assert_eq!(got(3, &mut clients), ["to a", "but one", "to b", "with the sixth", "without", "last"]);
        assert_eq!(got(4, &mut clients), [""; 0]);
        assert_eq!(got(5, &mut clients), ["with the sixth"]);

        // A channel that closes has left, from the middle of the list too, and the last one takes the topic with it.
        drop(clients.remove(2));
        assert_eq!(inbound.closed(&rooms).channel, ids[2]);
        assert_eq!(publish(&rooms, "a", "two are left", &[]), sent(2));
        clients.drain(..3).for_each(drop);
        (0..3).for_each(|_| drop(inbound.closed(&rooms)));
        assert_eq!((topics(&rooms), rooms.subscribers("a"), other.subscribers("a")), (vec![], 0, 1));
        assert_eq!(publish(&rooms, "a", "nobody", &[]), Outcome::default());
    });
}

#[test]
fn shards_without_subscribers_are_not_told() {
    let broker = broker(support::driver(), |_| {});
    let rooms = process(&broker, "rooms", AttachOptions::default());
    let mut inbound = Inbound::default();
    let clients = open(&broker, &rooms, &mut inbound, 8);
    let on = |shard: u32| clients.iter().map(|(_, id)| *id).find(|id| id.shard(2) == shard);
    let (Some(first), Some(_)) = (on(0), on(1)) else { return println!("all clients came to one shard") };
    assert_eq!(subscribe(&rooms, first, "a"), sent(1));
    let orders = || broker.handle().reports().iter().map(|report| report.stats.commands).collect::<Vec<_>>();
    let before = orders();
    for _ in 0..100 {
        assert_eq!(publish(&rooms, "a", "x", &[]), sent(1));
    }
    let after = orders();
    // The question itself is an order.
    assert_eq!(after[1] - before[1], 1, "{before:?} {after:?}");
    assert!(after[0] - before[0] > 100);
}

#[test]
fn who_may_not_be_subscribed_is_not_and_who_asks_is_told() {
    let broker = broker(support::driver(), |config| {
        config.shard.topics_per_channel_max = 3;
        config.admission.subscriptions_max = 5;
    });
    let (ours, theirs) =
        (process(&broker, "ours", AttachOptions::default()), process(&broker, "theirs", AttachOptions::default()));
    let (mut inbound, mut their_inbound) = (Inbound::default(), Inbound::default());
    let (mut client, channel) = inbound.open(&broker, &ours);
    let (mut second, second_channel) = inbound.open(&broker, &ours);
    let (_foreigner, foreign) = their_inbound.open(&broker, &theirs);

    let one = |name: &str| match name {
        "dropped" => Outcome { dropped: 1, ..Outcome::default() },
        "not_owner" => Outcome { not_owner: 1, ..Outcome::default() },
        "closed" => Outcome { closed: 1, ..Outcome::default() },
        _ => Outcome { not_found: 1, ..Outcome::default() },
    };
    // Silently, if no outcome is asked for.
    ours.subscribe(foreign, "a").send().unwrap();
    assert_eq!(subscribe(&ours, foreign, "a"), one("not_owner"));
    assert_eq!(subscribe(&ours, ChannelId::new(channel.get().wrapping_add(1_000_000)), "a"), one("not_found"));
    assert_eq!(publish(&ours, "a", "secret", &[]), Outcome::default());
    assert!(topics(&ours).is_empty() && topics(&theirs).is_empty());

    for name in ["1", "2", "3"] {
        assert_eq!(subscribe(&ours, channel, name), sent(1));
    }
    assert_eq!(subscribe(&ours, channel, "4"), one("dropped"), "a channel has three topics");
    assert_eq!(subscribe(&ours, channel, "3"), sent(1), "and has them still");
    unsubscribe(&ours, channel, "1");
    assert_eq!(subscribe(&ours, channel, "4"), sent(1));
    assert_eq!(subscribe(&ours, second_channel, "2"), sent(1));
    // Of five in all the last is for a process with less than half of them.
    assert_eq!(subscribe(&ours, second_channel, "3"), sent(1));
    assert_eq!(subscribe(&theirs, foreign, "x"), one("dropped"), "there are five");
    unsubscribe(&ours, second_channel, "3");
    assert_eq!(subscribe(&theirs, foreign, "x"), sent(1));

    let long = "x".repeat(TOPIC_BYTES_MAX + 1);
    assert!(matches!(ours.subscribe(channel, long.as_str()).send(), Err(PushError::Topic(_))));
    assert!(matches!(ours.unsubscribe(channel, "").try_send(), Err(PushError::Topic(_))));
    let publish_long = ours.broadcast(Message::text("x")).to(Audience::Topic(long.as_str().into()));
    assert!(matches!(publish_long.send(), Err(PushError::Topic(_))));

    // Behind our close frame nothing may follow, so the channel is as good as gone.
    let mut batch = ours.batch();
    batch.send(ours.close(second_channel, 4000, "enough")).unwrap();
    batch.flush().unwrap();
    assert_eq!(subscribe(&ours, second_channel, "5"), one("closed"));
    assert_eq!(support::recv_close(&mut second).0, 4000);
    inbound.closed(&ours);
    assert_eq!(subscribe(&ours, second_channel, "5"), one("not_found"));
    assert_eq!(publish(&ours, "2", "still", &[]), sent(1));
    assert_eq!(recv(&mut client).into_text().unwrap(), "still");
}

#[test]
fn who_asked_is_told_of_who_joins_and_who_leaves() {
    let broker = broker(support::driver(), |_| {});
    let options = AttachOptions { wants_topics: true, ..AttachOptions::default() };
    let rooms = process(&broker, "rooms", options);
    let mut inbound = Inbound::default();
    let (client, channel) = inbound.open(&broker, &rooms);
    let joined = |inbound: &mut Inbound| match inbound.next(&rooms) {
        Event::Joined { channel, topic } => (channel, topic.to_string()),
        other => panic!("expected Joined, got {other:?}"),
    };
    let left = |inbound: &mut Inbound| match inbound.next(&rooms) {
        Event::Left { channel, topic } => (channel, topic.to_string()),
        other => panic!("expected Left, got {other:?}"),
    };
    for topic in ["a", "a", "b"] {
        subscribe(&rooms, channel, topic);
    }
    assert_eq!(joined(&mut inbound), (channel, "a".to_owned()));
    assert_eq!(joined(&mut inbound), (channel, "b".to_owned()));
    unsubscribe(&rooms, channel, "a");
    unsubscribe(&rooms, channel, "a");
    assert_eq!(left(&mut inbound), (channel, "a".to_owned()));
    drop(client);
    assert_eq!(left(&mut inbound), (channel, "b".to_owned()));
    assert_eq!(inbound.closed(&rooms).channel, channel);
}

#[test]
fn topics_are_listed_page_by_page_and_by_prefix() {
    let broker = broker(support::driver(), |_| {});
    let rooms = process(&broker, "rooms", AttachOptions::default());
    let mut inbound = Inbound::default();
    let (_client, channel) = inbound.open(&broker, &rooms);
    for n in 0..30 {
        subscribe(&rooms, channel, &format!("room/{n:02}"));
    }
    subscribe(&rooms, channel, "zoo");
    let query = |prefix: &str, after: Option<&str>, limit| {
        let page = broker.handle().topics(&pushring::TopicQuery {
            process: rooms.id().clone(),
            prefix: prefix.to_owned(),
            after: after.map(str::to_owned),
            limit: Some(limit),
        });
        page.iter().map(|report| report.topic.to_string()).collect::<Vec<_>>()
    };
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = query("room/", after.as_deref(), 7);
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        seen.extend(page);
    }
    assert_eq!(seen, (0..30).map(|n| format!("room/{n:02}")).collect::<Vec<_>>());
    assert_eq!(query("z", None, 9), ["zoo"]);
    assert_eq!(query("", Some("room/28"), 9), ["room/29", "zoo"]);
    let filter = pushring::ChannelFilter { channel: Some(channel), ..Default::default() };
    let report = broker.handle().channels(&filter, 0, 1).0.remove(0);
    assert_eq!((report.subscriptions, report.topics.len(), &*report.topics[30]), (31, 31, "zoo"));
}
