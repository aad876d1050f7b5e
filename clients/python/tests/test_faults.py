"""What the scripted broker does wrong, the client survives, and says what is missing."""

import asyncio
import json
import logging
import subprocess
import sys
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import pushring
from pushring import _link

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
