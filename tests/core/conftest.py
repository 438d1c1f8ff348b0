"""Administrators and workers, as the tests of jobs have them."""

from tests.jobs.conftest import admin, producer, start_worker, steps

__all__ = ["admin", "producer", "start_worker", "steps"]
