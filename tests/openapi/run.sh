#!/usr/bin/env bash
# Schemathesis (PyPI) against a daemon with a hub, by docs/openapi.json: what it makes up of the description, lawful and not, is
# answered as the description says, and never by a 5xx.
#
#     tests/openapi/run.sh [EXAMPLES]       EXAMPLES (50) of each kind and operation; PUSHRING_BIN names another program
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
examples=${1:-50}
program=$(realpath "${PUSHRING_BIN:-$root/target/debug/pushring}")
venv=$root/target/openapi-venv
work=$(mktemp -d)
daemon=
stop() {
    [ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT

if ! cmp -s "$here/requirements.txt" "$venv/installed"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed"
fi

token=$(head -c 24 /dev/urandom | base64)
printf '%s\n' "$token" >"$work/token"
chmod 600 "$work/token"
PUSHRING_CONTROL=off "$program" serve --hub --hub-open --listen 127.0.0.1:0 --api-listen 127.0.0.1:0 --admin-listen off --no-pin \
    --shards 2 --api-token-file "$work/token" >/dev/null 2>"$work/log" &
daemon=$!
for _ in $(seq 100); do
    url=$(grep -o 'http://[0-9.:]*/api/push' "$work/log" | head -n 1 | sed 's|/api/push$||') && [ -n "$url" ] && break
    sleep 0.1
done
[ -n "$url" ] || { cat "$work/log" >&2; exit 1; }

# What Push-To says of raw bodies, and the lines of a batch, no schema can say: that is for tests/promises.
python3 - "$root/docs/openapi.json" "$work/openapi.json" <<'END'
import json, sys
spec = json.load(open(sys.argv[1]))
push = spec["paths"]["/api/push"]["post"]
push["parameters"] = [one for one in push["parameters"] if one["name"] != "Push-To"]
kinds = push["requestBody"]["content"]
push["requestBody"]["content"] = {"application/json": kinds["application/json"]}
json.dump(spec, open(sys.argv[2], "w"))
END

cd "$work"
"$venv/bin/schemathesis" run "$work/openapi.json" --url "$url" --header "Authorization: Bearer $token" \
    --max-examples "$examples" --seed 1 --workers 1 --request-timeout 10
kill -0 "$daemon" || { cat "$work/log" >&2; exit 1; }
