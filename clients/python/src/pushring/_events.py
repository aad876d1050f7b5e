"""What a process is told, and what became of its pushes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Union


@dataclass(frozen=True)
class Channel:
    """A client's open WebSocket."""

    channel: int
    path: str
    """Where it was opened, without the process id."""
    source: str
    """The client's address and port, as the broker sees them."""
    forwarded_for: str | None
    registered: bool
    extension: bool


@dataclass(frozen=True)
class Opened(Channel):
    """A client has opened a channel. First for it, once."""


@dataclass(frozen=True)
class Message:
    """What a client sent: `str` for Text, `bytes` for Binary."""

    channel: int
    data: str | bytes


@dataclass(frozen=True)
class Control:
    """A ping, pong or close frame of a client, where `wants_control`. Pings have been answered."""

    channel: int
    kind: str
    data: bytes


@dataclass(frozen=True)
class Joined:
    """A channel is subscribed to a topic, where `wants_topics`."""

    channel: int
    topic: str


@dataclass(frozen=True)
class Left:
    """A channel is no more subscribed to a topic, where `wants_topics`."""

    channel: int
    topic: str


@dataclass(frozen=True)
class Detached:
    """The client of a channel that outlives its connection is gone for now, where the path has `resume_events`."""

    channel: int


@dataclass(frozen=True)
class Resumed:
    """It has come back, and `lost` messages never reached it."""

    channel: int
    lost: int


@dataclass(frozen=True)
class Closed:
    """A channel has ended. Last for it, once."""

    channel: int
    code: int
    reason: str
    by: str
    """`client`, `connection`, `process`, `violation`, `backpressure`, `timeout` or `broker`."""
    lost_bytes: int


@dataclass(frozen=True)
class HttpRequest:
    """A request hit a path of `bind_http`: answer with `respond`, within `timeout_s`."""

    request: int
    timeout_s: int
    source: str
    method: str
    url: str
    bound_path: str
    headers: dict[str, str]
    url_params: dict[str, str]
    query_params: dict[str, str]
    body: bytes


Event = Union[Opened, Message, Control, Joined, Left, Detached, Resumed, Closed, HttpRequest]


@dataclass(frozen=True)
class Outcome:
    """What became of a push, counted in channels; `queued_bytes` wait for those that are `queued`. `fleet_full` to
    `fleet_too_large` are 1 where other nodes of the broker's fleet were not reached, and why. With `outcome="nodes"`: what
    became of it on other nodes, None for one that has not answered, and whether the counts of some are missing."""

    sent: int = 0
    queued: int = 0
    conflated: int = 0
    dropped: int = 0
    closed: int = 0
    not_found: int = 0
    not_owner: int = 0
    queued_bytes: int = 0
    fleet_full: int = 0
    fleet_down: int = 0
    fleet_too_large: int = 0
    nodes: Mapping[str, Outcome | None] = field(default_factory=dict, hash=False)
    partial: bool = False


def outcome(fields: dict[str, Any]) -> Outcome:
    """Fields that are not known are a later broker's."""
    nodes = fields.get("nodes") or {}
    of_nodes = {node: None if counts is None else outcome(counts) for node, counts in nodes.items()}
    return Outcome(**{**_known(Outcome, fields), "nodes": of_nodes})


def channel(fields: dict[str, Any]) -> Channel:
    """Of a `live` frame."""
    return Channel(**_known(Channel, fields))


def _known(kind: Any, fields: dict[str, Any]) -> dict[str, Any]:
    return {name: fields[name] for name in kind.__dataclass_fields__ if name in fields}


def _message(fields: dict[str, Any], blob: bytes) -> Message:
    return Message(fields["channel"], blob.decode() if fields["kind"] == "text" else blob)


READERS: dict[str, Callable[[dict[str, Any], bytes], Event]] = {
    "opened": lambda fields, _: Opened(**_known(Opened, fields)),
    "message": _message,
    "control": lambda fields, blob: Control(fields["channel"], fields["kind"], blob),
    "joined": lambda fields, _: Joined(fields["channel"], fields["topic"]),
    "left": lambda fields, _: Left(fields["channel"], fields["topic"]),
    "detached": lambda fields, _: Detached(fields["channel"]),
    "resumed": lambda fields, _: Resumed(fields["channel"], fields["lost"]),
    "closed": lambda fields, _: Closed(**_known(Closed, fields)),
    "http": lambda fields, blob: HttpRequest(**_known(HttpRequest, fields), body=blob),
}
"""By the names of frames. KeyError, TypeError or ValueError: the frame is none."""
