"""Figures that have to stay within a bound, printed as they come and kept in a table."""

from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine


class Verdicts:
    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: list[tuple[str, str, str, bool]] = []

    @property
    def exit_code(self) -> int:
        return 0 if all(is_kept for *_, is_kept in self._rows) else 1

    def at_most(self, what: str, value: float, bound: float, note: str = "") -> None:
        self._add(what, value, f"≤ {bound:g}", note, is_kept=value <= bound)

    def at_least(self, what: str, value: float, bound: float, note: str = "") -> None:
        self._add(what, value, f"≥ {bound:g}", note, is_kept=value >= bound)

    def equal(self, what: str, value: float, bound: float, note: str = "") -> None:
        self._add(what, value, f"= {bound:g}", note, is_kept=value == bound)

    def _add(self, what: str, value: float, bound: str, note: str, *, is_kept: bool) -> None:
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        self._rows.append((what, f"{shown} {note}".strip(), bound, is_kept))
        print(f"{'kept  ' if is_kept else 'MISSED'} {what}: {shown} (bound {bound}) {note}", flush=True)

    def write(self, path: Path, text: str) -> None:
        """The table as a page."""
        about = machine.describe()
        lines = [
            f"# {self._title}",
            "",
            text,
            "",
            (
                f"{datetime.now(UTC):%Y-%m-%d}, {about['cores']} cores ({about['cpu']}), Python {about['python']}, "
                f"load before {about['load before']}."
            ),
            "",
            "| what | found | bound | |",
            "|---|---|---|---|",
            *(
                f"| {what} | {found} | {bound} | {'kept' if kept else '**missed**'} |"
                for what, found, bound, kept in self._rows
            ),
            "",
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
