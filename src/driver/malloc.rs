//! Returning freed memory from the C library's allocator to the system.
//!
//! glibc maps large allocations one by one and unmaps them when they are freed, but the size from which it does so
//! grows with the freed sizes (mallopt(3), M_MMAP_THRESHOLD): after one message of 16 MiB, later ones come from the
//! heap, and memory freed below anything that still lives stays resident. So a memory budget would bound the memory
//! held, and not the memory taken from the machine. A fixed threshold ends that for large allocations; what small ones
//! leave resident goes back when it is asked for ([`trim`]): see the test `freed_memory_goes_back`.
//!
//! It is a setting of the whole program, and changes nothing where another allocator is in use.

/// Allocations from this size on are mapped. What a shard makes by the thousand (segments, pieces of queues, parts of
/// messages) is smaller; a mapping costs some microseconds, little beside receiving so many bytes.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 128 * 1024;

/// Makes large allocations go back to the system when they are freed. Once for each program is enough.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn give_back_what_is_freed() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: mallopt takes two numbers and changes a setting of the allocator under its own lock (MT-Unsafe in the
        // manual concerns its first call alone, before which the allocator is set up: Rust's start has allocated).
        let is_set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) } == 1;
        if !is_set {
            tracing::warn!("the allocator does not take M_MMAP_THRESHOLD: freed memory may stay resident");
        }
    });
}

/// Other C libraries have no such threshold.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_what_is_freed() {}

/// Gives back to the system what the heaps of all threads keep and do not use. It takes milliseconds, in which other
/// threads may wait for memory.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
pub fn trim() {
    // SAFETY: malloc_trim takes a number, and changes the allocator's state under its own locks (MT-Safe in the
    // manual).
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries give back what they like, when they like.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
