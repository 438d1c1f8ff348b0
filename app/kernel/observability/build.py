"""Which program a process runs, as a metric that others are joined with."""

import platform

from prometheus_client import Gauge

_build = Gauge(
    "onehop_build_info",
    "1, with what the process was built of.",
    ["version", "python", "commit"],
    multiprocess_mode="max",
)


def announce_build(version: str, commit: str) -> None:
    """Shows both in the metrics, beside the version of Python."""
    _build.labels(version, platform.python_version(), commit).set(1)
