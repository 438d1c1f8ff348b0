"""The page of the benchmarks."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.budgets import Budget
from benchmarks.report import write

RUN: dict[str, Any] = {
    "at": "2026-01-01",
    "minutes": 1.0,
    "mode": "quick",
    "tool": "wrk",
    "rounds": 3,
    "seconds": 1,
    "machine": {"cores": "2"},
}


def test_a_miss_is_red_with_its_reason_and_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    missed = Budget("P1", "hot overview", 0.5, 0.6, note="the machine was busy")
    write({"run": RUN, "budgets": [missed.as_json()]}, tmp_path)
    page = tmp_path / "README.md"
    first = page.read_text(encoding="utf-8")
    assert "| P1 | hot overview | 0.5 | ≥ 0.6 |  |  | 🔴 **missed** | the machine was busy |" in first

    page.write_text(first + "\nWhat it means.\n", encoding="utf-8")
    reached = Budget("P1", "hot overview", 0.7, 0.6)
    write({"run": RUN, "budgets": [reached.as_json()]}, tmp_path)
    second = page.read_text(encoding="utf-8")
    assert "| P1 | hot overview | 0.7 | ≥ 0.6 |  |  | ✅ |  |" in second
    assert "missed" not in second
    assert second.endswith("\nWhat it means.\n")
    assert orjson.loads((tmp_path / "results.json").read_bytes())["budgets"][0]["is_reached"]


def test_each_stage_has_its_share_of_the_way(tmp_path: Path) -> None:
    write({"run": RUN, "budgets": [], "ladder": [stage(0, 10, 14), stage(4, 100, 2), stage(5, 1000, 0)]}, tmp_path)
    lines = (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
    before, queries, cache = (line.split(" | ") for line in lines if line.startswith(("| 0 ", "| 4 ", "| 5 ")))
    assert before[8:11] == ["", "", ""]
    assert queries[8:11] == ["", "10.0", "50%"]
    assert cache[8:11] == ["100%", "10.0", "50%"]


@pytest.mark.charts
def test_the_report_shows_the_charts(tmp_path: Path) -> None:
    # Only `make check` installs what draws.
    from benchmarks.charts import draw  # noqa: PLC0415

    results = {"run": RUN, "budgets": [], "ladder": [stage(0, 10, 14), stage(5, 1000, 0)]}
    charts = draw(results, tmp_path)
    write(results, tmp_path, charts)
    assert charts == ["ladder"]
    assert "ladder.svg" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "ladder.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def stage(number: int, rate: float, queries: float) -> dict[str, Any]:
    overview = {"rate": rate, "spread": 0.1, "p50": 1.0, "p95": 2.0, "p99": 3.0}
    return {
        "stage": number,
        "fix": "a fix",
        "services": 1,
        "overview": overview,
        "queries": queries,
        "calls": 0,
        "order_ms": [5.0],
        "order_p50": 5.0,
        "order_rate": 7.0,
        "delivered": "all",
    }
