use super::ring::ring;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::thread;

#[test]
fn a_value_on_its_way_keeps_nobody_waiting() {
    let (ring, mut consumer) = ring(4);
    ring.try_push(1).unwrap();
    // A producer is stopped here: its place is claimed, and not filled.
    let on_its_way = ring.claim().unwrap();
    ring.try_push(3).unwrap();
    assert_eq!((consumer.pop(), consumer.pop(), consumer.is_empty(), consumer.len()), (Some(1), None, true, 2));
    ring.fill(on_its_way, 2);
    assert_eq!((consumer.is_empty(), consumer.pop(), consumer.pop(), consumer.pop()), (false, Some(2), Some(3), None));
}

#[test]
fn all_values_come_once_and_those_of_each_producer_in_order() {
    const EACH: usize = 20_000;
    for places in [1, 2, 64] {
        let (ring, mut consumer) = ring(places);
        let producers: Vec<_> = (0..3)
            .map(|producer| {
                let ring = ring.clone();
                thread::spawn(move || {
                    for number in 0..EACH {
                        while ring.try_push((producer, number)).is_err() {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; 3];
        while next != [EACH; 3] {
            match consumer.pop() {
                Some((producer, number)) => {
                    let expected: &mut usize = &mut next[producer];
                    assert_eq!(number, *expected);
                    *expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        assert_eq!((consumer.is_empty(), consumer.len()), (true, 0));
    }
}

proptest! {
    #[test]
    fn it_is_a_bounded_queue(places in 1..5_usize, pushes in prop::collection::vec(any::<bool>(), 0..64)) {
        let (ring, mut consumer) = ring(places);
        let mut twin = VecDeque::new();
        for (number, is_push) in pushes.into_iter().enumerate() {
            if is_push {
                let fits = twin.len() < places;
                prop_assert_eq!(ring.try_push(number), if fits { Ok(()) } else { Err(number) });
                twin.extend(fits.then_some(number));
            } else {
                prop_assert_eq!(consumer.pop(), twin.pop_front());
            }
            prop_assert_eq!((consumer.len(), consumer.is_empty()), (twin.len(), twin.is_empty()));
        }
    }
}
