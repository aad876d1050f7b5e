//! The reaction of one node to well-behaved nodes, to hostile ones and to noise.

use super::*;
use crate::proto::MessageKind;
use crate::shard::command::PushFrame;

const NOW_MS: u64 = 1_000_000;

impl Member {
    /// Wants to hear what is said to an audience.
    pub(in crate::fleet) fn listen(&mut self, target: &Target, now_ms: u64) -> (AudienceKey, Wanted) {
        self.listen_if(target, now_ms, || true)
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn options(node: &str) -> Options {
    Options { subjects_max: 64, ..Options::new(name(node)) }
}

fn member(node: &str) -> Member {
    Member::new(&options(node), 1, 0)
}

fn process() -> ProcessId {
    "chat:demo:sys".parse().unwrap()
}

fn topic(text: &str) -> Target {
    Target { process: process(), to: NamedAudience::Topic(text.into()) }
}

fn to_topic(topic: &str, text: &str) -> OutboundPush {
    let frame = PushFrame { kind: PushKind::Message(MessageKind::Text), payload: text.to_owned().into() };
    OutboundPush {
        process: process(),
        to: OutboundTo::All(NamedAudience::Topic(topic.into())),
        frame,
        policy: None,
        asks: false,
    }
}

fn to_channel(node: &str, channel: u32, text: &str) -> OutboundPush {
    OutboundPush { to: OutboundTo::Channels(name(node), vec![ChannelId::new(channel)]), ..to_topic("", text) }
}

/// A message with another subject.
fn under(subject: &str, publish: &Publish) -> Publish {
    Publish { subject: subject.to_owned(), bytes: publish.bytes.clone() }
}

fn receive(member: &mut Member, publish: &Publish) -> Effects {
    member.receive(&publish.subject, &publish.bytes, NOW_MS)
}

fn texts(received: &Effects) -> Option<String> {
    let delivery = received.delivery.as_ref()?;
    Some(String::from_utf8(delivery.message.payload().to_vec()).unwrap())
}

fn refusal(received: &Effects) -> Refusal {
    match received.told[..] {
        [FleetNews::Refused { why, .. }] if received.delivery.is_none() => why,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_said_to_an_audience_is_heard_by_who_listens() {
    let (mut a, mut b) = (member("a"), member("b"));
    assert_eq!(b.listen(&topic("room"), 0).1, Wanted::New);
    let first = a.publish(to_topic("room", "one"), NOW_MS).unwrap().push;
    assert_eq!(first.bytes.len(), Member::bytes_of(&name("a"), &to_topic("room", "one")));
    let received = receive(&mut b, &first);
    assert_eq!((texts(&received).as_deref(), received.told.len()), (Some("one"), 0));
    let delivery = received.delivery.unwrap();
    assert_eq!((delivery.process, delivery.channels), (process(), Channels::Of(NamedAudience::Topic("room".into()))));
    // By reference to what came in.
    let (range, payload) = (first.bytes.as_ptr_range(), delivery.message.payload().as_ptr());
    assert!(range.contains(&payload));
    assert_eq!(texts(&receive(&mut b, &first)), None, "twice is once");
    assert_eq!(b.counts.late, 1);
    let [second, third] = ["two", "three"].map(|text| a.publish(to_topic("room", text), NOW_MS).unwrap().push);
    let received = receive(&mut b, &third);
    assert_eq!(texts(&received).as_deref(), Some("three"));
    assert!(
        matches!(&received.told[..], [FleetNews::Lost { to: Some(to), count: Some(1), .. }] if *to == topic("room"))
    );
    assert_eq!(receive(&mut b, &second), Effects::default());
    assert_eq!((b.counts.received, b.counts.lost, b.counts.late), (2, 1, 2));
    let other = a.publish(to_topic("another", "x"), NOW_MS).unwrap().push;
    assert_eq!(receive(&mut b, &other), Effects::default(), "nobody listens here");
}

#[test]
fn channels_of_a_node_are_reached_by_its_name() {
    let (mut a, mut b, mut c) = (member("a"), member("b"), member("c"));
    let push = a.publish(to_channel("b", 7, "you"), NOW_MS).unwrap().push;
    assert_eq!(push.subject, "pushring.v1.main.a.channels.b");
    let delivery = receive(&mut b, &push).delivery.unwrap();
    assert_eq!(delivery.channels, Channels::List(vec![ChannelId::new(7)]));
    assert_eq!(refusal(&receive(&mut c, &push)), Refusal::Subject, "it is not for c");
    let lost = a.publish(to_channel("b", 7, "lost"), NOW_MS).unwrap().push;
    drop(lost);
    let (said, _) = a.tick(NOW_MS, Announcement::default());
    said.iter().for_each(|said| assert!(receive(&mut b, said).delivery.is_none()));
    let (_, told) = b.tick(NOW_MS + 999, Announcement::default());
    assert!(told.is_empty(), "it may be on its way");
    let (_, told) = b.tick(NOW_MS + 1000, Announcement::default());
    assert!(matches!(told[..], [FleetNews::Lost { count: Some(1), to: None, .. }]), "{told:?}");
}

#[test]
fn what_a_node_may_not_say_is_refused_and_told() {
    let (mut a, mut b) = (member("a"), member("b"));
    b.listen(&topic("room"), 0);
    b.listen(&topic(">"), 0);
    let message = a.publish(to_topic("room", "x"), NOW_MS).unwrap().push;
    let forged = message.subject.replace(".a.", ".c.");
    assert_eq!(refusal(&receive(&mut b, &under(&forged, &message))), Refusal::Source);
    let elsewhere = b.subjects.of_line("a", &topic(">").line());
    assert_eq!(refusal(&receive(&mut b, &under(&elsewhere, &message))), Refusal::Subject);
    let of_another_kind = message.subject.replace(".topic.", ".path.");
    assert_eq!(refusal(&receive(&mut b, &under(&of_another_kind, &message))), Refusal::Subject);
    assert_eq!(refusal(&receive(&mut b, &under("another.fleets.subject", &message))), Refusal::Subject);

    let mut newer = message.bytes.to_vec();
    newer[1] = 9;
    let newer = Publish { bytes: newer.into(), ..message.clone() };
    assert_eq!(refusal(&receive(&mut b, &newer)), Refusal::Version(9));
    for bytes in [&b""[..], b"P", b"{\"topic\":1}", &message.bytes[..30]] {
        let noise = Publish { bytes: Bytes::copy_from_slice(bytes), ..message.clone() };
        assert_eq!(refusal(&receive(&mut b, &noise)), Refusal::Malformed);
    }
    let mut no_text = to_topic("room", "");
    no_text.frame.payload = Bytes::from_static(&[0xFF]);
    let no_text = a.publish(no_text, NOW_MS).unwrap().push;
    assert_eq!(refusal(&receive(&mut b, &no_text)), Refusal::Malformed);
    let no_about = Publish { subject: "pushring.v1.main.a.node.all".to_owned(), ..a.say(Kind::Node, b"no json") };
    assert_eq!(refusal(&receive(&mut b, &no_about)), Refusal::Malformed);
    let no_tails = a.say(Kind::Tails, &[0; 8 + TAIL_BYTES - 1]);
    assert_eq!(refusal(&receive(&mut b, &no_tails)), Refusal::Malformed);

    let twin = Member::new(&options("b"), 2, 0).say(Kind::Node, b"{}");
    assert_eq!(refusal(&receive(&mut b, &twin)), Refusal::Twin);
    let own = b.say(Kind::Node, b"{}");
    assert_eq!(receive(&mut b, &own), Effects::default());
    let counts = b.counts;
    assert_eq!((counts.refused_source, counts.refused_subject, counts.refused_version), (1, 3, 1));
    assert_eq!((counts.refused_malformed, counts.refused_twin, counts.received), (7, 1, 0));
}

#[test]
fn a_hostile_node_fills_nothing() {
    let mut b = member("b");
    b.listen(&topic("room"), 0);
    // A million subjects: those without a listener take no room.
    let mut tails = 0u64.to_be_bytes().to_vec();
    for n in 0..TAILS_PER_MESSAGE as u64 {
        let line = AudienceKey { kind: Kind::Topic, hash: u128::from(n).to_be_bytes() };
        write_tail(&Tail { line, stream: 1, last: u64::MAX, age_ms: u64::MAX }, &mut tails);
    }
    let mut a = member("a");
    for _ in 0..20 {
        let said = a.say(Kind::Tails, &tails);
        receive(&mut b, &said);
    }
    assert_eq!(b.sizes(), [1, 0, 0]);
    // And of one audience as many sources as it likes.
    for n in 0..1000 {
        let message = member(&format!("n{n}")).publish(to_topic("room", "x"), NOW_MS).unwrap().push;
        let received = receive(&mut b, &message);
        assert_eq!(received.told.len(), usize::from(n >= 64), "what is forgotten for it is told");
    }
    assert_eq!((b.sizes()[2], b.counts.gaps_unknown), (64, 1000 - 64));
    for n in 0..200 {
        b.listen(&topic(&n.to_string()), 0);
    }
    assert_eq!((b.sizes()[0], b.listens_refused()), (64, 200 - 63));
    for n in 0..2000 {
        a.publish(to_topic(&n.to_string(), "x"), NOW_MS).unwrap();
    }
    assert_eq!(a.sizes()[1], 64);
    assert!(a.tick(NOW_MS, Announcement::default()).0.iter().all(|said| said.bytes.len() < 32 << 10));
}

#[test]
fn who_comes_back_is_told_everything_again() {
    let (mut a, mut b) = (member("a"), member("b"));
    b.listen(&topic("room"), 0);
    let first = a.publish(to_topic("room", "1"), NOW_MS).unwrap().push;
    receive(&mut b, &first);
    a.publish(to_topic("room", "lost"), NOW_MS).unwrap();
    // Announced until it is dropped, though without a listener.
    let tails = |said: &[Publish]| -> usize { said[1..].iter().map(|said| said.bytes.len()).sum() };
    let announced = tails(&a.tick(NOW_MS, Announcement::default()).0);
    let silent = (0..10).map(|_| tails(&a.tick(NOW_MS, Announcement::default()).0)).last().unwrap();
    assert_eq!(announced, silent + TAIL_BYTES);
    b.reconnected(0);
    let (said, _) = b.tick(NOW_MS, Announcement::default());
    said.iter().for_each(|said| drop(receive(&mut a, said)));
    let (said, _) = a.tick(NOW_MS, Announcement::default());
    assert_eq!(tails(&said), announced);
    said.iter().for_each(|said| drop(receive(&mut b, said)));
    let (_, told) = b.tick(NOW_MS + 1000, Announcement::default());
    assert!(matches!(told[..], [FleetNews::Lost { count: Some(1), .. }]), "{told:?}");
    assert_eq!(b.seen(NOW_MS + 1000).0[0].lost, 1);
    assert_eq!(b.seen(NOW_MS + 1000).1.last().unwrap().to, "chat:demo:sys topic room");
}

#[test]
fn nodes_say_what_became_of_a_push() {
    let (mut a, mut b, mut c) = (member("a"), member("b"), member("c"));
    b.listen(&topic("room"), 0);
    let ask = |member: &mut Member, outbound| member.publish(OutboundPush { asks: true, ..outbound }, NOW_MS).unwrap();
    let alone = ask(&mut a, to_topic("room", "x"));
    assert_eq!((alone.ask, alone.asked), (None, Some(Err(OnNodes::default()))), "nobody is there");
    for node in [&mut b, &mut c] {
        let (said, _) = node.tick(NOW_MS, Announcement::default());
        said.iter().for_each(|said| drop(receive(&mut a, said)));
    }
    let Numbered { push, ask: asking, asked } = ask(&mut a, to_topic("room", "x"));
    let (asking, Some(Ok(number))) = (asking.unwrap(), asked) else { panic!("they are there") };
    let (node, at) = receive(&mut b, &push).delivery.unwrap().asked.unwrap();
    assert_eq!((node.as_str(), at, receive(&mut b, &asking)), ("a", number, Effects::default()), "its push says it");
    let from_b = b.answer(&node, at, &Outcome { sent: 3, ..Outcome::default() });
    let from_c = receive(&mut c, &asking).answer.unwrap();
    assert_eq!(refusal(&receive(&mut c, &from_b)), Refusal::Subject, "it is for a");
    assert_eq!(receive(&mut a, &from_c), Effects::default());
    let QuestionResult { ask: settled, on_nodes, .. } = receive(&mut a, &from_b).settled.unwrap();
    assert_eq!((settled, on_nodes.said["b"].sent, on_nodes.said["c"]), (number, 3, Outcome::default()));
    assert!(!on_nodes.is_partial && receive(&mut a, &from_b).settled.is_none());
    // One node alone, which need not be there.
    let Numbered { push, ask: asking, asked } = ask(&mut a, to_channel("d", 7, "x"));
    assert_eq!((asking, push.subject.ends_with(".channels.d")), (None, true));
    let on_nodes = a.give_up(asked.unwrap().unwrap()).unwrap();
    assert_eq!((on_nodes.is_partial, on_nodes.silent.contains("d"), on_nodes.said.len()), (true, true, 0));
    // A malformed answer is refused.
    let cut = Header::about(Kind::Answer, name("b"), 1, 1).write(b"x").unwrap().into();
    let cut = Publish { subject: a.subjects.to_node("b", Kind::Answer, "a"), bytes: cut };
    assert_eq!(refusal(&receive(&mut a, &cut)), Refusal::Malformed);
}

#[test]
fn a_node_is_asked_of_its_channels_alone_and_refuses_noise() {
    let (mut a, mut b) = (member("a"), member("b"));
    let channel = ChannelId::new(7);
    let ask = |a: &mut Member, what| {
        let (publish, asked) = a.ask_of_channel(&name("b"), channel, &what).unwrap();
        (publish, asked.unwrap())
    };
    let (look, number) = ask(&mut a, ChannelQuestion::Look);
    let asked = receive(&mut b, &look).of_channel.unwrap();
    assert_eq!((asked.source.as_str(), asked.ask, asked.channel), ("a", number, channel));
    assert_eq!(asked.what, ChannelQuestion::Look);
    // There is none; then it is found, with more topics than are told.
    let settled = receive(&mut a, &b.shown(&name("a"), number, None)).settled.unwrap();
    assert_eq!((settled.shown, settled.on_nodes.said.len()), (None, 1));
    let number = ask(&mut a, ChannelQuestion::Look).1;
    let report = ChannelReport {
        channel,
        process: process(),
        path: "/".into(),
        peer: ([127, 0, 0, 1], 1).into(),
        forwarded_for: None,
        queued_bytes: 0,
        kept_bytes: 0,
        is_detached: false,
        age_s: 1,
        silent_ms: 1,
        ping_ms: None,
        is_closing: false,
        subscriptions: 1000,
        topics: (0..1000).map(|n| format!("{n:0200}").into()).collect(),
    };
    let shown = b.shown(&name("a"), number, Some(report));
    assert!(shown.bytes.len() < SHOWN_BYTES_MAX + 1000);
    let shown = receive(&mut a, &shown).settled.unwrap().shown.unwrap();
    assert_eq!((shown.channel, shown.subscriptions, shown.topics.len()), (channel, 1000, 0));
    // A reason is cut as a close frame's is; the rest is refused.
    let (close, _) = ask(&mut a, ChannelQuestion::Close(4000, "ü".repeat(100).into()));
    let Some(ChannelAsked { what: ChannelQuestion::Close(4000, reason), .. }) = receive(&mut b, &close).of_channel
    else {
        panic!("it is asked to close it")
    };
    assert_eq!(reason.len(), close::REASON_BYTES_MAX - 1);
    let subject = look.subject.clone();
    let made = |kind, channels: &[u32], payload: &[u8]| {
        let mut header = Header::about(kind, name("a"), 1, 1);
        header.channels = channels.iter().map(|id| ChannelId::new(*id)).collect();
        Publish { subject: subject.clone(), bytes: header.write(payload).unwrap().into() }
    };
    for noise in [
        made(Kind::Look, &[], b""),
        made(Kind::Look, &[1, 2], b""),
        made(Kind::Look, &[1], b"x"),
        made(Kind::Close, &[1], b""),
        made(Kind::Close, &[1], &1005u16.to_be_bytes()),
        made(Kind::Close, &[1], &[3, 232, 0xff]),
        made(Kind::Close, &[1], &[3; 200]),
    ] {
        assert_eq!(refusal(&receive(&mut b, &noise)), Refusal::Malformed, "{noise:?}");
    }
    let mut c = member("c");
    assert_eq!(refusal(&receive(&mut c, &look)), Refusal::Subject, "it is for b");
    let noise = Header::about(Kind::Shown, name("b"), 1, 1).write(&[&[0; 8][..], b"{}"].concat()).unwrap().into();
    let noise = Publish { subject: a.subjects.to_node("b", Kind::Shown, "a"), bytes: noise };
    assert_eq!(refusal(&receive(&mut a, &noise)), Refusal::Malformed);
}
