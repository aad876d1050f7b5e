//! A blob of 1 MiB goes from a node's kernel to its client, and over a link, by reference: a copy needs memory of its
//! size, and none is allocated; a link reads it into the memory that is sent. From a client it is put together in one
//! place, which grows as it arrives and which the process gets.
#![allow(missing_docs)]

mod link_support;
mod node_support;
mod support;

use link_support::Linked;
use node_support::{NODE, Node, Options, SECRET, push, request};
use pushring::internals::gateway::Secret;
use pushring::node::Dialect;
use pushring::{Broker, Config};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Allocations counted: several times smaller than a copy of a blob, piece by piece or whole, and larger than buffers
/// of single threads.
const LARGE_BYTES: usize = 48 << 10;

static LARGE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract. Counting is one atomic
// addition and never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size > LARGE_BYTES {
            LARGE.fetch_add(size.saturating_sub(layout.size()), Ordering::Relaxed);
        }
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    if bytes >= LARGE_BYTES {
        LARGE.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The bytes of large allocations, of all threads, while `work` is done.
fn large_bytes(work: impl FnOnce()) -> usize {
    let before = LARGE.load(Ordering::Relaxed);
    work();
    LARGE.load(Ordering::Relaxed) - before
}

const BLOB_BYTES: usize = 1 << 20;
const APP: &str = "fake.os@app:app:test.os";
const PATH: &str = "/app:app:test.os/";

/// Pushes a blob; answers the bytes of large allocations until the client has all of it.
fn pushed(node: &mut Node, client: &mut support::Client, channel: u64, received: &mut [u8]) -> usize {
    let blob = vec![7; BLOB_BYTES];
    let mut message = request(1, APP, push(channel).replace("Text", "Binary").as_bytes(), None, None);
    message.lazy_load_blob = Some(pushring::node::LazyLoadBlob { mime: None, bytes: blob });
    let large = large_bytes(|| {
        node.hand_in(message);
        client.get_mut().read_exact(received).unwrap();
    });
    assert_eq!(received[..10], [0x82, 127, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert!(received[10..].iter().all(|byte| *byte == 7));
    large
}

/// Sends a message of one frame; answers the bytes of large allocations until its process has it.
fn received(node: &mut Node, client: &mut support::Client) -> usize {
    let frame = [&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0][..], &vec![9; BLOB_BYTES]].concat();
    large_bytes(|| {
        std::io::Write::write_all(client.get_mut(), &frame).unwrap();
        let blob = node.next().lazy_load_blob.unwrap().bytes;
        assert!(blob.len() == BLOB_BYTES && blob.iter().all(|byte| *byte == 9));
    })
}

#[test]
fn a_mebibyte_is_allocated_only_where_it_arrives() {
    let mut buffer = vec![0; 10 + BLOB_BYTES];
    let mut drop_in = Node::start(Options::default());
    let mut settings = pushring::node::settings(NODE, Dialect::Kinode);
    settings.secret = Some(Secret::new(SECRET).unwrap());
    let config = Config { settings, shards: 2, driver: support::driver(), ..Config::default() };
    let broker = Broker::start(Config { listen: ([127, 0, 0, 1], 0).into(), ..config }).unwrap();
    let linked = Linked::at(broker, "large", |_| {});
    let mut over_link = Node::attach(&linked.path);
    // Over the link the broker has to have it in its own memory, once.
    for (node, in_pushes) in [(&mut drop_in, 0), (&mut over_link, BLOB_BYTES)] {
        node.bind("app:app:test.os", "/");
        let (mut client, channel) = node.open(PATH);
        // The first of each kind finds buffers that grow once and stay.
        pushed(node, &mut client, channel, &mut buffer);
        received(node, &mut client);
        for _ in 0..3 {
            let spare = BLOB_BYTES / 4;
            let large = pushed(node, &mut client, channel, &mut buffer);
            assert!((in_pushes..=in_pushes + spare).contains(&large), "{large} bytes for a push");
            let large = received(node, &mut client);
            let at_most = BLOB_BYTES + in_pushes + spare;
            assert!((BLOB_BYTES - LARGE_BYTES..=at_most).contains(&large), "{large} bytes for a message");
        }
    }
}
