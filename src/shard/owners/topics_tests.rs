//! The list of topics against a plain map, and threads that count in and out of one topic at once.

use super::*;
use crate::admission::Ledger;
use crate::queue::events::{QueueLimits, process_queue};
use proptest::prelude::*;
use std::collections::BTreeMap as Twin;

const SHARDS: usize = 3;

fn memory() -> ProcessMemory {
    let (queue, _) = process_queue(1, QueueLimits::default(), &Ledger::default(), |_| {});
    queue.memory_of("p:p:t.os".parse().unwrap())
}

proptest! {
    #[test]
    fn what_is_listed_is_what_is_counted(
        steps in proptest::collection::vec((any::<bool>(), 0..6u8, 0..SHARDS as u32), 0..200),
        prefix in "[01]?", after in proptest::option::of("[01]{0,2}"), limit in 0..5usize,
    ) {
        let (topics, memory) = (Arc::<Topics>::default(), memory());
        let (mut claims, mut twin) = (Vec::new(), Twin::<String, Vec<u32>>::new());
        for (comes, name, shard) in steps {
            let name = format!("{name:03b}");
            if comes {
                claims.push((name.clone(), shard, topics.claim(&name.as_str().into(), shard, SHARDS, &memory).unwrap()));
                twin.entry(name).or_default().push(shard);
            } else if let Some(at) = claims.iter().position(|(of, on, _)| *of == name && *on == shard) {
                claims.swap_remove(at);
                let counted = twin.get_mut(&name).unwrap();
                counted.swap_remove(counted.iter().position(|on| *on == shard).unwrap());
                twin.retain(|_, counted| !counted.is_empty());
            }
        }
        prop_assert_eq!(topics.count(), twin.len());
        let expected = twin.iter().filter(|(name, _)| name.starts_with(&prefix) && after.as_ref().is_none_or(|after| *name > after));
        let expected: Vec<_> = expected.take(limit).map(|(name, counted)| (name.clone(), counted.len())).collect();
        let page = topics.page(&prefix, after.as_deref(), limit);
        let page: Vec<_> = page.into_iter().map(|report| (report.topic.to_string(), report.subscribers)).collect();
        prop_assert_eq!(page, expected);
        for (name, counted) in &twin {
            let on: std::collections::BTreeSet<_> = counted.iter().map(|&shard| shard as usize).collect();
            prop_assert_eq!(topics.find(name).unwrap().shards().collect::<std::collections::BTreeSet<_>>(), on);
        }
        drop(claims);
        prop_assert_eq!((topics.count(), topics.page("", None, 9).len()), (0, 0));
        let held = memory.tenant().held().topics;
        prop_assert!(held == 0, "{} bytes are held for topics that are gone", held);
    }
}

#[test]
fn topics_that_could_not_be_taken_off_at_once_are_swept() {
    let (topics, memory) = (Arc::<Topics>::default(), memory());
    let claims: Vec<_> = (0..200).map(|n| topics.claim(&format!("{n}").into(), 0, SHARDS, &memory).unwrap()).collect();
    let looking = topics.listed();
    // Leaving does not wait.
    drop(claims);
    drop(looking);
    assert_eq!((topics.count(), topics.page("", None, 9).len()), (0, 0), "they are not told of");
    assert!(topics.find("7").is_none());
    let revived = topics.claim(&"7".into(), 1, SHARDS, &memory).unwrap();
    assert_eq!((topics.count(), topics.find("7").unwrap().shards().collect::<Vec<_>>()), (1, vec![1]));
    let listed = || topics.listed().named.len();
    let mut next = Vec::new();
    while listed() > next.len() + 1 {
        let before = listed();
        next.push(topics.claim(&format!("new {}", next.len()).into(), 0, SHARDS, &memory).unwrap());
        assert!(listed() + SWEPT_AT_ONCE > before, "each new one looks at a few");
        assert!(next.len() <= 200 / SWEPT_AT_ONCE + 4, "{} are listed", listed());
    }
    assert_eq!(topics.count(), next.len() + 1);
    drop((revived, next));
    assert_eq!((topics.count(), memory.tenant().held().topics), (0, 0));
}

#[test]
fn threads_that_come_and_go_leave_nothing_behind() {
    let (topics, memory) = (Arc::<Topics>::default(), memory());
    std::thread::scope(|scope| {
        for shard in 0..SHARDS as u32 {
            let (topics, memory) = (&topics, &memory);
            scope.spawn(move || {
                for n in 0..2_000 {
                    let name = format!("{}", n % 3).into();
                    let claim = topics.claim(&name, shard, SHARDS, memory).unwrap();
                    assert!(topics.find(&name).unwrap().shards().any(|on| on == shard as usize));
                    drop(claim);
                }
            });
        }
    });
    let end = topics.claim(&"end".into(), 0, SHARDS, &memory).unwrap();
    assert_eq!(topics.page("", None, 9).len(), 1);
    drop(end);
    assert!(topics.empty.load(Ordering::Relaxed) >= 0 && topics.count() == 0);
}

#[test]
fn whoever_leaves_sweeps_too() {
    let (topics, memory) = (Arc::<Topics>::default(), memory());
    let claim = |n: usize| topics.claim(&format!("{n}").into(), 0, SHARDS, &memory).unwrap();
    let (those, others): (Vec<_>, Vec<_>) = (0..400).map(|n| (claim(n), claim(1_000 + n))).unzip();
    let looking = topics.listed();
    drop(those);
    drop(looking);
    drop(others);
    assert_eq!((topics.listed().named.len(), memory.tenant().held().topics), (0, 0));
}
