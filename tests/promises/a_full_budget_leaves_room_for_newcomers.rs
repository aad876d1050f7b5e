//! The promise: a process whose clients do not read fills its own share of the memory budget, and what another process
//! says for the first time, over a link too, still finds room.

use crate::link_support::{Linked, attach};
use crate::support::{self, DriverKind, PATIENCE};
use pushring::{AttachOptions, Audience, Message, Policy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1024 * 1024;
const BUDGET: usize = 16 * MIB;

/// More than what a link reads ahead, so it needs memory before it is read.
const LONG: usize = 100_000;

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_process_over_a_link_is_heard_while_another_has_filled_what_it_may() {
    let broker = support::broker(DriverKind::Auto, |config| {
        config.shards = 2;
        config.memory_bytes_max = Some(BUDGET);
    });
    let hog = support::process(&broker, "hog", AttachOptions::default());
    let mut inbound = support::Inbound::default();
    // They take what the kernel takes for them, and nothing more.
    let slow: Vec<_> = (0..24).map(|_| inbound.open(&broker, &hog)).collect();
    let linked = Linked::at(broker, "newcomer", |_| {});
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = EndOnDrop(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let push = hog.broadcast(Message::binary(vec![7; 3000])).policy(Policy::DropNewest);
                // A full inbox is no matter.
                let _ = push.try_send();
            }
        });
        let free =
            || BUDGET - linked.broker.handle().reports().iter().map(|report| report.memory.leased_bytes).sum::<usize>();
        let deadline = Instant::now() + PATIENCE;
        while free() > BUDGET / 4 {
            assert!(Instant::now() < deadline, "{} are free", free());
            std::thread::sleep(Duration::from_millis(10));
        }
        // It holds nothing, and is no neighbour that anybody had to think of.
        let late = attach(&linked.path, "late");
        late.bind("/", Default::default()).unwrap();
        let mut client = support::connect(&linked.broker, "/late:test:sys/");
        for _ in 0..20 {
            late.push_many(Audience::Process, &[], Message::binary(vec![1; LONG]), None, None).unwrap();
            assert_eq!(support::recv(&mut client).len(), LONG);
        }
    });
    drop(slow);
    drop(hog);
    linked.stop();
}
