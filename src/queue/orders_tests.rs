use super::*;
use crate::queue::fair::{OrderOrRest, OrderServer, Producers};
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::task::Context;
use std::thread;

/// A wake that a test's shard thread can sleep on.
#[derive(Clone)]
struct WakeThread(Arc<(Mutex<Option<thread::Thread>>, AtomicUsize)>);

impl WakeThread {
    fn new() -> Self {
        Self(Arc::new((Mutex::new(None), AtomicUsize::new(0))))
    }

    fn wakes(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
}

impl Wake for WakeThread {
    fn wake(&self) {
        self.0.1.fetch_add(1, Ordering::SeqCst);
        if let Some(sleeper) = &*self.0.0.lock().unwrap() {
            sleeper.unpark();
        }
    }
}

fn limits(commands_max: u32, bytes_max: u64) -> InboxLimits {
    InboxLimits { commands_max, bytes_max }
}

fn drained(inbox: &mut Inbox<u32>) -> Vec<u32> {
    let mut commands = Vec::new();
    inbox.drain(usize::MAX, u64::MAX, |command| commands.push(command));
    commands
}

#[test]
fn commands_come_out_in_order_and_in_bounded_batches() {
    let (sender, mut inbox) = inbox(limits(64, 6400), NeverAsleep);
    let account = sender.account();
    for command in 0..10 {
        sender.try_send(command, 100, &account).unwrap();
    }
    assert_eq!(sender.held(), (10, 1000));
    let mut commands = Vec::new();
    assert_eq!(inbox.drain(3, u64::MAX, |command| commands.push(command)), 3);
    assert_eq!(inbox.drain(usize::MAX, 150, |command| commands.push(command)), 2, "stops once 150 bytes are reached");
    commands.extend(drained(&mut inbox));
    assert_eq!(commands, (0..10).collect::<Vec<_>>());
    assert_eq!(sender.held(), (0, 0));
    assert!(inbox.is_empty());
}

#[test]
fn one_account_holds_a_quarter_and_the_rest_stays_for_others() {
    let (sender, mut inbox) = inbox(limits(16, 1000), NeverAsleep);
    let accounts: Vec<_> = (0..5).map(|_| sender.account()).collect();
    for command in 0..4 {
        sender.try_send(command, 1, &accounts[0]).unwrap();
    }
    assert_eq!(sender.try_send(9, 1, &accounts[0]), Err(SendRefused::Full(9)), "four of sixteen commands");
    sender.try_send(10, 200, &accounts[1]).unwrap();
    assert_eq!(sender.try_send(9, 51, &accounts[1]), Err(SendRefused::Full(9)), "251 of a quarter of 1000 bytes");
    sender.try_send(11, 50, &accounts[1]).unwrap();
    sender.try_send(12, 250, &accounts[2]).unwrap();
    sender.try_send(13, 250, &accounts[3]).unwrap();
    assert_eq!(sender.try_send(9, 247, &accounts[4]), Err(SendRefused::Full(9)), "1001 bytes in all");
    sender.try_send(14, 246, &accounts[4]).unwrap();
    assert_eq!(drained(&mut inbox), [0, 1, 2, 3, 10, 11, 12, 13, 14]);
    for account in &accounts {
        assert_eq!(account.0.held(), (0, 0));
        sender.try_send(1, 250, account).ok();
    }
}

#[test]
fn a_refusal_by_the_queue_costs_the_account_nothing() {
    let (sender, _inbox) = inbox(limits(4, 1000), NeverAsleep);
    let accounts: Vec<_> = (0..5).map(|_| sender.account()).collect();
    for account in &accounts[..4] {
        sender.try_send(0, 1, account).unwrap();
    }
    assert_eq!(sender.try_send(0, 1, &accounts[4]), Err(SendRefused::Full(0)));
    assert_eq!(accounts[4].0.held(), (0, 0));
}

#[test]
fn a_command_bigger_than_the_limits_passes_alone() {
    let (sender, mut inbox) = inbox(limits(16, 1000), NeverAsleep);
    let (one, other) = (sender.account(), sender.account());
    sender.try_send(1, usize::MAX, &one).unwrap();
    assert_eq!(sender.try_send(2, 0, &one), Err(SendRefused::Full(2)));
    assert_eq!(sender.try_send(2, 1, &other), Err(SendRefused::Full(2)));
    assert_eq!(drained(&mut inbox), [1]);
    assert_eq!((sender.held(), one.0.held()), ((0, 0), (0, 0)));
    sender.try_send(2, 1, &other).unwrap();
    assert_eq!(sender.try_send(3, 5000, &one), Err(SendRefused::Full(3)), "not beside others");
}

#[test]
fn only_a_sleeping_shard_is_woken_and_only_once() {
    let wake = WakeThread::new();
    let (sender, mut inbox) = inbox(limits(16, 1000), wake.clone());
    let account = sender.account();
    sender.try_send(1, 0, &account).unwrap();
    assert_eq!(wake.wakes(), 0);
    assert!(!inbox.prepare_sleep(), "a command is there");
    drained(&mut inbox);
    assert!(inbox.prepare_sleep());
    sender.try_send(2, 0, &account).unwrap();
    sender.try_send(3, 0, &account).unwrap();
    assert_eq!(wake.wakes(), 1);
    inbox.awake();
    drained(&mut inbox);
    assert!(inbox.prepare_sleep());
    inbox.awake();
    sender.try_send(4, 0, &account).unwrap();
    assert_eq!(wake.wakes(), 1, "something else had woken it");
}

#[test]
fn a_kick_wakes_without_a_command() {
    let wake = WakeThread::new();
    let (sender, mut inbox) = inbox::<u32>(limits(16, 1000), wake.clone());
    assert!(inbox.prepare_sleep());
    sender.kick();
    sender.kick();
    assert_eq!(wake.wakes(), 1);
    assert!(!inbox.prepare_sleep(), "the kick was not taken yet");
    assert!(inbox.take_kick() && !inbox.take_kick());
    assert!(inbox.prepare_sleep());
}

#[test]
fn a_stopped_inbox_refuses_and_still_drains() {
    let (sender, mut inbox) = inbox(limits(16, 1000), NeverAsleep);
    let account = sender.account();
    sender.try_send(1, 0, &account).unwrap();
    inbox.stop();
    assert!(sender.is_stopped());
    assert_eq!(sender.try_send(2, 0, &account), Err(SendRefused::Stopped(2)));
    assert_eq!(sender.send_wait(3, 0, &account), Err(InboxStopped(3)));
    assert_eq!(drained(&mut inbox), [1]);
    sender.kick();
}

#[test]
fn commands_left_behind_are_dropped_with_the_inbox() {
    let (sender, inbox) = inbox(limits(16, 1000), NeverAsleep);
    let command = Arc::new(());
    sender.try_send(command.clone(), 0, &sender.account()).unwrap();
    drop(inbox);
    assert_eq!(Arc::strong_count(&command), 1);
    assert!(matches!(sender.try_send(command, 0, &sender.account()), Err(SendRefused::Stopped(_))));
}

#[test]
fn who_blocks_goes_on_when_the_shard_drains_or_ends() {
    let (sender, mut inbox) = inbox(limits(4, 1000), NeverAsleep);
    let account = sender.account();
    sender.try_send(1, 0, &account).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| sender.send_wait(2, 0, &account));
        let mut commands = Vec::new();
        while commands.len() < 2 {
            commands.extend(drained(&mut inbox));
            thread::yield_now();
        }
        assert_eq!((commands, waits.join().unwrap()), (vec![1, 2], Ok(())));

        sender.try_send(3, 0, &account).unwrap();
        let waits = scope.spawn(|| sender.send_wait(4, 0, &account));
        drop(inbox);
        assert_eq!(waits.join().unwrap(), Err(InboxStopped(4)));
    });
}

#[test]
fn async_senders_wait_for_room_without_blocking() {
    let (sender, mut inbox) = inbox(limits(4, 1000), NeverAsleep);
    let account = sender.account();
    sender.try_send(1, 0, &account).unwrap();
    let wake = Arc::new(CountWakes(AtomicUsize::new(0)));
    let waker = Waker::from(wake.clone());
    let mut context = Context::from_waker(&waker);
    let mut send = std::pin::pin!(sender.send(2, 0, &account));
    assert!(send.as_mut().poll(&mut context).is_pending());
    assert!(send.as_mut().poll(&mut context).is_pending());
    assert_eq!(drained(&mut inbox), [1]);
    assert_eq!(wake.0.load(Ordering::SeqCst), 1, "registered once, however often polled");
    assert_eq!(send.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    let mut send = std::pin::pin!(sender.send(3, 0, &account));
    assert!(send.as_mut().poll(&mut context).is_pending());
    drop(inbox);
    assert_eq!(send.as_mut().poll(&mut context), Poll::Ready(Err(InboxStopped(3))));
}

struct CountWakes(AtomicUsize);

impl std::task::Wake for CountWakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Producers that block for room against a shard that sleeps whenever it may: everything arrives once, in order per
/// producer. A lost wake hangs the test.
#[test]
fn many_producers_and_a_sleeping_shard_lose_nothing() {
    const PRODUCERS: usize = 4;
    let each: u32 = if cfg!(miri) { 50 } else { 20_000 };
    let wake = WakeThread::new();
    *wake.0.0.lock().unwrap() = Some(thread::current());
    let (sender, mut inbox) = inbox(limits(32, 320), wake.clone());
    let mut next = [0; PRODUCERS];
    thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let sender = sender.clone();
            scope.spawn(move || {
                let account = sender.account();
                for number in 0..each {
                    sender.send_wait((producer, number), number as usize % 40, &account).unwrap();
                }
            });
        }
        while next != [each; PRODUCERS] {
            let drained = inbox.drain(8, 100, |(producer, number)| {
                assert_eq!(number, next[producer]);
                next[producer] += 1;
            });
            if drained == 0 && inbox.prepare_sleep() {
                thread::park();
                inbox.awake();
            }
        }
    });
    assert_eq!(sender.held(), (0, 0));
    assert!(inbox.is_empty());
}

#[test]
fn whoever_comes_with_nothing_finds_room_however_many_fill_the_queue() {
    let (sender, mut inbox) = inbox(limits(64, 6400), NeverAsleep);
    let greedy: Vec<_> = (0..16).map(|_| sender.account()).collect();
    for round in 0..64 {
        for account in &greedy {
            _ = sender.try_send(round, 100, account);
        }
    }
    let held: Vec<u64> = greedy.iter().map(|account| account.held().0).collect();
    assert!(held.iter().all(|&held| held >= 3), "each has its part: {held:?}");
    for command in 0..3 {
        sender.try_send(command, 100, &sender.account()).unwrap();
    }
    drained(&mut inbox);
    assert_eq!(sender.held(), (0, 0));
}

#[test]
fn inboxes_together_have_a_quarter_of_the_memory_budget() {
    let configured = limits(64, 64 << 20);
    assert_eq!(configured.within_budget(None, 2), configured);
    assert_eq!(configured.within_budget(Some(1 << 30), 2), configured);
    assert_eq!(configured.within_budget(Some(128 << 20), 2), limits(64, 16 << 20));
}

#[test]
fn a_shard_does_not_wait_for_a_producer_that_was_stopped_in_the_middle_of_a_call() {
    struct Obeyed(Vec<u32>);
    impl OrderServer<u32, ()> for Obeyed {
        fn has_room(&self) -> bool {
            true
        }

        fn execute(&mut self, order: OrderOrRest<u32, ()>, _: u64) -> (u64, Option<()>) {
            let OrderOrRest::New(order) = order else { panic!("nothing is left of an order") };
            self.0.push(order);
            (1, None)
        }
    }

    for others in [0, 1, 100] {
        let (sender, inbox) = inbox(limits(4_000, 1 << 20), NeverAsleep);
        let (stopped, goes_on) = (sender.account(), sender.account());
        assert!(stopped.0.try_take(10) && sender.shared.held.try_take(10));
        let place = sender.shared.queue.claim().unwrap();
        for number in 1..=others {
            sender.try_send(number, 10, &goes_on).unwrap();
        }
        let (mut producers, mut obeyed) = (Producers::new(inbox), Obeyed(Vec::new()));
        producers.serve(usize::MAX, u64::MAX, &mut obeyed);
        assert!(obeyed.0.is_empty() && !producers.has_orders(), "nothing has come: the shard may sleep");
        assert!(producers.inbox().prepare_sleep());
        producers.inbox().awake();
        sender.shared.queue.fill(place, QueuedOrder { command: 0, bytes: 10, account: stopped });
        assert!(producers.has_orders());
        producers.serve(usize::MAX, u64::MAX, &mut obeyed);
        assert_eq!(obeyed.0, (0..=others).collect::<Vec<_>>());
        assert_eq!(sender.held(), (0, 0));
    }
}

#[test]
fn a_waker_that_panics_is_no_shards_fault() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("an executor is broken, as it should be in this test");
        }
    }
    let (sender, mut inbox) = inbox(limits(4, 1000), NeverAsleep);
    let account = sender.account();
    sender.try_send(1, 0, &account).unwrap();
    let waker = Waker::from(Arc::new(Panics));
    let (mut waiting, calm) = (Some(2), Arc::new(CountWakes(AtomicUsize::new(0))));
    assert!(sender.poll_send(&mut waiting, 0, &account, &mut Context::from_waker(&waker)).is_pending());
    let behind = Waker::from(calm.clone());
    assert!(sender.poll_send(&mut waiting, 0, &account, &mut Context::from_waker(&behind)).is_pending());
    assert_eq!(drained(&mut inbox), [1]);
    assert_eq!(calm.0.load(Ordering::SeqCst), 1, "those behind it are woken");
}

/// A process may have thousands of tasks that wait, and the shard others to serve.
#[test]
fn however_many_wait_for_room_some_are_woken_at_a_time_and_those_of_each_account() {
    const TASKS: usize = 10 * WOKEN_MAX;
    let (sender, mut inbox) = inbox(limits(16, 1000), NeverAsleep);
    let (many, few) = (sender.account(), sender.account());
    let fill = |sender: &InboxSender<u32>, account| while sender.try_send(0, 0, account).is_ok() {};
    [&many, &few].into_iter().for_each(|account| fill(&sender, account));
    let wakes = |count: usize| (0..count).map(|_| Arc::new(CountWakes(AtomicUsize::new(0)))).collect::<Vec<_>>();
    let (of_many, of_few) = (wakes(TASKS), wakes(1));
    for (tasks, account) in [(&of_many, &many), (&of_few, &few)] {
        for task in tasks {
            let waker = Waker::from(task.clone());
            // However often it looks.
            for _ in 0..3 {
                assert!(sender.poll_send(&mut Some(1), 0, account, &mut Context::from_waker(&waker)).is_pending());
            }
        }
    }
    let woken = |tasks: &[Arc<CountWakes>]| tasks.iter().map(|task| task.0.load(Ordering::SeqCst)).sum::<usize>();
    drained(&mut inbox);
    assert_eq!((woken(&of_many), woken(&of_few)), (WOKEN_MAX - 1, 1), "each account has its turn");
    let mut before = woken(&of_many);
    while !inbox.prepare_sleep() {
        assert!(drained(&mut inbox).is_empty(), "nobody has sent anything");
        let now = woken(&of_many);
        assert!((1..=WOKEN_MAX).contains(&(now - before)), "{before}, then {now}");
        before = now;
    }
    assert_eq!((woken(&of_many), woken(&of_few)), (TASKS, 1), "each is woken once, and the shard sleeps then");
}

#[test]
fn a_place_is_kept_for_its_command_and_given_back_without_one() {
    let (sender, mut inbox) = inbox(limits(8, 800), NeverAsleep);
    let (account, other) = (sender.account(), sender.account());
    let places = [100, 100].map(|bytes| sender.try_reserve(bytes, &account).unwrap());
    assert_eq!(sender.try_send(1, 1, &account), Err(SendRefused::Full(1)), "a quarter of it is taken");
    sender.try_send(2, 100, &other).unwrap();
    let [first, second] = places;
    second.put(4);
    first.put(3);
    assert_eq!(drained(&mut inbox), [2, 4, 3], "in the order in which they were put there");
    drop(sender.try_reserve(100, &account).unwrap());
    assert_eq!((sender.held(), account.held(), other.held()), ((0, 0), (0, 0), (0, 0)));
    // Who has found no room beside a place is told when it is given back.
    let place = sender.try_reserve(200, &account).unwrap();
    let mut waiting = std::pin::pin!(sender.send(5, 1, &account));
    let woken = WakeThread::new();
    let waker = std::task::Waker::from(Arc::new(Count(woken.clone())));
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(place);
    assert_eq!(woken.wakes(), 1);
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    // One that the shard has stopped meanwhile to take is dropped, and its room is not taken for ever.
    let place = sender.try_reserve(1, &account).unwrap();
    drop(inbox);
    place.put(6);
    assert!(matches!(sender.try_reserve(1, &account), Err(SendRefused::Stopped(()))));
}

struct Count(WakeThread);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}
