"""Rows of a snapshot as a file, in constant memory: NDJSON, XLSX, Parquet and ZIP; CSV comes out of Postgres.

What has to be computed runs in a thread, one batch at a time, so that the worker's other jobs go on.
"""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import orjson

from app.jobs.service.scratch import ScratchFolder

Write = Callable[[bytes], Awaitable[None]]
Values = Sequence[Any]
Advance = Callable[[int], Awaitable[None]]

BATCH = 5_000
# A batch ends with the row that reaches it, however few rows there are.
_BATCH_BYTES = 4 * 1024 * 1024
XLSX_ROWS_PER_SHEET = 1_048_576
_PARQUET_ROWS_PER_GROUP = 25_000
_FILE_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an export. A `json` value is JSON text, a `timestamp` an aware datetime."""

    name: str
    type: Literal["text", "timestamp", "json"]


async def write_ndjson(columns: Sequence[Column], rows: AsyncIterator[Values], write: Write, advance: Advance) -> int:
    """One JSON object a line; answers the number of rows."""

    def encode(batch: list[Values]) -> bytes:
        return b"".join(
            orjson.dumps(
                {
                    column.name: orjson.Fragment(value) if column.type == "json" and value is not None else value
                    for column, value in zip(columns, values, strict=True)
                },
                option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE,
            )
            for values in batch
        )

    count = 0
    async for batch in _batches(rows, BATCH):
        await write(await asyncio.to_thread(encode, batch))
        count += len(batch)
        await advance(count)
    return count


async def write_json_array(
    columns: Sequence[Column], rows: AsyncIterator[Values], write: Write, advance: Advance
) -> int:
    """The objects of `write_ndjson` as one JSON array; answers the number of rows."""
    separator = b"["

    async def write_items(lines: bytes) -> None:
        nonlocal separator
        # JSON text from Postgres has no line breaks of its own.
        await write(separator + b"\n" + lines.rstrip(b"\n").replace(b"\n", b",\n"))
        separator = b","

    count = await write_ndjson(columns, rows, write_items, advance)
    await write(b"\n]\n" if count else b"[]\n")
    return count


async def write_parquet(columns: Sequence[Column], rows: AsyncIterator[Values], write: Write, advance: Advance) -> int:
    """Row groups compressed by zstd; answers the number of rows."""
    pa, parquet = await asyncio.to_thread(_load_pyarrow)
    schema = pa.schema(
        [
            (column.name, pa.timestamp("us", tz="UTC") if column.type == "timestamp" else pa.string())
            for column in columns
        ]
    )
    sink = _Sink()
    writer = await asyncio.to_thread(parquet.ParquetWriter, sink, schema, compression="zstd")

    def encode(batch: list[Values]) -> bytes:
        arrays = [pa.array([values[index] for values in batch], type=field.type) for index, field in enumerate(schema)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        return sink.take()

    count = 0
    async for batch in _batches(rows, _PARQUET_ROWS_PER_GROUP):
        await write(await asyncio.to_thread(encode, batch))
        count += len(batch)
        await advance(count)
    await asyncio.to_thread(writer.close)
    await write(sink.take())
    return count


def _load_pyarrow() -> tuple[Any, Any]:
    """Costs a third of a second and tens of megabytes, which only a worker that needs it pays, in a thread."""
    import pyarrow as pa  # noqa: PLC0415 - see above
    from pyarrow import parquet  # noqa: PLC0415 - see above

    return pa, parquet


async def write_xlsx(columns: Sequence[Column], rows: AsyncIterator[Values], write: Write, advance: Advance) -> int:
    """Sheets of up to 1,048,576 rows, a header on each; answers the number of rows.

    Text is written as text, so that a cell is never taken for a formula or a link. Times lose their zone, which Excel
    does not know; they are in UTC.
    """
    book = await asyncio.to_thread(_Workbook, columns)
    try:
        count = 0
        async for batch in _batches(rows, BATCH):
            await asyncio.to_thread(book.append, batch)
            count += len(batch)
            await advance(count)
        await asyncio.to_thread(book.close)
        with await asyncio.to_thread(book.path.open, "rb") as file:
            while data := await asyncio.to_thread(file.read, _FILE_CHUNK):
                await write(data)
        return count
    finally:
        await asyncio.to_thread(book.discard)


class _Workbook:
    """A file at `path`, in a folder of its own, where xlsxwriter keeps what belongs to unfinished sheets too."""

    def __init__(self, columns: Sequence[Column]) -> None:
        import xlsxwriter  # noqa: PLC0415 - likewise: only for this format

        self._folder = ScratchFolder()
        self.path = self._folder.path / "rows.xlsx"
        self._columns = columns
        self._book = xlsxwriter.Workbook(str(self.path), {"constant_memory": True, "tmpdir": str(self._folder.path)})
        self._time_format = self._book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss.000"})
        self._row = XLSX_ROWS_PER_SHEET

    def append(self, batch: list[Values]) -> None:
        for values in batch:
            if self._row == XLSX_ROWS_PER_SHEET:
                self._begin_sheet()
            for index, (column, value) in enumerate(zip(self._columns, values, strict=True)):
                if value is None:
                    continue
                if column.type == "timestamp":
                    self._sheet.write_datetime(self._row, index, _naive(value), self._time_format)
                else:
                    self._sheet.write_string(self._row, index, str(value))
            self._row += 1

    def close(self) -> None:
        if self._row == XLSX_ROWS_PER_SHEET:
            self._begin_sheet()
        from xlsxwriter.exceptions import FileCreateError  # noqa: PLC0415 - likewise

        try:
            self._book.close()
        except FileCreateError as error:
            # What the disk said is inside.
            raise next((cause for cause in error.args if isinstance(cause, OSError)), error) from error

    def discard(self) -> None:
        """Also of one that was never closed."""
        for sheet in self._book.worksheets():
            sheet._opt_close()  # noqa: SLF001 - else its file stays open until the collector finds it
        self._folder.discard()

    def _begin_sheet(self) -> None:
        self._sheet = self._book.add_worksheet()
        for index, column in enumerate(self._columns):
            self._sheet.write_string(0, index, column.name)
        self._row = 1


class Archive:
    """A ZIP file that is handed to `write` while it grows; the moment of all its members is `made_at`."""

    def __init__(self, write: Write, made_at: datetime) -> None:
        self._write = write
        self._made_at = made_at.timetuple()[:6]
        self._sink = _Sink()
        self._zip = ZipFile(self._sink, "w")

    async def add(self, name: str, content: bytes) -> None:
        """A member at once."""
        async with self.member(name) as write:
            await write(content)

    @asynccontextmanager
    async def member(self, name: str) -> AsyncIterator[Write]:
        """A member piece by piece."""
        info = ZipInfo(name, self._made_at)
        info.compress_type = ZIP_DEFLATED
        # Its length is not known yet.
        member = self._zip.open(info, "w", force_zip64=True)

        async def write(data: bytes) -> None:
            await asyncio.to_thread(member.write, data)
            await self._write(self._sink.take())

        yield write
        await asyncio.to_thread(member.close)
        await self._write(self._sink.take())

    async def close(self) -> None:
        """Ends the file."""
        self._zip.close()
        await self._write(self._sink.take())


class _Sink(io.RawIOBase):
    """Where pyarrow and zipfile write; emptied after every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


async def _batches(rows: AsyncIterator[Values], size: int) -> AsyncIterator[list[Values]]:
    batch: list[Values] = []
    length = 0
    async for values in rows:
        batch.append(values)
        length += sum(len(value) for value in values if isinstance(value, str))
        if len(batch) == size or length >= _BATCH_BYTES:
            yield batch
            batch = []
            length = 0
    if batch:
        yield batch


def _naive(value: datetime) -> datetime:
    return value.replace(tzinfo=None)
