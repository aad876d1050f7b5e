#!/usr/bin/env python3
"""A broker that plays one fault, for the tests of both clients.

    broker.py --list            the faults and what a client has to hear, as JSON
    broker.py FAULT             plays one; the first line says {"port": N, "link": PATH}; ends with its standard input

It speaks `pushring.1` over WebSocket on a port, and the link on a Unix socket, and tells both the same story. The first
connection is a good one: the client sends `up1`, hears `one` and acknowledges it (over the link it beats, too), and the
connection is lost. The second plays the fault. The third is good again, and goes on where the first ended: the client sends
`up2`, which nobody has had, and hears `two`. What a client hears is `one`, `gap` where the channel is another or messages are
missing, `two`, and `end` where it must not come back. Whatever it does wrong it hears of as `wrong: …`.
"""

import asyncio
import base64
import hashlib
import json
import os
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../python/src"))
from pushring._msgpack import pack, unpack  # noqa: E402

GOOD, ANEW = ["one", "two"], ["one", "gap", "two"]
FAULTS = {
    "half_a_greeting": GOOD,
    "no_greeting": GOOD,
    "nonsense": GOOD,
    "huge": GOOD,
    "busy": GOOD,
    "byte_by_byte": GOOD,
    "fields_of_later": GOOD,
    "half_a_message": GOOD,
    "never_sent": GOOD,
    "trimmed": ANEW,
    "forgotten": ANEW,
    "restarted": ANEW,
    "refused": ["one", "end"],
}
# In these the second connection is the last.
SECOND_IS_LAST = {"byte_by_byte", "fields_of_later", "trimmed"}
LATER = {"of_later": {"x": [1, None]}}


class Wrong(Exception):
    """What the client did is not what the protocol asks for."""


class Side:
    """What both protocols have in common: a story of three connections."""

    def __init__(self, fault):
        self.fault = fault
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        play = self.play(self.connections, reader, writer)
        try:
            await play
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def play(self, number, reader, writer):
        wire = self.wire(reader, writer)
        hello = await wire.hello()
        if number == 1:
            await wire.greet(self.first(), hello)
            await wire.expect_up("up1")
            await wire.say("one")
            await wire.expect_ack()
        elif number == 2 and self.fault not in SECOND_IS_LAST:
            await self.misbehave(wire, hello)
        elif self.fault == "refused":
            print("the client came back", file=sys.stderr, flush=True)
            os._exit(1)
        else:
            await self.go_on(wire, hello)

    async def go_on(self, wire, hello):
        wire.is_slow = self.fault == "byte_by_byte"
        is_anew = self.fault in ("forgotten", "restarted")
        wrong = wire.fault_of(hello, is_anew)
        await wire.greet(self.again(is_anew), hello)
        if wrong:
            await wire.say(f"wrong: {wrong}")
        elif not is_anew:
            await wire.expect_up("up2")
        if self.fault == "trimmed":
            await wire.tell_trimmed()
        await wire.say("two")
        await wire.until_it_leaves()


# -- pushring.1 over WebSocket


class Socket:
    """RFC 6455 as far as a test needs it: no fragments, no extensions."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.is_slow = reader, writer, False

    async def write(self, data):
        if self.is_slow:
            for byte in data:
                self.writer.write(bytes([byte]))
                await self.writer.drain()
        else:
            self.writer.write(data)
            await self.writer.drain()

    async def hello(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        self.fields = {name.lower(): value for name, value in fields.items()}
        return [item.strip() for item in self.fields["sec-websocket-protocol"].split(",")]

    async def upgrade(self):
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        key = base64.b64encode(hashlib.sha1((self.fields["sec-websocket-key"] + guid).encode()).digest()).decode()
        await self.write((
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {key}\r\nSec-WebSocket-Protocol: pushring.1\r\n\r\n"
        ).encode())

    async def greet(self, greeting, _hello):
        await self.upgrade()
        await self.text(json.dumps(greeting))

    async def frame(self, opcode, payload):
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size)
        await self.write(bytes([0x80 | opcode]) + length + payload)

    async def text(self, text):
        await self.frame(1, text.encode())

    async def say(self, text):
        await self.text(text)

    async def receive(self):
        """The next Text; a close is answered."""
        first, length = await self.reader.readexactly(2)
        size = length & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", await self.reader.readexactly(2))
        mask = await self.reader.readexactly(4)
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await self.reader.readexactly(size)))
        if first & 0x0F == 8:
            await self.frame(8, payload)
            raise ConnectionError("the client has closed")
        return payload.decode()

    async def expect_up(self, text):
        heard = await self.receive()
        while heard.startswith("\x1e"):
            heard = await self.receive()
        if heard != text:
            await self.text(f"wrong: {heard}, where {text} was to come")

    async def expect_ack(self):
        while not (await self.receive()).startswith('\x1e{"ack":1}'):
            pass

    async def tell_trimmed(self):
        """The greeting has said so."""

    async def until_it_leaves(self):
        while True:
            await self.receive()

    def fault_of(self, offered, is_anew):
        token = "t" * 22
        expected = ["pushring.1", f"resume.7.{token}.1"]
        if is_anew and self.was_closed:
            expected = ["pushring.1"]
        return None if offered == expected else f"it offers {offered}, and not {expected}"

    was_closed = False


class WebSocket(Side):
    """One channel, 7, whose token does not change."""

    wire = staticmethod(Socket)

    def first(self):
        return {"pushring": 1, "channel_id": 7, "resume": "t" * 22, "window_ms": 30000}

    def again(self, is_anew):
        greeting = self.first()
        if is_anew:
            return {**greeting, "channel_id": 9, "resumed": False, "reason": "unknown"}
        if self.fault == "trimmed":
            return {**greeting, "resumed": False, "reason": "trimmed", "lost": 3, "received": 1}
        later = LATER if self.fault == "fields_of_later" else {}
        return {**greeting, "resumed": True, "received": 1, **later}

    async def play(self, number, reader, writer):
        if self.fault == "forgotten" and number == 2:
            # The greeting itself says so.
            return await self.go_on(*await self.opened(reader, writer))
        if self.fault == "restarted" and number == 3:
            wire, hello = await self.opened(reader, writer)
            wire.was_closed = True
            return await self.go_on(wire, hello)
        await super().play(number, reader, writer)

    async def opened(self, reader, writer):
        wire = Socket(reader, writer)
        return wire, await wire.hello()

    async def misbehave(self, wire, hello):
        greeting = self.again(False)
        if self.fault == "busy":
            await wire.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n")
            return
        await wire.upgrade()
        if self.fault == "half_a_greeting":
            await wire.write(b"\x81\x40{\"pushring\":1")
        elif self.fault == "no_greeting":
            await wire.reader.read(1)
        elif self.fault == "nonsense":
            await wire.text("nonsense")
            await wire.reader.read(1)
        elif self.fault == "huge":
            await wire.write(b"\x81\x7f" + struct.pack(">Q", 1 << 62) + b"x")
        elif self.fault == "half_a_message":
            await wire.text(json.dumps(greeting))
            await wire.write(b"\x81\x03tw")
        elif self.fault == "never_sent":
            await wire.text(json.dumps({**greeting, "received": 1000}))
            await wire.reader.read(1)
        elif self.fault == "restarted":
            await wire.text(json.dumps(greeting))
            await wire.frame(8, struct.pack(">H", 1012) + b'{"retry_ms":1}')
            await wire.until_it_leaves()
        elif self.fault == "refused":
            await wire.frame(8, struct.pack(">H", 4400) + b"mend the client")
            await wire.until_it_leaves()


# -- the link


class Link:
    """Frames of the link: numbered ones are counted by whoever plays."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.is_slow = reader, writer, False
        self.heard = []

    write = Socket.write

    async def send(self, head, blob=b""):
        packed = pack(head)
        await self.write(struct.pack(">II", len(packed), len(blob)) + packed + blob)

    async def receive(self):
        head, blob = struct.unpack(">II", await self.reader.readexactly(8))
        ((name, fields),) = unpack(await self.reader.readexactly(head)).items()
        data = await self.reader.readexactly(blob)
        self.heard.append(name)
        if name == "bye":
            raise ConnectionError("the client has left")
        return name, fields, data

    async def hello(self):
        _, fields, _ = await self.receive()
        return fields

    async def greet(self, welcome, _hello):
        await self.send({"welcome": welcome})
        # What the first session was told: that channel 7 has opened.
        if welcome["session"] != "first" or welcome["received"] == 0:
            channel = 7 if welcome["session"] == "first" else 9
            fields = {"path": "/", "source": "127.0.0.1:5", "forwarded_for": None, "registered": False, "extension": False}
            await self.send({"opened": {"channel": channel, **fields, **LATER}})

    async def say(self, text):
        await self.send({"message": {"channel": 7, "kind": "text", **LATER}}, text.encode())

    async def expect_up(self, text):
        while True:
            name, _, blob = await self.receive()
            if name == "push":
                break
        if blob.decode() != text:
            await self.say(f"wrong: {blob.decode()}, where {text} was to come")

    async def expect_ack(self):
        """Of both frames; and a beat."""
        while True:
            name, fields, _ = await self.receive()
            if name == "ack" and fields["received"] == 2:
                break
        while "beat" not in self.heard:
            await self.receive()

    async def tell_trimmed(self):
        await self.send({"resumed": {"channel": 7, "lost": 3}})

    async def until_it_leaves(self):
        while True:
            await self.receive()

    def fault_of(self, hello, is_anew):
        said = (hello.get("session"), hello.get("received"))
        expected = (None, 0) if is_anew else ("first", 2)
        return None if said == expected else f"its hello says {said}, and not {expected}"


class Broker(Side):
    """One session, `first`, and a second one where that is forgotten."""

    wire = staticmethod(Link)

    def first(self):
        return {
            "version": 1, "node": "local.os", "dialect": "kinode", "listening": "127.0.0.1:1", "session": "first",
            "received": 0, "acknowledged": 0, "live": 0, "window": {"frames": 64, "bytes": 1 << 20},
            "head_bytes_max": 1 << 20, "blob_bytes_max": 1 << 20, "asks_max": 64, "beat_ms": 50, "owner_grace_ms": 1000,
        }  # fmt: skip

    def again(self, is_anew):
        if is_anew:
            return {**self.first(), "session": "second"}
        later = LATER if self.fault == "fields_of_later" else {}
        return {**self.first(), "received": 1, "acknowledged": 2, **later}

    async def misbehave(self, wire, hello):
        if self.fault == "half_a_greeting":
            await wire.write(b"\x00\x00\x00\x10\x00\x00\x00\x00\x81")
        elif self.fault == "no_greeting":
            await wire.reader.read()
        elif self.fault == "nonsense":
            await wire.write(b"\x00\x00\x00\x01\x00\x00\x00\x00\xc1")
            await wire.reader.read()
        elif self.fault == "huge":
            await wire.write(b"\xff\xff\xff\xff\xff\xff\xff\xff\x81")
            await wire.reader.read()
        elif self.fault == "half_a_message":
            await wire.greet(self.again(False), hello)
            await wire.write(b"\x00\x00\x00\x10\x00\x00\x00\x03\x81")
        elif self.fault == "never_sent":
            await wire.send({"welcome": {**self.again(False), "received": 1000}})
            await wire.reader.read()
        elif self.fault == "restarted":
            await wire.greet(self.again(False), hello)
            await wire.send({"bye": {"code": "stopped", "reason": "it stops"}})
            self.fault = "forgotten"
            self.connections = 1
        else:
            code = {"busy": "full", "forgotten": "session", "refused": "version"}[self.fault]
            await wire.send({"refused": {"code": code, "reason": "said so", "version_min": 1, "version_max": 1}})


async def main():
    if sys.argv[1] == "--list":
        print(json.dumps(FAULTS))
        return
    fault = sys.argv[1]
    if fault not in FAULTS:
        sys.exit(f"no fault {fault}")
    with tempfile.TemporaryDirectory() as directory:
        link = os.path.join(directory, "link")
        websocket = await asyncio.start_server(WebSocket(fault).serve, "127.0.0.1", 0)
        await asyncio.start_unix_server(Broker(fault).serve, link)
        print(json.dumps({"port": websocket.sockets[0].getsockname()[1], "link": link}), flush=True)
        # It ends with whoever has started it.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
