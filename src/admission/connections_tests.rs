use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

fn client(number: u32) -> Prefix {
    IpAddr::from(Ipv4Addr::from_bits(number)).into()
}

fn connections(limits: ConnectionLimits) -> Connections {
    Connections::new(limits, RandomState::new())
}

fn entries(connections: &Connections) -> usize {
    connections.stripes.iter().map(|stripe| stripe.0.lock().unwrap().of.len()).sum()
}

#[test]
fn a_bucket_holds_one_second_of_handshakes_and_fills_up_again() {
    let limits = ConnectionLimits { handshakes_per_ip_per_s_max: 5, ..ConnectionLimits::default() };
    let connections = connections(limits);
    let take = |now_ms: u64| (0..20).filter(|_| connections.take_handshake(client(1), now_ms)).count();
    assert_eq!(take(1_000_000), 5);
    assert_eq!(take(1_000_199), 0);
    assert_eq!(take(1_000_200), 1);
    assert_eq!(take(1_000_600), 2);
    assert_eq!(take(1_009_000), 5, "never more than one second of them");
    assert!(connections.take_handshake(client(2), 1_009_000), "others have buckets of their own");
}

#[test]
fn a_limit_of_0_is_none() {
    let limits =
        ConnectionLimits { connections_per_ip_max: 0, handshakes_per_ip_per_s_max: 0, ..ConnectionLimits::default() };
    let connections = connections(limits);
    assert!((0..50_000).all(|_| connections.enter(Some(client(1)), 0).is_ok()));
    assert!((0..50_000).all(|_| connections.take_handshake(client(1), 0)));
}

#[test]
fn limits_stay_within_the_files_that_are_left() {
    let fit = |files_left| {
        let limits = ConnectionLimits { connections_max: 1000, turned_away_max: 100, ..ConnectionLimits::default() }
            .within_files(files_left);
        (limits.connections_max, limits.turned_away_max)
    };
    assert_eq!(fit(1_000_000), (1000, 100));
    assert_eq!(fit(1050), (950, 100));
    assert_eq!(fit(80), (70, 10));
    assert_eq!((fit(7), fit(0)), ((7, 0), (1, 0)));
}

#[test]
fn exempt_addresses_are_not_counted() {
    let limits = ConnectionLimits { per_ip_exempt: vec!["10.0.0.0/8".parse().unwrap()], ..ConnectionLimits::default() };
    let connections = connections(limits);
    assert_eq!(connections.client("10.1.2.3".parse().unwrap()), None);
    assert_eq!(connections.client("::ffff:10.1.2.3".parse().unwrap()), None);
    assert!(connections.client("11.1.2.3".parse().unwrap()).is_some());
}

#[test]
fn strangers_that_come_once_do_not_make_the_table_grow() {
    let connections = connections(ConnectionLimits { handshakes_per_ip_per_s_max: 20, ..ConnectionLimits::default() });
    // 100 a millisecond, each another one: within 50 ms their buckets are full, and their entries say nothing.
    for number in 0..1_000_000_u32 {
        let now_ms = u64::from(number / 100);
        connections.enter(Some(client(number)), now_ms).unwrap();
        assert!(connections.take_handshake(client(number), now_ms));
        connections.leave(Some(client(number)), now_ms);
    }
    let alive = 50 * 100;
    assert!(entries(&connections) <= 2 * alive + STRIPES * SWEEP_ENTRIES_MIN, "{}", entries(&connections));
    assert_eq!(connections.total(), 0);
}

#[test]
fn shards_that_count_at_the_same_time_agree() {
    let limits = ConnectionLimits { connections_max: 1000, connections_per_ip_max: 150, ..ConnectionLimits::default() };
    let connections = connections(limits);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let connections = &connections;
            scope.spawn(move || {
                let mut held = Vec::new();
                for turn in 0..20_000_u32 {
                    let who = Some(client((turn * 7 + thread) % 10));
                    match connections.enter(who, 0) {
                        Ok(()) => held.push(who),
                        Err(LimitReached::Total) => assert!(connections.total() > 0),
                        Err(LimitReached::PerIp) => assert!(held.len() <= 1000),
                    }
                    if turn % 3 == 0 || held.len() > 300 {
                        held.drain(..held.len().min(2)).for_each(|who| connections.leave(who, 0));
                    }
                    assert!(connections.total() <= 1000);
                }
                held.into_iter().for_each(|who| connections.leave(who, 0));
            });
        }
    });
    assert_eq!((connections.total(), entries(&connections)), (0, 0));
}

/// The same rules, written for reading: all entries are kept for ever, tokens are counted one by one.
#[derive(Default)]
struct Twin {
    total: usize,
    connections: BTreeMap<u32, u32>,
    /// Tokens, and when they were counted; µs are exact here, since the rate divides a second.
    tokens: BTreeMap<u32, (u64, u64)>,
}

const TOTAL_MAX: usize = 12;
const PER_IP_MAX: u32 = 4;
const RATE: u64 = 10;

impl Twin {
    fn enter(&mut self, client: Option<u32>) -> Result<(), LimitReached> {
        let count = client.map_or(0, |client| self.connections.get(&client).copied().unwrap_or(0));
        if self.total >= TOTAL_MAX {
            return Err(LimitReached::Total);
        }
        if count >= PER_IP_MAX {
            return Err(LimitReached::PerIp);
        }
        self.total += 1;
        client.map(|client| self.connections.insert(client, count + 1));
        Ok(())
    }

    fn leave(&mut self, client: Option<u32>) {
        self.total -= 1;
        if let Some(client) = client {
            *self.connections.get_mut(&client).unwrap() -= 1;
        }
    }

    /// A full bucket is `RATE` tokens of 100,000 µs each.
    fn take_handshake(&mut self, client: u32, now_ms: u64) -> bool {
        let (filled_us, at_ms) = self.tokens.get(&client).copied().unwrap_or((SECOND_US, 0));
        let filled_us = (filled_us + (now_ms - at_ms) * 1000).min(SECOND_US);
        let takes = filled_us >= SECOND_US / RATE;
        let left_us = if takes { filled_us - SECOND_US / RATE } else { filled_us };
        self.tokens.insert(client, (left_us, now_ms));
        takes
    }
}

proptest! {
    #[test]
    fn counts_are_those_of_a_naive_twin(
        acts in prop::collection::vec((0_u8..6, 0_u32..6, 0_u64..400), 1..400)
    ) {
        let connections = connections(ConnectionLimits {
            connections_max: TOTAL_MAX,
            connections_per_ip_max: PER_IP_MAX,
            handshakes_per_ip_per_s_max: RATE as u32,
            ..ConnectionLimits::default()
        });
        let mut twin = Twin::default();
        let mut held: Vec<Option<u32>> = Vec::new();
        let mut now_ms = 0;
        for (act, number, pause_ms) in acts {
            // The last of them is not counted.
            let who = (number < 5).then_some(number);
            match act {
                0..=2 => {
                    let entered = connections.enter(who.map(client), now_ms);
                    prop_assert_eq!(entered, twin.enter(who));
                    entered.is_ok().then(|| held.push(who));
                }
                3 if !held.is_empty() => {
                    let who = held.swap_remove(pause_ms as usize % held.len());
                    connections.leave(who.map(client), now_ms);
                    twin.leave(who);
                }
                4 => {
                    let took = connections.take_handshake(client(number), now_ms);
                    prop_assert_eq!(took, twin.take_handshake(number, now_ms));
                }
                _ => now_ms += pause_ms,
            }
            prop_assert_eq!(connections.total(), twin.total);
        }
        for who in held {
            connections.leave(who.map(client), now_ms);
        }
        prop_assert_eq!(connections.total(), 0);
        // When all buckets are full again, an entry of another client sweeps the table.
        let later_ms = now_ms + 1000;
        for stripe in &connections.stripes {
            let mut entries = stripe.0.lock().unwrap();
            entries.sweep_at = 0;
            entries.entry(client(u32::MAX), later_ms);
            prop_assert_eq!(entries.of.len(), 1);
        }
    }
}
