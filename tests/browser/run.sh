#!/usr/bin/env bash
# Real browsers against the demo and against a node: see the tests. Installs Chromium and Firefox (Debian's) where they are
# missing and may be installed. Chromium is needed; what both can do is tested in Firefox too where that is there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/target/browser
. "$root/tests/support/demo.sh"

# Installs the package and program of that name.
install() {
    command -v "$1" >/dev/null && return
    command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || return 1
    mkdir -p "$work"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1"; } \
        >"$work/apt.log" 2>&1 || return 1
}

skip() {
    echo "skipped: the browser test needs $1"
    exit 0
}

command -v node >/dev/null && command -v npm >/dev/null || skip "Node.js with npm"
install chromium || skip "Chromium, which could not be installed"
install firefox-esr || echo "not in Firefox, which could not be installed"
CHROMIUM=$(command -v chromium)
FIREFOX=$(command -v firefox-esr || true)
export CHROMIUM FIREFOX
npm --prefix "$here" ci --ignore-scripts --no-audit --no-fund --loglevel=error

mkdir -p "$work"
(umask 077 && head -c 32 /dev/urandom | base64 >"$work/secret")
demo_start --receivers 100 --jwt-secret-file "$work/secret" --deflate --deflate-takeover-bytes-max 4MiB
browse() {
    timeout 900 node --test --test-reporter=spec "$here/$1"
}
PUSHRING_URL=http://$demo_address browse test.mjs
demo_stop
demo_start --tls
PUSHRING_URL=https://$demo_address browse tls.test.mjs
demo_stop

# Starts and stops the demo by itself, at an address that is free now.
port=$(node -e 'const s = require("net").createServer().listen(0, "127.0.0.1", () => { console.log(s.address().port); s.close(); })')
DEMO=${PUSHRING_BIN:-$root/target/debug/pushring} PUSHRING_URL=http://127.0.0.1:$port browse demo.test.mjs

(cd "$root" && cargo build --quiet --example node_backend)
nodes=()
trap 'kill "${nodes[@]}" 2>/dev/null || true' EXIT
# Starts a node that listens at $2 and writes to the log $1; sets node_address once it says where that is: its first line is
# ws://ADDRESS/wsecho:wsecho:sys/ and more.
start_node() {
    "$root/target/debug/examples/node_backend" "$2" >"$work/$1.log" 2>&1 &
    nodes+=($!)
    until node_address=$(sed -n '1s|^ws://\([^/]*\)/.*|\1|p' "$work/$1.log") && [ -n "$node_address" ]; do sleep 0.1; done
}
start_node node 127.0.0.1:0
export PUSHRING_URL=http://$node_address
start_node domain 0.0.0.0:0
export PUSHRING_DOMAIN_URL=http://$node_address
browse node.test.mjs
browse login.test.mjs

export DAEMON=${PUSHRING_BIN:-$root/target/debug/pushring}
browse admin.test.mjs
install nginx || echo "not through nginx, which could not be installed"
browse sse.test.mjs
