"""The books: what was acknowledged against what is in the database."""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import cast

import asyncpg

from benchmarks.chaos.callers import Caller, Ledger
from benchmarks.product import Bench
from benchmarks.verdicts import Verdicts

_DONE_SECONDS = 180.0

# Every end of a job leaves a row, however it came about.
_WATCH_ENDINGS = """
CREATE TABLE public.chaos_endings (job_id uuid NOT NULL);
CREATE FUNCTION public.chaos_note_ending() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO public.chaos_endings VALUES (NEW.id); RETURN NULL; END';
CREATE TRIGGER chaos_endings AFTER UPDATE ON jobs.jobs FOR EACH ROW
    WHEN (OLD.state < 2 AND NEW.state >= 2) EXECUTE FUNCTION public.chaos_note_ending();
"""

_EVENTS = """
SELECT count(*) FILTER (WHERE stored.count IS NULL) AS lost
  FROM unnest($1::text[]) AS told (marker)
  LEFT JOIN (SELECT properties ->> 'marker' AS marker, count(*) FROM users.events WHERE kind = 'chaos' GROUP BY 1)
            AS stored ON stored.marker = told.marker
"""

_DOUBLED_EVENTS = """
SELECT count(*) FROM (
    SELECT 1 FROM users.events WHERE kind = 'chaos' GROUP BY properties ->> 'marker' HAVING count(*) > 1) AS doubled
"""

_LOST_JOBS = """
SELECT count(*) FROM unnest($1::uuid[]) AS told (id)
 WHERE NOT EXISTS (SELECT 1 FROM jobs.jobs AS j WHERE j.id = told.id)
"""

_JOBS = """
SELECT count(*) AS jobs,
       count(*) FILTER (WHERE j.state = 2) AS succeeded,
       count(*) FILTER (WHERE j.state < 2) AS open,
       count(*) FILTER (WHERE j.state >= 2 AND ended.count IS DISTINCT FROM 1) AS not_once,
       count(*) FILTER (WHERE j.state = 2 AND made.count IS DISTINCT FROM 1) AS without_file
  FROM jobs.jobs AS j
  LEFT JOIN (SELECT job_id, count(*) FROM public.chaos_endings GROUP BY job_id) AS ended ON ended.job_id = j.id
  LEFT JOIN (SELECT job_id, count(*) FROM jobs.artifacts GROUP BY job_id) AS made ON made.job_id = j.id
 WHERE j.kind = 'export.events'
"""

_NAMES = "SELECT id::text, display_name FROM users.users WHERE id = ANY($1::uuid[])"


async def prepare(bench: Bench) -> None:
    """Begins to keep account of how jobs end."""
    await bench.connection.execute(_WATCH_ENDINGS)


async def judge(bench: Bench, verdicts: Verdicts, ledger: Ledger, callers: Sequence[Caller]) -> None:
    """Waits until all jobs are over, and compares."""
    # The one from before may have ended with a server.
    connection = await asyncpg.connect(bench.database_url)
    try:
        spent = await _wait_for_jobs(connection)
        told = len(ledger.events)
        verdicts.equal(
            "acknowledged events that are lost",
            await connection.fetchval(_EVENTS, list(ledger.events)),
            0,
            f"of {told:,}",
        )
        verdicts.equal("events stored twice", await connection.fetchval(_DOUBLED_EVENTS), 0)
        lost_jobs = await connection.fetchval(_LOST_JOBS, list(ledger.jobs))
        verdicts.equal("acknowledged jobs that are lost", lost_jobs, 0, f"of {len(ledger.jobs):,}")
        jobs = cast("asyncpg.Record", await connection.fetchrow(_JOBS))
        verdicts.equal("jobs that have not ended", jobs["open"], 0, f"({spent:.0f} s after the load)")
        verdicts.equal("jobs that did not end exactly once", jobs["not_once"], 0, f"of {jobs['jobs']:,}")
        verdicts.equal("jobs that did not succeed", jobs["jobs"] - jobs["succeeded"], 0)
        verdicts.equal("succeeded jobs without their one file", jobs["without_file"], 0)
        names = {row["id"]: row["display_name"] for row in await connection.fetch(_NAMES, [c.id for c in callers])}
        numbers = {caller.id: int((names[caller.id] or "0").rpartition(" ")[2]) for caller in callers}
        old = [c for c in callers if numbers[c.id] < c.last_name and numbers[c.id] not in c.unknown]
        verdicts.equal("acknowledged changes that are lost", len(old), 0)
    finally:
        await connection.close()


async def _wait_for_jobs(connection: "asyncpg.Connection[asyncpg.Record]") -> float:
    began = monotonic()
    while monotonic() < began + _DONE_SECONDS:
        if not await connection.fetchval("SELECT count(*) FROM jobs.jobs WHERE kind = 'export.events' AND state < 2"):
            break
        await asyncio.sleep(0.2)
    return monotonic() - began
