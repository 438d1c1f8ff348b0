"""`python -m benchmarks [quick|full] [--only ladder,limits,jobs,growth]`: everything, into docs/benchmarks/.

A full run takes about half an hour, wants a machine for itself, and ends with exit code 1 when a budget is missed. A
quick one takes at most five minutes; its windows show where things stand and are too short to judge.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import uvloop

from benchmarks import growth, machine
from benchmarks.budgets import Budget
from benchmarks.charts import draw
from benchmarks.ladder import measures as ladder
from benchmarks.limits import measures as limits
from benchmarks.load import TOOL
from benchmarks.product import Bench
from benchmarks.report import write

PARTS = ("ladder", "limits", "jobs", "growth")
_FOLDER = machine.ROOT / "docs" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much; seconds are those of a window."""

    mode: str
    rounds: int
    ladder_seconds: float
    ladder_people: int
    ladder_events: int
    limits: limits.Sizes
    growth: growth.Sizes


PLANS = {
    "quick": Plan(
        mode="quick",
        rounds=3,
        ladder_seconds=1,
        ladder_people=1000,
        ladder_events=50,
        limits=limits.Sizes(1, 3, 6000, 40_000, floods=1),
        growth=growth.Sizes(1, 1, (10_000, 100_000), (1000, 10_000), (1, 32, 1000), (0, 10_000)),
    ),
    "full": Plan(
        mode="full",
        rounds=3,
        ladder_seconds=5,
        ladder_people=10_000,
        ladder_events=200,
        limits=limits.Sizes(3, 3, 20_000, 1_000_000),
        growth=growth.Sizes(
            2,
            3,
            (10_000, 100_000, 1_000_000, 10_000_000),
            (1000, 10_000, 100_000, 1_000_000),
            (1, 4, 16, 64, 256, 1000),
            (0, 1000, 10_000, 100_000),
        ),
    ),
}


class Run:
    """Collects what the parts find, and writes it after each of them."""

    def __init__(self, plan: Plan, output: Path) -> None:
        self.plan = plan
        self.output = output
        self.began = monotonic()
        self.budgets: list[Budget] = []
        self.results: dict[str, Any] = {
            "run": {
                "at": datetime.now(UTC).strftime("%Y-%m-%d"),
                "mode": plan.mode,
                "tool": TOOL,
                "rounds": plan.limits.rounds,
                "seconds": plan.limits.seconds,
                "machine": machine.describe(),
            }
        }

    def say(self, text: str) -> None:
        print(f"{monotonic() - self.began:6.0f} s {text}", flush=True)

    async def ladder(self, directory: Path) -> None:
        plan = self.plan
        async with Bench(directory) as bench:
            self.say(f"  filling in {plan.ladder_people:,} people with {plan.ladder_events} events each")
            await bench.fill(plan.ladder_people, plan.ladder_events)
            rounds = 3 if plan.mode == "full" else 1
            climbs = await ladder.climb(bench, seconds=plan.ladder_seconds, rounds=rounds, say=self.say)
            for budget in ladder.judge(climbs):
                self.say(f"  {budget}")
        self.results["ladder"] = [climb.as_json() for climb in climbs]
        self.budgets += ladder.judge(climbs)

    async def limits(self, directory: Path) -> None:
        async with Bench(directory) as bench:
            self.say(f"  filling in {self.plan.limits.people:,} people")
            await bench.fill(self.plan.limits.people, 20)
            found = limits.Limits(bench, self.plan.limits, self.say)
            try:
                await found.run()
            finally:
                self.results["limits"] = {name: result.as_json() for name, result in found.results.items()}
                self.results["statements"] = found.statements
                self.budgets += found.budgets

    async def growth(self, directory: Path) -> None:
        found = growth.Growth(self.plan.growth, self.say)
        await found.run(directory)
        self.results["growth"] = [point.as_json() for point in found.points]
        self.budgets += found.budgets

    async def jobs(self, _directory: Path) -> None:
        """P9, by the benchmark of the jobs themselves."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.jobs", "pickup", "throughput"),
            cwd=machine.ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        text = (await process.communicate())[0].decode()
        pickup = re.search(r"start +p50 ([\d.]+) ms.*p99 ([\d.]+) ms", text)
        rate = re.search(r"1 worker +(\d+) jobs/s", text)
        if pickup is None or rate is None:
            raise RuntimeError(f"benchmarks.jobs printed something else:\n{text}")
        self.budgets += [
            Budget("P9", "commit to start of the handler, p50 in ms", float(pickup[1]), 10, at_least=False),
            Budget("P9", "commit to start of the handler, p99 in ms", float(pickup[2]), 25, at_least=False),
            Budget("P9", "no-op jobs a second of one worker", float(rate[1]), 1000),
        ]
        for budget in self.budgets[-3:]:
            self.say(f"  {budget}")

    def write(self) -> None:
        self.results["run"]["minutes"] = round((monotonic() - self.began) / 60, 1)
        # P2 before P10, and what belongs together side by side.
        ordered = sorted(self.budgets, key=lambda budget: int(re.sub(r"\D", "", budget.id)))
        self.results["budgets"] = [budget.as_json() for budget in ordered]
        write(self.results, self.output, draw(self.results, self.output))


async def main(plan: Plan, parts: list[str], output: Path, folder: Path) -> int:
    run = Run(plan, output)
    failures = []
    for part in parts:
        run.say(part)
        directory = folder / part
        directory.mkdir()
        try:
            await getattr(run, part)(directory)
        except Exception as error:  # noqa: BLE001 - the other parts are worth their time all the same.
            failures.append(part)
            run.say(f"  {part} ended early: {type(error).__name__}: {error}")
        run.write()
    missed = [budget for budget in run.budgets if not budget.is_reached and not budget.is_extra]
    for budget in missed:
        run.say(str(budget))
    run.say(f"{len(run.budgets) - len(missed)} of {len(run.budgets)} reached; report: {output / 'README.md'}")
    return 1 if failures or (missed and run.plan.mode == "full") else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures Onehop and writes the report.")
    parser.add_argument("mode", choices=sorted(PLANS), nargs="?", default="full")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=_FOLDER, help="folder of the report")
    options = parser.parse_args()
    (machine.ROOT / ".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=machine.ROOT / ".data", prefix="bench-") as temporary:
        code = uvloop.run(main(PLANS[options.mode], options.only.split(","), options.output, Path(temporary)))
    raise SystemExit(code)
