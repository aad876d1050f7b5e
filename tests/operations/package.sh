#!/usr/bin/env bash
# Builds the Debian package of a program, has lintian judge it, and tries what is in it; then the container (container.sh).
#
# usage: tests/operations/package.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/release/pushring}
for tool in dpkg-deb dpkg-shlibdeps; do
    command -v "$tool" >/dev/null || { echo "NOT RUN: there is no $tool"; exit 0; }
done
command -v lintian >/dev/null || [ "$(id -u)" != 0 ] ||
    DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install --yes --no-install-recommends lintian >/dev/null 2>&1 || true
package=$(packaging/deb "$program")
if command -v lintian >/dev/null; then
    lintian --allow-root --fail-on error,warning "$package"
else
    echo "NOT RUN: there is no lintian"
fi
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
dpkg-deb --extract "$package" "$root"
"$root/usr/bin/pushring" --version
bash -n "$root/usr/share/bash-completion/completions/pushring"
for page in "$root"/usr/share/man/man1/*.gz; do
    gzip -dc "$page" | grep -q '^\.TH' || { echo "no manual page: $page" >&2; exit 1; }
done
"$root/usr/bin/pushring" init --dir "$root/etc/pushring" >/dev/null
"$root/usr/bin/pushring" config --config "$root/etc/pushring/pushring.toml" >/dev/null

exec tests/operations/container.sh "$program"
