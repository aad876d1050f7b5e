#!/usr/bin/env python3
"""Settings read again under thousands of clients and load: no client is dropped. Then a daemon with twice as many is drained:
clients that obey what they are told come back to a second daemon, evenly. Everything talks to loopback and ends by itself.

usage: many.py [--clients N] [--over S] [PROGRAM]     N clients (5,000) for the reload, twice as many for the drain of S s (20)
"""

import argparse
import collections
import heapq
import json
import os
import resource
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PATIENCE_S = 120
# Connections that wait for their 101 at a time.
OPENING_MAX = 200
UPGRADE = (
    b"GET /echo:pushring:sys/ HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
MASK = bytes(4)


def frame(opcode, payload):
    """A frame of a client, masked with zeros."""
    assert len(payload) < 126
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + MASK + payload


class Client:
    """A connection: its bytes, until it is upgraded, and frames from then on."""

    def __init__(self, address, number):
        self.number = number
        self.is_open = False
        self.input = b""
        self.socket = socket.socket()
        # One source address has no more ports than a range; there are more clients than that in all.
        self.socket.bind((f"127.0.{number >> 8 & 255}.{1 + (number & 127)}", 0))
        self.socket.setblocking(False)
        self.socket.connect_ex(address)

    def frames(self):
        """What has come since: (opcode, payload)."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            yield None, b""
            return
        self.input += data
        if not self.is_open:
            head, end, rest = self.input.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise SystemExit(f"refused: {head.decode(errors='replace')}")
            self.is_open, self.input = True, rest
            yield "open", b""
        while len(self.input) >= 2 and len(self.input) >= 2 + (self.input[1] & 127):
            end = 2 + (self.input[1] & 127)
            opcode, payload, self.input = self.input[0] & 15, self.input[2:end], self.input[end:]
            yield opcode, payload


class Daemon:
    """`pushring demo` with a file of settings."""

    def __init__(self, program, directory, name):
        self.program, self.settings = program, os.path.join(directory, name + ".toml")
        self.control = os.path.join(directory, name + ".sock")
        self.change("")
        self.process = subprocess.Popen(
            [program, "demo", "--listen", "127.0.0.1:0", "--config", self.settings, "--control", self.control, "--shards", "2"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        host, _, port = self.process.stdout.readline().strip().removeprefix("listening on http://").rpartition(":")
        self.address = (host, int(port))

    def change(self, text):
        with open(self.settings, "w", encoding="utf-8") as file:
            file.write(text)

    def ask(self, *words):
        answer = subprocess.run([self.program, *words, "--json", "--control", self.control], capture_output=True, text=True, check=True)
        return json.loads(answer.stdout)


class Crowd:
    """Clients of daemons, on one selector."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.opened, self.echoes, self.ends = 0, 0, []
        self.numbers = iter(range(1 << 30))

    def connect(self, address):
        client = Client(address, next(self.numbers))
        self.selector.register(client.socket, selectors.EVENT_WRITE, client)

    def turn(self, timeout_s=0.01):
        for key, ready in self.selector.select(timeout_s):
            client = key.data
            if ready & selectors.EVENT_WRITE:
                client.socket.sendall(UPGRADE)
                self.selector.modify(client.socket, selectors.EVENT_READ, client)
                continue
            try:
                for opcode, payload in client.frames():
                    self.heard(client, opcode, payload)
            except OSError:
                self.heard(client, None, b"")

    def heard(self, client, opcode, payload):
        if opcode == "open":
            self.opened += 1
        elif opcode == 9:
            client.socket.sendall(frame(10, payload))
        elif opcode in (1, 2):
            self.echoes += 1
        elif opcode in (8, None):
            code = struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else 1006
            self.ends.append((time.monotonic(), code, payload[2:]))
            if opcode == 8:
                client.socket.sendall(frame(8, payload[:2]))
            self.selector.unregister(client.socket)
            client.socket.close()

    def grow(self, address, count):
        """So many more clients of a daemon."""
        until, wanted, asked = time.monotonic() + PATIENCE_S, self.opened + count, 0
        while self.opened < wanted:
            while asked < count and self.opened + OPENING_MAX > wanted - count + asked:
                self.connect(address)
                asked += 1
            self.turn()
            if time.monotonic() > until:
                raise SystemExit(f"only {self.opened} of {wanted} clients are let in")

    def clients(self):
        return [key.data for key in self.selector.get_map().values() if key.data.is_open]


def check(what, holds, seen=""):
    print(f"{'ok' if holds else 'FAILED'}: {what}{'' if holds else f': {seen}'}", flush=True)
    return bool(holds)


def reloads(crowd, daemon, count):
    """Every class of setting changes, again and again, while all clients are echoed to."""
    crowd.grow(daemon.address, count)
    sent, heard = 0, []
    for round_number in range(12):
        daemon.change(f'ping_interval = "{20 + round_number}s"\nsubprotocols = ["v{round_number}"]\nnode = "n{round_number}.os"\n')
        reload = subprocess.Popen(
            [daemon.program, "reload", "--json", "--control", daemon.control], stdout=subprocess.PIPE, text=True)
        for client in crowd.clients():
            client.socket.sendall(frame(1, b"hello"))
            sent += 1
            if sent % 100 == 0:
                crowd.turn(0)
        until = time.monotonic() + PATIENCE_S
        while crowd.echoes < sent and time.monotonic() < until:
            crowd.turn()
        heard.append(json.loads(reload.communicate()[0]))
    told = {"now": ["ping_interval"], "new_connections": ["subprotocols"], "restart": ["node"]}
    good = check(f"{count} clients, 12 reloads under load: nobody is dropped", not crowd.ends, crowd.ends[:3])
    good &= check(f"each of {sent} messages is answered", crowd.echoes == sent, crowd.echoes)
    return good & check("each class of key is told as such", all(one == told for one in heard), heard[-1])


def drain(crowd, one, other, count, over_s):
    """All leave `one` as they are told, and come to `other` when they are told."""
    crowd.grow(one.address, count - len(crowd.clients()))
    crowd.ends.clear()
    let_in_before = crowd.opened
    one.ask("drain", "--grace", "0s", "--over", f"{over_s}s")
    told, waiting, came, codes = 0, [], collections.Counter(), collections.Counter()
    began = time.monotonic()
    while crowd.opened < let_in_before + count and time.monotonic() < began + over_s + PATIENCE_S:
        for at, code, reason in crowd.ends[told:]:
            codes[code] += 1
            if code == 1012:
                heapq.heappush(waiting, at + json.loads(reason)["retry_ms"] / 1000)
        told = len(crowd.ends)
        while waiting and waiting[0] <= time.monotonic():
            came[int(heapq.heappop(waiting) - began)] += 1
            crowd.connect(other.address)
        crowd.turn()
    mean = count / over_s
    good = check(f"{count} clients are told 1012", codes == {1012: count}, codes)
    good &= check("all come back to the second daemon", crowd.opened == let_in_before + count, crowd.opened - let_in_before)
    busiest = max(came.values(), default=0)
    print(f"each second so many: {[came[second] for second in range(over_s + 2)]}")
    good &= check(f"the busiest second has {busiest}, at most twice the mean of {mean:.0f}", busiest <= 2 * mean)
    return good & check("the first daemon ends by itself", one.process.wait(PATIENCE_S) == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", nargs="?", default=os.path.join(ROOT, "target/release/pushring"))
    parser.add_argument("--clients", type=int, default=5_000)
    parser.add_argument("--over", type=int, default=20)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory = tempfile.mkdtemp(prefix="pushring-many-")
    daemons = []
    try:
        daemons = [Daemon(os.path.abspath(options.program), directory, name) for name in ("one", "other")]
        crowd = Crowd()
        good = reloads(crowd, daemons[0], options.clients)
        good &= drain(crowd, *daemons, 2 * options.clients, options.over)
    finally:
        for daemon in daemons:
            daemon.process.kill()
        shutil.rmtree(directory)
    sys.exit(not good)


if __name__ == "__main__":
    main()
