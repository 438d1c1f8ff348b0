"""`export.events` in its four formats, compared with the table row for row."""

import asyncio
import csv
import io
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree as ET
from zipfile import ZipFile

import asyncpg
import pytest
from pyarrow import parquet
from pypdf import PdfReader

from app.jobs.api import JOB_KINDS
from app.jobs.service import exporting
from app.settings import Settings
from app.worker import open_worker
from tests.fixtures.people import Person
from tests.jobs.receiver import register
from tests.jobs.test_invoices import INVOICE

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Row = tuple[str, str, datetime, Any, datetime]

HOSTILE = ["=1+1", "@cmd", "+x", "-x", "\t=x", 'a"b,c\nd', "<b>&amp;</b>", "עברית", "🦄", "{}", ""]


async def insert_events(connection: Connection, person: Person, count: int) -> list[Row]:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [
        (person.id, now + timedelta(seconds=n), json.dumps({"n": n, "text": HOSTILE[n % len(HOSTILE)]}))
        for n in range(count)
    ]
    await connection.executemany(
        """
        INSERT INTO users.events (user_id, id, kind, occurred_at, properties, created_at)
        VALUES ($1, gen_random_uuid(), 'page.viewed', $2, $3, $2)
        """,
        rows,
    )
    stored = await connection.fetch(
        """
        SELECT id::text, kind, occurred_at, properties, created_at FROM users.events WHERE user_id = $1
        ORDER BY created_at, id
        """,
        person.id,
    )
    return [(row[0], row[1], row[2], json.loads(row[3]), row[4]) for row in stored]


def read_csv(content: bytes) -> list[Row]:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert rows[0] == ["id", "kind", "occurred_at", "properties", "created_at"]
    return [
        (row[0], row[1], datetime.fromisoformat(row[2]), json.loads(row[3]), datetime.fromisoformat(row[4]))
        for row in rows[1:]
    ]


def read_ndjson(content: bytes) -> list[Row]:
    return events_of([json.loads(line) for line in content.splitlines()])


def events_of(events: list[dict[str, Any]]) -> list[Row]:
    return [
        (
            event["id"],
            event["kind"],
            datetime.fromisoformat(event["occurred_at"]),
            event["properties"],
            datetime.fromisoformat(event["created_at"]),
        )
        for event in events
    ]


def read_parquet(content: bytes) -> list[Row]:
    events = parquet.read_table(io.BytesIO(content)).to_pylist()
    return [
        (event["id"], event["kind"], event["occurred_at"], json.loads(event["properties"]), event["created_at"])
        for event in events
    ]


def sheets_of(content: bytes) -> list[list[list[str]]]:
    """The cells of each sheet; every one must be text or a number, never a formula."""
    space = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
    sheets = []
    with ZipFile(io.BytesIO(content)) as archive:
        names = [name for name in archive.namelist() if name.startswith("xl/worksheets/sheet")]
        for name in sorted(names, key=len):
            root = ET.fromstring(archive.read(name))  # noqa: S314 - our own file
            assert root.find(f".//{space}f") is None
            sheets.append(
                [["".join(cell.itertext()) for cell in row.iter(f"{space}c")] for row in root.iter(f"{space}row")]
            )
    return sheets


def read_xlsx(content: bytes) -> list[Row]:
    (sheet,) = sheets_of(content)
    assert sheet[0] == ["id", "kind", "occurred_at", "properties", "created_at"]

    def moment(serial: str) -> datetime:
        value = datetime(1899, 12, 30, tzinfo=UTC) + timedelta(days=float(serial))
        return (value + timedelta(microseconds=500)).replace(microsecond=value.microsecond // 1000 * 1000)

    return [
        (
            row[0],
            row[1],
            moment(row[2]).replace(microsecond=0),
            json.loads(row[3]),
            moment(row[4]).replace(microsecond=0),
        )
        for row in sheet[1:]
    ]


READERS = {"csv": read_csv, "ndjson": read_ndjson, "parquet": read_parquet, "xlsx": read_xlsx}


async def export(person: Person, **args: Any) -> tuple[dict[str, Any], bytes]:
    submitted = await person.post("/v1/jobs", json={"kind": "export.events", "args": args})
    assert submitted.status_code == 202, submitted.text
    job = (await person.get(f"/v1/jobs/{submitted.json()['id']}", headers={"Prefer": "wait=20"})).json()
    assert job["state"] == "succeeded", job
    file = await person.get(f"/v1/jobs/{job['id']}/artifacts/events.{args['format']}")
    assert file.status_code == 200
    return job, file.content


@pytest.mark.parametrize("format_name", list(READERS))
async def test_a_format_agrees_with_the_table(
    person: Person, connection: Connection, settings: Settings, format_name: str
) -> None:
    expected = await insert_events(connection, person, 300)
    async with open_worker(settings, JOB_KINDS):
        job, content = await export(person, format=format_name)
        assert job["result"] == {"rows": 300}
        assert READERS[format_name](content) == expected
        _, part = await export(
            person, format=format_name, since="2026-03-01T00:00:10Z", until="2026-03-01T00:00:20+00:00"
        )
        assert READERS[format_name](part) == expected[10:20]
        _, nothing = await export(person, format=format_name, since="2027-01-01T00:00:00Z")
        assert READERS[format_name](nothing) == []


async def test_a_workbook_goes_on_in_another_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "XLSX_ROWS_PER_SHEET", 5)
    book = exporting._Workbook([exporting.Column("n", "text")])
    book.append([[str(n)] for n in range(10)])
    book.close()
    sheets = sheets_of(await asyncio.to_thread(book.path.read_bytes))
    book.discard()
    assert sheets == [
        [["n"], ["0"], ["1"], ["2"], ["3"]],
        [["n"], ["4"], ["5"], ["6"], ["7"]],
        [["n"], ["8"], ["9"]],
    ]


async def test_an_account_is_copied_whole(person: Person, connection: Connection, settings: Settings) -> None:
    expected = await insert_events(connection, person, 20)
    assert (await person.post("/v1/invoices", json=INVOICE)).status_code == 202
    await register(person, "https://1.1.1.1/")
    async with open_worker(settings, JOB_KINDS):
        submitted = await person.post("/v1/jobs", json={"kind": "export.account", "args": {}})
        job = (await person.get(f"/v1/jobs/{submitted.json()['id']}", headers={"Prefer": "wait=20"})).json()
    assert (job["state"], job["result"]) == ("succeeded", {"events": 20})
    assert [artifact["name"] for artifact in job["artifacts"]] == ["account.zip"]
    answer = await person.get(f"/v1/jobs/{job['id']}/artifacts/account.zip")
    assert answer.headers["content-type"] == "application/zip"
    with ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        files = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert files.keys() == {
        "profile.json",
        "preferences.json",
        "account.json",
        "sessions.json",
        "api_keys.json",
        "passkeys.json",
        "security_events.json",
        "jobs.json",
        "invoices.json",
        "webhook_endpoints.json",
        "events.json",
    }
    assert (files["profile.json"]["id"], files["profile.json"]["email"]) == (str(person.id), person.email)
    assert files["preferences.json"]["theme"] == "system"
    assert len(files["sessions.json"]) == 1
    assert [item["number"] for item in files["invoices.json"]] == [INVOICE["number"]]
    assert {item["kind"] for item in files["jobs.json"]} >= {"export.account", "invoice.pdf"}
    assert [item["url"] for item in files["webhook_endpoints.json"]] == ["https://1.1.1.1/"]
    assert not any(secret in json.dumps(files) for secret in ("argon2", "whsec_", "secret"))
    assert events_of(files["events.json"]) == expected


async def test_a_report_counts_what_happened(person: Person, connection: Connection, settings: Settings) -> None:
    await insert_events(connection, person, 30)
    period = {"since": "2026-02-20T00:00:00Z", "until": "2026-03-05T00:00:00Z"}
    async with open_worker(settings, JOB_KINDS):
        submitted = await person.post("/v1/jobs", json={"kind": "report.activity", "args": period})
        job = (await person.get(f"/v1/jobs/{submitted.json()['id']}", headers={"Prefer": "wait=20"})).json()
    assert (job["state"], job["result"]) == ("succeeded", {"events": 30})
    pdf = (await person.get(f"/v1/jobs/{job['id']}/artifacts/activity.pdf")).content
    text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf)).pages)
    for part in ("Activity", "2026-02-20", "2026-03-04", "30", "page.viewed"):
        assert part in text
    for wrong in ({"until": period["since"]}, {"since": "2024-01-01T00:00:00Z"}):
        answer = await person.post("/v1/jobs", json={"kind": "report.activity", "args": period | wrong})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/args")


async def test_a_workbook_that_is_not_finished_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def rows() -> AsyncIterator[list[str]]:
        for number in range(exporting.BATCH + 1):
            yield [str(number)]
        raise ConnectionError

    async def ignore(_: object) -> None:
        """The bytes go nowhere."""

    with pytest.raises(ConnectionError):
        await exporting.write_xlsx([exporting.Column("id", "text")], rows(), ignore, ignore)
    assert await asyncio.to_thread(os.listdir, tmp_path) == []
