"""`python -m benchmarks.faults.migrations`: what callers see while the newest migrations go up and down under them.

For each of them the program as it was before it came (N-1) and before the next one did (N), from the repository's
history: N-1 serves while the migration goes up and down, then both serve on the new schema side by side. N on the old
schema is not meant to work: what N needs, the migration adds, and the way down removes.

Prints each figure with its verdict and writes docs/benchmarks/migrations.md; the exit code is 1 if one is missed. Takes
about two minutes.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO
from pathlib import Path

import orjson
import uvloop
from alembic.script import ScriptDirectory

from app.kernel.schema import migrations
from benchmarks import data, machine
from benchmarks.client import Outcome, open_loop_until, percentile
from benchmarks.load import request
from benchmarks.machine import Service
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts

PEOPLE = 2_000
SESSIONS_EACH = 100
# Requests a second at each program.
RATE = 120
CONNECTIONS = 100
ROUNDS = 3
_SESSIONS = """
    INSERT INTO identity.sessions (user_id, id, idle_expires_at, expires_at, methods)
    SELECT user_id, gen_random_uuid(), now() + interval '1 day', now() + interval '1 day', '{pwd}'
    FROM identity.accounts CROSS JOIN generate_series(1, $1::integer)
"""


class Migrations:
    def __init__(self, bench: Bench, verdicts: Verdicts) -> None:
        self._bench = bench
        self._verdicts = verdicts
        tokens = [bench.token(number) for number in range(1, 101)]
        event, job = b'{"kind": "fault.test"}', b'{"kind": "export.account", "args": {}}'
        lookup = orjson.dumps({"ids": [str(data.user_id(number)) for number in range(1, 4)]})
        self._requests = [
            *(request("GET", path, token=token) for token in tokens for path in ("/v1/overview", "/v1/auth/sessions")),
            *(request("POST", "/v1/events", token=token, body=event) for token in tokens),
            *(request("POST", "/v1/users/lookup", token=token, body=lookup) for token in tokens),
            *(request("POST", "/v1/jobs", token=token, body=job) for token in tokens[:20]),
        ]

    async def one(self, revision: str, below: str, newer: str | None) -> None:
        """Begins and ends with the schema of `revision` or a later one."""
        await self._migrate("down", below)
        old = await self._program("old", revision)
        async with machine.running(old, "/readyz"):
            # Once without counting, until plans and caches are there.
            await self._under_load([old], self._looks_only)
            base = await self._under_load([old], self._looks_only)

            async def up_and_down() -> None:
                for _ in range(ROUNDS):
                    await self._migrate("up", revision)
                    await self._migrate("down", below)

            seen = await self._under_load([old], up_and_down)
            title = f"{revision} up and down {ROUNDS} times under N-1"
            self._judge(title, seen)
            ratio = percentile(seen.good(), 0.99) / percentile(base.good(), 0.99)
            note = f"({percentile(base.good(), 0.99):.1f} → {percentile(seen.good(), 0.99):.1f} ms)"
            self._verdicts.at_most(f"{title}: p99 ÷ beside as many `migrate status`", ratio, 2, note)
            self._verdicts.at_most(f"{title}: slowest request, s", max(seen.good()) / 1000, 1)
            await self._migrate("up", revision)
            new = await self._program("new", newer)
            async with machine.running(new, "/readyz"):
                both = await self._under_load([old, new], self._looks_only)
            self._judge(f"{revision}: N-1 and N side by side", both)

    async def _program(self, name: str, before: str | None) -> Service:
        """The program as it was before the revision `before` came; None: as it is."""
        if before is None:
            return self._bench.serve(name)
        folder = self._bench.directory / f"before-{before}"
        if not folder.exists():
            await asyncio.to_thread(_check_out, before, folder)
        # Its own folder comes before the one where the interpreter starts.
        code = f"import sys; sys.path.insert(0, '{folder}'); sys.argv[1:] = ['serve']; import app.cli; app.cli.run()"
        return self._bench.serve(f"{name}-{before}", command=("-c", code))

    async def _looks_only(self) -> None:
        """What a migration costs the machine, but for what it does."""
        for _ in range(2 * ROUNDS):
            await self._migrate("status")

    async def _migrate(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "migrate", *arguments),
            cwd=machine.ROOT,
            env={**os.environ, **self._bench.environment},
            stdout=subprocess.DEVNULL,
        )
        code = await process.wait()
        if code != 0 and arguments != ("status",):
            raise RuntimeError(f"migrate {' '.join(arguments)} ended with {code}")

    async def _under_load(self, services: Sequence[Service], work: Callable[[], Awaitable[None]]) -> Outcome:
        """What callers of all `services` see from a second before `work` to a second after."""
        over = asyncio.Event()
        loads = [
            asyncio.create_task(open_loop_until(over, service.port, self._requests, RATE, CONNECTIONS))
            for service in services
        ]
        await asyncio.sleep(1)
        await work()
        await asyncio.sleep(1)
        over.set()
        total = Outcome()
        for outcome in await asyncio.gather(*loads):
            total.take(outcome)
        return total

    def _judge(self, title: str, seen: Outcome) -> None:
        failed = seen.statuses.total() - len(seen.good()) + seen.unsent
        self._verdicts.at_most(f"{title}: requests that failed", failed, 0, f"({dict(seen.statuses)})")


def _check_out(revision: str, folder: Path) -> None:
    """The program as it was before the commit that brought `revision`."""
    git = ["git", "-C", str(machine.ROOT)]
    found = subprocess.run(
        [*git, "log", "--diff-filter=A", "--format=%H", "--", f"alembic/versions/*_{revision}.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    if not found:
        raise RuntimeError(f"the history does not tell how the program was before {revision}")
    archive = subprocess.run([*git, "archive", f"{found[0]}~1", "app", "alembic"], check=True, capture_output=True)
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


async def main(folder: Path, count: int) -> int:
    verdicts = Verdicts("Migrations under load")
    scripts = list(ScriptDirectory(str(migrations.ROOT / "alembic")).walk_revisions())
    async with Bench(folder) as bench:
        await bench.fill(PEOPLE, 20)
        await bench.connection.execute(_SESSIONS, SESSIONS_EACH)
        measures = Migrations(bench, verdicts)
        newer = None
        for script in scripts[:count]:
            await measures.one(script.revision, str(script.down_revision), newer)
            newer = script.revision
    verdicts.write(
        machine.ROOT / "docs" / "benchmarks" / "migrations.md",
        f"What callers see while the newest {count} migrations go up and down under them: {RATE} requests a second of "
        f"overviews, lists of sessions, look-ups, durable events and jobs, with {PEOPLE * SESSIONS_EACH:,} sessions in "
        "the database. N-1 is the program as it was before a migration, N the one before the next; the way down is "
        "for N-1, since it removes what N needs. Made by `python -m benchmarks.faults.migrations`.",
    )
    return verdicts.exit_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2, help="how many of the newest migrations")
    with tempfile.TemporaryDirectory(prefix="onehop-migrations-", ignore_cleanup_errors=True) as name:
        # The servers' user has to get in.
        Path(name).chmod(0o755)
        sys.exit(uvloop.run(main(Path(name), parser.parse_args().count)))
