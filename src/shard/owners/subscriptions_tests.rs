//! The lists of one shard against a plain set, with limits of topics and of memory.

use super::*;
use crate::admission::{Budget, Ledger};
use crate::queue::events::{QueueLimits, process_queue};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn memory(ledger: &Ledger) -> ProcessMemory {
    let (queue, _) = process_queue(1, QueueLimits::default(), ledger, |_| {});
    queue.memory_of("p:p:t.os".parse().unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    Join(u32, u8),
    Leave(u32, u8),
    End(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..8u32, 0..6u8).prop_map(|(slot, topic)| Step::Join(slot, topic)),
        2 => (0..8u32, 0..6u8).prop_map(|(slot, topic)| Step::Leave(slot, topic)),
        1 => (0..8u32).prop_map(Step::End),
    ]
}

proptest! {
    #[test]
    fn lists_are_those_of_a_naive_twin(steps in proptest::collection::vec(step(), 0..300), topics_max in 1..6usize) {
        let (topics, memory) = (Arc::<Topics>::default(), memory(&Ledger::default()));
        let (mut subscriptions, mut twin) = (Subscriptions::default(), BTreeSet::<(u32, u8)>::new());
        // The last two are called as topics of users. One of these is in no count of what a channel asked for.
        let name = |topic: u8| -> Arc<str> {
            if topic >= 4 { topic::of_user(&topic.to_string()).unwrap() } else { format!("t{topic}") }.into()
        };
        for step in steps {
            match step {
                Step::Join(slot, topic) => {
                    let claim = topics.claim(&name(topic), 0, 1, &memory).unwrap();
                    let became = subscriptions.subscribe(0, Slot::new(slot), claim, topics_max, &memory);
                    let its = || twin.iter().filter(|(of, _)| *of == slot);
                    let has = its().count() - usize::from(its().any(|(_, topic)| *topic >= 4));
                    let expected = match twin.contains(&(slot, topic)) {
                        true => Subscribed::Already,
                        false if has >= topics_max => Subscribed::TooMany,
                        false => Subscribed::New,
                    };
                    prop_assert_eq!(became, expected);
                    if became == Subscribed::New {
                        twin.insert((slot, topic));
                    }
                }
                Step::Leave(slot, topic) => {
                    let found = topics.find(&name(topic));
                    let has_left = found.is_some_and(|found| subscriptions.unsubscribe(0, Slot::new(slot), &found, &topics));
                    prop_assert_eq!(has_left, twin.remove(&(slot, topic)));
                }
                Step::End(slot) => {
                    while subscriptions.leave_last(0, Slot::new(slot), &topics).is_some() {}
                    twin.retain(|(of, _)| *of != slot);
                }
            }
            subscriptions.check(0);
            prop_assert_eq!(subscriptions.count(), twin.len());
        }
        for topic in 0..6u8 {
            let mut found: Vec<u32> = topics.find(&name(topic)).map_or(Vec::new(), |found| {
                subscriptions.of(0, &found).iter().map(|slot| slot.get()).collect()
            });
            found.sort_unstable();
            let expected: Vec<u32> = twin.iter().filter(|(_, of)| *of == topic).map(|(slot, _)| *slot).collect();
            prop_assert_eq!(topics.find(&name(topic)).map_or(0, |found| found.subscribers()), expected.len());
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn where_there_is_no_memory_nothing_changes() {
    let ledger = Ledger::new(Budget::of(1 << 20));
    let (topics, memory) = (Arc::<Topics>::default(), memory(&ledger));
    let mut subscriptions = Subscriptions::default();
    let mut joined = 0u32;
    let refused = loop {
        let Some(claim) = topics.claim(&format!("topic {joined}").into(), 0, 1, &memory) else { break "the topic" };
        match subscriptions.subscribe(0, Slot::new(joined), claim, 128, &memory) {
            Subscribed::New => joined += 1,
            Subscribed::NoMemory => break "its list",
            other => panic!("{other:?}"),
        }
        assert!(joined < 100_000, "a budget is a budget");
    };
    assert!(joined > 100, "{joined} until {refused} had no room");
    subscriptions.check(0);
    assert_eq!((subscriptions.count(), topics.count()), (joined as usize, joined as usize));
    assert!(memory.tenant().held().topics <= 1 << 20);
    for slot in 0..joined {
        while subscriptions.leave_last(0, Slot::new(slot), &topics).is_some() {}
    }
    subscriptions.check(0);
    let left = memory.tenant().held().topics;
    assert!(left < 16 << 10, "{left} bytes are held for nobody");
}
