use super::*;
use crate::queue::orders::{InboxLimits, InboxSender, NeverAsleep, inbox};
use proptest::prelude::*;

/// An order: whose, which, and how much work.
type Job = (usize, u32, u64);

/// Obeys as much as its turn has room for.
#[derive(Default)]
struct Worker {
    left_ns: u64,
    /// The work for which each producer was served, and the finished orders, in order.
    served_ns: Vec<(usize, u64)>,
    finished: Vec<(usize, u32)>,
}

impl OrderServer<Job, Job> for Worker {
    fn has_room(&self) -> bool {
        self.left_ns > 0
    }

    fn execute(&mut self, order: OrderOrRest<Job, Job>, slice_ns: u64) -> (u64, Option<Job>) {
        let (OrderOrRest::New((producer, number, cost_ns)) | OrderOrRest::Rest((producer, number, cost_ns))) = order;
        let spent_ns = cost_ns.min(slice_ns);
        self.left_ns = self.left_ns.saturating_sub(spent_ns);
        self.served_ns.push((producer, spent_ns));
        if spent_ns < cost_ns {
            return (spent_ns, Some((producer, number, cost_ns - spent_ns)));
        }
        self.finished.push((producer, number));
        (spent_ns, None)
    }
}

fn producers() -> (InboxSender<Job>, Producers<Job, Job>) {
    let (sender, inbox) = inbox(InboxLimits { commands_max: 4_000, bytes_max: 1 << 20 }, NeverAsleep);
    (sender, Producers::new(inbox))
}

#[test]
fn one_order_does_not_stand_behind_the_many_of_another() {
    let (sender, mut producers) = producers();
    let (loud, quiet) = (sender.account(), sender.account());
    for number in 0..500 {
        sender.try_send((0, number, 1_000_000), 10, &loud).unwrap();
    }
    sender.try_send((1, 0, 200), 10, &quiet).unwrap();
    let mut worker = Worker { left_ns: 300_000, ..Worker::default() };
    producers.serve(usize::MAX, u64::MAX, &mut worker);
    producers.check();
    assert_eq!(worker.finished, [(1, 0)], "after one slice of the other's");
    let of_loud: u64 = worker.served_ns.iter().filter(|served| served.0 == 0).map(|served| served.1).sum();
    assert!(of_loud >= 300_000 - 200 - CREDIT_NS, "and the rest of the turn is the other's: {of_loud}");
    assert_eq!(sender.held(), (500, 5_000), "what is not done is held");
}

#[test]
fn two_who_order_without_end_get_the_same() {
    let (sender, mut producers) = producers();
    let accounts = [sender.account(), sender.account()];
    for number in 0..900 {
        sender.try_send((0, number, 3_000_000), 0, &accounts[0]).unwrap();
        sender.try_send((1, number, 700), 0, &accounts[1]).unwrap();
    }
    let mut worker = Worker::default();
    for _ in 0..8 {
        worker.left_ns = 100_000;
        producers.serve(usize::MAX, u64::MAX, &mut worker);
    }
    let of = |producer| worker.served_ns.iter().filter(|s| s.0 == producer).map(|s| s.1).sum::<u64>();
    assert!(of(0).abs_diff(of(1)) <= 2 * CREDIT_NS, "{} and {}", of(0), of(1));
}

proptest! {
    #[test]
    fn orders_are_obeyed_whole_in_order_and_their_room_is_given_back(
        jobs in prop::collection::vec((0_usize..4, 1_u64..300_000), 0..300),
        turn_ns in 1_000_u64..400_000,
    ) {
        let (sender, mut producers) = producers();
        let accounts: Vec<_> = (0..4).map(|_| sender.account()).collect();
        let mut worker = Worker::default();
        for (number, &(producer, cost_ns)) in jobs.iter().enumerate() {
            sender.try_send((producer, number as u32, cost_ns), 7, &accounts[producer]).unwrap();
            if number % 50 == 0 {
                worker.left_ns = turn_ns;
                producers.serve(usize::MAX, u64::MAX, &mut worker);
                producers.check();
            }
        }
        while producers.has_orders() {
            worker.left_ns = turn_ns;
            let before = worker.served_ns.len();
            producers.serve(usize::MAX, u64::MAX, &mut worker);
            let spent: u64 = worker.served_ns[before..].iter().map(|served| served.1).sum();
            prop_assert!(spent > 0 && spent <= turn_ns + 2 * CREDIT_NS, "a turn is bounded: {}", spent);
            producers.check();
        }
        for producer in 0..4 {
            let wanted: Vec<_> = jobs.iter().enumerate().filter(|job| job.1.0 == producer).map(|job| job.0 as u32).collect();
            let got: Vec<_> = worker.finished.iter().filter(|done| done.0 == producer).map(|done| done.1).collect();
            prop_assert_eq!(wanted, got);
        }
        prop_assert_eq!(sender.held(), (0, 0));
        for account in &accounts {
            prop_assert_eq!(account.held(), (0, 0));
        }
    }
}
