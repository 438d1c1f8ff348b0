"""What a list or the overview reads does not grow with what its owner has, whatever it is filtered by."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import orjson
import pytest

from app.identity.queries import security_events
from app.jobs.queries import invoices, searching, submitting, webhook_deliveries
from app.jobs.records import COUNTED_AT_MOST
from app.kernel.pagination import MAX_PAGE_BYTES, MAX_SCANNED
from app.users.queries import events
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection

OWNER = UUID(int=7)
ENDPOINT = UUID(int=8)
LOWEST, HIGHEST = UUID(int=0), UUID(int=2**128 - 1)
ROWS = 3 * MAX_SCANNED
LIMIT = 101

# The first rows of each table differ from all later ones, so that a filter finds them last.
FILL_JOBS = """
INSERT INTO jobs.jobs (id, user_id, kind, lane, args, state, finished_at, run_at, error)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $1,
       CASE WHEN n <= 3 THEN 'test.rare' ELSE 'test.common' END, 'default', '{}',
       CASE WHEN n <= 3 THEN 3 WHEN n % 2 = 0 THEN 2 ELSE 0 END, CASE WHEN n <= 3 OR n % 2 = 0 THEN now() END,
       now() + interval '1 day', CASE WHEN n <= 3 THEN '{"code": "rare", "message": "x"}'::jsonb END
FROM generate_series(1, $2::integer) AS n
"""
FILL_DELIVERIES = """
WITH messages AS (
    INSERT INTO jobs.webhook_messages (user_id, id, event_type, payload)
    SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'job.failed', '{}'
    FROM generate_series(1, $2::integer) AS n
)
INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id, state)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $3,
       ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       CASE WHEN n <= 3 THEN 'failed' ELSE 'delivered' END
FROM generate_series(1, $2::integer) AS n
"""
FILL_EVENTS = """
INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       CASE WHEN n <= 3 THEN 'test.rare' ELSE 'test.common' END, now() - make_interval(secs => $2 - n), '{}',
       now() - make_interval(secs => $2 - n)
FROM generate_series(1, $2::integer) AS n
"""
FILL_INVOICES = """
INSERT INTO jobs.invoices (user_id, id, number, order_id, customer, currency, lines, tax_rate_percent, subtotal_minor,
                           tax_minor, total_minor, status, job_id)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, n::text, n::text, '{}', 'EUR', '[]', '0', 0,
       0, 0, 'sent', $1
FROM generate_series(1, $2::integer) AS n
"""
FILL_SECURITY_EVENTS = """
INSERT INTO identity.security_events (user_id, id, action, created_at)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'login',
       now() - make_interval(secs => $2 - n)
FROM generate_series(1, $2::integer) AS n
"""


async def fill(connection: Connection, owner: UUID) -> None:
    for sql in (FILL_JOBS, FILL_INVOICES, FILL_EVENTS, FILL_SECURITY_EVENTS):
        await connection.execute(sql, owner, ROWS)
    await connection.execute(FILL_DELIVERIES, owner, ROWS, ENDPOINT)
    await connection.execute("ANALYZE jobs.jobs, jobs.invoices, jobs.webhook_deliveries, users.events")
    await connection.execute("ANALYZE identity.security_events")


async def rows_read(connection: Connection, sql: str, *args: Any) -> float:
    """Rows and index entries that the plan which PostgreSQL keeps for all arguments reads for these."""
    values = ", ".join("NULL" if value is None else f"'{value}'" for value in args)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE asked AS {sql}")
    plan = await connection.fetchval(f"EXPLAIN (ANALYZE, TIMING off, FORMAT JSON) EXECUTE asked({values})")
    await connection.execute("DEALLOCATE asked")
    return sum(scanned(orjson.loads(plan)[0]["Plan"]), 0.0)


def scanned(node: dict[str, Any]) -> Iterator[float]:
    if "Relation Name" in node:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        yield (node["Actual Rows"] + removed) * node["Actual Loops"]
    for child in node.get("Plans", ()):
        yield from scanned(child)


def id_of(number: int) -> UUID:
    return UUID(f"01900000-0000-7000-8000-{number:012x}")


async def test_no_list_reads_more_rows_than_its_bound(connection: Connection) -> None:
    await fill(connection, OWNER)
    last = id_of(4)
    # The last row that the next page of a list with a filter reads.
    end = id_of(ROWS - MAX_SCANNED + 1)
    end_of_state = id_of(ROWS - 2 * MAX_SCANNED + 1)
    moment = await connection.fetchval("SELECT created_at FROM users.events WHERE id = $1", end)

    moment_of_entry = await connection.fetchval("SELECT created_at FROM identity.security_events WHERE id = $1", end)

    async def search(*, before: UUID = HIGHEST, lowest: UUID = LOWEST, **given: object) -> float:
        names = ("states", "queue", "kind", "user_id", "error", "attempted", "future", "since", "until")
        values = [given.get(name) for name in names]
        scanned = LIMIT if lowest == LOWEST else MAX_SCANNED
        return await rows_read(connection, searching.SEARCH_JOBS, before, lowest, *values, LIMIT, scanned)

    found = {
        "overview": await rows_read(connection, submitting.LIST_OVERVIEWS, f"{{{OWNER}}}", COUNTED_AT_MOST),
        "jobs behind a cursor": await rows_read(connection, submitting.LIST_JOBS, OWNER, last, None, None, LIMIT),
        "jobs of a kind": await rows_read(connection, submitting.LIST_JOBS, OWNER, None, end, "test.rare", LIMIT),
        "end of that page": await rows_read(connection, submitting.GET_SCAN_END, OWNER, None, MAX_SCANNED - 1),
        "failed jobs": await rows_read(
            connection, submitting.LIST_JOBS_IN_STATE, OWNER, None, None, None, LIMIT, 3, None, None
        ),
        "running jobs": await rows_read(
            connection, submitting.LIST_JOBS_IN_STATE, OWNER, None, None, None, LIMIT, 1, None, None
        ),
        "succeeded jobs behind a cursor": await rows_read(
            connection, submitting.LIST_JOBS_IN_STATE, OWNER, last, None, None, LIMIT, 2, None, None
        ),
        "retrying jobs": await rows_read(
            connection, submitting.LIST_JOBS_IN_STATE, OWNER, None, end_of_state, None, LIMIT, 0, True, None
        ),
        "end of the page of retrying jobs": await rows_read(
            connection, submitting.GET_SCAN_END_IN_STATE, OWNER, None, MAX_SCANNED - 1, 0
        ),
        "all users' jobs behind a cursor": await search(before=last),
        "all users' failed jobs": await search(states="{3}"),
        "all users' retrying jobs": await search(states="{0}", attempted=True, lowest=end_of_state),
        "all users' jobs of a rare kind": await search(kind="test.rare"),
        "all users' jobs of a kind no job is of": await search(kind="test.none"),
        "all users' failed jobs of a queue": await search(states="{3}", queue="default"),
        "a user's jobs of a kind": await search(user_id=OWNER, kind="test.rare", lowest=end),
        "all users' jobs with an error": await search(error="rare"),
        "end of all users' page": await rows_read(
            connection, searching.GET_SEARCH_END, HIGHEST, LOWEST, "{0}", None, None, None, None, MAX_SCANNED - 1
        ),
        "all users' failed deliveries": await rows_read(
            connection, webhook_deliveries.LIST_ALL_DELIVERIES, "{failed}", None, LIMIT
        ),
        "all users' deliveries behind a cursor": await rows_read(
            connection, webhook_deliveries.LIST_ALL_DELIVERIES, "{pending,delivered,failed}", last, LIMIT
        ),
        "all users' entries of a rare kind": await rows_read(
            *(connection, security_events.LIST_ALL_SECURITY_EVENTS),
            *("9999-01-01", HIGHEST, moment_of_entry, end, "banned", LIMIT),
        ),
        "end of all users' entries": await rows_read(
            connection, security_events.GET_SECURITY_EVENTS_END, "9999-01-01", HIGHEST, MAX_SCANNED - 1
        ),
        "invoices behind a cursor": await rows_read(
            connection, invoices.PAGE_OF_INVOICES, OWNER, last, LIMIT, MAX_PAGE_BYTES
        ),
        "failed deliveries": await rows_read(
            connection, webhook_deliveries.LIST_DELIVERIES, OWNER, None, end, "failed", LIMIT
        ),
        "an endpoint's failed deliveries": await rows_read(
            connection, webhook_deliveries.LIST_DELIVERIES_TO, OWNER, None, end, "failed", LIMIT, ENDPOINT
        ),
        "deliveries behind a cursor": await rows_read(
            connection, webhook_deliveries.LIST_DELIVERIES, OWNER, last, None, None, LIMIT
        ),
        "another endpoint's deliveries": await rows_read(
            connection, webhook_deliveries.LIST_DELIVERIES_TO, OWNER, None, None, None, LIMIT, OWNER
        ),
        "end of the deliveries' page": await rows_read(
            connection, webhook_deliveries.GET_DELIVERY_SCAN_END, OWNER, None, MAX_SCANNED - 1
        ),
        "end of the endpoint's page": await rows_read(
            connection, webhook_deliveries.GET_DELIVERY_SCAN_END_TO, OWNER, None, MAX_SCANNED - 1, ENDPOINT
        ),
        "events of a kind": await rows_read(
            connection, events.LIST_EVENTS, OWNER, None, None, "test.rare", None, None, LIMIT, moment, end, "{}", "{}"
        ),
        "events with a property": await rows_read(
            *(connection, events.LIST_EVENTS, OWNER, None, None, None, None, None, LIMIT, moment, end, "{a}", "{b}")
        ),
        "old events": await rows_read(
            connection, events.LIST_EVENTS, OWNER, None, None, None, None, "2020-01-01", LIMIT, moment, end, "{}", "{}"
        ),
        "end of the events' page": await rows_read(connection, events.GET_SCAN_END, OWNER, None, None, MAX_SCANNED - 1),
        "audit trail behind a cursor": await rows_read(
            connection, security_events.LIST_SECURITY_EVENTS, OWNER, last, LIMIT
        ),
    }
    # Two walks up to the limit of the counts, of which the second is one for each state, and the newest five jobs.
    # A search for jobs of all users also reads the names of the queues and kinds, and the rows that it answers.
    bounds = dict.fromkeys(found, MAX_SCANNED) | {"overview": 5 * COUNTED_AT_MOST + 6}
    bounds |= {name: MAX_SCANNED + LIMIT + 10 for name in found if name.startswith(("all users'", "end of all users'"))}
    assert {name: rows for name, rows in found.items() if rows > bounds[name]} == {}


async def test_counts_of_the_overview_end_at_a_thousand(person: Person, connection: Connection) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute(FILL_JOBS, person.id, 2 * COUNTED_AT_MOST + 100)
    jobs = (await person.get("/v1/overview")).json()["jobs"]
    del jobs["recent"]
    assert jobs == {"queued": 1000, "running": 0, "succeeded": 1000, "failed": 3}


@pytest.mark.parametrize(
    ("path", "fill_table"),
    [
        ("/v1/jobs?kind=test.rare", FILL_JOBS),
        ("/v1/jobs?state=failed&kind=test.rare", FILL_JOBS),
        ("/v1/users/me/events?kind=test.rare", FILL_EVENTS),
        ("/v1/webhooks/deliveries?state=failed", FILL_DELIVERIES),
    ],
)
async def test_short_pages_lead_to_all_that_fits_a_filter(
    person: Person, connection: Connection, path: str, fill_table: str
) -> None:
    await connection.execute("DELETE FROM jobs.jobs")
    await connection.execute("DELETE FROM users.events")
    if fill_table == FILL_DELIVERIES:
        await connection.execute(fill_table, person.id, ROWS, ENDPOINT)
    else:
        await connection.execute(fill_table, person.id, ROWS)
    items: list[str] = []
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        page = (await person.get(path + (f"&cursor={cursor}" if cursor else ""))).json()
        items += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        pages += 1
    assert items == [str(id_of(number)) for number in (3, 2, 1)]
    assert pages <= ROWS // MAX_SCANNED + 1
