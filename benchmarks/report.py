"""results.json and the page that people read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
# What is known of a miss; the journal has the measurements behind it.
_REASONS = {
    "P12": "beside hashes that fill the caches, to read a request and refuse it takes 0.2 ms of the core that works",
}
_TITLES = {
    "ladder": "The ladder, stage by stage",
    "limits": "What the machine can do, and what Onehop does",
    "growth": "Latency as the data grow",
}


def write(results: Mapping[str, Any], folder: Path, charts: Sequence[str] = ()) -> None:
    """Writes `results` as JSON, and into README.md between its two marks with `charts` (names from `charts.draw`).

    Other text of README.md stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Benchmarks\n\n{_BEGIN}\n{_END}\n"
    before, _, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    page.write_text(f"{before}{_BEGIN}\n{_measured(results, charts)}\n{_END}{after}", encoding="utf-8")


def _measured(results: Mapping[str, Any], charts: Sequence[str]) -> str:
    parts = [_run(results["run"]), "## Budgets", _budgets(results["budgets"])]
    if climbs := results.get("ladder"):
        parts += ["## The ladder", _ladder(climbs), _picture("ladder", charts)]
    if limits := results.get("limits"):
        parts += ["## Limits of the machine", _limits(limits), _picture("limits", charts)]
    if statements := results.get("statements"):
        parts += ["## Statements of a request", _statements(statements)]
    if growth := results.get("growth"):
        parts += ["## Growth", _growth(growth), _picture("growth", charts)]
    return "\n\n".join(parts)


def _run(run: Mapping[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
    return (
        f"Measured {run['at']} in {run['minutes']:.0f} minutes ({run['mode']}), load by {run['tool']}, "
        f"medians of {run['rounds']} interleaved rounds of {run['seconds']:g} s. Machine: {machine}."
    )


def _budgets(budgets: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for budget in budgets:
        sign = "≥" if budget["at_least"] else "≤"
        reached = "✅" if budget["is_reached"] else "🔴 **missed**"
        verdict = "beside" if budget["is_extra"] else reached
        rows.append(
            (
                budget["id"],
                budget["text"],
                _number(budget["value"]),
                f"{sign} {_number(budget['limit'])}",
                "" if budget["by_cpu"] is None else _number(budget["by_cpu"]),
                "" if budget["spread"] is None else f"±{budget['spread'] / 2:.0%}",
                verdict,
                budget["note"] if budget["is_reached"] else _with_reason(budget),
            )
        )
    return _table(("", "measure", "value", "budget", "by CPU time", "spread", "", "note"), rows)


def _with_reason(budget: Mapping[str, Any]) -> str:
    return "; ".join(part for part in (budget["note"], _REASONS.get(budget["id"], "")) if part)


def _ladder(climbs: Sequence[Mapping[str, Any]]) -> str:
    whole = math.log(max(climbs[-1]["overview"]["rate"], 1e-9) / max(climbs[0]["overview"]["rate"], 1e-9))
    uncached = next((climb["queries"] for climb in climbs if climb["stage"] == 4), 0)
    rows = []
    for index, climb in enumerate(climbs):
        overview = climb["overview"]
        step = overview["rate"] / max(climbs[index - 1]["overview"]["rate"], 1e-9) if index else 1
        rows.append(
            (
                f"{climb['stage']} {climb['fix']}",
                f"{overview['rate']:,.0f} ±{overview['spread'] / 2:.0%}",
                f"{overview['p50']:,.1f}",
                f"{overview['p95']:,.1f}",
                f"{overview['p99']:,.1f}",
                f"{climb['queries']:.2f}",
                f"{climb['calls']:.0f}",
                str(climb["services"]),
                f"{1 - climb['queries'] / uncached:.0%}" if uncached and climb["stage"] > 4 else "",
                f"{step:.1f}" if index else "",
                f"{math.log(step) / whole:.0%}" if index and whole else "",
                f"{climb['order_p50']:,.0f}" if climb["order_ms"] else "none",
                f"{climb['order_rate']:,.1f}",
                climb["delivered"],
            )
        )
    head = (
        *("stage", "req/s", "p50 ms", "p95 ms", "p99 ms", "queries", "calls between services", "services"),
        *("database statements saved by the cache", "times the stage before", "share of the way"),
        *("order p50 ms", "orders/s", "what the orders caused"),
    )
    return _table(head, rows)


def _limits(limits: Mapping[str, Mapping[str, Any]]) -> str:
    bare = limits.get("bare ASGI", {}).get("rate", 0)
    rows = [
        (
            name,
            f"{found['rate']:,.0f} ±{found['spread'] / 2:.0%}",
            f"{found['rate'] / bare:.2f}" if bare else "",
            f"{found['cpu_us']:.0f}",
            f"{found['p50']:.2f}",
            f"{found['p99']:.2f}",
        )
        for name, found in limits.items()
    ]
    return _table(("what answers", "req/s", "share of bare ASGI", "CPU µs", "p50 ms", "p99 ms"), rows)


def _statements(statements: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        (name, f"{calls:g}", f"`{sql[:110]}`".replace("|", "\\|"))
        for name, found in statements.items()
        for sql, calls in (found.items() or [("none", 0)])
    ]
    return _table(("request", "times", "statement, as Postgres counted it"), rows)


def _growth(points: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            point["curve"],
            point["what"],
            f"{point['size']:,}",
            f"{point['p50']:.2f}",
            f"{point['p99']:.2f}",
            f"{point['cpu_us']:.0f}",
        )
        for point in points
    ]
    return _table(("grows", "request", "size", "p50 ms", "p99 ms", "CPU µs"), rows)


def _picture(name: str, charts: Sequence[str]) -> str:
    return f"![{_TITLES[name]}]({name}.svg)" if name in charts else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
