"""On whose behalf the code at hand runs: a user with all keys and sessions, or the network of an anonymous client.

Shared resources read it to keep one caller from taking all of them (`kernel.fairness.slots`). Work that serves many
callers at once, or none, runs without one.
"""

from collections.abc import Hashable
from contextvars import ContextVar

# How long a request waits for other requests of its own caller, so that a burst is served instead of refused.
OWN_WAIT_SECONDS = 2.0


class Caller:
    """One request of a caller. `waited` are the seconds that it has waited for other requests of the same caller, and
    `used` those of the event loop that others have spent for it (`kernel.fairness.time_shares`).
    """

    __slots__ = ("key", "used", "waited")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.used = 0.0
        self.waited = 0.0


caller_var: ContextVar[Caller | None] = ContextVar("caller", default=None)
