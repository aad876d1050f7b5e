//! Each test blocks one process of a node, and checks that others proceed.

use super::*;
use crate::broker::{Broker, Config, Event, Kernel, KernelOptions};
use crate::gateway::RulesOverlay;
use crate::node::dispatch::Reply;
use crate::node::http_server_process;
use crate::node::identity::ServerName;
use crate::node::perform::Unasked;
use crate::queue::events::QueueLimits;
use crate::queue::orders::InboxLimits;
use std::sync::mpsc::channel;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    broker: Broker,
    kernel: Kernel,
    queues: RequestQueues,
    changes: Option<PathChanges>,
    answers: VecDeque<KernelMessage>,
}

fn scene() -> Scene {
    let inbox = InboxLimits { commands_max: 16, ..Config::default().inbox };
    let broker = Broker::start(Config { shards: 1, inbox, ..Config::default() }).unwrap();
    let options = KernelOptions {
        system: http_server_process(),
        queue: QueueLimits::default(),
        policy: Default::default(),
        rules: RulesOverlay::new(|chosen| chosen),
    };
    let (kernel, handle) = broker.handle().kernel(options).unwrap();
    let pending = Arc::new(Pending::new(Unasked::Failures, None));
    let (queues, changes) = RequestQueues::new(handle, pending);
    Scene { broker, kernel, queues, changes: Some(changes), answers: VecDeque::new() }
}

fn request(process: &str, id: u64, action: CheckedAction) -> ActionRequest {
    let source = format!("our@{process}:test:sys").parse().unwrap();
    ActionRequest { action, reply: Reply::unasked(id, source, ServerName::default()) }
}

fn bind(path: usize) -> CheckedAction {
    CheckedAction::BindWebSocket { path: format!("/{path}"), authenticated: false, extension: false, secure: false }
}

/// To a channel that is not there: the failure is told as an event, with the request's id.
fn push() -> CheckedAction {
    CheckedAction::Push { channel: crate::channel::ChannelId::new(77), message: crate::broker::Message::text("nobody") }
}

fn grant(guest: &Address) -> CheckedAction {
    CheckedAction::Grant { channel: Some(crate::channel::ChannelId::new(77)), guest: guest.clone(), is_granted: true }
}

impl Scene {
    fn put(&mut self, process: &str, id: u64, action: CheckedAction) {
        let answer = self.queues.put(QueuedJob::Act(request(process, id, action)), 100).unwrap();
        assert!(answer.is_none(), "{answer:?}");
    }

    fn poll(&mut self) -> Poll<()> {
        self.queues.poll(&mut Context::from_waker(Waker::noop()), &mut self.answers).map(Result::unwrap)
    }

    /// The senders of the requests that failed, with the ids of the requests, once `count` have.
    fn failed(&mut self, count: usize) -> Vec<(String, u64)> {
        let (mut failed, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while failed.len() < count {
            assert!(Instant::now() < deadline, "{} of {count}", failed.len());
            _ = self.poll();
            let Ok(batch) = self.kernel.recv(Duration::from_millis(5)) else { continue };
            let ids = batch.events.iter().filter_map(|event| match event {
                Event::Failed { ticket, .. } => Some(*ticket),
                _ => None,
            });
            let process = batch.process.map(|process| process.to_string()).unwrap_or_default();
            failed.extend(ids.map(|id| (process.clone(), id)));
        }
        failed
    }
}

#[test]
fn a_change_of_paths_holds_up_its_own_process_alone() {
    let mut scene = scene();
    for path in 0..1000 {
        scene.put("binds", 1, bind(path));
    }
    scene.put("binds", 2, push());
    scene.put("other", 3, push());
    // No thread makes changes yet.
    assert!(scene.poll().is_pending());
    assert_eq!(scene.failed(1), [("other:test:sys".to_owned(), 3)]);
    let binds = &scene.queues.queues[scene.queues.places[&QueueOwner::Process("binds:test:sys".parse().unwrap())]];
    assert_eq!(binds.waiting.len(), 1000, "what stands behind the first change");
    assert!(scene.queues.is_busy() && !scene.queues.is_full());
    // They are made, in order, and what stood behind them is done.
    let changes = scene.changes.take().unwrap();
    let maker = thread::spawn(move || changes.run(|_| {}));
    assert_eq!(scene.failed(1), [("binds:test:sys".to_owned(), 2)]);
    assert!(!scene.queues.is_busy());
    assert!(scene.answers.is_empty(), "nobody asked");
    drop(scene);
    maker.join().unwrap();
}

#[test]
fn room_in_an_inbox_is_each_process_own() {
    let mut scene = scene();
    let (entered, is_stuck) = channel();
    let (go_on, gate) = channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let handle = scene.broker.handle();
    let stuck = thread::spawn(move || {
        // The one shard waits in here.
        drop(handle.on_shards("stuck", move |_| {
            entered.send(()).unwrap();
            let _ = gate.lock().unwrap().recv();
            |_: &mut crate::broker::Here<'_>, _: Event| {}
        }));
    });
    is_stuck.recv_timeout(PATIENCE).unwrap();
    for id in 0..5000 {
        scene.put("floods", id, push());
        _ = scene.poll();
    }
    assert!(scene.poll().is_pending());
    let flooding = scene.queues.places[&QueueOwner::Process("floods:test:sys".parse().unwrap())];
    assert!(scene.queues.queues[flooding].waiting.len() > 1000);
    // Others are not behind it, and their orders are in the inbox already.
    for other in 0..3 {
        scene.put(&format!("other-{other}"), 9, push());
    }
    assert!(scene.poll().is_pending());
    assert_eq!(scene.queues.busy, [flooding]);
    go_on.send(()).unwrap();
    stuck.join().unwrap();
    let mut failed = scene.failed(5003);
    failed.retain(|(process, _)| process == "floods:test:sys");
    assert!(failed.iter().map(|(_, id)| *id).eq(0..5000), "all of it, in order");
}

#[test]
fn a_full_queue_is_reported_until_it_has_room() {
    let mut scene = scene();
    for path in 0..=MESSAGES_MAX {
        assert!(!scene.queues.is_full(), "{path}");
        scene.put("binds", 1, bind(path % 10));
    }
    assert!(scene.queues.is_full());
    let held = scene.broker.handle().held_by_process();
    let of_binds =
        held.iter().find(|held| held.process.as_ref().is_some_and(|p| p.as_str() == "binds:test:sys")).unwrap();
    assert!(of_binds.held.link > MESSAGES_MAX * 100, "{of_binds:?}");
    let changes = scene.changes.take().unwrap();
    thread::spawn(move || changes.run(|_| {}));
    while scene.queues.is_full() {
        _ = scene.poll();
        thread::yield_now();
    }
}

#[test]
fn what_concerns_a_guest_is_in_one_order() {
    let guest: Address = "bob.os@guest:test:sys".parse().unwrap();
    let act = QueuedJob::Act(request("owner", 1, grant(&guest)));
    let of_guest = ActionRequest { reply: Reply::unasked(1, guest, ServerName::default()), action: push() };
    assert_eq!(act.owner(), QueuedJob::ActOfGuest(of_guest).owner());
    assert_eq!(
        QueuedJob::Act(request("owner", 1, push())).owner(),
        QueueOwner::Process("owner:test:sys".parse().unwrap())
    );
}

#[test]
fn idle_queues_are_forgotten() {
    let mut scene = scene();
    scene.put("binds", 1, bind(1));
    for process in 0..3 * KEPT_MAX {
        scene.put(&format!("p{process}"), 1, push());
        while scene.poll().is_ready() && scene.queues.is_busy() {}
        if process % 100 == 0 {
            while scene.queues.queues.iter().filter(|queue| !queue.batch.is_done()).count() > 0 {
                _ = scene.poll();
                thread::yield_now();
            }
        }
    }
    assert!(scene.queues.queues.len() <= KEPT_MAX, "{}", scene.queues.queues.len());
    let binds = scene.queues.places[&QueueOwner::Process("binds:test:sys".parse().unwrap())];
    assert!(scene.queues.queues[binds].change.is_some(), "one that has something to do stays");
    // The last of the others may still wait for room in the inbox.
    let since = Instant::now();
    while scene.queues.busy.len() > 1 && since.elapsed() < PATIENCE {
        _ = scene.poll();
        thread::yield_now();
    }
    assert_eq!(scene.queues.busy, [binds]);
}
