#!/usr/bin/env bash
# Follows docs/OPERATIONS.md from an empty directory: see follow.py. Installs from the distribution what it needs, as far
# as it can be had; what cannot is said and left out.
#
# usage: tests/operations/run.sh [--quick] [PROGRAM]     --quick: the silence behind proxies lasts 3 s instead of 130
set -euo pipefail
cd "$(dirname "$0")/../.."
wanted=(nginx-light haproxy caddy prometheus prometheus-node-exporter curl openssl lintian)
if command -v apt-get >/dev/null && ! dpkg-query --show "${wanted[@]}" >/dev/null 2>&1; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    export DEBIAN_FRONTEND=noninteractive
    # Nothing of it is to be started: the test starts what it needs.
    $sudo apt-get install --yes --no-install-recommends -o Dpkg::Options::=--force-confold "${wanted[@]}" >/dev/null 2>&1 ||
        { $sudo apt-get update >/dev/null 2>&1 &&
            $sudo apt-get install --yes --no-install-recommends "${wanted[@]}" >/dev/null 2>&1; } ||
        echo "not all of ${wanted[*]} can be installed"
fi
exec python3 tests/operations/follow.py "$@"
