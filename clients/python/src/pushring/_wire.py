"""One connection of a link (docs/LINK.md): frames in and out, beats, and an end when nothing was heard.

It knows what a frame is, and not what it means.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Coroutine
from typing import Any, Union

from ._msgpack import pack, unpack

# How long an end waits for the other side to close, and for what was sent to leave.
HEARD_OUT_S = 1.0
CLOSED_S = 5.0

Where = Union[str, "tuple[str, int]"]


class ProtocolError(Exception):
    """What the other side says is not the link's protocol."""


class Wire:
    """See the module."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._said_at = self._heard_at = self._loop.time()
        self._beat: asyncio.TimerHandle | None = None
        self._is_silent = False

    @classmethod
    async def open(cls, where: Where, tls: ssl.SSLContext | None) -> Wire:
        if isinstance(where, tuple):
            return cls(*await asyncio.open_connection(*where, ssl=tls))
        return cls(*await asyncio.open_unix_connection(where))

    def send(self, frame: bytes) -> None:
        """Sends with whatever else is sent in this turn of the loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(frame)

    def _flush(self) -> None:
        frames, self._outgoing = self._outgoing, []
        if frames and not self._writer.is_closing():
            self._writer.write(b"".join(frames))
            self._said_at = self._loop.time()

    def beat_every(self, beat_s: float) -> None:
        def look() -> None:
            now = self._loop.time()
            if now - self._heard_at > 3 * beat_s:
                self._is_silent = True
                self._writer.transport.abort()
                return
            if now - self._said_at >= beat_s / 2:
                self.send(frame_of({"beat": {}}))
            self._beat = self._loop.call_later(beat_s / 2, look)

        look()

    async def frame(self, head_bytes_max: int, blob_bytes_max: int) -> tuple[str, dict[str, Any], bytes, int]:
        """The next frame: name, fields, blob, and how many bytes it has. EOFError, OSError: the connection is over."""
        while True:
            if len(self._buffer) >= 8:
                head_bytes, blob_bytes = struct.unpack_from(">II", self._buffer)
                if not 0 < head_bytes <= head_bytes_max or blob_bytes > blob_bytes_max:
                    raise ProtocolError(f"a head of {head_bytes} bytes, and a blob of {blob_bytes}")
                end = 8 + head_bytes + blob_bytes
                if len(self._buffer) >= end:
                    head = bytes(self._buffer[8 : 8 + head_bytes])
                    blob = bytes(self._buffer[8 + head_bytes : end])
                    del self._buffer[:end]
                    return (*_named(head), blob, end)
            data = await self._reader.read(1 << 18)
            if not data:
                silence = "the broker is silent" if self._is_silent else "the broker has closed the connection"
                raise EOFError(silence)
            self._heard_at = self._loop.time()
            self._buffer += data

    async def end(self) -> None:
        """Closes behind what was sent, and behind the other side if it is quick: then it knows that this one has gone."""
        self._flush()
        self._stop_beating()
        try:
            await _within(HEARD_OUT_S, self._hear_out())
            self._writer.close()
            await _within(CLOSED_S, self._writer.wait_closed())
        finally:
            self._writer.transport.abort()

    async def _hear_out(self) -> None:
        while await self._reader.read(1 << 18):
            pass

    async def abort(self) -> None:
        """Closes at once."""
        self._stop_beating()
        self._outgoing.clear()
        self._writer.transport.abort()

    def _stop_beating(self) -> None:
        if self._beat is not None:
            self._beat.cancel()


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Does it for so long, whatever becomes of it."""
    doing = asyncio.ensure_future(work)
    try:
        await asyncio.wait({doing}, timeout=seconds)
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


def _named(head: bytes) -> tuple[str, dict[str, Any]]:
    try:
        ((name, fields),) = unpack(head).items()
    except (ValueError, AttributeError) as error:
        raise ProtocolError(f"a head that is none: {error}") from error
    if not isinstance(name, str) or not isinstance(fields, dict):
        raise ProtocolError("a head that is none")
    return name, fields


def frame_of(head: dict[str, Any], blob: bytes = b"") -> bytes:
    packed = pack(head)
    return struct.pack(">II", len(packed), len(blob)) + packed + blob
