"""Fixtures of all tests. Each file of `tests/fixtures` is about one thing and says what it offers."""

from hypothesis import HealthCheck, settings

# A machine that is slow, or stands still for a moment, must not fail a test.
settings.register_profile("suite", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
