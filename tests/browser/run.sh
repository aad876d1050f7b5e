#!/usr/bin/env bash
# A real browser against the demo and against a node: see test.mjs and node.test.mjs. Installs Chromium (Debian's) where it is missing and may be installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/target/browser
. "$root/tests/support/demo.sh"

install_chromium() {
    command -v chromium >/dev/null && return
    command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] || return 1
    mkdir -p "$work"
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
        >"$work/apt.log" 2>&1 || return 1
}

skip() {
    echo "skipped: the browser test needs $1"
    exit 0
}

command -v node >/dev/null && command -v npm >/dev/null || skip "Node.js with npm"
install_chromium || skip "Chromium, which could not be installed"
npm --prefix "$here" ci --ignore-scripts --no-audit --no-fund --loglevel=error

mkdir -p "$work"
(umask 077 && head -c 32 /dev/urandom | base64 >"$work/secret")
demo_start --jwt-secret-file "$work/secret" --deflate --deflate-takeover-bytes-max 4MiB
browse() {
    PUSHRING_URL=http://$1 CHROMIUM=$(command -v chromium) timeout 180 node --test --test-reporter=spec "$here/$2"
}
browse "$demo_address" test.mjs
demo_stop

(cd "$root" && cargo build --quiet --example node_backend)
coproc NODE { exec "$root/target/debug/examples/node_backend" 127.0.0.1:0; }
trap 'kill "$NODE_PID" 2>/dev/null || true' EXIT
# The first line says where: ws://ADDRESS/wsecho:wsecho:sys/ echoes. What follows is not read by anybody else.
read -r line <&"${NODE[0]}"
node_address=${line#ws://}
cat <&"${NODE[0]}" >"$work/node.log" &
browse "${node_address%%/*}" node.test.mjs
