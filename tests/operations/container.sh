#!/usr/bin/env bash
# Builds packaging/Containerfile, starts what it made as the recipe says, asks it, and stops it.
#
# Where the recipe's images can be pulled, they are. Elsewhere an image of the same name is made from the distribution's
# packages, whose `cargo` gives the PROGRAM instead of building one: every other step is the recipe's own. What can be had of
# neither is said and left out.
#
# usage: tests/operations/container.sh [PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/release/pushring}
recipe=packaging/Containerfile
image=localhost/pushring-test
run_base=$(sed -n 's/^FROM \([^ ]*\)$/\1/p' "$recipe")
build_base=$(sed -n 's/^FROM \([^ ]*\) AS build$/\1/p' "$recipe")

# buildah needs neither a daemon nor, with these, namespaces of its own.
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
not_run() {
    echo "NOT RUN: $*"
    exit 0
}
[ "$(id -u)" = 0 ] || not_run "who is not root builds no container by chroot"
for tool in buildah mmdebstrap; do
    command -v "$tool" >/dev/null ||
        DEBIAN_FRONTEND=noninteractive timeout 120 apt-get install --yes --no-install-recommends "$tool" >/dev/null 2>&1 ||
        not_run "there is no $tool"
done

work=$(mktemp -d)
container=
daemon=
export CONTAINERS_STORAGE_CONF=$work/storage.conf
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$work" "$work" >"$CONTAINERS_STORAGE_CONF"
finish() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    [ -z "$container" ] || buildah umount "$container" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

# Makes an image of the name $1 from the root filesystem in $2.
make_image() {
    local made
    made=$(buildah from scratch)
    buildah add --quiet "$made" "$2" / >/dev/null
    buildah commit --quiet "$made" "$1" >/dev/null
    buildah rm "$made" >/dev/null
}

pulled=yes
timeout 30 buildah pull --quiet "$run_base" >/dev/null 2>&1 || pulled=no
if [ "$pulled" = no ]; then
    echo "$run_base cannot be pulled: made from the distribution's packages"
    release=${run_base##*:}
    timeout 240 mmdebstrap --quiet --variant=essential "${release%-slim}" "$work/base.tar" >/dev/null 2>&1 ||
        not_run "neither can it be made"
    make_image "$run_base" "$work/base.tar"
    # The base with a cargo that does what the recipe asks it for and nothing else.
    mkdir -p "$work/with-cargo/usr/bin"
    install -m 755 "$program" "$work/with-cargo/built"
    cat >"$work/with-cargo/usr/bin/cargo" <<'END'
#!/bin/sh
[ "$*" = "build --release --locked --bin pushring" ] && [ -f Cargo.toml ] && [ -f Cargo.lock ] && [ -d src ] || exit 1
# What is no part of the sources must not have been copied.
[ ! -e target ] && [ ! -e .git ] || exit 1
mkdir -p target/release && cp /built target/release/pushring
END
    chmod 755 "$work/with-cargo/usr/bin/cargo"
    tar --create --file "$work/cargo.tar" --directory "$work/with-cargo" .
    made=$(buildah from --pull-never "$run_base")
    buildah add --quiet "$made" "$work/cargo.tar" / >/dev/null
    buildah commit --quiet "$made" "$build_base" >/dev/null
    buildah rm "$made" >/dev/null
fi

buildah build --quiet --pull-never --format docker --file "$recipe" --tag "$image" . >/dev/null
echo "ok: the recipe builds"

container=$(buildah from --pull-never "$image")
config=$(buildah inspect --format '{{.Docker.Config}} {{.Docker.Config.Healthcheck.Test}}' "$container")
for part in '10001:10001' '8080/tcp' 'SIGTERM' 'CMD pushring stats'; do
    case $config in *"$part"*) ;; *) echo "the image has no $part: $config" >&2 && exit 1 ;; esac
done
entry=$(buildah inspect --format '{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}' "$container")
[ "$entry" = "[pushring] [serve --listen 0.0.0.0:8080 --link /run/pushring/link.sock]" ] || {
    echo "the image starts: $entry" >&2
    exit 1
}
# The recipe's command, as its user; the port alone is another, for here the network is this machine's.
in_container() {
    buildah run --user 10001:10001 "$container" -- "$@"
}
serve='pushring serve --listen 127.0.0.1:0 --admin-listen off --link /run/pushring/link.sock'
in_container sh -c "echo pid \$\$; exec $serve" >"$work/out" 2>"$work/log" &
daemon=$!
for _ in $(seq 300); do
    grep -q '^listening on ' "$work/out" && break
    kill -0 "$daemon" 2>/dev/null || break
    sleep 0.1
done
grep '^listening on ' "$work/out" || { cat "$work/log" >&2 && exit 1; }
port=$(sed -n 's/.*:\([0-9]*\)$/\1/p' "$work/out")
# Its health check.
in_container pushring stats --listen "127.0.0.1:$port" >/dev/null
echo "ok: it serves as user 10001, and says that it is well"
in_container sh -c 'test -S /run/pushring/link.sock'
echo "ok: its link is where a volume can be"
kill -TERM "$(sed -n 's/^pid //p' "$work/out")"
ended=0
wait "$daemon" || ended=$?
daemon=
[ "$ended" = 0 ] || { echo "it ended with $ended" >&2 && cat "$work/log" >&2 && exit 1; }
echo "ok: SIGTERM stops it gently"
