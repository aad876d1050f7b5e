//! What the hub does with events that come late.

use super::*;
use crate::broker::Broker;
use crate::gateway::patterns;

/// A hub that has heard nothing.
fn silent() -> (Broker, Hub) {
    let broker = Broker::builder().listen("127.0.0.1:0").shards(1).start().unwrap();
    let process = broker.process(PROCESS).unwrap();
    let memory = process.handle().memory().clone();
    let (sessions, ends, unheard) = Default::default();
    let turns = ClientTurns::new(&memory);
    let hub = Hub { process, memory, broker: broker.handle(), calls: None, turns, sessions, ends, unheard };
    (broker, hub)
}

#[test]
fn however_many_wait_for_other_nodes_no_answer_is_given_before_they_know() {
    let (_broker, mut hub) = silent();
    let channel = ChannelId::new(7);
    hub.hold(channel, Arc::new(Grant::default()));
    let (tellers, tickets): (Vec<_>, Vec<_>) = (0..5_000).map(|_| Ticket::<Outcome>::untold()).unzip();
    for ticket in tickets {
        hub.answer_later(channel, grammar::done("subscribed", &"a".into(), Some(1)), true, ticket).unwrap();
    }
    let answered = |hub: &mut Hub| {
        hub.answer_heard().unwrap();
        hub.sessions[&channel].answers.len()
    };
    assert_eq!((answered(&mut hub), hub.unheard.len()), (0, 5_000));
    assert!(hub.memory.tenant().total() > 5_000 * size_of::<PendingAnswer>());
    let before = hub.memory.tenant().total();
    let mut tellers = tellers.into_iter();
    tellers.by_ref().take(3).for_each(|teller| teller(Outcome::default()));
    assert_eq!((answered(&mut hub), hub.unheard.len()), (3, 4_997));
    tellers.for_each(|teller| teller(Outcome::default()));
    assert_eq!((answered(&mut hub), hub.unheard.capacity()), (answers::ANSWERS_MAX, 0));
    assert!(hub.memory.tenant().total() < before / 100);
}

#[test]
fn nothing_is_said_by_a_token_that_has_ended() {
    let (_broker, mut hub) = silent();
    let told = vec![WebhookEvent::Message];
    let queue = WebhookQueue::new(CallLimits { told, events_max: 10, bytes_max: 10_000 });
    hub.calls = Some(queue.clone());
    let channel = ChannelId::new(7);
    let now_s = clock::unix_s();
    for (expires_unix_s, told) in [(None, 1), (Some(now_s + 600), 2), (Some(now_s), 2)] {
        hub.hold(channel, Arc::new(Grant { expires_unix_s, ..Grant::default() }));
        hub.message(channel, MessageKind::Text, &Bytes::from_static(b"x")).unwrap();
        assert_eq!(queue.waiting(), told);
        hub.forget(channel);
    }
}

#[test]
fn nothing_is_ordered_by_a_token_that_has_ended() {
    let (_broker, mut hub) = silent();
    let channel = ChannelId::new(7);
    let all = patterns(&["*".to_owned()]).unwrap();
    let mut answered = |expires_unix_s| {
        let rights = Grant { may_publish: all.clone(), expires_unix_s, ..Grant::default() };
        hub.hold(channel, Arc::new(rights));
        hub.said(channel, br#"{"publish":"a","text":"x","id":1}"#).unwrap();
        let answers = hub.sessions[&channel].answers.len();
        hub.forget(channel);
        answers
    };
    let now_s = clock::unix_s();
    assert_eq!((answered(None), answered(Some(now_s + 600)), answered(Some(now_s))), (1, 1, 0));
}
