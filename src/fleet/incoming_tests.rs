//! Comparison with a naive reference that remembers every number.

use super::super::subject::Kind;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn line(n: u8) -> AudienceKey {
    AudienceKey { kind: Kind::Topic, hash: [n; 16] }
}

fn number(incarnation: u64, stream: u32, sequence: u64) -> Number {
    Number { incarnation, stream, sequence }
}

fn announced(number: Number, age_ms: u64, now_ms: u64) -> AnnouncedCount {
    AnnouncedCount { number, age_ms, now_ms, since_ms: 0, is_younger: None }
}

fn verdict(incoming: &mut Incoming, number: Number) -> Verdict {
    incoming.take(line(0), &"a".into(), number).0
}

#[test]
fn each_number_is_next_behind_a_gap_or_late() {
    let mut incoming = Incoming::new(8);
    for (sequence, expected) in [
        (5, Verdict::Next),
        (6, Verdict::Next),
        (9, Verdict::Behind { lost: 2 }),
        (9, Verdict::Late),
        (7, Verdict::Late),
        (10, Verdict::Next),
        (u64::MAX, Verdict::Behind { lost: u64::MAX - 11 }),
        (u64::MAX, Verdict::Late),
    ] {
        assert_eq!(verdict(&mut incoming, number(1, 1, sequence)), expected, "{sequence}");
    }
    assert_eq!(verdict(&mut incoming, number(1, 3, 2)), Verdict::Recounted { lost: 1 });
    assert_eq!(verdict(&mut incoming, number(1, 2, 9)), Verdict::Late, "of a count that is over");
    assert_eq!(verdict(&mut incoming, number(2, 1, 4)), Verdict::Restarted { lost: 3 });
    assert_eq!(verdict(&mut incoming, number(1, 9, 9)), Verdict::Late, "of its former self");
    assert_eq!(verdict(&mut incoming, number(3, 1, 0)), Verdict::Restarted { lost: 0 });
}

#[test]
fn a_lost_tail_is_seen_once_its_announcement_is_believed() {
    let mut incoming = Incoming::new(8);
    verdict(&mut incoming, number(1, 1, 1));
    incoming.claim(line(0), &"a".into(), announced(number(1, 1, 4), 0, 5000));
    // Messages in flight still arrive.
    assert_eq!(verdict(&mut incoming, number(1, 1, 2)), Verdict::Next);
    assert_eq!(incoming.believe(5999), []);
    assert_eq!(incoming.believe(6000), [(line(0), "a".into(), Verdict::Behind { lost: 2 })]);
    assert_eq!(verdict(&mut incoming, number(1, 1, 3)), Verdict::Late, "it was counted as lost");
    assert_eq!(verdict(&mut incoming, number(1, 1, 5)), Verdict::Next);
    incoming.claim(line(0), &"a".into(), announced(number(1, 1, 5), 0, 7000));
    assert_eq!(incoming.believe(9000), [], "nothing is missing");
    incoming.claim(line(0), &"a".into(), announced(number(2, 1, 2), 0, 9000));
    assert_eq!(incoming.believe(10_000), [(line(0), "a".into(), Verdict::Restarted { lost: 2 })]);
}

#[test]
fn what_came_before_the_first_is_lost_if_the_count_began_after_we_listened() {
    for (age_ms, lost) in [(10, 4), (9_500, 0)] {
        let mut incoming = Incoming::new(8);
        verdict(&mut incoming, number(1, 1, 5));
        incoming.claim(line(0), &"a".into(), announced(number(1, 1, 5), age_ms, 10_000));
        let told = incoming.believe(11_000);
        assert_eq!(told.first().map(|told| told.2), (lost > 0).then_some(Verdict::Behind { lost }));
        incoming.claim(line(0), &"a".into(), announced(number(1, 1, 5), age_ms, 12_000));
        assert_eq!(incoming.believe(13_000), [], "told once");

        let mut unheard = Incoming::new(8);
        unheard.claim(line(0), &"a".into(), announced(number(1, 1, 4), age_ms, 10_000));
        let told = unheard.believe(11_000);
        assert_eq!(told.first().map(|told| told.2), (lost > 0).then_some(Verdict::Behind { lost }));
        assert_eq!(verdict(&mut unheard, number(1, 1, 5)), Verdict::Next);
    }
}

#[test]
fn what_is_numbered_behind_where_a_source_stood_arrives_or_is_lost() {
    let source: Arc<str> = "a".into();
    let stood = |incoming: &mut Incoming, last| incoming.stood(line(0), &source, number(1, 1, last));
    // All of the first messages are lost, and the next one shows it, or the announcement.
    let mut incoming = Incoming::new(8);
    assert_eq!(stood(&mut incoming, 4), (None, None));
    assert_eq!(verdict(&mut incoming, number(1, 1, 8)), Verdict::Behind { lost: 3 });
    assert_eq!(verdict(&mut incoming, number(1, 1, 9)), Verdict::Next);
    let mut incoming = Incoming::new(8);
    stood(&mut incoming, 4);
    incoming.claim(line(0), &source, announced(number(1, 1, 6), 999_999, 1_000_000));
    assert_eq!(incoming.believe(1_001_000), [(line(0), source.clone(), Verdict::Behind { lost: 2 })]);
    assert_eq!(verdict(&mut incoming, number(1, 1, 7)), Verdict::Next);
    // Messages in flight when the source answered arrive as usual, after the answer or before it.
    let mut incoming = Incoming::new(8);
    stood(&mut incoming, 4);
    assert_eq!(verdict(&mut incoming, number(1, 1, 3)), Verdict::Next);
    assert_eq!(verdict(&mut incoming, number(1, 1, 5)), Verdict::Behind { lost: 1 });
    let mut incoming = Incoming::new(8);
    assert_eq!(verdict(&mut incoming, number(1, 1, 8)), Verdict::Next);
    assert_eq!(stood(&mut incoming, 4), (Some(Verdict::Behind { lost: 3 }), None));
    assert_eq!(stood(&mut incoming, 4), (None, None), "told once");
    // Of a count that was begun meanwhile all is lost that has not come.
    let mut incoming = Incoming::new(8);
    stood(&mut incoming, 4);
    assert_eq!(verdict(&mut incoming, number(1, 2, 3)), Verdict::Next);
    let younger = AnnouncedCount { is_younger: Some(true), ..announced(number(1, 2, 3), 0, 100) };
    incoming.claim(line(0), &source, younger);
    assert_eq!(incoming.believe(1_100), [(line(0), source.clone(), Verdict::Behind { lost: 2 })]);
}

#[test]
fn places_are_bounded_and_what_is_forgotten_is_told() {
    let mut incoming = Incoming::new(2);
    let source: Arc<str> = "a".into();
    assert_eq!(incoming.take(line(1), &source, number(1, 1, 1)).1, None);
    assert_eq!(incoming.take(line(2), &source, number(1, 2, 1)).1, None);
    incoming.take(line(1), &source, number(1, 1, 2));
    assert_eq!(incoming.take(line(3), &source, number(1, 3, 1)).1, Some((line(2), source.clone())));
    assert_eq!(incoming.claim(line(4), &source, announced(number(1, 4, 1), 0, 0)), Some((line(1), source.clone())));
    assert_eq!((incoming.len(), incoming.places.len()), (2, 2));
    incoming.leave(&line(3));
    incoming.leave(&line(9));
    assert_eq!((incoming.len(), incoming.places.len()), (1, 1));
    // Whose place is gone is believed nothing.
    incoming.leave(&line(4));
    assert_eq!(incoming.believe(9_999), []);
}

/// An event of the numbers of one count.
#[derive(Debug, Clone)]
enum Step {
    /// A message arrives.
    Arrives(u64),
    /// The source says how far it is.
    Announces(u64),
    /// Time passes.
    Passes(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40u64).prop_map(Step::Arrives),
        2 => (1..40u64).prop_map(Step::Announces),
        1 => (1..1500u64).prop_map(Step::Passes),
    ]
}

proptest! {
    /// Whatever arrives in whatever order: each number is delivered once and in order, or it is lost, never both; and
    /// together they are all numbers from the first that was heard to the last.
    #[test]
    fn delivered_and_lost_are_all_numbers(steps in prop::collection::vec(step(), 1..80), is_younger in any::<bool>()) {
        let mut incoming = Incoming::new(4);
        let source: Arc<str> = "a".into();
        let (mut now_ms, mut lost) = (100_000, 0);
        let (mut delivered, mut first) = (Vec::new(), None);
        let mut believed = BTreeSet::new();
        let mut claimed: Option<(u64, u64)> = None;
        let age_ms = if is_younger { 0 } else { 1_000_000 };
        let mut is_told_of_unheard = false;
        for step in steps {
            match step {
                Step::Arrives(sequence) => {
                    let (verdict, _) = incoming.take(line(0), &source, number(7, 7, sequence));
                    match verdict {
                        Verdict::Next => delivered.push(sequence),
                        Verdict::Behind { lost: more } => {
                            delivered.push(sequence);
                            lost += more;
                        }
                        Verdict::Late => {}
                        other => prop_assert!(false, "{:?}", other),
                    }
                    first = first.or(Some(sequence));
                }
                Step::Announces(sequence) => {
                    incoming.claim(line(0), &source, announced(number(7, 7, sequence), age_ms, now_ms));
                    claimed = claimed.or(Some((now_ms, sequence)));
                }
                Step::Passes(ms) => {
                    now_ms += ms;
                    if let Some((_, sequence)) = claimed.take_if(|(at_ms, _)| *at_ms + BELIEVED_AFTER_MS <= now_ms) {
                        believed.insert(sequence);
                        if first.is_none() {
                            // The count begins with it.
                            first = Some(if is_younger { 1 } else { sequence + 1 });
                            is_told_of_unheard = true;
                        } else if is_younger && !is_told_of_unheard {
                            is_told_of_unheard = true;
                            first = Some(1);
                        }
                    }
                    for (_, _, verdict) in incoming.believe(now_ms) {
                        let Verdict::Behind { lost: more } = verdict else { panic!("{verdict:?}") };
                        lost += more;
                    }
                }
            }
            prop_assert!(delivered.is_sorted_by(|one, other| one < other), "{:?}", delivered);
            let last = delivered.last().copied().max(believed.last().copied());
            if let (Some(first), Some(last)) = (first, last) {
                prop_assert_eq!(delivered.len() as u64 + lost, (last + 1).saturating_sub(first));
            }
        }
    }
}
