"""Fixtures of all tests. Each file of `tests/fixtures` is about one thing and says what it offers."""

pytest_plugins = [
    "tests.fixtures.servers",
    "tests.fixtures.application",
    "tests.fixtures.people",
    "tests.fixtures.guards",
]
