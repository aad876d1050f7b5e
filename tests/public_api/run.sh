#!/usr/bin/env bash
# Holds the public API to what README.md promises of it; see check.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUSTDOC=$PWD/tests/public_api/rustdoc cargo rustdoc --quiet -p pushring --lib -- -Zunstable-options --output-format json
exec python3 tests/public_api/check.py "${CARGO_TARGET_DIR:-target}/doc/pushring.json"
