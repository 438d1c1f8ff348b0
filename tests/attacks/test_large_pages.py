"""A page has a bound in bytes, however large its items are, so that writing it takes nothing from others."""

from typing import Any

import orjson
import pytest

from app.jobs.service.documents import Document
from app.jobs.service.sending import MAX_RESPONSE_BYTES, _told_of
from app.kernel.pagination import MAX_PAGE_BYTES
from tests.attacks.test_request_cost import LONGEST_STEP, _longest
from tests.fixtures.people import Person
from tests.fixtures.servers import Connection

# As large as the API takes them.
ADD_INVOICES = """
INSERT INTO jobs.invoices (user_id, id, number, order_id, customer, currency, lines, tax_rate_percent, subtotal_minor,
                           tax_minor, total_minor, status, job_id)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, n::text, n::text, '{}', 'EUR',
       jsonb_build_array(jsonb_build_object('description', repeat('請', $3::integer))), '0', 0, 0, 0, 'sent', $1
FROM generate_series(1, $2::integer) AS n
"""
ADD_DELIVERIES = """
WITH messages AS (
    INSERT INTO jobs.webhook_messages (user_id, id, event_type, payload)
    SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'job.failed', '{}'
    FROM generate_series(1, 101) AS n
)
INSERT INTO jobs.webhook_deliveries (user_id, id, endpoint_id, message_id, state, last_response)
SELECT $1, ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $1,
       ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'failed', $2
FROM generate_series(1, 101) AS n
"""


async def pages(person: Person, path: str) -> list[Any]:
    """All pages of a list, none of which is larger than twice the bound."""
    found = []
    cursor: str | None = None
    while True:
        answer = await person.get(path, params={"limit": 100} | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        assert len(answer.content) < 2 * MAX_PAGE_BYTES
        page = answer.json()
        found.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def test_a_page_of_large_invoices_is_short(person: Person, connection: Connection) -> None:
    await connection.execute(ADD_INVOICES, person.id, 101, 100_000)
    found = await pages(person, "/v1/invoices")
    assert [len(page) for page in found[:2]] == [3, 3]
    assert [item["number"] for page in found for item in page] == [str(number) for number in range(101, 0, -1)]


async def test_an_invoice_beyond_the_bound_is_a_page(person: Person, connection: Connection) -> None:
    await connection.execute(ADD_INVOICES, person.id, 3, 400_000)
    assert [len(page) for page in await pages(person, "/v1/invoices")] == [1, 1, 1]


async def test_pages_of_small_invoices_are_whole(person: Person, connection: Connection) -> None:
    await connection.execute(ADD_INVOICES, person.id, 101, 100)
    assert [len(page) for page in await pages(person, "/v1/invoices")] == [100, 1]
    assert [len(page) for page in await pages(person, "/v1/webhooks/deliveries")] == [0]


@pytest.mark.parametrize(
    "content",
    [
        b"\x01" * MAX_RESPONSE_BYTES,
        b'"' * MAX_RESPONSE_BYTES,
        b"\\" * MAX_RESPONSE_BYTES,
        b"x" + b"\n" * (MAX_RESPONSE_BYTES - 1),
        b"\xff" * MAX_RESPONSE_BYTES,
        "é\u2028🦄".encode() * (MAX_RESPONSE_BYTES // 9),
        bytes(range(256)) * (MAX_RESPONSE_BYTES // 256),
    ],
)
def test_what_is_kept_of_an_answer_is_bounded_as_it_is_written(content: bytes) -> None:
    kept = _told_of(content)
    assert len(orjson.dumps(kept)) <= MAX_RESPONSE_BYTES
    assert "\x01" not in kept
    plain = content.decode(errors="replace").translate(dict.fromkeys({*range(32), 127} - {9, 10, 13}))
    assert plain.startswith(kept)
    assert not plain or kept


def test_a_usual_answer_is_kept_whole() -> None:
    assert _told_of(b'{"ok": true}\r\n\tdone') == '{"ok": true}\r\n\tdone'


@pytest.mark.slow
async def test_no_such_page_holds_the_loop(person: Person, connection: Connection) -> None:
    await connection.execute(ADD_INVOICES, person.id, 101, 100_000)
    await connection.execute(ADD_DELIVERIES, person.id, _told_of(b'"' * MAX_RESPONSE_BYTES))
    for path in ("/v1/invoices?limit=100", "/v1/webhooks/deliveries?limit=100"):

        async def send(path: str = path) -> None:
            assert (await person.get(path)).status_code == 200

        assert await _longest(send) <= LONGEST_STEP, path


def test_characters_without_a_glyph_are_named_up_to_a_bound() -> None:
    missing = frozenset(map(chr, range(0xF0000, 0xFFFFE)))
    assert Document(b"", missing).remarks == {"missing_characters": [f"U+{0xF0000 + n:X}" for n in range(100)]}
