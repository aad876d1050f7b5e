//! The log against a naive reference: a list of all messages with the fate of each.

use super::*;
use crate::gateway::OwnerId;
use crate::proto::{Opcode, server_header};
use crate::shard::memory::SharedCharge;
use crate::shard::out::kept::KeptFor;
use crate::shard::out::range::RangeBytes;
use proptest::prelude::*;

const OWNER: KeptFor = KeptFor { owner: OwnerId(1), lane: 0 };

/// One message as the twin has it: its key, and whether it is still to come.
#[derive(Debug, Clone, Copy)]
struct Message {
    key: Option<u64>,
    is_there: bool,
}

#[derive(Default)]
struct Scene {
    kept: KeptFrames,
    log: Log,
    messages: Vec<Message>,
    /// The position up to which the client has been given messages.
    given: u64,
}

impl Scene {
    fn frame(&mut self) -> Range {
        let payload = format!("message {}", self.messages.len());
        let header = server_header(Opcode::Text, false, payload.len());
        let parts = [header.as_slice(), b"", payload.as_bytes()];
        self.kept.append_joined(OWNER, 0, parts, |_| SharedCharge::default())
    }

    fn note(&mut self, key: Option<u64>, is_there: bool) {
        self.messages.push(Message { key, is_there });
    }

    fn read(&self, range: Range) -> Vec<u64> {
        let Some(RangeBytes::Joined(mut bytes)) = self.kept.get(range) else { panic!("only what is there is given") };
        let mut numbers = Vec::new();
        while !bytes.is_empty() {
            let len = crate::proto::server_frame_len(bytes).unwrap();
            let text = std::str::from_utf8(&bytes[2..len]).unwrap();
            numbers.push(text.strip_prefix("message ").unwrap().parse().unwrap());
            bytes = &bytes[len..];
        }
        numbers
    }

    /// Gives the client the next step, and checks it against the twin.
    fn step(&mut self) -> bool {
        let Some(next) = self.log.next(&self.kept, usize::MAX) else {
            assert_eq!(self.given, self.messages.len() as u64, "all was given");
            return false;
        };
        for position in self.given..self.given + next.missing {
            assert!(!self.messages[position as usize].is_there, "message {position} is not missing");
        }
        self.given += next.missing;
        for number in next.range.map(|range| self.read(range)).unwrap_or_default() {
            assert_eq!(number, self.given, "messages come in order");
            assert!(self.messages[number as usize].is_there, "message {number} was taken out");
            self.given += 1;
        }
        true
    }
}

#[derive(Debug, Clone)]
enum Act {
    Now,
    Later(Option<u64>),
    UncountedLoss,
    DropOldest(usize),
    Step,
    Acknowledge(u8),
    Rewind(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => Just(Act::Now),
        4 => Just(Act::Later(None)),
        4 => (0..3u64).prop_map(|key| Act::Later(Some(key))),
        1 => Just(Act::UncountedLoss),
        1 => (1..200usize).prop_map(Act::DropOldest),
        4 => Just(Act::Step),
        1 => any::<u8>().prop_map(Act::Acknowledge),
        2 => any::<u8>().prop_map(Act::Rewind),
    ]
}

proptest! {
    #[test]
    fn both_counts_are_those_of_a_naive_twin(acts in proptest::collection::vec(act(), 1..200)) {
        let mut scene = Scene::default();
        let (mut acknowledged, mut again_until) = (0, 0);
        for act in acts {
            match act {
                Act::Now if scene.log.lags() => {}
                Act::Now => {
                    let range = scene.frame();
                    scene.log.append_sent(range, &scene.kept, usize::MAX);
                    scene.note(None, true);
                    scene.given += 1;
                }
                Act::Later(key) => {
                    let range = scene.frame();
                    if let Some(key) = key {
                        let given = scene.given as usize;
                        let older = scene.messages.iter().rposition(|message| message.key == Some(key));
                        let waits = older.filter(|&at| at >= given.max(again_until) && scene.messages[at].is_there);
                        let was_there = scene.log.take_out(key);
                        if let Some(at) = waits {
                            prop_assert!(was_there, "message {at} waits");
                            scene.messages[at].is_there = false;
                        } else if was_there {
                            // One that was sent once and is sent again.
                            scene.messages[older.unwrap()].is_there = false;
                        }
                    }
                    scene.log.append_unsent(range, key);
                    scene.note(key, true);
                }
                Act::UncountedLoss => {
                    scene.log.append_missing(1);
                    scene.note(None, false);
                }
                Act::DropOldest(bytes) => {
                    let (messages, dropped) = scene.log.drop_oldest(bytes, &scene.kept);
                    let from = (scene.given as usize).max(again_until);
                    let waiting: Vec<usize> = (from..scene.messages.len()).filter(|&at| scene.messages[at].is_there).collect();
                    prop_assert!(messages <= waiting.len() && (dropped >= bytes || messages == waiting.len()));
                    waiting[..messages].iter().for_each(|&at| scene.messages[at].is_there = false);
                }
                Act::Step => drop(scene.step()),
                Act::Acknowledge(share) => {
                    let received = scene.given * u64::from(share) / 255;
                    prop_assert!(scene.log.acknowledged(received));
                    acknowledged = acknowledged.max(received);
                    prop_assert!(!scene.log.acknowledged(scene.log.told() + 1));
                }
                Act::Rewind(share) => {
                    let received = acknowledged + (scene.given - acknowledged) * u64::from(share) / 255;
                    let told = scene.log.told();
                    prop_assert_eq!(scene.log.rewind(received, &scene.kept), Some(0), "all since the last ack is there");
                    again_until = again_until.max(told as usize);
                    // It says what it has received.
                    (scene.given, acknowledged) = (received, received);
                }
            }
            scene.log.check();
            prop_assert_eq!(scene.log.position(), scene.messages.len() as u64);
            prop_assert_eq!(scene.log.told(), scene.given);
        }
        while scene.step() {}
        prop_assert!(!scene.log.lags() && scene.log.unsent_bytes() == 0 && scene.log.queued_bytes() == 0);
    }
}

fn filled(count: u64) -> Scene {
    let mut scene = Scene::default();
    for _ in 0..count {
        let range = scene.frame();
        scene.log.append_sent(range, &scene.kept, usize::MAX);
        scene.note(None, true);
    }
    scene.given = count;
    scene
}

#[test]
fn frames_that_touch_are_one_entry() {
    let scene = filled(300);
    assert_eq!((scene.log.sent.len(), scene.log.sent[0].frames), (1, 300));
}

#[test]
fn what_history_does_not_reach_back_to_is_counted() {
    let mut scene = filled(3);
    // Nothing is remembered of what came before.
    let range = scene.frame();
    let len = range.len();
    scene.kept.end_tails(1);
    let apart = scene.frame();
    scene.log.append_sent(apart, &scene.kept, len);
    scene.note(None, true);
    assert_eq!(scene.log.rewind(1, &scene.kept), Some(2), "messages 1 and 2 are gone");
    scene.given = 3;
    while scene.step() {}
    assert_eq!(scene.given, 4);
    assert_eq!(scene.log.rewind(5, &scene.kept), None, "nobody has received what was not sent");
}

#[test]
fn history_that_memory_took_back_is_a_gap() {
    let mut scene = filled(3);
    assert!(scene.kept.shed(u64::MAX));
    for _ in 0..2 {
        let range = scene.frame();
        scene.log.append_unsent(range, None);
        scene.note(None, true);
    }
    assert_eq!(scene.log.rewind(1, &scene.kept), Some(2));
    scene.given = 3;
    assert!(scene.step());
    assert_eq!(scene.given, 5, "what is there follows");
    let range = scene.frame();
    scene.log.append_unsent(range, None);
    scene.note(None, false);
    assert!(scene.kept.shed(u64::MAX));
    assert_eq!(scene.log.next(&scene.kept, usize::MAX), Some(NextFrames { missing: 1, range: None }));
    scene.log.check();
}

#[test]
fn what_is_sent_again_does_not_count_against_the_budget() {
    let mut scene = filled(10);
    assert_eq!(scene.log.rewind(4, &scene.kept), Some(0));
    assert_eq!(scene.log.queued_bytes(), 0);
    let range = scene.frame();
    scene.log.append_unsent(range, None);
    scene.note(None, true);
    assert_eq!(scene.log.queued_bytes(), range.len());
    let (dropped, _) = scene.log.drop_oldest(usize::MAX, &scene.kept);
    assert_eq!(dropped, 1, "only what waits for the first time is dropped");
}

#[test]
fn what_was_dropped_is_not_gone_through_at_each_drop() {
    let mut scene = filled(4);
    scene.log.rewind(2, &scene.kept);
    for _ in 0..1_000 {
        let range = scene.frame();
        scene.frame();
        scene.log.append_unsent(range, None);
    }
    for dropped in 1..=1_000 {
        assert_eq!(scene.log.drop_oldest(1, &scene.kept).0, 1);
        let next = scene.log.unsent.get(scene.log.first_droppable());
        assert_eq!(next.map(|entry| entry.first), (dropped < 1_000).then_some(4 + dropped));
    }
    scene.log.check();
}

#[test]
fn keys_that_are_not_used_again_are_forgotten_and_the_newest_are_not() {
    let mut scene = Scene::default();
    for key in 0..60_000 {
        let range = scene.frame();
        scene.log.append_unsent(range, Some(key));
        scene.note(Some(key), true);
        if key % 2 == 0 {
            scene.log.drop_oldest(1, &scene.kept);
        }
        assert!(scene.log.keys.len() <= 2 * KEYS_MAX);
    }
    for key in 60_000 - KEYS_MAX as u64..60_000 {
        assert!(scene.log.take_out(key), "the value of {key} still waits");
    }
    scene.log.check();
}

#[test]
fn tiny_frames_that_do_not_touch_are_bounded_by_what_their_entries_take() {
    const BYTES_MAX: usize = 100 * size_of::<LogEntry>();
    let mut scene = Scene::default();
    for _ in 0..1_000 {
        let range = scene.frame();
        scene.frame();
        scene.log.append_sent(range.split_at(2).0, &scene.kept, BYTES_MAX);
        scene.log.check();
    }
    assert_eq!(scene.log.sent.len(), 100);
    assert!(scene.log.heap_bytes() <= 2 * BYTES_MAX, "{}", scene.log.heap_bytes());
    for _ in 0..100 {
        assert!(scene.log.has_places(BYTES_MAX));
        let range = scene.frame();
        scene.frame();
        scene.log.append_unsent(range.split_at(2).0, None);
    }
    assert!(!scene.log.has_places(BYTES_MAX));
    scene.log.drop_oldest(1, &scene.kept);
    assert!(scene.log.has_places(BYTES_MAX));
    assert_eq!(scene.log.rewind(850, &scene.kept), Some(50), "what is not remembered is counted");
}

#[test]
fn what_history_has_let_go_of_is_forgotten_and_counted() {
    let mut scene = filled(3);
    scene.kept.end_tails(1);
    let apart = scene.frame();
    scene.log.append_sent(apart, &scene.kept, usize::MAX);
    for _ in 0..2 {
        scene.kept.end_tails(1);
        let range = scene.frame();
        scene.log.append_unsent(range, None);
    }
    assert!(scene.kept.shed(u64::MAX));
    assert_eq!((scene.log.forget_gone(&scene.kept), scene.log.sent.len()), (1, 1));
    assert!(scene.kept.shed(u64::MAX) && scene.kept.shed(u64::MAX));
    assert_eq!((scene.log.forget_gone(&scene.kept), scene.log.unsent.len()), (2, 1));
    scene.log.check();
    assert_eq!(scene.log.next(&scene.kept, usize::MAX).map(|next| next.missing), Some(1));
    assert_eq!(scene.log.rewind(1, &scene.kept), Some(4));
}
