//! The replay for returning clients, and history that a crowd of strangers cannot take away.

use super::*;
use crate::shard::out::kept_channels::ResumeHolder;
use std::net::{IpAddr, Ipv4Addr};

const OWNER: OwnerId = OwnerId(1);
const STRANGER: u32 = 1000;

fn path(path: &str) -> ListenerAudience {
    ListenerAudience::Path(path.into())
}

fn topic(number: usize) -> ListenerAudience {
    ListenerAudience::Topic(format!("public/{number}").into())
}

fn client(number: u32) -> DepartedClient {
    Some(IpAddr::from(Ipv4Addr::from_bits(number)).into())
}

fn belongs_to(audiences: impl IntoIterator<Item = ListenerAudience>) -> ReturningAudiences {
    ReturningAudiences { to: audiences.into_iter().collect(), has_all_topics: true }
}

struct Scene {
    kept: KeptFrames,
    journal: Journal,
}

impl Scene {
    /// Each of these has a listener.
    fn new(now_ms: u64, audiences: impl IntoIterator<Item = ListenerAudience>) -> Self {
        let mut journal = Journal::new(now_ms);
        journal.enter(audiences);
        Self { kept: KeptFrames::default(), journal }
    }

    fn event(&mut self, audience: ListenerAudience, now_ms: u64) -> Range {
        let keeper = self.journal.keeper(OWNER, &audience);
        let event: [&[u8]; 3] = [b"id: x\n\n", b"", b""];
        let range = self.kept.append_joined(keeper, now_ms, event, |_| SharedCharge::default());
        self.journal.record(audience, range, now_ms);
        self.journal.check();
        range
    }

    fn last(&self) -> u64 {
        self.journal.next() - 1
    }

    fn since(&self, last: u64, audience: ListenerAudience) -> (Vec<Range>, u64, bool) {
        let replay = self.journal.since(last, 1 << 20, &self.kept, &belongs_to([audience]));
        (replay.ranges, replay.from, replay.has_gap)
    }

    fn trim(&mut self, before_ms: u64, now_ms: u64) -> bool {
        let is_over = self.journal.trim(before_ms, now_ms, &self.kept);
        self.journal.check();
        is_over
    }
}

#[test]
fn who_comes_back_hears_its_own_and_no_more() {
    let mut scene = Scene::new(5, [path("/a"), path("/b")]);
    let last = scene.last();
    let first = scene.event(path("/a"), 5);
    scene.event(path("/b"), 5);
    let third = scene.event(path("/a"), 5);
    assert_eq!(scene.since(last, path("/a")), (vec![first, third], last, false));
    assert_eq!(scene.since(last + 1, path("/a")).0, [third]);
    assert_eq!(scene.since(last + 3, path("/a")), (vec![], last + 3, false));
    assert!(scene.since(last + 4, path("/a")).2, "it names what was not sent yet");
    assert!(scene.since(last - 1, path("/a")).2, "or what was before");
    scene.event(ListenerAudience::Listed, 5);
    let fifth = scene.event(path("/a"), 5);
    assert_eq!(scene.since(last, path("/a")), (vec![fifth], last + 4, true));
    let replay = scene.journal.since(last + 4, 3, &scene.kept, &belongs_to([path("/a")]));
    assert_eq!((replay.ranges, replay.from, replay.has_gap), (vec![], last + 5, true), "there is room for no more");
}

#[test]
fn who_is_subscribed_by_its_process_is_told_of_a_gap_where_topics_had_events() {
    let mut scene = Scene::new(5, [path("/a"), topic(1)]);
    let unknown = ReturningAudiences { has_all_topics: false, ..belongs_to([path("/a")]) };
    let last = scene.last();
    scene.event(path("/a"), 5);
    assert!(!scene.journal.since(last, 1 << 20, &scene.kept, &unknown).has_gap);
    scene.event(topic(1), 5);
    let behind = scene.event(path("/a"), 5);
    let replay = scene.journal.since(last, 1 << 20, &scene.kept, &unknown);
    assert_eq!((replay.ranges, replay.from, replay.has_gap), (vec![behind], last + 2, true));
    assert_eq!(scene.since(last, topic(1)).0.len(), 1, "who names its topics is given them");
}

#[test]
fn who_names_what_nobody_listened_to_here_is_told_of_a_gap() {
    let mut scene = Scene::new(5, [path("/a"), topic(1)]);
    let last = scene.last();
    assert!(!scene.since(last, topic(1)).2);
    assert!(scene.since(last, topic(2)).2, "what was published to it did not come to this shard");
    scene.journal.join(&topic(2));
    let later = scene.last();
    let event = scene.event(topic(2), 5);
    assert_eq!(scene.since(later, topic(2)), (vec![event], later, false));
}

#[test]
fn history_ends_and_so_does_a_journal() {
    let mut scene = Scene::new(0, [path("/a")]);
    let last = scene.last();
    scene.event(path("/a"), 10);
    let second = scene.event(path("/a"), 20);
    assert!(!scene.trim(15, 20));
    assert_eq!(scene.since(last, path("/a")), (vec![second], last + 1, true));
    scene.journal.leave([path("/a")], client(1), 50);
    assert!(scene.journal.awaits(&path("/a"), 50) && !scene.journal.awaits(&path("/b"), 50));
    assert!(!scene.trim(15, 50) && scene.trim(60, 51));
    assert!(Journal::new(51).next() > scene.journal.next(), "counts are not used again");
}

#[test]
fn who_is_not_waited_for_any_more_is_told_of_a_gap_once_something_was_pushed() {
    let mut scene = Scene::new(0, []);
    scene.journal.enter([path("/a"), path("/b")]);
    let last = scene.last();
    scene.journal.leave([path("/a"), path("/b")], client(1), 50);
    assert!(!scene.trim(0, 51));
    assert_eq!(scene.since(last, path("/a")), (vec![], last, false), "nothing was pushed yet");
    (0..3).for_each(|_| scene.journal.skip(&path("/b")));
    assert_eq!(scene.since(last, path("/a")), (vec![], last, false), "what was pushed was not for it");
    scene.journal.skip(&path("/a"));
    assert!(scene.since(last, path("/a")).2 && scene.since(last, path("/b")).2);
    // A later listener has missed nothing.
    scene.journal.join(&path("/a"));
    let later = scene.last();
    let behind = scene.event(path("/a"), 53);
    assert_eq!(scene.since(later, path("/a")), (vec![behind], later, false));
    assert!(scene.since(last, path("/a")).2);
}

#[test]
fn a_push_that_leaves_out_the_one_who_listens_is_a_gap_for_those_who_left() {
    let mut scene = Scene::new(0, []);
    scene.journal.enter([path("/a")]);
    scene.journal.enter([path("/a")]);
    let last = scene.last();
    scene.journal.leave([path("/a")], client(1), 50);
    scene.trim(0, 51);
    scene.journal.skip(&path("/a"));
    assert_eq!(scene.since(last, path("/a")), (vec![], last + 1, true));
    scene.journal.skip(&path("/a"));
    assert_eq!(scene.last(), last + 1, "nobody is waited for, so nobody has missed the next one");
}

#[test]
fn what_a_stranger_leaves_costs_nobody_else_what_it_missed() {
    let mut scene = Scene::new(0, [ListenerAudience::Process]);
    let last = scene.last();
    scene.journal.join(&topic(0));
    scene.journal.part(topic(0), client(1), 50, None);
    for number in 1..=3 * AUDIENCES_MAX {
        scene.journal.join(&topic(number));
        scene.journal.part(topic(number), client(STRANGER), 50, None);
    }
    let missed = scene.event(topic(0), 5);
    scene.journal.check();
    assert_eq!(scene.since(last, topic(0)), (vec![missed], last, false));
    assert!(scene.since(last, topic(1)).2, "what it has left itself it is told of as a gap");
    // Nor if it leaves what is another's, too, or if all of it is not waited for any more.
    scene.journal.part(topic(0), client(STRANGER), 60, None);
    scene.trim(0, 55);
    for number in 4 * AUDIENCES_MAX..6 * AUDIENCES_MAX {
        scene.journal.join(&topic(number));
        scene.journal.part(topic(number), client(STRANGER), 90, None);
    }
    scene.journal.check();
    assert_eq!(scene.since(last, topic(0)), (vec![missed], last, false));
}

#[test]
fn an_audience_that_is_sent_much_does_not_cost_a_quiet_one_its_history() {
    let mut scene = Scene::new(0, (0..LANES).map(topic));
    let last = scene.last();
    let first = scene.event(topic(7), 1);
    for _ in 0..2 * ENTRIES_MAX {
        scene.event(topic(8), 1);
    }
    assert_eq!(scene.since(last, topic(7)), (vec![first], last, false));
    assert!(scene.since(last, topic(8)).2);
    // Nor does it where history is short of memory.
    while scene.kept.bytes() > 64 << 10 && scene.kept.shed(0) {}
    scene.trim(0, 1);
    assert_eq!(scene.since(last, topic(7)), (vec![first], last, false));
    assert!(scene.since(last + 2, topic(8)).2);
}

#[test]
fn what_was_for_one_alone_is_told_as_a_gap_when_it_is_forgotten() {
    let one = |user: Option<&str>| ListenerAudience::One(ResumeHolder::of("/a", user));
    let mut scene = Scene::new(0, [path("/a")]);
    let last = scene.last();
    let event = scene.event(one(Some("ann")), 10);
    assert_eq!(scene.since(last, one(Some("ann"))), (vec![event], last, false));
    assert_eq!(scene.since(last, one(Some("bob"))), (vec![], last, false));
    scene.event(one(None), 20);
    assert_eq!(scene.since(last, one(None)), (vec![], last + 2, true), "it may have been another's of that path");
    assert!(!scene.trim(30, 30) && scene.journal.entries == 0 && scene.journal.audiences.len() == 1);
    assert!(scene.since(last, one(Some("ann"))).2 && scene.since(last, one(None)).2);
    assert!(!scene.since(last + 2, one(None)).2);
}
