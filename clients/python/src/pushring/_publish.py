"""Publishing over HTTP (docs/PUBLISHING.md): one request, one push, from any thread."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import select
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.message import Message
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Union, overload

from ._events import Outcome, outcome as read_outcome

if TYPE_CHECKING:
    # In `typing` from Python 3.11 on.
    from typing_extensions import Unpack

_HEAD_BYTES_MAX = 8_000
_ABSENT: Any = object()
_JSON = {"Content-Type": "application/json"}
_Wanted = Union[bool, Literal["nodes"]]


class PublishError(Exception):
    """The broker refused: with which status, why, and which field is wrong. It may accept `retry_after_s` seconds later."""

    def __init__(self, status: int, reason: str, field: str | None = None, retry_after_s: float | None = None) -> None:
        # As they are, so that it can be pickled.
        super().__init__(status, reason, field, retry_after_s)
        self.status = status
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}" + (f" ({self.field})" if self.field else "")


class _Options(TypedDict, total=False):
    """The options of `publish` but for `outcome`, on which depends what it returns."""

    json: object
    topic: str | None
    path: str | None
    channels: Sequence[int | str] | None
    user: str | None
    policy: str | Mapping[str, Any] | None
    exclude: Sequence[int]
    key: str | None


@dataclass(frozen=True)
class Presence:
    """How many channels are subscribed to a topic: on all nodes of the fleet, `here`, and by node with how old the count is,
    in milliseconds; None where it was never heard. `partial`: not all nodes have answered."""

    subscribers: int
    here: int
    nodes: dict[str, tuple[int, int] | None]
    partial: bool


@dataclass(frozen=True)
class Published:
    """What became of one order of a batch: `status` 202 or 200, or that of an error."""

    status: int
    outcome: Outcome | None = None
    error: str | None = None
    field: str | None = None


class Publisher:
    """Publishes over one connection that is kept; threads take turns.

        Publisher("http://127.0.0.1:9465", token).publish("hello", topic="public.news")

    `process` is in whose name (its topics, paths and channels are meant); None is the hub. `tls` says whom to trust at an
    https:// address, if not the system's authorities. Raises `PublishError` where the broker refuses, and OSError or
    `http.client.HTTPException` where there is none: what was published is then unknown, unless it had a `key`, with which it is
    tried once more, and never pushed twice.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        process: str | None = None,
        timeout_s: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"no http:// or https:// address: {url}")
        if parts.scheme == "https":
            https = http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=timeout_s, context=tls)
            self._connection: http.client.HTTPConnection = https
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)
        self._base = parts.path.rstrip("/")
        self._token = token.strip()
        if not (self._token.isascii() and self._token.isprintable()):
            # `http.client` would say so, and show it.
            raise ValueError("the token is not one line of ASCII")
        self._process = process
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        with self._lock:
            self._connection.close()

    @overload
    def publish(
        self, data: str | bytes = ..., *, outcome: Literal[True, "nodes"], **options: Unpack[_Options]
    ) -> Outcome: ...
    @overload
    def publish(
        self, data: str | bytes = ..., *, outcome: Literal[False] = False, **options: Unpack[_Options]
    ) -> None: ...
    @overload
    def publish(self, data: str | bytes = ..., *, outcome: _Wanted, **options: Unpack[_Options]) -> Outcome | None: ...
    def publish(
        self,
        data: str | bytes = _ABSENT,
        *,
        json: object = _ABSENT,
        topic: str | None = None,
        path: str | None = None,
        channels: Sequence[int | str] | None = None,
        user: str | None = None,
        policy: str | Mapping[str, Any] | None = None,
        exclude: Sequence[int] = (),
        outcome: _Wanted = False,
        key: str | None = None,
    ) -> Outcome | None:
        """Pushes `data` (`str` as Text, `bytes` as Binary) or `json` to one topic, path, user or list of channels, or to all
        channels of the process. A channel of another node of the fleet is "NODE/ID". With `outcome` it waits for what became
        of it, else the answer is None; "nodes" includes the other nodes.

        `policy` is "close", "drop_newest", "drop_oldest" or {"conflate": {"key": N}}. `key` is an Idempotency-Key. Where a
        repetition asks for an outcome that the broker does not know, `PublishError` has the status 202: it was pushed.
        """
        order = self._order(data, json, topic, path, channels, user, policy, exclude, outcome)
        headers, body = _request_of(order)
        if key is not None:
            headers["Idempotency-Key"] = key
        answer = _read(*self._request("POST", "/api/push", headers, body, may_repeat=key is not None))
        if not outcome:
            return None
        if "accepted" in answer:
            raise PublishError(202, "it was pushed before, and what became of it is not known any more")
        return read_outcome(answer)

    @overload
    async def publish_async(
        self, data: str | bytes = ..., *, outcome: Literal[True, "nodes"], **options: Unpack[_Options]
    ) -> Outcome: ...
    @overload
    async def publish_async(
        self, data: str | bytes = ..., *, outcome: Literal[False] = False, **options: Unpack[_Options]
    ) -> None: ...
    @overload
    async def publish_async(
        self, data: str | bytes = ..., *, outcome: _Wanted, **options: Unpack[_Options]
    ) -> Outcome | None: ...
    async def publish_async(self, data: str | bytes = _ABSENT, **options: Any) -> Outcome | None:
        """`publish` on a thread, for coroutines."""
        publish: Callable[..., Outcome | None] = self.publish
        return await asyncio.to_thread(publish, data, **options)

    def publish_many(self, orders: Iterable[Mapping[str, Any]]) -> list[Published]:
        """Many pushes in one request. Each order is what `publish` takes: `{"data": "hello", "topic": "news"}`."""
        lines = []
        for order in orders:
            fields = dict(order)
            names = ("json", "topic", "path", "channels", "user", "policy", "exclude", "outcome")
            unknown = fields.keys() - {"data", *names}
            if unknown:
                raise TypeError(f"no field of an order: {', '.join(sorted(unknown))}")
            defaults: dict[str, Any] = {"data": _ABSENT, "json": _ABSENT, "exclude": (), "outcome": False}
            values: list[Any] = [fields.get(name, defaults.get(name)) for name in ("data", *names)]
            lines.append(_dumped(self._order(*values)))
        if not lines:
            return []
        headers = {"Content-Type": "application/x-ndjson"}
        status, response, body = self._request("POST", "/api/push", headers, "\n".join(lines).encode())
        if status != 200:
            _read(status, response, body)
        return [_published(json.loads(line)) for line in body.decode().splitlines() if line]

    def topics(self, prefix: str = "", *, after: str | None = None, limit: int = 100) -> dict[str, int]:
        """Topics that anybody is subscribed to, by name, and how many channels are."""
        query = {"prefix": prefix, "limit": str(limit)}
        if after is not None:
            query["after"] = after
        answer = self._get("/api/topics", query)
        return {entry["topic"]: entry["subscribers"] for entry in answer["topics"]}

    def subscribers(self, topic: str) -> int:
        """How many channels are subscribed to a topic."""
        try:
            return int(self._get(_of_topic(topic), {})["subscribers"])
        except PublishError as error:
            if error.status != 404:
                raise
            return 0

    def presence(self, topic: str) -> Presence:
        """How many channels are subscribed to a topic on all nodes of the fleet."""
        answer = self._get(_of_topic(topic), {"nodes": "true"})
        nodes = {node: count and (count["subscribers"], count["age_ms"]) for node, count in answer["nodes"].items()}
        return Presence(answer["subscribers"], answer["here"], nodes, answer["partial"])

    def channel(self, channel: int | str) -> dict[str, Any]:
        """A channel as `pushring channels` shows it; "NODE/ID" is one of another node. 404: there is none."""
        return _read(*self._request("GET", f"/api/channels/{_quoted(str(channel))}", {}, None, may_repeat=True))

    def close_channel(self, channel: int | str, code: int = 1008, reason: str = "") -> None:
        """Closes a channel. 404: there is none."""
        query = urllib.parse.urlencode({"code": code, "reason": reason}, quote_via=urllib.parse.quote)
        _read(*self._request("DELETE", f"/api/channels/{_quoted(str(channel))}?{query}", {}, None))

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        if self._process is not None:
            query["process"] = self._process
        target = f"{path}?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}" if query else path
        return _read(*self._request("GET", target, {}, None, may_repeat=True))

    def _order(
        self,
        data: str | bytes,
        value: object,
        topic: str | None,
        path: str | None,
        channels: Sequence[int | str] | None,
        user: str | None,
        policy: str | Mapping[str, Any] | None,
        exclude: Sequence[int],
        outcome: _Wanted,
    ) -> dict[str, Any]:
        """As PUBLISHING.md has it in JSON."""
        to: dict[str, Any] = {
            name: given
            for name, given in (("topic", topic), ("path", path), ("channels", channels), ("user", user))
            if given is not None
        }
        if len(to) > 1:
            raise TypeError(f"one of topic, path, channels and user, not {' and '.join(to)}")
        if isinstance(channels, str):
            raise TypeError("channels is a list, of one channel too")
        if channels is not None:
            to["channels"] = list(channels)
        if self._process is not None:
            to["process"] = self._process
        if not to:
            raise TypeError("whom it is for: topic, path, channels or user; all channels only of a process that is named")
        if (data is _ABSENT) == (value is _ABSENT):
            raise TypeError("what: either data or json")
        order: dict[str, Any] = {"to": to}
        if value is not _ABSENT:
            order["json"] = value
        elif isinstance(data, str):
            order["text"] = data
        else:
            order["data"] = memoryview(data).tobytes()
        if policy is not None:
            order["policy"] = policy
        if exclude:
            order["except"] = list(exclude)
        if outcome:
            order["outcome"] = outcome
        return order

    def _request(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None, may_repeat: bool = False
    ) -> tuple[int, Message, bytes]:
        headers = {"Authorization": f"Bearer {self._token}", **headers}
        with self._lock:
            self._forget_if_stale()
            while True:
                try:
                    self._connection.request(method, self._base + target, body, headers)
                    response = self._connection.getresponse()
                    return response.status, response.headers, response.read()
                except BaseException as error:
                    # Also where a signal interrupts it: what comes over this connection answers no later request.
                    self._connection.close()
                    if not may_repeat or not isinstance(error, (OSError, http.client.HTTPException)):
                        raise
                    may_repeat = False

    def _forget_if_stale(self) -> None:
        """A kept connection that the broker has closed meanwhile is no reason for a publish to fail. That of a process which
        this one was forked from is the other's: answers would come to either."""
        sock = self._connection.sock
        owner, self._owner = self._owner, os.getpid()
        if owner != self._owner:
            self._connection.close()
        elif sock is not None:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            if poll.poll(0):
                self._connection.close()


def _request_of(order: dict[str, Any]) -> tuple[dict[str, str], bytes]:
    """Raw, so that the broker pushes the body without reading or copying it; as JSON where that has to say more."""
    to = order["to"]
    if "json" in order or to.get("channels") == []:
        return _JSON.copy(), _dumped(order).encode()
    parts = [f"{name}={_quoted(_listed(value))}" for name, value in to.items()]
    policy = order.get("policy")
    if policy is not None:
        conflate = policy["conflate"]["key"] if isinstance(policy, Mapping) else None
        parts.append(f"policy={policy}" if conflate is None else f"policy=conflate:{conflate}")
    if "except" in order:
        parts.append(f"except={_listed(order['except'])}")
    if "outcome" in order:
        parts.append("outcome=nodes" if order["outcome"] == "nodes" else "outcome")
    push_to = "; ".join(parts)
    if len(push_to) > _HEAD_BYTES_MAX:
        return _JSON.copy(), _dumped(order).encode()
    if "data" in order:
        return {"Content-Type": "application/octet-stream", "Push-To": push_to}, order["data"]
    return {"Content-Type": "text/plain; charset=utf-8", "Push-To": push_to}, order["text"].encode()


def _dumped(order: dict[str, Any]) -> str:
    if "data" in order:
        order = {**order, "data": base64.b64encode(order["data"]).decode()}
    return json.dumps(order, ensure_ascii=False)


def _listed(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ",".join(item if isinstance(item, str) else str(int(item)) for item in value)


def _of_topic(name: str) -> str:
    if not name:
        raise ValueError("a topic has a name")
    return f"/api/topics/{_quoted(name)}"


def _quoted(value: str) -> str:
    return urllib.parse.quote(value, safe=",:/")


def _published(line: dict[str, Any]) -> Published:
    became = line.get("outcome")
    return Published(line["status"], became and read_outcome(became), line.get("error"), line.get("field"))


def _read(status: int, headers: Message, body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        if status in (200, 202):
            return answer
    else:
        answer = {"error": f"not the answer of a broker: {body[:200].decode(errors='replace')}"}
    after = headers.get("Retry-After")
    raise PublishError(
        status,
        answer.get("error", "no reason"),
        answer.get("field"),
        float(after) if after and after.isdigit() else None,
    )
