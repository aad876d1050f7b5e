"""What the scripted broker does wrong, the client survives, and says what is missing."""

import asyncio
import json
import logging
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import unittest
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import pushring
from pushring import _link
from pushring._wire import Wire, frame_of

BROKER = [sys.executable, "-B", str(Path(__file__).parents[2] / "faults/broker.py")]
PATIENCE_S = 30
logging.getLogger("pushring").setLevel(logging.ERROR)


WELCOME = {
    "version": 1, "node": "local.os", "dialect": "kinode", "listening": "127.0.0.1:1", "session": "first",
    "received": 0, "acknowledged": 0, "live": 0, "window": {"frames": 64, "bytes": 1 << 20},
    "head_bytes_max": 1 << 20, "blob_bytes_max": 1 << 20, "asks_max": 64, "beat_ms": 5000, "owner_grace_ms": 1000,
}  # fmt: skip


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
        hellos: list[dict[str, Any]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire = Wire(reader, writer)
            _, hello, *_ = await wire.frame(1 << 16, 1 << 16)
            hellos.append(hello)
            writer.write(frame_of({"welcome": WELCOME}))
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


class Cancelled(unittest.IsolatedAsyncioTestCase):
    async def names_heard(self, welcomes: bool, handshake_s: float, cancels: bool) -> list[str]:
        """What a broker hears that greets with half of its list of channels, or not at all."""
        names: list[str] = []
        came, ended = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire = Wire(reader, writer)
            try:
                while True:
                    name, *_ = await wire.frame(1 << 16, 1 << 16)
                    names.append(name)
                    if welcomes and name == "hello":
                        writer.write(frame_of({"welcome": {**WELCOME, "live": 2}}))
                        writer.write(frame_of({"live": {"channels": []}}))
                        await writer.drain()
                    came.set()
                    if name == "bye":
                        break
            except EOFError:
                pass
            ended.set()
            writer.close()

        with tempfile.TemporaryDirectory() as directory, mock.patch.object(_link, "HANDSHAKE_S", handshake_s):
            async with await asyncio.start_unix_server(serve, f"{directory}/link"):
                attaching = asyncio.ensure_future(pushring.attach(f"{directory}/link", "p:test:sys").__aenter__())
                await asyncio.wait_for(came.wait(), PATIENCE_S)
                if cancels:
                    attaching.cancel()
                (error,) = await asyncio.gather(attaching, return_exceptions=True)
                self.assertIsInstance(error, asyncio.CancelledError if cancels else ConnectionError)
                await asyncio.wait_for(ended.wait(), PATIENCE_S)
        return names

    async def test_whoever_gives_up_while_it_attaches_says_goodbye(self) -> None:
        for welcomes in (False, True):
            self.assertEqual(await self.names_heard(welcomes, PATIENCE_S, True), ["hello", "bye"])

    async def test_whoever_is_not_answered_may_go_on_with_its_session(self) -> None:
        self.assertEqual(await self.names_heard(False, 2, False), ["hello"])


class Answers:
    """Each connection gets one answer of these, to each request; None: no answer, and the program a signal."""

    def __init__(self, *answers: bytes | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.publisher = pushring.Publisher(f"http://127.0.0.1:{self.listener.getsockname()[1]}", "token")
        self.connections = 0
        threading.Thread(target=self.serve, args=(answers,), daemon=True).start()

    def serve(self, answers: tuple[bytes | None, ...]) -> None:
        for answer in answers:
            connection, _ = self.listener.accept()
            self.connections += 1
            threading.Thread(target=self.answer, args=(connection, answer), daemon=True).start()

    def answer(self, connection: socket.socket, answer: bytes | None) -> None:
        with connection:
            heard = b""
            while more := connection.recv(4096):
                heard += more
                if b"\r\n\r\n" not in heard:
                    continue
                heard = b""
                if answer is None:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                else:
                    connection.sendall(answer)


def http_answer(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


ACCEPTED = http_answer(202, '{"accepted":true}')


class Publishing(unittest.TestCase):
    def test_a_publish_that_a_signal_interrupts_spoils_no_later_one(self) -> None:
        class TimeLimit(Exception):
            pass

        def limit(_number: int, _frame: FrameType | None) -> None:
            raise TimeLimit

        broker = Answers(None, ACCEPTED)
        before = signal.signal(signal.SIGALRM, limit)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        with self.assertRaises(TimeLimit):
            broker.publisher.publish("x", topic="news", key="k")
        broker.publisher.publish("x", topic="news")
        self.assertEqual(broker.connections, 2)

    def test_what_no_broker_would_answer_is_no_success(self) -> None:
        for status in (200, 202, 502):
            for body in ("<html>", "", "[]", '"x"', "7", "null"):
                for outcome in (False, True):
                    with self.subTest((status, body, outcome)), self.assertRaises(pushring.PublishError) as refused:
                        Answers(http_answer(status, body)).publisher.publish("x", topic="news", outcome=outcome)
                    self.assertEqual(refused.exception.status, status)
                    self.assertIn("not the answer of a broker", str(refused.exception))

    def test_an_outcome_that_is_not_known_is_none_of_nobody(self) -> None:
        publisher = Answers(ACCEPTED).publisher
        with self.assertRaises(pushring.PublishError) as refused:
            publisher.publish("x", topic="news", outcome=True, key="k")
        self.assertEqual(refused.exception.status, 202)
        publisher.publish("x", topic="news", key="k")

    def test_a_process_that_was_forked_has_a_connection_of_its_own(self) -> None:
        broker = Answers(ACCEPTED, ACCEPTED)
        for pid in (1, 1, 2, 2):
            with mock.patch("os.getpid", return_value=pid):
                broker.publisher.publish("x", topic="news")
            self.assertEqual(broker.connections, pid)


class Errors(unittest.IsolatedAsyncioTestCase):
    def test_they_go_from_one_process_to_another(self) -> None:
        errors = [
            pushring.Refused("token", "wrong"), pushring.Failed("memory", "full"), pushring.Ended("ended"),
            pushring.LinkLost("lost"), pushring.ProtocolError("none"), pushring.PublishError(429, "later", "to", 1.5),
        ]  # fmt: skip
        for error in errors:
            again = pickle.loads(pickle.dumps(error))
            self.assertEqual((type(again), str(again), vars(again)), (type(error), str(error), vars(error)))
        self.assertEqual([str(error) for error in (errors[0], errors[-1])], ["token: wrong", "429: later (to)"])

    async def test_one_that_is_raised_again_and_again_does_not_grow(self) -> None:
        process = pushring.attach("nowhere", "p:test:sys")
        lengths = set()
        for _ in range(5):
            # `assertRaises` takes the traceback away.
            try:
                await process.push(7, "x")
            except pushring.Ended as ended:
                lengths.add(len(traceback.extract_tb(ended.__traceback__)))
        self.assertEqual(len(lengths), 1, lengths)


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
