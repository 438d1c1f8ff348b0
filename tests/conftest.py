"""Fixtures of all tests. Each file of `tests/fixtures` is about one thing and says what it offers."""

# A file stands before those that import it, so that pytest can rewrite its assertions.
pytest_plugins = [
    "tests.fixtures.guards",
    "tests.fixtures.servers",
    "tests.fixtures.application",
    "tests.fixtures.people",
    "tests.fixtures.shell",
    "tests.fixtures.post_office",
]
