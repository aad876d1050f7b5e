#!/usr/bin/env python3
"""A process of pushring in Python: standard library only, everything that docs/LINK.md asks for.

    pushring serve --link /tmp/pushring.sock &
    python3 examples/link_client.py /tmp/pushring.sock

Clients that connect to ws://127.0.0.1:8080/room:python:sys/ get back what they send; what begins with `all:` goes to
every client. Run it twice within the grace period (kill the first): the second has the channels of the first.
"""

import argparse
import random
import select
import socket
import ssl
import struct
import sys
import time

VERSION = 1


# MessagePack: what heads are made of (https://github.com/msgpack/msgpack/blob/master/spec.md).


def pack(value):
    """A value as MessagePack: None, bool, int, str, bytes, list, dict."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        if 0 <= value < 0x80:
            return bytes([value])
        if value >= 0:
            return b"\xcf" + struct.pack(">Q", value)
        return b"\xd3" + struct.pack(">q", value)
    if isinstance(value, str):
        text = value.encode()
        return b"\xdb" + struct.pack(">I", len(text)) + text
    if isinstance(value, (bytes, bytearray)):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, (list, tuple)):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return b"\xdf" + struct.pack(">I", len(value)) + pairs
    raise TypeError(f"no MessagePack for {type(value).__name__}")


class Unpacker:
    """Reads one MessagePack value. Raises ValueError where the bytes are none."""

    NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
               0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    SIZES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I",
             0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        if self.at + count > len(self.data):
            raise ValueError("the head ends too early")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self):
        tag = self.take(1)[0]
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag < 0x90:
            return self.map(tag & 0x0F)
        if tag < 0xA0:
            return [self.value() for _ in range(tag & 0x0F)]
        if tag < 0xC0:
            return self.take(tag & 0x1F).decode()
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if tag in self.NUMBERS:
            return self.number(self.NUMBERS[tag])
        if tag not in self.SIZES:
            raise ValueError(f"0x{tag:02x} begins nothing that a head is made of")
        size = self.number(self.SIZES[tag])
        if tag <= 0xC6:
            return self.take(size)
        if tag <= 0xDB:
            return self.take(size).decode()
        if tag <= 0xDD:
            return [self.value() for _ in range(size)]
        return self.map(size)

    def map(self, size):
        return {self.value(): self.value() for _ in range(size)}


class Refused(Exception):
    """The broker said no; `code` says why."""

    def __init__(self, fields):
        super().__init__(f"{fields['code']}: {fields['reason']}")
        self.code = fields["code"]


class Ended(Exception):
    """The connection is over. Within the grace period the session can be gone on with."""


class Link:
    """A process that is attached to a broker. One thread; every wait has an end."""

    HANDSHAKE_S = 10

    def __init__(self, where, process, token=None, session=None, received=0, wants_control=False, trust=None):
        """Attaches. `where` is a path, or (host, port) with a token, under TLS with `trust`, the file of the certificate
        that the broker has, or that has issued it. `session` and `received` go on with a session."""
        if isinstance(where, tuple):
            self.socket = socket.create_connection(where, self.HANDSHAKE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if trust is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_verify_locations(trust)
                self.socket = context.wrap_socket(self.socket, server_hostname=where[0])
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(self.HANDSHAKE_S)
            self.socket.connect(where)
        self.buffer = bytearray()
        self.beat_s = self.HANDSHAKE_S
        self.said_at = self.heard_at = time.monotonic()
        attach = {"process": {"id": process, "wants_control": wants_control}}
        hello = {"version_min": VERSION, "version_max": VERSION, "attach": attach, "wants_drain": True}
        if token is not None:
            hello["token"] = token
        if session is not None:
            hello.update(session=session, received=received)
        self.send({"hello": hello})
        name, fields, _ = self.frame(self.HANDSHAKE_S)
        if name == "refused":
            raise Refused(fields)
        if name != "welcome":
            raise Ended(f"no broker: its first frame is {name}")
        self.welcome = fields
        self.beat_s = fields["beat_ms"] / 1000
        # Numbered frames of the broker: taken in, and told so.
        self.received = self.acknowledged = fields["acknowledged"]
        self.channels = []
        while len(self.channels) < fields["live"]:
            _, live, _ = self.frame(self.HANDSHAKE_S)
            self.channels.extend(live["channels"])
        # Not from 1 on: answers to a process before us come to us too, under its numbers.
        self.asked = random.getrandbits(48)

    def send(self, head, blob=b""):
        """Writes one frame. The broker reads whether or not we do, so this waits only while it is busy."""
        head = pack(head)
        data = memoryview(struct.pack(">II", len(head), len(blob)) + head + blob)
        self.socket.settimeout(60)
        self.socket.sendall(data)
        self.said_at = time.monotonic()

    def push(self, channel, blob, kind="binary", **fields):
        """Pushes to one channel."""
        self.send({"push": {"channel": channel, "kind": kind, **fields}}, blob)

    def broadcast(self, blob, kind="binary", to="process", **fields):
        """Pushes to all channels, or to {"path": P}, or to {"channels": [..]}."""
        self.send({"push_many": {"to": to, "kind": kind, **fields}}, blob)

    def bind(self, path, **rule):
        """Binds a WebSocket path. The answer comes among the events: `done`, or `failed`, with this number."""
        return self.ask("bind", path=path, **rule)

    def bind_http(self, path, **rule):
        """Binds an HTTP path, likewise."""
        return self.ask("bind_http", path=path, **rule)

    def ask(self, order, **fields):
        self.asked += 1
        self.send({order: {"ask": self.asked, **fields}})
        return self.asked

    def respond(self, request, status, body, headers=()):
        """Answers an HTTP request."""
        self.send({"respond": {"request": request, "status": status, "headers": [list(h) for h in headers]}}, body)

    def bye(self, failed=False):
        """Ends the session: channels are closed with 1001 (or 1011)."""
        self.send({"bye": {"failed": failed}})
        self.socket.close()

    def events(self, timeout=None):
        """The next numbered frames: (name, fields, blob). Ends after `timeout` seconds without one, None for never.

        A frame counts as taken in when the next one is asked for, so what was not handled before a crash is told to
        the process that attaches next.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self.acknowledge()
            frame = self.frame(until and max(0, until - time.monotonic()), once=True)
            if frame is None:
                if until is not None and time.monotonic() >= until:
                    return
                continue
            name, fields, _ = frame
            if name == "bye":
                raise Ended(f"{fields['code']}: {fields['reason']}")
            # We keep no orders to send again, so what the broker has of ours is nothing to us.
            if name in ("beat", "ack"):
                continue
            if name == "draining":
                print(f"the broker drains within {fields['ends_in_ms']} ms", flush=True)
                continue
            yield frame
            self.received += 1

    def acknowledge(self):
        """Tells the broker what was taken in, when that is much or nothing else is here."""
        untold = self.received - self.acknowledged
        if untold >= self.welcome["window"]["frames"] // 4 or untold and len(self.buffer) < 8 and not self.ready(0):
            self.send({"ack": {"received": self.received}})
            self.acknowledged = self.received

    def ready(self, timeout):
        """Whether there is something to read, within `timeout` seconds."""
        # Of a record that was opened, OpenSSL may still hold a part.
        held = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending()
        return bool(held) or bool(select.select([self.socket], [], [], timeout)[0])

    def frame(self, timeout, once=False):
        """The next frame, whatever it is. None when the time is over, if that is `once`; an error else."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if len(self.buffer) >= 8:
                head_bytes, blob_bytes = struct.unpack_from(">II", self.buffer)
                total = 8 + head_bytes + blob_bytes
                if len(self.buffer) >= total:
                    head = bytes(self.buffer[8:8 + head_bytes])
                    blob = bytes(self.buffer[8 + head_bytes:total])
                    del self.buffer[:total]
                    (name, fields), = Unpacker(head).value().items()
                    return name, fields, blob
            now = time.monotonic()
            if now - self.heard_at > 3 * self.beat_s:
                raise Ended("the broker is silent")
            if now - self.said_at >= self.beat_s:
                self.send({"beat": {}})
            if until is not None and now >= until:
                if once:
                    return None
                raise Ended("the broker does not answer")
            wait = self.said_at + self.beat_s - now
            if until is not None:
                wait = min(wait, until - now)
            if self.ready(max(0, wait)):
                data = self.socket.recv(1 << 16)
                if not data:
                    raise Ended("the broker has closed the connection")
                self.heard_at = time.monotonic()
                self.buffer += data


def serve(link):
    """Echoes; broadcasts what begins with `all:`; greets over HTTP; ends when a client says `bye`."""
    waiting = {link.bind("/"), link.bind_http("/hello")}
    for channel in link.channels:
        print(f"still open: {channel['channel']} of {channel['source']}", flush=True)
    for name, fields, blob in link.events():
        if name == "done" and fields["ask"] in waiting:
            waiting.remove(fields["ask"])
            if not waiting:
                print(f"attached to {link.welcome['node']}", flush=True)
        elif name == "failed":
            raise SystemExit(f"not bound: {fields['reason']}")
        elif name == "opened":
            print(f"opened: {fields['channel']} of {fields['source']}", flush=True)
        elif name == "closed":
            print(f"closed: {fields['channel']} with {fields['code']} by {fields['by']}", flush=True)
        elif name == "message" and blob == b"bye":
            link.bye()
            return
        elif name == "message" and blob.startswith(b"all:"):
            link.broadcast(blob[4:], kind=fields["kind"])
        elif name == "message":
            link.push(fields["channel"], blob, kind=fields["kind"])
        elif name == "http":
            body = f"hello from Python, {fields['method']} {fields['query_params']}\n".encode()
            link.respond(fields["request"], 200, body, [("content-type", "text/plain")])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", help="the path of the link's socket, or HOST:PORT with --token-file")
    parser.add_argument("--id", default="room:python:sys", help="the process id")
    parser.add_argument("--token-file", help="the file with the link's token, for TCP")
    parser.add_argument("--trust", help="the certificate of the broker, or of its authority, PEM, for TCP under TLS")
    options = parser.parse_args()
    where, token = options.where, None
    if options.token_file:
        host, _, port = where.rpartition(":")
        where = (host, int(port))
        with open(options.token_file, encoding="utf-8") as file:
            token = file.read().rstrip("\r\n")
    session, received = None, 0
    pause_s = 0.05
    while True:
        try:
            link = Link(where, options.id, token, session, received, trust=options.trust)
            pause_s = 0.05
            session = link.welcome["session"]
            serve(link)
            return
        except Refused as refused:
            if refused.code == "session":
                # Too late: our channels are gone. Begin anew.
                session, received = None, 0
            elif refused.code not in ("taken", "full"):
                sys.exit(f"refused: {refused}")
        except ssl.SSLCertVerificationError as error:
            sys.exit(f"the broker is not trusted: {error}")
        except (Ended, OSError) as error:
            print(f"the link is lost: {error}", file=sys.stderr, flush=True)
            # What was read and not handled comes again: our copy of it is gone with the connection.
            received = link.received if session else 0
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1)


if __name__ == "__main__":
    main()
