"""`python -m benchmarks.ladder [--smoke]`: the ladder alone."""

import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.ladder.measures import climb, judge
from benchmarks.product import Bench


async def main(directory: Path) -> None:
    people, events, seconds, rounds = (1000, 20, 2, 1) if "--smoke" in sys.argv else (10_000, 200, 5, 3)
    async with Bench(directory) as bench:
        await bench.fill(people, events)
        for budget in judge(await climb(bench, seconds=seconds, rounds=rounds, say=print)):
            print(f"  {budget}")


if __name__ == "__main__":
    Path(".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".data") as folder:
        uvloop.run(main(Path(folder).absolute()))
