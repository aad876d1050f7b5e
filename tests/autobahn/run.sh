#!/usr/bin/env bash
# The Autobahn|Testsuite against the demo's echo process, with compression on.
#
#     tests/autobahn/run.sh [--quick] [--all] [--write] [--tls]
#
# Runs all cases but the slow ones of sections 12 and 13; --quick runs the two smallest of each of their parts; --all runs all 517, in 15 minutes with a release build
# (PUSHRING_BIN=target/release/pushring). --write runs all and makes the result the expected one. With --tls all goes through
# TLS, which tests/support/over_tls.py speaks for the suite. The suite needs
# Python 2.7; without it this says so and skips.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/target/autobahn
venv=$work/venv
. "$root/tests/support/demo.sh"

# 1,000 messages a case, of 1 KiB and more, compressed and inflated by Python: the cases with the smaller ones will do.
excluded='"1[23].*.([789]|1[03-8])$"'
timeout_s=600
write=
tls=
for option in "$@"; do
    case $option in
        --quick) excluded='"1[23].*.([3-9]|1[0-8])$"' ;;
        --all) excluded= timeout_s=7200 ;;
        --write) excluded= timeout_s=7200 write=--write ;;
        --tls) tls=--tls ;;
        *)
            sed -n '/^#     tests/s/^# *//p' "$0" >&2
            exit 2
            ;;
    esac
done

# Prints how to call a Python 2.7 that has pip.
find_python() {
    local python
    # Where pyenv holds the Pythons, its shims want to be told which one is meant.
    PYENV_VERSION=$(pyenv versions --bare 2>/dev/null | grep -m1 '^2\.7' || true)
    for python in python2.7 python2; do
        if PYENV_VERSION=$PYENV_VERSION "$python" -c 'import sys, pip; assert sys.version_info[:2] == (2, 7)' 2>/dev/null
        then
            PYENV_VERSION=$PYENV_VERSION "$python" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

install() {
    [ -e "$work/installed" ] && cmp -s "$here/requirements.txt" "$work/installed" && return
    local python=$1
    rm -rf "$work"
    mkdir -p "$work"
    # The last virtualenv that makes environments for Python 2.7.
    "$python" -m pip install --quiet --target "$work/virtualenv" virtualenv==20.15.1
    PYTHONPATH=$work/virtualenv "$python" -m virtualenv --quiet "$venv"
    "$venv/bin/pip" install --quiet pip==20.3.4 setuptools==44.0.0
    "$venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
    cp "$here/requirements.txt" "$work/installed"
}

python=$(find_python) || {
    echo "skipped: the Autobahn|Testsuite needs Python 2.7 with pip"
    exit 0
}
install "$python" >"$root/target/autobahn-install.log" 2>&1 || {
    tail -n 20 "$root/target/autobahn-install.log" >&2
    echo "the Autobahn|Testsuite did not install" >&2
    exit 1
}

demo_start --deflate $tls
[ -z "$tls" ] || {
    coproc over_tls { exec python3 "$root/tests/support/over_tls.py" "$demo_address"; }
    read -r demo_address <&"${over_tls[0]}"
    trap 'status=$?; kill "$over_tls_PID"; demo_stop || status=1; exit $status' EXIT
}
rm -rf "$work/reports"
cat >"$work/spec.json" <<EOF
{
    "outdir": "$work/reports",
    "servers": [{"agent": "pushring", "url": "ws://$demo_address/echo:pushring:sys/"}],
    "cases": ["*"],
    "exclude-cases": [$excluded],
    "exclude-agent-cases": {}
}
EOF
timeout "$timeout_s" "$venv/bin/wstest" --mode fuzzingclient --spec "$work/spec.json" >"$work/wstest.log" 2>&1 || {
    tail -n 20 "$work/wstest.log" >&2
    exit 1
}
python3 "$here/compare.py" "$work/reports/index.json" "$here/expected.json" "$work/spec.json" $write
