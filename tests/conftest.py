"""Fixtures of all tests. Each file of `tests/fixtures` is about one thing and says what it offers."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from app.kernel.observability.gc_tuning import collect_rarely_until_exit
from tests.fixtures.sizes import sized
from tests.fixtures.waiting import scaled

# Before anything else is loaded: to look at modules for garbage was a sixth of what a short run computes.
collect_rarely_until_exit()

# Some shells and images set PYTHONDONTWRITEBYTECODE. Every process would compile the program and the tests again, which
# takes several times longer than a short test.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Of each test; read by pytest-timeout. One that hangs must end, and nothing else is judged by it.
os.environ.setdefault("PYTEST_TIMEOUT", str(scaled(150)))

# A machine that is slow, or stands still for a moment, must not fail a test.
settings.register_profile(
    "suite", settings(), max_examples=sized(50), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")

# A file stands before those that import it, so that pytest can rewrite its assertions.
pytest_plugins = [
    "tests.fixtures.guards",
    "tests.fixtures.servers",
    "tests.fixtures.application",
    "tests.fixtures.people",
    "tests.fixtures.shell",
    "tests.fixtures.post_office",
]

# Each process of the program takes seconds of computing to start, and each pair of servers in a room of its own one.
_STARTS_PROCESSES = frozenset({"processes", "server_room"})


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """What starts the program as processes is slow, and what is slow comes first, so that nothing long is left last."""
    for item in items:
        if not _STARTS_PROCESSES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker("database")
    yield
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
