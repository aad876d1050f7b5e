//! A broadcast encodes its frame once: neither allocations nor copies grow with the number of channels, and a large
//! payload is never copied at all.
#![allow(missing_docs)]

mod shard_support;
use bytes::Bytes;
use shard_support::Fan;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering;

thread_local! {
    /// Allocations, and their bytes, of this thread.
    static COUNTED: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator, which keeps the contract. Counting touches a
// thread-local without a destructor and never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    COUNTED.with(|counted| {
        let (allocations, sum) = counted.get();
        counted.set((allocations + 1, sum + bytes));
    });
}

/// The allocations, and their bytes, of what `work` does.
fn counted(work: impl FnOnce()) -> (usize, usize) {
    let before = COUNTED.get();
    work();
    let after = COUNTED.get();
    (after.0 - before.0, after.1 - before.1)
}

/// Broadcasts once, from the order to the last send.
fn broadcast(fan: &mut Fan, payload: &Bytes) -> (usize, usize) {
    counted(|| {
        fan.shard.handle_command(Fan::broadcast(payload.clone()), 1);
        fan.turn();
    })
}

/// The cost of a broadcast once buffers have grown to what such broadcasts need.
fn settled(channels: usize, payload: &Bytes) -> (usize, usize) {
    let mut fan = Fan::new(channels);
    broadcast(&mut fan, payload);
    let sends = fan.taken.sends.load(Ordering::Relaxed);
    let cost = broadcast(&mut fan, payload);
    assert_eq!(fan.taken.sends.load(Ordering::Relaxed) - sends, channels, "one send for each channel");
    cost
}

#[test]
fn allocations_grow_with_batches_not_with_channels() {
    let payload = Bytes::from(vec![1; 128]);
    let (alone, _) = settled(1, &payload);
    let (many, bytes) = settled(1_000, &payload);
    // A batch of up to 256 sends makes a few lists; 1,000 channels are four batches.
    assert!(many <= alone + 4 * 8, "{alone} allocations for one channel, {many} for 1,000");
    // Those lists are per batch too: at most some tens of bytes for each of its entries.
    assert!(bytes < 1_000 * 128, "{bytes} bytes allocated: the payload was copied for each channel");
}

#[test]
fn more_frames_at_a_time_allocate_no_more() {
    let payload = Bytes::from(vec![1; 128]);
    let mut fan = Fan::new(1_000);
    let mut sixteen = || {
        counted(|| {
            for _ in 0..16 {
                fan.shard.handle_command(Fan::broadcast(payload.clone()), 1);
            }
            fan.turn();
        })
    };
    sixteen();
    let (allocations, _) = sixteen();
    // Two of each order (its box, its empty list of exceptions) are the test's own.
    assert!(allocations <= 16 * 2 + 4 * 8, "{allocations} allocations for 16 broadcasts to 1,000 channels");
    assert_eq!(fan.taken.sends.load(Ordering::Relaxed), 3 * 1_000, "16 frames leave in one send (and 1 for the 101)");
}

#[test]
fn a_large_payload_is_sent_from_where_the_process_put_it() {
    let payload = Bytes::from(vec![1; 1 << 20]);
    let mut fan = Fan::new(4);
    let before = fan.taken.bytes.load(Ordering::Relaxed);
    let (_, bytes) = broadcast(&mut fan, &payload);
    assert_eq!(fan.taken.bytes.load(Ordering::Relaxed) - before, 4 * (payload.len() + 10));
    assert!(bytes < 64 * 1024, "{bytes} bytes allocated for a payload of 1 MiB");
    let last = fan.taken.last.load(Ordering::Relaxed).cast_const();
    assert!(payload.as_ptr_range().contains(&last), "the bytes that were sent are the process' own");
}
