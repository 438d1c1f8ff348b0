"""Tells a receiver that cannot be reached from an outage of ours, in which nothing can."""

from time import monotonic
from typing import Literal

from app.kernel.errors import Unavailable

Means = Literal["names", "network"]


class NamesUnavailable(Unavailable):
    """Our name servers answer nothing at the moment."""

    code = "names_unavailable"
    title = "Name resolution unavailable"


class NetworkUnavailable(Unavailable):
    """This machine has no way to the internet at the moment."""

    code = "network_unavailable"
    title = "Network unavailable"


class Reachability:
    """What this process has lately reached. One per process.

    A name server that fails for one name, or a route that is missing, may be the fault of the receiver. It is ours
    unless another receiver was reached by the same means meanwhile.
    """

    def __init__(self) -> None:
        # The last two hosts are enough to know of one that is another.
        self._reached: dict[Means, dict[str, float]] = {"names": {}, "network": {}}

    def record_reached(self, means: Means, host: str) -> None:
        hosts = self._reached[means]
        hosts.pop(host, None)
        hosts[host] = monotonic()
        if len(hosts) > 2:  # noqa: PLR2004 - see above
            del hosts[next(iter(hosts))]

    def is_outage(self, means: Means, host: str, since: float) -> bool:
        """Whether nothing but `host` was reached since the moment `since` of the monotonic clock."""
        return not any(other != host and at >= since for other, at in self._reached[means].items())
