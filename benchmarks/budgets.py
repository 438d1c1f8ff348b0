"""What must be reached, and whether it was."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.load import Result, ratio, ratios

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Budget:
    """One line of the table: `value` must be at least (or at most) `limit`."""

    id: str
    text: str
    value: float
    limit: float
    at_least: bool = True
    # The same by CPU time of a request, where that has a meaning; it is steadier on a shared machine.
    by_cpu: float | None = None
    spread: float | None = None
    note: str = ""
    # Shown beside the others, and not judged.
    is_extra: bool = False

    @property
    def is_reached(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "value": round(self.value, 4),
            "limit": self.limit,
            "at_least": self.at_least,
            "by_cpu": None if self.by_cpu is None else round(self.by_cpu, 4),
            "spread": None if self.spread is None else round(self.spread, 3),
            "note": self.note,
            "is_extra": self.is_extra,
            "is_reached": self.is_reached,
        }

    def __str__(self) -> str:
        verdict = "    " if self.is_extra else "ok  " if self.is_reached else "MISS"
        cpu = "" if self.by_cpu is None else f", by CPU {self.by_cpu:.2f}"
        spread = "" if self.spread is None else f", spread ±{self.spread / 2:.0%}"
        sign = "≥" if self.at_least else "≤"
        return f"{verdict} {self.id:4} {self.text}: {self.value:.4g} ({sign} {self.limit:g}{cpu}{spread}) {self.note}"


def share(name: str, text: str, top: Result, bottom: Result, limit: float, **more: Any) -> Budget:
    """`top`'s requests per second ÷ `bottom`'s."""
    found = ratios(top, bottom)
    failed = top.failed + bottom.failed
    if failed:
        more["note"] = f"{more.get('note', '')} {failed} requests failed".strip()
    return Budget(
        name,
        text,
        0.0 if top.failed else ratio(top, bottom),
        limit,
        by_cpu=bottom.median("cpu_us") / max(top.median("cpu_us"), 1e-9),
        spread=(max(found) - min(found)) / ratio(top, bottom),
        **more,
    )
