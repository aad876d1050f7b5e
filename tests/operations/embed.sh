#!/usr/bin/env bash
# README.md's embedding example in a fresh project outside of this workspace: the dependency and the program as they are
# written there, but for the path of the crate. It compiles, listens where it says, hands a message on, and stays up.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
project=$(mktemp -d)
trap '[ -z "${program:-}" ] || kill "$program" 2>/dev/null || true; rm -rf "$project"' EXIT

python3 - "$repository" "$project" <<'PYTHON'
import pathlib, re, socket, sys

repository, project = map(pathlib.Path, sys.argv[1:])
readme = (repository / "README.md").read_text(encoding="utf-8").split("## Embed it", 1)[1]
dependencies = re.search(r"```toml\n(.*?)```", readme, re.S).group(1)
program = re.search(r"```rust[^\n]*\n(.*?)```", readme, re.S).group(1)
assert 'version = "' in dependencies and "127.0.0.1:8080" in program
dependencies = re.sub(r'version = "[^"]*"', f'path = "{repository}"', dependencies)
with socket.socket() as probe:
    # Where another program has the port, any free one serves.
    if probe.connect_ex(("127.0.0.1", 8080)) == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            program = program.replace("127.0.0.1:8080", f"127.0.0.1:{free.getsockname()[1]}")
(project / "src").mkdir()
(project / "src/main.rs").write_text(program, encoding="utf-8")
package = '[package]\nname = "fresh"\nversion = "0.0.0"\nedition = "2024"\n\n'
(project / "Cargo.toml").write_text(package + dependencies + "\n[workspace]\n", encoding="utf-8")
(project / "Cargo.lock").write_text((repository / "Cargo.lock").read_text(encoding="utf-8"), encoding="utf-8")
PYTHON

CARGO_TARGET_DIR=$project/target cargo build --quiet --manifest-path "$project/Cargo.toml"
"$project/target/debug/fresh" >"$project/said" &
program=$!

python3 - "$project" "$program" <<'PYTHON'
import os, pathlib, re, socket, struct, sys, time

project, program = pathlib.Path(sys.argv[1]), int(sys.argv[2])
deadline = time.monotonic() + 60
while not (said := re.search(r"ws://127\.0\.0\.1:(\d+)/chat\n", (project / "said").read_text())):
    assert time.monotonic() < deadline, "it does not say where it listens"
    time.sleep(0.05)
port = int(said.group(1))
assert f'"127.0.0.1:{port}"' in (project / "src/main.rs").read_text(), "it listens elsewhere than it is told"


def exactly(client, count):
    data = b""
    while len(data) < count:
        more = client.recv(count - len(data))
        assert more, "the connection has ended"
        data += more
    return data


def connect():
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.sendall(
        b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(client, 1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return client


def send(client, text):
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
    client.sendall(struct.pack("!BB", 0x81, 0x80 | len(text)) + mask + masked)


def heard(client):
    opcode, length = exactly(client, 2)
    assert opcode == 0x81, opcode
    return exactly(client, length)


alice, bob = connect(), connect()
send(alice, b"hello")
assert heard(bob) == b"hello"
# A wait that ends without an event is no error: it goes on after an idle while.
time.sleep(3)
send(bob, b"still there")
assert heard(alice) == b"still there"
os.kill(program, 0)
PYTHON
echo "README's example runs in a fresh project"
