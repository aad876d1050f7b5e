# For scripts: starts `pushring demo` on a free port of loopback and stops it when the script ends.
# Sets demo_address. Wants $root, the top of the source tree, and $work, a directory for its output. PUSHRING_BIN may
# name the program to test; without it the tree's own is built.

# Sends the demo SIGTERM; it must end with 0.
demo_stop() {
    local pid=${demo_pid:-} status=0
    demo_pid=
    [ -n "$pid" ] || return 0
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    [ "$status" -eq 0 ] || {
        echo "pushring demo ended with $status:" >&2
        cat "$work/demo.log" >&2
        return 1
    }
}

# demo_start [FLAG...]
demo_start() {
    local tries line
    local program=${PUSHRING_BIN:-$root/target/debug/pushring}
    [ -n "${PUSHRING_BIN:-}" ] || (cd "$root" && cargo build --quiet --bin pushring)
    mkdir -p "$work"
    : >"$work/demo.out"
    "$program" demo --listen 127.0.0.1:0 "$@" >"$work/demo.out" 2>"$work/demo.log" &
    demo_pid=$!
    trap 'status=$?; demo_stop || status=1; exit $status' EXIT
    # The first line on stdout says where it listens.
    for tries in $(seq 200); do
        if read -r line <"$work/demo.out" && [[ $line == *http*://* ]]; then
            demo_address=${line##*://}
            return
        fi
        kill -0 "$demo_pid" 2>/dev/null || break
        sleep 0.1
    done
    echo "pushring demo did not start:" >&2
    cat "$work/demo.log" >&2
    return 1
}
