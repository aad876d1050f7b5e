"""A process of the broker over its link (docs/LINK.md), in asyncio.

The client keeps what the page asks a peer for: it beats, acknowledges, keeps orders until they are acknowledged, and goes on
with its session when the connection is lost, so that nothing is lost or doubled. Where the session has ended meanwhile
(the broker was started anew, or the grace period is over) every channel is told of as closed, paths are bound again, and
questions without an answer fail with `LinkLost`.

Invariants: an event is acknowledged once the next one is asked for, so what was not handled before a crash is told to the
process that attaches next, and what is kept is bounded by the broker's window, both ways: beyond it the broker stops reading
the clients. Answers do not wait for events, so they may be awaited while one is handled. Each takes a place among what is not
acknowledged: where a process asks tens of thousands of questions while it handles one event, the events behind it are
acknowledged too, up to `KEPT_WINDOWS`; then it has to take events before it asks on. Events that are there are given without
a wait, but not for longer than the loop can be spared: it reads, beats and sends meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypedDict, Union, overload

from . import _events
from ._events import READERS, Channel, Closed, Event, Opened, Outcome
from ._wire import ProtocolError, Where, Wire, frame_of

_log = logging.getLogger("pushring")

VERSION = 1
HANDSHAKE_S = 10.0
PAUSE_MIN_S = 0.05
PAUSE_MAX_S = 5.0
# The longest head and blob before the broker has said its own.
HELLO_BYTES_MAX = 1 << 16
ACK_DELAY_S = 0.005
# How long events are given one after the other before the loop has its turn.
LOOP_SPARED_S = 0.005
# How many windows of events may wait here before none is acknowledged that was not taken.
KEPT_WINDOWS = 4


_Wanted = Union[bool, Literal["nodes"]]


class _Key(TypedDict):
    key: int


class Conflate(TypedDict):
    """Of the frames that wait for a channel, only the newest of each key is kept."""

    conflate: _Key


Policy = Union[Literal["close", "drop_newest", "drop_oldest"], Conflate]


class Refused(Exception):
    """The broker does not let us attach; `code` is one of LINK.md's table."""

    def __init__(self, code: str, reason: str) -> None:
        # As they are, so that it can be pickled.
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class Failed(Exception):
    """An order was not executed; `code` says why: one of LINK.md's table, or `events_wait`: more events wait to be taken than
    are kept, so iterate over the process before you ask on."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class Ended(Exception):
    """The process is attached no more: it has said goodbye, or broken the protocol."""


class LinkLost(Exception):
    """The session ended while an answer was awaited: whether the order was executed is not known."""


# Refusals after which the same hello may be taken later.
_LATER = ("taken", "full", "stopped")


def attach(
    where: Where,
    process: str,
    *,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
    policy: Policy = "close",
    wants_control: bool = False,
    wants_topics: bool = False,
) -> Process:
    """A process `name:package:publisher` at the broker whose link is at `where`: the path of its socket, or (host, port) with
    the link's token. Use it as `async with`; where the block ends, its channels are closed.

    `tls` is for a broker with `link_tls_certs`: `ssl.create_default_context(cafile="broker.pem")` trusts that certificate, or
    that authority, alone. The token is sent to no other.

    Raises `Refused`, `ProtocolError` or OSError as the block is entered, if the broker is not there or says no. Later it
    attaches again by itself.
    """
    fields = {"id": process, "policy": policy, "wants_control": wants_control, "wants_topics": wants_topics}
    return Process(where, fields, token, tls)


class Process:
    """An attached process: iterate over it for events, and push. See `attach`."""

    def __init__(self, where: Where, attach: dict[str, Any], token: str | None, tls: ssl.SSLContext | None) -> None:
        if tls is not None and not isinstance(where, tuple):
            raise TypeError("tls is for a link over TCP: (host, port)")
        self._where = where
        self._attach = attach
        self._token = token
        self._tls = tls
        self.channels: dict[int, Channel] = {}
        """The channels that are open, as far as events were taken; at first those of a predecessor."""
        self._welcome: dict[str, Any] = {}
        self._session: str | None = None
        self._wire: Wire | None = None
        # Orders that the broker may not have: numbered from `_acknowledged` + 1.
        self._orders: deque[bytes] = deque()
        self._orders_bytes = 0
        self._acknowledged = 0
        self._room: list[asyncio.Future[None]] = []
        # Numbered frames of the broker: arrived, and told so. Events wait with the count at which they came, and their bytes.
        self._arrived = 0
        self._told = 0
        self._events: deque[tuple[int | None, int, Event]] = deque()
        self._events_bytes = 0
        self._in_hand: int | None = None
        self._holds_one = False
        self._is_ack_due = False
        self._arrival: asyncio.Future[None] | None = None
        self._spared_since = 0.0
        self._asks: dict[int, asyncio.Future[Any]] = {}
        self._ask = 0
        # As frames, for a broker that has forgotten them.
        self._bindings: dict[tuple[str, str], bytes] = {}
        self._is_anew = False
        self._has_failed = False
        self._keeper: asyncio.Task[None] | None = None
        # Why nothing goes.
        self._error: BaseException | None = Ended("it is not attached yet: use it as `async with`")
        self._error_trace: TracebackType | None = None
        self._draining: tuple[float, float] | None = None

    # -- its life

    async def __aenter__(self) -> Process:
        if self._keeper is not None:
            raise RuntimeError("it was attached before: `attach` makes another")
        wire = await self._connect()
        self._error = None
        self._keeper = asyncio.create_task(self._keep(wire), name="pushring link")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wire, self._wire = self._wire, None
        self._has_failed = kind is not None and not issubclass(kind, asyncio.CancelledError)
        self._fail(Ended("the process has ended"))
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if wire is not None:
            await self._leave(wire)

    async def _leave(self, wire: Wire) -> None:
        wire.send(frame_of({"bye": {"failed": self._has_failed}}))
        await wire.end()

    @property
    def node(self) -> str:
        """Whose node the broker serves."""
        return str(self._welcome["node"])

    @property
    def listening(self) -> str:
        """Where clients connect: address and port."""
        return str(self._welcome["listening"])

    @property
    def draining(self) -> tuple[float, float] | None:
        """In how many seconds the broker begins to close channels with 1012, and has closed all; None: it does not drain."""
        if self._draining is None:
            return None
        now = asyncio.get_running_loop().time()
        begins, ends = (max(0.0, at - now) for at in self._draining)
        return begins, ends

    # -- what it is told

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._holds_one = False
        self._acknowledge_soon()
        loop = asyncio.get_running_loop()
        if self._events and loop.time() - self._spared_since > LOOP_SPARED_S:
            await asyncio.sleep(0)
            self._spared_since = loop.time()
        while not self._events:
            if self._error is not None:
                raise self._refusal()
            if self._arrival is not None and not self._arrival.done():
                raise RuntimeError("another task waits for the next event")
            self._arrival = loop.create_future()
            await self._arrival
            self._spared_since = loop.time()
        self._in_hand, size, event = self._events.popleft()
        self._events_bytes -= size
        self._holds_one = True
        if isinstance(event, Opened):
            self.channels[event.channel] = event
        elif isinstance(event, Closed):
            self.channels.pop(event.channel, None)
        return event

    # -- what it orders

    @overload
    async def push(
        self, channel: int, data: str | bytes, *, node: str | None = None, as_guest: bool = False,
        policy: Policy | None = None,
        outcome: Literal[True, "nodes"],
    ) -> Outcome: ...  # fmt: skip
    @overload
    async def push(
        self, channel: int, data: str | bytes, *, node: str | None = None, as_guest: bool = False,
        policy: Policy | None = None,
        outcome: Literal[False] = False,
    ) -> None: ...  # fmt: skip
    @overload
    async def push(
        self, channel: int, data: str | bytes, *, node: str | None = None, as_guest: bool = False,
        policy: Policy | None = None,
        outcome: _Wanted,
    ) -> Outcome | None: ...  # fmt: skip
    async def push(
        self,
        channel: int,
        data: str | bytes,
        *,
        node: str | None = None,
        as_guest: bool = False,
        policy: Policy | None = None,
        outcome: _Wanted = False,
    ) -> Outcome | None:
        """Pushes to one channel, `str` as Text and `bytes` as Binary. It never waits for a client; with `outcome` it waits for
        what became of it, with "nodes" also on other nodes. `policy` is what happens where the channel does not keep up. `node`
        is another node of the broker's fleet, whose channel it is: one of the process of this name, or with `as_guest` of any
        that has granted it (`grant`)."""
        kind, blob = _payload(data)
        fields = {"channel": channel, "kind": kind, "policy": policy, "node": node, "as_guest": as_guest}
        return await self._push({"push": fields}, blob, outcome)

    @overload
    async def broadcast(
        self, data: str | bytes, *, topic: str | None = None, path: str | None = None,
        channels: Iterable[int] | None = None, exclude: Iterable[int] = (), everywhere: bool = False,
        policy: Policy | None = None, outcome: Literal[True, "nodes"],
    ) -> Outcome: ...  # fmt: skip
    @overload
    async def broadcast(
        self, data: str | bytes, *, topic: str | None = None, path: str | None = None,
        channels: Iterable[int] | None = None, exclude: Iterable[int] = (), everywhere: bool = False,
        policy: Policy | None = None, outcome: Literal[False] = False,
    ) -> None: ...  # fmt: skip
    @overload
    async def broadcast(
        self, data: str | bytes, *, topic: str | None = None, path: str | None = None,
        channels: Iterable[int] | None = None, exclude: Iterable[int] = (), everywhere: bool = False,
        policy: Policy | None = None, outcome: bool,
    ) -> Outcome | None: ...  # fmt: skip
    async def broadcast(
        self,
        data: str | bytes,
        *,
        topic: str | None = None,
        path: str | None = None,
        channels: Iterable[int] | None = None,
        exclude: Iterable[int] = (),
        everywhere: bool = False,
        policy: Policy | None = None,
        outcome: _Wanted = False,
    ) -> Outcome | None:
        """Pushes to all channels of a topic, of a path, of a list, or of the process; encoded once. `everywhere` is on every
        node of the broker's fleet (no list then); the outcome counts the channels of this node. As `push` else."""
        kind, blob = _payload(data)
        named = [(name, value) for name, value in (("topic", topic), ("path", path), ("channels", channels)) if value is not None]
        if len(named) > 1:
            raise TypeError("one of topic, path and channels")
        if everywhere and channels is not None:
            raise TypeError("a list of channels is of one node, and not everywhere")
        to: Any = "process"
        if named:
            name, value = named[0]
            to = {name: value if isinstance(value, str) else list(value)}
        fields = {"to": to, "kind": kind, "except": list(exclude), "policy": policy, "everywhere": everywhere}
        return await self._push({"push_many": fields}, blob, outcome)

    async def ping(self, channel: int, data: bytes = b"") -> None:
        """Sends a ping, of 125 bytes at most; the pong comes as `Control` where `wants_control`."""
        await self._push({"push": {"channel": channel, "kind": "ping"}}, data, False)

    async def subscribe(self, channel: int, topic: str) -> Outcome:
        """Subscribes a channel to a topic. `sent` is 1 if it is so now, `dropped` if it has too many."""
        became: Outcome = await self._question({"subscribe": {"channel": channel, "topic": topic}})
        return became

    async def unsubscribe(self, channel: int, topic: str) -> Outcome:
        """Takes a channel out of a topic."""
        became: Outcome = await self._question({"unsubscribe": {"channel": channel, "topic": topic}})
        return became

    async def grant(self, guest: str, channel: int | None = None) -> Outcome | None:
        """Lets a process on another node of the fleet, as `bob.os@chat:app:me.os`, push to a channel (`as_guest`): `sent` is 1
        if it may now, `dropped` if the channel has too many guests. Without a channel to all: None, or raises `Failed`."""
        return await self._grant(guest, channel, False)

    async def revoke(self, guest: str, channel: int | None = None) -> Outcome | None:
        """Takes what `grant` gave."""
        return await self._grant(guest, channel, True)

    async def _grant(self, guest: str, channel: int | None, revoke: bool) -> Outcome | None:
        became: Outcome | None = await self._question({"grant": {"guest": guest, "channel": channel, "revoke": revoke}})
        return became

    async def topics(self, prefix: str = "", *, after: str | None = None, limit: int = 100) -> dict[str, int]:
        """Topics that anybody is subscribed to, by name, and how many channels are."""
        question = {"list_topics": {"prefix": prefix, "after": after, "limit": limit}}
        topics: dict[str, int] = await self._question(question)
        return topics

    async def close(self, channel: int, code: int | None = None, reason: str = "") -> None:
        """Closes a channel, behind what is queued for it."""
        await self._order(frame_of({"close": {"channel": channel, "code": code, "reason": reason}}))

    async def bind(
        self,
        path: str,
        *,
        authenticated: bool = False,
        secure_subdomain: bool = False,
        extension: bool = False,
        deflate: bool = False,
        resume: bool = False,
        resume_events: bool = False,
        sse: bool = False,
    ) -> None:
        """Binds a WebSocket path, and again whenever the broker has forgotten it. Raises `Failed`."""
        fields = {
            "path": path,
            "authenticated": authenticated,
            "secure_subdomain": secure_subdomain,
            "extension": extension,
            "deflate": deflate,
            "resume": resume,
            "resume_events": resume_events,
            "sse": sse,
        }
        await self._bind("bind", path, fields)

    async def bind_http(
        self,
        path: str,
        *,
        authenticated: bool = False,
        local_only: bool = False,
        secure_subdomain: bool = False,
        content: str | None = None,
        body: bytes = b"",
    ) -> None:
        """Binds an HTTP path: its requests come as `HttpRequest`; or, with `content`, a media type, GET is answered with
        `body` by the broker itself. Raises `Failed`."""
        fields = {
            "path": path,
            "authenticated": authenticated,
            "local_only": local_only,
            "secure_subdomain": secure_subdomain,
            "content": content,
        }
        await self._bind("bind_http", path, fields, body)

    async def unbind(self, path: str) -> None:
        """The path is bound no more; its channels stay."""
        await self._unbind("bind", path)

    async def unbind_http(self, path: str) -> None:
        """The HTTP path is bound no more."""
        await self._unbind("bind_http", path)

    async def respond(
        self, request: int, status: int, body: bytes = b"", headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    ) -> None:
        """Answers an `HttpRequest`."""
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        fields = {"request": request, "status": status, "headers": [list(pair) for pair in pairs]}
        await self._order(frame_of({"respond": fields}, body))

    async def _push(self, head: dict[str, dict[str, Any]], blob: bytes, outcome: _Wanted) -> Outcome | None:
        if not outcome:
            await self._order(frame_of(head, blob))
            return None
        (name, fields), = head.items()  # fmt: skip
        became: Outcome = await self._question({name: {**fields, "ask_nodes": outcome == "nodes"}}, blob)
        return became

    async def _bind(self, name: str, path: str, fields: dict[str, Any], blob: bytes = b"") -> None:
        while True:
            try:
                await self._question({name: fields}, blob)
                break
            except LinkLost:
                continue
        self._bindings[(name, path)] = frame_of({name: fields}, blob)

    async def _unbind(self, name: str, path: str) -> None:
        self._bindings.pop((name, path), None)
        try:
            await self._question({f"un{name}": {"path": path}})
        except LinkLost:
            # With its session the broker has forgotten the path.
            pass

    async def _question(self, head: dict[str, dict[str, Any]], blob: bytes = b"") -> Any:
        """Sends an order that is answered, and waits for the answer."""
        while self._error is None and len(self._asks) >= self._welcome["asks_max"]:
            await self._wait_for_room()
        if self._error is not None:
            raise self._refusal()
        if self._unacknowledged_windows_of_answers() > 4:
            raise Failed("events_wait", f"{len(self._events)} events wait: take them before you ask on")
        self._ask += 1
        ask = self._ask
        (name, fields), = head.items()  # fmt: skip
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asks[ask] = answer
        try:
            await self._order(frame_of({name: {**fields, "ask": ask}}, blob))
        except BaseException:
            self._forget(ask)
            raise
        # It takes its place until the broker has answered, whoever waits for that.
        return await answer

    def _forget(self, ask: int) -> asyncio.Future[Any] | None:
        answer = self._asks.pop(ask, None)
        self._make_room()
        return answer

    async def _order(self, frame: bytes) -> None:
        """Keeps a numbered frame until it is acknowledged, and sends it if there is a connection."""
        if self._error is not None:
            raise self._refusal()
        head_bytes, blob_bytes = struct.unpack_from(">II", frame)
        if head_bytes > self._welcome["head_bytes_max"] or blob_bytes > self._welcome["blob_bytes_max"]:
            raise ValueError(f"the broker takes heads of {self._welcome['head_bytes_max']} bytes and payloads of "
                             f"{self._welcome['blob_bytes_max']}, and this has {head_bytes} and {blob_bytes}")  # fmt: skip
        while self._error is None and self._orders and not self._has_room_for(len(frame)):
            await self._wait_for_room()
        if self._error is not None:
            raise self._refusal()
        self._orders.append(frame)
        self._orders_bytes += len(frame)
        if self._wire is not None:
            self._wire.send(frame)

    def _has_room_for(self, size: int) -> bool:
        window = self._welcome["window"]
        return bool(len(self._orders) < window["frames"] and self._orders_bytes + size <= window["bytes"])

    async def _wait_for_room(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        await waiter

    def _make_room(self) -> None:
        waiters, self._room = self._room, []
        for waiter in waiters:
            _wake(waiter)

    # -- acknowledgements

    def _dealt_with(self) -> int:
        if self._unacknowledged_windows_of_answers() > 2 and self._may_keep_more():
            return self._arrived
        if self._holds_one and self._in_hand is not None:
            return self._in_hand - 1
        first = next((number for number, *_ in self._events if number is not None), None)
        return self._arrived if first is None else first - 1

    def _unacknowledged_windows_of_answers(self) -> float:
        """At most a window of what is unacknowledged is events. Beyond it there are answers: counted in `asks_max`, of which
        the broker keeps some seven."""
        beyond = self._arrived - self._told - self._welcome["window"]["frames"]
        return float(beyond / self._welcome["asks_max"])

    def _may_keep_more(self) -> bool:
        window = self._welcome["window"]
        frames, size = KEPT_WINDOWS * window["frames"], KEPT_WINDOWS * window["bytes"]
        return bool(len(self._events) < frames and self._events_bytes < size)

    def _acknowledge_soon(self) -> None:
        if not self._is_ack_due and self._wire is not None:
            self._is_ack_due = True
            asyncio.get_running_loop().call_later(ACK_DELAY_S, self._acknowledge)

    def _acknowledge(self) -> None:
        self._is_ack_due = False
        received = self._dealt_with()
        if self._wire is not None and received > self._told:
            self._told = received
            self._wire.send(frame_of({"ack": {"received": received}}))

    # -- the connection

    async def _keep(self, wire: Wire) -> None:
        """Reads for as long as the process lives, over one connection after another."""
        try:
            while True:
                try:
                    while True:
                        self._heard(*await wire.frame(self._welcome["head_bytes_max"], self._welcome["blob_bytes_max"]))
                except (OSError, EOFError, ProtocolError) as error:
                    _log.warning("the link is lost: %s", error)
                self._wire = None
                await wire.abort()
                wire = await self._connect_again()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._wire = None
            await wire.abort()
            self._fail(error)

    async def _connect_again(self) -> Wire:
        pause_s = PAUSE_MIN_S
        while True:
            try:
                return await self._connect()
            except Refused as refused:
                if refused.code == "session":
                    self._begin_anew()
                    continue
                if refused.code not in _LATER:
                    raise
                reason: Exception = refused
            except (OSError, EOFError, ProtocolError) as error:
                reason = error
            # Full jitter: processes that were lost together do not come back together.
            wait_s = random.uniform(PAUSE_MIN_S, pause_s)
            _log.info("not attached, and tried again in %.2f s: %s", wait_s, reason)
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _connect(self) -> Wire:
        """Attaches, or goes on with the session."""
        opened: list[Wire] = []
        opening = asyncio.ensure_future(self._open(opened))
        try:
            # Before Python 3.12 `wait_for` forgets that it was cancelled where it has its result in the same moment.
            await asyncio.wait({opening}, timeout=HANDSHAKE_S)
            if not opening.done():
                raise ConnectionError(f"the broker said nothing within {HANDSHAKE_S:.0f} s")
            return opening.result()
        except BaseException as error:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            self._wire = None
            for wire in opened:
                # The broker may have attached the process that was given up.
                await (self._leave(wire) if isinstance(error, asyncio.CancelledError) else wire.abort())
            raise

    async def _open(self, opened: list[Wire]) -> Wire:
        wire = await Wire.open(self._where, self._tls)
        opened.append(wire)
        await self._shake_hands(wire)
        return wire

    async def _shake_hands(self, wire: Wire) -> None:
        hello: dict[str, Any] = {
            "version_min": VERSION,
            "version_max": VERSION,
            "attach": {"process": self._attach},
            "received": self._arrived if self._session else 0,
            "wants_drain": True,
        }
        if self._token is not None:
            hello["token"] = self._token
        if self._session is not None:
            hello["session"] = self._session
        wire.send(frame_of({"hello": hello}))
        name, fields, *_ = await wire.frame(HELLO_BYTES_MAX, HELLO_BYTES_MAX)
        try:
            if name == "refused":
                raise Refused(str(fields["code"]), str(fields["reason"]))
            if name != "welcome":
                raise ProtocolError(f"the first frame is {name}, and not a welcome")
            live: list[Channel] = []
            while len(live) < fields["live"]:
                name, listed, *_ = await wire.frame(fields["head_bytes_max"], fields["blob_bytes_max"])
                if name != "live":
                    raise ProtocolError(f"{name}, where channels are listed")
                live += [_events.channel(channel) for channel in listed["channels"]]
            self._take_up(wire, fields, live)
        except (KeyError, TypeError, AttributeError) as error:
            raise ProtocolError(f"{name}: {error!r}") from error

    def _take_up(self, wire: Wire, welcome: dict[str, Any], live: list[Channel]) -> None:
        received, acknowledged = int(welcome["received"]), int(welcome["acknowledged"])
        beat_s = welcome["beat_ms"] / 1000
        if self._session is None:
            # Ours are numbered behind a predecessor's, and what it had not acknowledged comes to us.
            self._acknowledged, self._arrived, self._told = received, acknowledged, acknowledged
            self.channels.update((channel.channel, channel) for channel in live)
        elif not self._acknowledged <= received <= self._acknowledged + len(self._orders):
            raise ProtocolError("the broker has frames that were never sent")
        else:
            self._release(received)
            # The hello said so.
            self._told = self._arrived
        self._session, self._welcome, self._wire = str(welcome["session"]), welcome, wire
        # One that drains says so again.
        self._draining = None
        wire.beat_every(beat_s)
        if self._is_anew:
            self._is_anew = False
            for binding in reversed(self._bindings.values()):
                self._orders.appendleft(binding)
                self._orders_bytes += len(binding)
        for frame in self._orders:
            wire.send(frame)
        self._acknowledge_soon()

    def _begin_anew(self) -> None:
        """The session has ended, and with it all its channels."""
        self._session, self._is_anew = None, True
        opened = dict.fromkeys(self.channels)
        for at, (_, size, event) in enumerate(self._events):
            self._events[at] = (None, size, event)
            if isinstance(event, Opened):
                opened[event.channel] = None
            elif isinstance(event, Closed):
                opened.pop(event.channel, None)
        self._in_hand = None
        reason = "the session ended while the link was lost"
        self._events.extend((None, 0, Closed(channel, 1012, reason, "broker", 0)) for channel in opened)
        self._orders.clear()
        self._orders_bytes = 0
        for answer in self._asks.values():
            if not answer.done():
                answer.set_exception(LinkLost(reason))
        self._asks.clear()
        self._make_room()
        self._tell_arrival()

    def _heard(self, name: str, fields: dict[str, Any], blob: bytes, size: int) -> None:
        try:
            if name == "beat":
                return
            if name == "ack":
                self._release(int(fields["received"]))
                return
            if name == "draining":
                now = asyncio.get_running_loop().time()
                self._draining = now + fields["begins_in_ms"] / 1000, now + fields["ends_in_ms"] / 1000
                return
            if name == "bye":
                if fields["code"] == "stopped":
                    raise EOFError("the broker has stopped")
                raise Ended(f"{fields['code']}: {fields['reason']}")
            self._arrived += 1
            if name in READERS:
                self._events.append((self._arrived, size, READERS[name](fields, blob)))
                self._events_bytes += size
                self._tell_arrival()
                return
            self._answered(name, fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"{name}: {error!r}") from error
        self._acknowledge_soon()

    def _answered(self, name: str, fields: dict[str, Any]) -> None:
        answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "outcome": _events.outcome,
            "done": lambda _: None,
            "topics": lambda fields: dict(fields["topics"]),
            "failed": lambda fields: Failed(fields["code"], fields["reason"]),
        }
        if name not in answers:
            raise ProtocolError(f"there is no frame {name}")
        became = answers[name](fields)
        answer = self._forget(fields["ask"])
        if answer is None or answer.done():
            return
        if isinstance(became, Failed):
            answer.set_exception(became)
        else:
            answer.set_result(became)

    def _release(self, received: int) -> None:
        if not self._acknowledged <= received <= self._acknowledged + len(self._orders):
            raise ProtocolError("the broker acknowledges what was never sent")
        while self._acknowledged < received:
            self._orders_bytes -= len(self._orders.popleft())
            self._acknowledged += 1
        self._make_room()

    def _tell_arrival(self) -> None:
        if self._arrival is not None:
            _wake(self._arrival)

    def _refusal(self) -> BaseException:
        """Why nothing goes: raised again and again, it would hold all frames that it went through."""
        assert self._error is not None
        return self._error.with_traceback(self._error_trace)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error, self._error_trace = error, error.__traceback__
        for answer in self._asks.values():
            if not answer.done():
                answer.set_exception(self._error)
        self._make_room()
        self._tell_arrival()


def _payload(data: str | bytes) -> tuple[str, bytes]:
    return ("text", data.encode()) if isinstance(data, str) else ("binary", memoryview(data).tobytes())


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
