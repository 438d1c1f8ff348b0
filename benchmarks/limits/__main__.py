"""`python -m benchmarks.limits [--smoke] [--reads]`: the limits alone, or only those of reads."""

import sys
import tempfile
from pathlib import Path

import uvloop

from benchmarks.limits.measures import Limits, Sizes
from benchmarks.product import Bench


async def main(directory: Path) -> None:
    sizes = Sizes(1, 1, 3000, 20_000) if "--smoke" in sys.argv else Sizes(2, 3, 20_000, 1_000_000)
    async with Bench(directory) as bench:
        await bench.fill(sizes.people, 20)
        limits = Limits(bench, sizes, print)
        await (limits.run_reads() if "--reads" in sys.argv else limits.run())


if __name__ == "__main__":
    Path(".data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".data") as folder:
        uvloop.run(main(Path(folder).absolute()))
