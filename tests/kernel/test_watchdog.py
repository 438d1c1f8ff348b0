"""The watch on the event loop."""

import time
from typing import Any

import structlog
from prometheus_client import REGISTRY

from app.kernel.observability.watchdog import watched_loop
from tests.fixtures.waiting import eventually


def lag_count(above: str) -> float:
    """How many beats were later than the bucket `above`."""
    total = REGISTRY.get_sample_value("onehop_event_loop_lag_seconds_count") or 0
    return total - (REGISTRY.get_sample_value("onehop_event_loop_lag_seconds_bucket", {"le": above}) or 0)


def stand_still(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_loop_that_stands_still_is_seen() -> None:
    late_before = lag_count("0.1")
    # A busy machine may hold the loop up at other places too.
    told: list[Any] = []
    with structlog.testing.capture_logs() as logs, watched_loop(0):
        # Nothing is seen where the whole machine stands still at the same time.
        for _ in range(3):
            stand_still(0.6)
            await eventually(lambda: lag_count("0.1") > late_before)
            told = [line for line in logs if "in stand_still" in line["stack"]]
            if told:
                break
    (line,) = told
    assert (line["event"], line["log_level"]) == ("the event loop stands still", "warning")
    assert line["seconds"] > 0.25
    assert "test_a_loop_that_stands_still_is_seen" in line["stack"]
