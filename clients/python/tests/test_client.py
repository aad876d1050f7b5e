"""The client against a broker: PUSHRING_URL, PUSHRING_LINK, PUSHRING_LINK_TCP, PUSHRING_API and PUSHRING_TOKEN say where,
PUSHRING_LINK_TOKEN is the link's token over TCP, PUSHRING_LINK_TRUST the certificate that the broker shows there, and
PUSHRING_NODE its name in a fleet, if it is in one.

Run by `cargo test --test promises python_client`.
"""

import asyncio
import base64
import faulthandler
import json
import logging
import os
import ssl
import struct
import sys
import unittest
import unittest.mock
import urllib.parse
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import pushring
from pushring import _link
from pushring._msgpack import pack, unpack

URL = urllib.parse.urlsplit(os.environ["PUSHRING_URL"])
LINK = os.environ["PUSHRING_LINK"]
LINK_TCP = urllib.parse.urlsplit(f"//{os.environ['PUSHRING_LINK_TCP']}")
API = os.environ["PUSHRING_API"]
TOKEN = os.environ["PUSHRING_TOKEN"]
# Of a broker that is in a fleet, alone.
NODE = os.environ.get("PUSHRING_NODE")
PATIENCE_S = 60
# A topic lives as long as a channel that may come back.
TOPIC = f"public.{os.getpid()}"
logging.getLogger("pushring").setLevel(logging.ERROR)
T = TypeVar("T")


async def soon(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, PATIENCE_S)


class Client:
    """A WebSocket client, as far as a test needs it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, path: str, protocol: str = "") -> "Client":
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(URL.hostname, URL.port)
        offer = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
        key = base64.b64encode(b"sixteen bytes...").decode()
        self.writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {URL.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offer}"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = await soon(self.reader.readuntil(b"\r\n\r\n"))
        assert head.startswith(b"HTTP/1.1 101"), head
        return self

    def send(self, data: str | bytes) -> None:
        payload = data.encode() if isinstance(data, str) else data
        opcode = 0x81 if isinstance(data, str) else 0x82
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xff" + struct.pack(">Q", size)
        self.writer.write(bytes([opcode]) + length + bytes(4) + payload)

    async def receive(self) -> str | bytes:
        first, size = await soon(self.reader.readexactly(2))
        if size >= 126:
            form, count = (">H", 2) if size == 126 else (">Q", 8)
            (size,) = struct.unpack(form, await soon(self.reader.readexactly(count)))
        payload = await soon(self.reader.readexactly(size))
        if first == 0x88:
            raise EOFError(struct.unpack(">H", payload[:2])[0])
        return payload.decode() if first == 0x81 else bytes(payload)

    def close(self) -> None:
        self.writer.close()


async def echo(process: pushring.Process) -> None:
    async for event in process:
        if isinstance(event, pushring.Message):
            await process.push(event.channel, event.data)


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Linked(unittest.IsolatedAsyncioTestCase):
    async def test_messages_of_any_size_go_both_ways(self) -> None:
        async with pushring.attach(LINK, "echo:python:sys") as process:
            await process.bind("/")
            self.assertEqual(process.listening, URL.netloc)
            async with running(echo(process)):
                client = await Client.open("/echo:python:sys/")
                for data in ("grüß dich", b"", b"x" * 300_000, ""):
                    client.send(data)
                    self.assertEqual(await client.receive(), data)
        with self.assertRaises(EOFError) as closed:
            await client.receive()
        self.assertEqual(closed.exception.args, (1001,))
        client.close()

    async def test_over_tls_it_is_the_same_and_a_stranger_hears_no_token(self) -> None:
        where, token = (str(LINK_TCP.hostname), int(LINK_TCP.port or 0)), os.environ["PUSHRING_LINK_TOKEN"]
        trusted = ssl.create_default_context(cafile=os.environ["PUSHRING_LINK_TRUST"])
        async with pushring.attach(where, "tls:python:sys", token=token, tls=trusted) as process:
            await process.bind("/")
            async with running(echo(process)):
                client = await Client.open("/tls:python:sys/")
                for data in ("grüß dich", b"x" * 300_000):
                    client.send(data)
                    self.assertEqual(await client.receive(), data)
                    # It comes back by itself.
                    assert process._wire is not None
                    process._wire._writer.transport.abort()
                client.close()
        with self.assertRaises(ssl.SSLCertVerificationError):
            await pushring.attach(where, "tls:python:sys", token=token, tls=ssl.create_default_context()).__aenter__()
        with self.assertRaises(TypeError):
            pushring.attach(LINK, "tls:python:sys", tls=trusted)

    async def test_it_is_cancelled_at_any_moment_of_its_life(self) -> None:
        async def live() -> None:
            while True:
                try:
                    async with pushring.attach(LINK, "cancelled:python:sys") as process:
                        await process.bind("/")
                        await asyncio.Event().wait()
                except pushring.Refused as refused:
                    # The one before is still leaving.
                    self.assertEqual(refused.code, "taken")
                    await asyncio.sleep(0)

        for moment in range(120):
            life = asyncio.ensure_future(live())
            for _ in range(moment):
                await asyncio.sleep(0)
            life.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await soon(life)
        self.assertEqual([task for task in asyncio.all_tasks() if task is not asyncio.current_task()], [])

    async def test_it_ends_at_any_moment_of_a_reconnection(self) -> None:
        for moment in range(60):
            async with pushring.attach(LINK, f"ending-{moment}:python:sys") as process:
                assert process._wire is not None
                process._wire._writer.transport.abort()
                for _ in range(moment):
                    await asyncio.sleep(0)
        self.assertEqual([task for task in asyncio.all_tasks() if task is not asyncio.current_task()], [])

    async def test_a_process_that_never_waits_leaves_the_loop_its_turns(self) -> None:
        async with pushring.attach(LINK, "busy:python:sys", policy="drop_newest") as process:
            await process.bind("/")
            client = await Client.open("/busy:python:sys/")
            opened = await soon(anext(aiter(process)))
            assert isinstance(opened, pushring.Opened)
            process._events.extend((None, 0, pushring.Message(opened.channel, "x")) for _ in range(1000))
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            async with running(count()):
                with unittest.mock.patch.object(_link, "LOOP_SPARED_S", 0.0):
                    for _ in range(1000):
                        await anext(aiter(process))
            self.assertGreater(turns, 100)
            client.close()

    async def test_topics_outcomes_and_refusals(self) -> None:
        async with pushring.attach(LINK, "topics:python:sys", wants_topics=True) as process:
            await process.bind("/")
            client = await Client.open("/topics:python:sys/")
            opened = await soon(anext(aiter(process)))
            assert isinstance(opened, pushring.Opened)
            self.assertEqual((opened.path, process.channels), ("/", {opened.channel: opened}))
            self.assertEqual((await process.subscribe(opened.channel, "news")).sent, 1)
            self.assertEqual(await soon(anext(aiter(process))), pushring.Joined(opened.channel, "news"))
            self.assertEqual(await process.topics("ne"), {"news": 1})
            became = await process.broadcast("hello", topic="news", outcome=True)
            self.assertEqual((became.sent, await client.receive()), (1, "hello"))
            became = await process.broadcast("x", exclude=[opened.channel], outcome=True)
            self.assertEqual(became.sent, 0)
            self.assertEqual((await process.push(1 << 20, "x", outcome=True)).not_found, 1)
            # Of a fleet that there is not.
            became = await process.broadcast("everywhere", topic="news", everywhere=True, outcome=True)
            self.assertEqual((became.sent, await client.receive()), (1, "everywhere"))
            self.assertEqual((await process.push(opened.channel, "x", node="node-2", outcome=True)).fleet_down, 1)
            with self.assertRaises(TypeError):
                await process.broadcast("x", channels=[opened.channel], everywhere=True)
            with self.assertRaises(pushring.Failed) as failed:
                await process.subscribe(opened.channel, "")
            self.assertEqual(failed.exception.code, "topic_name")
            with self.assertRaises(ValueError):
                await process.push(opened.channel, b"x" * (process._welcome["blob_bytes_max"] + 1))
            await process.close(opened.channel, 4000, "enough")
            with self.assertRaises(EOFError):
                await client.receive()
            client.close()
            self.assertEqual(await soon(anext(aiter(process))), pushring.Left(opened.channel, "news"))

    async def test_before_its_block_and_behind_it_everything_says_so(self) -> None:
        process = pushring.attach(LINK, "outside:python:sys")
        for words in ("async with", "has ended"):
            for call in (process.push(7, "x"), process.subscribe(7, "news"), process.bind("/"), anext(aiter(process))):
                with self.assertRaisesRegex(pushring.Ended, words):
                    await soon(call)
            if words == "async with":
                async with process:
                    await process.bind("/")
        with self.assertRaisesRegex(RuntimeError, "attach"):
            await process.__aenter__()

    async def test_whoever_has_left_is_not_in_the_way_of_the_next(self) -> None:
        with unittest.mock.patch("pushring._wire.HEARD_OUT_S", PATIENCE_S):
            for _ in range(50):
                async with pushring.attach(LINK, "again:python:sys") as process:
                    await process.bind("/")

    async def test_one_task_takes_the_events(self) -> None:
        async with pushring.attach(LINK, "two:python:sys") as process:
            first = asyncio.ensure_future(anext(aiter(process)))
            await asyncio.sleep(0)
            with self.assertRaisesRegex(RuntimeError, "another task"):
                await soon(anext(aiter(process)))
            # Who gives up is no task that waits.
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(aiter(process)), 0.01)

    async def test_questions_that_nobody_waits_for_still_have_their_place(self) -> None:
        """The broker counts those that it has not answered, and ends a process with more than it lets have."""
        async with pushring.attach(LINK, "impatient:python:sys") as process:
            process._welcome["asks_max"] = 8
            answered = process._answered
            with unittest.mock.patch.object(process, "_answered"):
                for _ in range(5):
                    asking = [asyncio.ensure_future(process.push(1 << 20, "x", outcome=True)) for _ in range(8)]
                    await asyncio.sleep(0)
                    for task in asking:
                        task.cancel()
                    await asyncio.gather(*asking, return_exceptions=True)
                self.assertEqual((len(process._asks), process._ask), (8, 8))
            for ask in list(process._asks):
                answered("outcome", {"ask": ask})
            self.assertEqual((await soon(process.push(1 << 20, "x", outcome=True))).not_found, 1)

    async def test_guests_are_let_in_and_out(self) -> None:
        async with pushring.attach(LINK, "host:python:sys") as process:
            await process.bind("/")
            client = await Client.open("/host:python:sys/")
            opened = await soon(anext(aiter(process)))
            assert isinstance(opened, pushring.Opened)
            guest = "bob.os@chat:app:me.os"
            for change in (process.grant, process.revoke):
                became = await soon(change(guest, opened.channel))
                self.assertEqual(became and became.sent, 1)
                self.assertIsNone(await soon(change(guest)))
            with self.assertRaises(pushring.Failed) as failed:
                await process.grant("nobody")
            self.assertEqual(failed.exception.code, "guest_address")
            client.close()

    async def test_a_number_is_no_payload(self) -> None:
        async with pushring.attach(LINK, "number:python:sys") as process:
            with self.assertRaises(TypeError):
                await process.push(7, 5)  # type: ignore[call-overload]
            for data in (bytearray(b"x"), memoryview(b"x")):
                await process.push(7, data)  # type: ignore[call-overload]

    async def test_a_lost_link_loses_and_doubles_nothing(self) -> None:
        async with pushring.attach(LINK, "lost:python:sys") as process:
            await process.bind("/")
            async with running(echo(process)):
                client = await Client.open("/lost:python:sys/")
                heard: list[str | bytes] = []
                for number in range(0, 100, 5):
                    for next in range(5):
                        client.send(str(number + next))
                    # Somewhere on the way of these five.
                    while len(heard) < number:
                        heard.append(await client.receive())
                    if process._wire is not None:
                        process._wire._writer.transport.abort()
                while len(heard) < 100:
                    heard.append(await client.receive())
                self.assertEqual(heard, [str(number) for number in range(100)])
                client.close()

    async def test_requests_are_answered(self) -> None:
        async with pushring.attach(LINK, "http:python:sys") as process:
            await process.bind_http("/hello/:name")
            await process.bind_http("/fixed", content="text/plain", body=b"fixed")
            reader, writer = await asyncio.open_connection(URL.hostname, URL.port)
            writer.write(f"GET /http:python:sys/hello/you?x=1 HTTP/1.1\r\nHost: {URL.netloc}\r\n\r\n".encode())
            request = await soon(anext(aiter(process)))
            assert isinstance(request, pushring.HttpRequest)
            self.assertEqual((request.url_params, request.query_params), ({"name": "you"}, {"x": "1"}))
            await process.respond(request.request, 203, b"hi", {"X-By": "python"})
            head = await soon(reader.readuntil(b"\r\n\r\n"))
            self.assertTrue(head.startswith(b"HTTP/1.1 203"), head)
            self.assertEqual(await soon(reader.readexactly(2)), b"hi")
            writer.write(f"GET /http:python:sys/fixed HTTP/1.1\r\nHost: {URL.netloc}\r\nConnection: close\r\n\r\n".encode())
            self.assertTrue((await soon(reader.read())).endswith(b"fixed"))
            writer.close()

    async def test_more_than_the_window_waits_for_room(self) -> None:
        async with pushring.attach(LINK, "window:python:sys", policy="drop_newest") as process:
            await process.bind("/")
            client = await Client.open("/window:python:sys/")
            opened = await soon(anext(aiter(process)))
            assert isinstance(opened, pushring.Opened)
            for _ in range(3 * process._welcome["window"]["frames"]):
                await process.push(opened.channel, b"x")
            became = await soon(process.push(opened.channel, "last", outcome=True))
            self.assertEqual(became.sent + became.queued + became.dropped, 1)
            client.close()


    async def test_answers_pass_events_and_these_wait_in_the_window(self) -> None:
        async with pushring.attach(LINK, "flooded:python:sys", policy="drop_newest") as process:
            await process.bind("/")
            client = await Client.open("/flooded:python:sys/")
            opened = await soon(anext(aiter(process)))
            assert isinstance(opened, pushring.Opened)
            frames = process._welcome["window"]["frames"]
            for _ in range(3 * frames):
                client.send("x")
            flood = asyncio.ensure_future(client.writer.drain())

            async def full() -> None:
                # All but the one in hand.
                while len(process._events) < frames - 1:
                    await asyncio.sleep(0.01)

            await soon(full())
            told = process._told
            for _ in range(100):
                became = await soon(process.push(opened.channel, "y", outcome=True))
                self.assertEqual(became.sent + became.queued + became.dropped, 1)
            self.assertEqual((len(process._events), process._told), (frames - 1, told))
            for _ in range(3 * frames):
                self.assertIsInstance(await soon(anext(aiter(process))), pushring.Message)
            await soon(flood)
            client.close()

    async def test_many_questions_while_one_event_is_handled_are_answered_within_a_bound(self) -> None:
        async with pushring.attach(LINK, "asking:python:sys", policy="drop_newest") as process:
            await process.bind("/")
            client = await Client.open("/asking:python:sys/")
            opened = await soon(anext(aiter(process)))
            assert isinstance(opened, pushring.Opened)
            process._welcome["window"], process._welcome["asks_max"] = {"frames": 64, "bytes": 1 << 20}, 64
            most = 0
            for _ in range(1000):
                await soon(process.push(opened.channel, b"", outcome=True))
                most = max(most, process._arrived - process._told)
            self.assertLess(most, 64 + 5 * 64)
            with unittest.mock.patch.object(_link, "KEPT_WINDOWS", 0), self.assertRaises(pushring.Failed) as failed:
                for _ in range(1000):
                    await soon(process.push(opened.channel, b"", outcome=True))
            self.assertEqual(failed.exception.code, "events_wait")
            client.send("next")
            self.assertEqual(await soon(anext(aiter(process))), pushring.Message(opened.channel, "next"))

            async def acknowledged() -> None:
                while process._unacknowledged_windows_of_answers() > 4:
                    await asyncio.sleep(0.01)

            await soon(acknowledged())
            await soon(process.push(opened.channel, b"", outcome=True))
            client.close()


class Published(unittest.IsolatedAsyncioTestCase):
    async def subscribed(self, topic: str) -> Client:
        client = await Client.open("/hub", "pushring.1")
        await client.receive()
        client.send(f'\x1e{{"subscribe":"{topic}"}}')
        await client.receive()
        return client

    async def test_all_kinds_arrive(self) -> None:
        client = await self.subscribed(TOPIC)
        with pushring.Publisher(API, TOKEN) as publisher:
            long = "x" * 300_000
            for data in ("grüß dich", b"\x00\x1e", long):
                became = await publisher.publish_async(data, topic=TOPIC, outcome=True)
                self.assertEqual(became and became.sent + became.queued, 1)
                self.assertEqual(await client.receive(), data)
            self.assertIsNone(publisher.publish(json={"price": 7}, topic=TOPIC, key=TOPIC))
            self.assertIsNone(publisher.publish(json={"price": 7}, topic=TOPIC, key=TOPIC))
            self.assertEqual(await client.receive(), '{"price": 7}')
            results = publisher.publish_many(
                [{"data": "a", "topic": TOPIC}, {"data": b"b", "topic": ""}, {"data": b"c", "topic": TOPIC}]
            )
            self.assertEqual([result.status for result in results], [202, 400, 202])
            self.assertEqual(results[1].field, "to.topic")
            self.assertEqual([await client.receive(), await client.receive()], ["a", b"c"])
            self.assertEqual(publisher.topics(TOPIC), {TOPIC: 1})
            self.assertEqual((publisher.subscribers(TOPIC), publisher.subscribers("public.none")), (1, 0))
        client.close()

    @unittest.skipUnless(NODE, "the broker is in no fleet")
    async def test_channels_of_other_nodes_are_named_in_every_form(self) -> None:
        client = await Client.open("/hub", "pushring.1")
        here = f"{NODE}/{json.loads(await client.receive())['channel_id']}"
        with pushring.Publisher(API, TOKEN) as publisher:
            while publisher.publish("", topic=TOPIC, outcome=True).fleet_down:
                await asyncio.sleep(0.01)
            pushes: list[dict[str, object]] = [{"data": "a"}, {"data": b"b"}, {"json": "c"}]
            for push in pushes:
                became = await asyncio.to_thread(
                    publisher.publish, channels=[here, "other-node/7"], outcome="nodes", **push  # type: ignore[arg-type]
                )
                assert became is not None
                self.assertEqual((became.sent + became.queued, became.partial), (1, True))
                self.assertEqual(became.nodes, {"other-node": None})
            results = publisher.publish_many([{"data": b"d", "channels": [here], "outcome": "nodes"}])
            self.assertEqual(results[0].outcome and results[0].outcome.partial, False)
            self.assertEqual([await client.receive() for _ in range(4)], ["a", b"b", '"c"', b"d"])
            presence = publisher.presence("public.nobody")
            self.assertEqual(presence, pushring.Presence(0, 0, {}, False))
            self.assertEqual(publisher.channel(here)["node"], NODE)
            publisher.close_channel(here, 4000, "enough")
            with self.assertRaises(EOFError):
                await client.receive()
            for wrong in ("nowhere", "a/b/c"):
                with self.assertRaises(pushring.PublishError) as refused:
                    publisher.publish("x", channels=[wrong])
                self.assertEqual(refused.exception.status, 400)
            with self.assertRaises(TypeError):
                publisher.publish("x", channels=here)
        client.close()

    async def test_addresses_and_tokens_are_what_they_say(self) -> None:
        for url, host, port in [
            ("http://[::1]:9465", "::1", 9465),
            ("http://[::1]", "::1", 80),
            ("https://[2001:db8::7]/push:pushring:sys", "2001:db8::7", 443),
            ("http://example.com/", "example.com", 80),
        ]:
            connection = pushring.Publisher(url, TOKEN)._connection
            self.assertEqual((connection.host, connection.port), (host, port), url)
        for secret in ("a secret\nof two lines", "ein Schlüssel"):
            with self.assertRaises(ValueError) as refused:
                pushring.Publisher(API, secret)
            self.assertNotIn("secret", str(refused.exception))
            self.assertNotIn("Schl", str(refused.exception))

    async def test_what_is_no_payload_is_not_guessed(self) -> None:
        with pushring.Publisher(API, TOKEN) as publisher:
            with self.assertRaises(TypeError):
                publisher.publish(5, topic=TOPIC)  # type: ignore[call-overload]
            with self.assertRaises(TypeError):
                publisher.publish(json={"bytes": b"x"}, topic=TOPIC)
            with self.assertRaises(ValueError):
                publisher.subscribers("")

    async def test_refusals_name_the_field(self) -> None:
        publisher, stranger = pushring.Publisher(API, TOKEN), pushring.Publisher(API, "another")
        self.addCleanup(publisher.close)
        self.addCleanup(stranger.close)
        with self.assertRaises(pushring.PublishError) as refused:
            publisher.publish("x", topic=TOPIC, policy="gently")
        self.assertEqual((refused.exception.status, refused.exception.field), (400, "push-to"))
        with self.assertRaises(pushring.PublishError) as refused:
            stranger.publish("x", topic=TOPIC)
        self.assertEqual(refused.exception.status, 401)
        with self.assertRaises(TypeError):
            publisher.publish("x")
        with self.assertRaises(TypeError):
            publisher.publish("x", topic="a", user="b")


class MessagePack(unittest.TestCase):
    def test_what_is_packed_is_unpacked(self) -> None:
        value: dict[str, object] = {"a": [None, True, False, 0, 127, 128, 1 << 63, -1, -(1 << 40), "ü" * 300, b"x" * 300, {}]}
        self.assertEqual(unpack(pack(value)), value)

    def test_bytes_that_are_none_raise_value_error(self) -> None:
        for bad in (b"", b"\xc1", b"\xdf\xff\xff\xff\xff", b"\xa1\xff", b"\x81\x90\x00", b"\x91" * 40 + b"\x00", b"\x00\x00"):
            with self.assertRaises(ValueError):
                unpack(bad)


if __name__ == "__main__":
    # Where it hangs it says so, and ends.
    faulthandler.dump_traceback_later(5 * PATIENCE_S, exit=True)
    unittest.main()
