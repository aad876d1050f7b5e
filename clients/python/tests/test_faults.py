"""What the scripted broker does wrong, the client survives, and says what is missing."""

import asyncio
import json
import logging
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import pushring
from pushring import _link
from pushring._wire import Wire, frame_of

BROKER = [sys.executable, "-B", str(Path(__file__).parents[2] / "faults/broker.py")]
PATIENCE_S = 30
logging.getLogger("pushring").setLevel(logging.ERROR)


class Faults(unittest.TestCase):
    def test_each_fault(self) -> None:
        faults = json.loads(subprocess.check_output([*BROKER, "--list"]))
        for fault, expected in faults.items():
            with self.subTest(fault), mock.patch.object(_link, "HANDSHAKE_S", PATIENCE_S):
                with subprocess.Popen([*BROKER, fault], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as broker:
                    try:
                        assert broker.stdout is not None
                        where = json.loads(broker.stdout.readline())["link"]
                        heard = asyncio.run(asyncio.wait_for(hear(where, fault, expected), PATIENCE_S))
                    finally:
                        broker.kill()
                self.assertEqual(heard, expected)


class Drains(unittest.IsolatedAsyncioTestCase):
    async def test_a_drain_is_told_with_its_times(self) -> None:
        welcome = {
            "version": 1, "node": "local.os", "dialect": "kinode", "listening": "127.0.0.1:1", "session": "first",
            "received": 0, "acknowledged": 0, "live": 0, "window": {"frames": 64, "bytes": 1 << 20},
            "head_bytes_max": 1 << 20, "blob_bytes_max": 1 << 20, "asks_max": 64, "beat_ms": 5000, "owner_grace_ms": 1000,
        }  # fmt: skip
        hellos: list[dict[str, Any]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire = Wire(reader, writer)
            _, hello, *_ = await wire.frame(1 << 16, 1 << 16)
            hellos.append(hello)
            writer.write(frame_of({"welcome": welcome}))
            writer.write(frame_of({"draining": {"begins_in_ms": 500_000, "ends_in_ms": 560_000}}))
            await asyncio.gather(wire.frame(1 << 16, 1 << 16), return_exceptions=True)
            writer.close()

        with tempfile.TemporaryDirectory() as directory:
            async with await asyncio.start_unix_server(serve, f"{directory}/link"):
                async with pushring.attach(f"{directory}/link", "p:test:sys") as process:
                    while process.draining is None:
                        await asyncio.sleep(0.01)
                    begins_s, ends_s = process.draining
        self.assertTrue(hellos[0]["wants_drain"])
        self.assertTrue(400 < begins_s <= 500, begins_s)
        self.assertAlmostEqual(ends_s - begins_s, 60, places=3)


async def hear(where: str, fault: str, expected: list[str]) -> list[str]:
    heard: list[str] = []
    try:
        async with pushring.attach(where, "p:test:sys") as process:
            await process.push(7, "up1")
            async for event in process:
                if isinstance(event, pushring.Message):
                    heard.append(str(event.data))
                    if event.data == "one":
                        await process.push(7, "up2")
                        if fault == "no_greeting":
                            _link.HANDSHAKE_S = 0.3
                elif isinstance(event, (pushring.Closed, pushring.Resumed)):
                    heard.append("gap")
                if len(heard) >= len(expected):
                    break
    except pushring.Refused:
        heard.append("end")
    return heard


if __name__ == "__main__":
    unittest.main()
