//! What the hub does with events that come late.

use super::*;
use crate::broker::Broker;
use crate::gateway::patterns;

#[test]
fn nothing_is_ordered_by_a_token_that_has_ended() {
    let broker = Broker::builder().listen("127.0.0.1:0").shards(1).start().unwrap();
    let process = broker.process(PROCESS).unwrap();
    let memory = process.handle().memory().clone();
    let (sessions, ends, unheard) = Default::default();
    let turns = ClientTurns::new(&memory);
    let mut hub = Hub { process, memory, broker: broker.handle(), calls: None, turns, sessions, ends, unheard };
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
