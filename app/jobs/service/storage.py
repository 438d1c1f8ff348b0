"""Where files go: a local directory or S3, through one API. Streamed and hashed; visible only with their job's success.

A key holds the run's token, so that two runs of one job can never write the same object, and object stores show an
upload only once it is complete.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, S3Store

from app.jobs.errors import StoreUnavailable
from app.jobs.settings import JobsSettings
from app.kernel.observability.telemetry import get_logger

_logger = get_logger(__name__)

_CHUNK = 256 * 1024
_WRITE_BUFFER = 512 * 1024
_UPLOAD_BUFFER = 8 * 1024 * 1024
# Long before a job's own time is over, and within the time-out of a request: the library's own is three minutes.
_RETRIES = 2
_RETRY_SECONDS = 10
_CONNECT_SECONDS = 3
_REQUEST_SECONDS = 30
# A store that refuses so many objects one after the other is away; fewer may be broken ones.
_MOST_FAILURES = 3
# How the local store calls a file until it is complete.
_STAGED = re.compile(r".*#[0-9]+", re.DOTALL)


@contextmanager
def _told_as_outage(*, may_lack_object: bool = False) -> Iterator[None]:
    """Whatever the store says is an outage of ours, except where it `may_lack_object` that it has not.

    What is written cannot be missing: then it is the bucket or the folder that is not there.

    The library tells a full disk, a refused connection and a wrong key by one class, or by an OSError without a number.
    """
    try:
        yield
    except (BaseError, OSError) as error:
        if may_lack_object and isinstance(error, NotFoundError | FileNotFoundError):
            raise
        lines = str(error).splitlines()
        raise StoreUnavailable(lines[0] if lines else None) from error


async def store_problem(settings: JobsSettings, data_dir: Path) -> str | None:
    """Why no file can be stored now, or None. Writes a small one and deletes it."""
    nil = UUID(int=0)
    try:
        with _told_as_outage():
            store = await asyncio.to_thread(ArtifactStore, settings, data_dir)
        async with store.create(nil, nil, "doctor") as (key, file):
            await file.write(b"written by doctor")
        await store.delete([key])
    except StoreUnavailable as error:
        return error.detail or error.title
    return None


class StoredFile:
    """A file being written."""

    def __init__(self, file: Any) -> None:
        self.size = 0
        self.hash = sha256()
        self._file = file
        self._buffer = bytearray()

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        self._buffer += data
        # COPY gives row by row; each step into the store costs far more than the row.
        if len(self._buffer) >= _WRITE_BUFFER:
            await self.flush()

    async def flush(self) -> None:
        """Hands over what has been collected."""
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            self.hash.update(data)
            with _told_as_outage():
                await self._file.write(data)


class ArtifactStore:
    """One per process."""

    def __init__(self, settings: JobsSettings, data_dir: Path) -> None:
        parts = urlsplit(settings.artifact_url or "")
        self._store: LocalStore | S3Store
        self._folder: Path | None = None
        if parts.scheme != "s3":
            # A folder's name may hold what means something in a URL.
            folder = Path(parts.path) if parts.path else (data_dir / "artifacts").absolute()
            self._folder = folder
            self._store = LocalStore(folder, mkdir=True, automatic_cleanup=True)
        else:
            secret = settings.artifact_s3_secret
            self._store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                endpoint=settings.artifact_s3_endpoint,
                access_key_id=settings.artifact_s3_key_id,
                secret_access_key=secret.get_secret_value() if secret is not None else None,
                region=settings.artifact_s3_region,
                client_options={
                    "allow_http": (settings.artifact_s3_endpoint or "").startswith("http://"),
                    "connect_timeout": timedelta(seconds=_CONNECT_SECONDS),
                    "timeout": timedelta(seconds=_REQUEST_SECONDS),
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)},
            )

    @asynccontextmanager
    async def create(self, job_id: UUID, run_token: UUID, name: str) -> AsyncIterator[tuple[str, StoredFile]]:
        """Opens an object for writing; yields its key. It exists only if the block ends without an error.

        Raises:
            StoreUnavailable: from here, from writing, or at the end.
        """
        key = f"{job_id}/{run_token}/{name}"
        writer = obstore.open_writer_async(self._store, key, buffer_size=_UPLOAD_BUFFER)
        file = StoredFile(writer)
        # Closing is what publishes an upload, so a writer whose block failed is dropped without being closed.
        yield key, file
        await file.flush()
        with _told_as_outage():
            await writer.close()

    async def open(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`; `end` lies behind `start`.

        Raises:
            FileNotFoundError: the object is gone.
            StoreUnavailable
        """
        try:
            with _told_as_outage(may_lack_object=True):
                answer = await obstore.get_async(self._store, key, options={"range": (start, end)})
        except (NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(key) from error

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in answer.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

        return chunks()

    async def read_all(self, key: str) -> bytes:
        """A whole small object. Raises StoreUnavailable."""
        with _told_as_outage(may_lack_object=True):
            answer = await obstore.get_async(self._store, key)
            return bytes(await answer.bytes_async())

    async def delete(self, keys: Sequence[str]) -> list[str]:
        """Deletes objects; answers those that are gone now. One that cannot be deleted does not keep the others.

        Raises:
            StoreUnavailable: several in a row cannot be deleted.
        """
        gone = []
        failures = 0
        for key in keys:
            try:
                with _told_as_outage(may_lack_object=True):
                    await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                pass
            except StoreUnavailable as error:
                failures += 1
                if failures >= _MOST_FAILURES:
                    raise
                _logger.warning("jobs.file_not_deleted", key=key, reason=str(error))
                continue
            failures = 0
            gone.append(key)
        return gone

    async def delete_unfinished(self, moment: datetime) -> int:
        """Deletes files that were last written before `moment` and never completed, because their process was killed;
        answers how many. The local store lists none of them, and a bucket has a rule for them (docs/operations.md).
        """
        if self._folder is None:
            return 0
        return await asyncio.to_thread(_delete_staged, self._folder, moment.timestamp())

    async def list_before(self, moment: datetime) -> AsyncIterator[list[str]]:
        """Keys of the objects last written before `moment`, in batches. Raises StoreUnavailable."""
        batches = aiter(obstore.list(self._store, chunk_size=500))
        while True:
            with _told_as_outage(may_lack_object=True):
                batch = await anext(batches, None)
            if batch is None:
                return
            keys = [item["path"] for item in batch if item["last_modified"] < moment]
            if keys:
                yield keys


def _delete_staged(folder: Path, before: float) -> int:
    deleted = 0
    for path in folder.rglob("*"):
        # One may be finished, or deleted, meanwhile.
        with suppress(FileNotFoundError):
            if _STAGED.fullmatch(path.name) and path.is_file() and path.stat().st_mtime < before:
                path.unlink()
                deleted += 1
    return deleted
