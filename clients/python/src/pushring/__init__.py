"""A process of the pushring broker in asyncio (`attach`), and publishing over HTTP (`Publisher`).

No dependencies. What the words mean is in pushring's docs/LINK.md and docs/PUBLISHING.md.
"""

from ._events import (
    Channel,
    Closed,
    Control,
    Detached,
    Event,
    HttpRequest,
    Joined,
    Left,
    Message,
    Opened,
    Outcome,
    Resumed,
)
from ._link import Conflate, Ended, Failed, LinkLost, Policy, Process, Refused, attach
from ._publish import Presence, PublishError, Published, Publisher
from ._wire import ProtocolError

__all__ = [
    "Channel",
    "Closed",
    "Conflate",
    "Control",
    "Detached",
    "Ended",
    "Event",
    "Failed",
    "HttpRequest",
    "Joined",
    "Left",
    "LinkLost",
    "Message",
    "Opened",
    "Outcome",
    "Policy",
    "Presence",
    "Process",
    "ProtocolError",
    "PublishError",
    "Published",
    "Publisher",
    "Refused",
    "Resumed",
    "attach",
]
