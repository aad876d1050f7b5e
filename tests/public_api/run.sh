#!/usr/bin/env bash
# Holds the public API to what README.md promises of it; see check.py. rustdoc's JSON is not stable yet, so the compiler is
# told to act as a nightly one; nothing that is built that way is used.
set -euo pipefail
cd "$(dirname "$0")/../.."
RUSTC_BOOTSTRAP=1 cargo rustdoc --quiet -p pushring --lib -- -Zunstable-options --output-format json
exec python3 tests/public_api/check.py target/doc/pushring.json
