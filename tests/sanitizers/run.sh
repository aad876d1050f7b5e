#!/usr/bin/env bash
# The tests under a sanitizer, with a stable compiler.
#
# usage: tests/sanitizers/run.sh address [quick]   AddressSanitizer and LeakSanitizer over all tests; `quick`: over the
#                                                  library's own tests and those of the files that hold `unsafe`
#        tests/sanitizers/run.sh address tls       AddressSanitizer and LeakSanitizer over the promises, through TLS
#        tests/sanitizers/run.sh thread            ThreadSanitizer over the inbox and everything that crosses threads
set -euo pipefail
cd "$(dirname "$0")/../.."
here=tests/sanitizers

# Those in a small control group: it would hold the sanitizer's own memory, too.
in_groups=(--skip memory_groups_are_survived --skip nodes_survive_memory_groups)

# The standard library is not rebuilt, so the target must be named: without it, build scripts would be sanitized, too.
target=x86_64-unknown-linux-gnu
# What tests measure of a sanitized program may be the sanitizer's own: they know it by `cfg(sanitized)`.
run() {
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="$flags --cfg sanitized" CARGO_TARGET_DIR=target/sanitizer/$sanitizer \
        cargo test --locked --no-fail-fast --target "$target" "$@"
}

sanitizer=$1
case $sanitizer in
address)
    flags=-Zsanitizer=address
    export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1:detect_leaks=1
    export LSAN_OPTIONS="suppressions=$PWD/$here/leak.suppressions:print_suppressions=0"
    if [ "${2:-}" = quick ]; then
        # Where `unsafe` is: the flush over io_uring, system calls, the segments that it borrows.
        # Without four tests that take minutes under the sanitizer, of code that holds none.
        run --lib -- --skip strangers_that_come_once --skip a_bomb_costs --skip what_is_compressed_inflates \
            --skip the_queue_sends_what
        run --test promises -- flush_takes_what_send_takes ready_set_wakes_its_waiter fuzz_corpus_replay \
            slow_reader_delays_nobody order_per_channel
    elif [ "${2:-}" = tls ]; then
        # The clients of the tests come through TLS then, as do those of the link's daemons.
        PUSHRING_TEST_TLS=1 run --test promises -- "${in_groups[@]}"
    else
        # Without the model checker: it walks through interleavings for minutes, of code that is safe.
        mapfile -t tests < <(basename --multiple --suffix .rs tests/*.rs | grep -v loom_inbox | sed 's/^/--test=/')
        run --workspace --lib --bins
        run --test=promises "${tests[@]}" -- "${in_groups[@]}"
        run --package loadtest --tests
    fi
    ;;
thread)
    # std was built without the sanitizer, and with another ABI for it; what it cannot see there is in the suppressions.
    flags='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer'
    export TSAN_OPTIONS="suppressions=$PWD/$here/thread.suppressions:halt_on_error=1:second_deadlock_stack=1"
    run --lib -- queue:: admission::memory::
    run --test promises -- order_per_channel opened_once_closed_once process_backpressure outcomes_and_stop \
        push_to_strangers_reaches_nobody
    ;;
*)
    sed -n '4,7p' "$0" >&2
    exit 2
    ;;
esac
