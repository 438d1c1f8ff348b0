"""Where files go: a local directory or S3, through one API. Streamed and hashed; visible only with their job's success.

A key holds the run's token, so that two runs of one job can never write the same object, and object stores show an
upload only once it is complete.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import obstore
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, S3Store

from app.jobs.settings import JobsSettings

_CHUNK = 256 * 1024
_WRITE_BUFFER = 512 * 1024
_UPLOAD_BUFFER = 8 * 1024 * 1024


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
            await self._file.write(data)


class ArtifactStore:
    """One per process."""

    def __init__(self, settings: JobsSettings, data_dir: Path) -> None:
        parts = urlsplit(settings.artifact_url or "")
        self._store: LocalStore | S3Store
        if parts.scheme != "s3":
            # A folder's name may hold what means something in a URL.
            folder = parts.path or (data_dir / "artifacts").absolute()
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
                client_options={"allow_http": (settings.artifact_s3_endpoint or "").startswith("http://")},
            )

    @asynccontextmanager
    async def create(self, job_id: UUID, run_token: UUID, name: str) -> AsyncIterator[tuple[str, StoredFile]]:
        """Opens an object for writing; yields its key. It exists only if the block ends without an error."""
        key = f"{job_id}/{run_token}/{name}"
        writer = obstore.open_writer_async(self._store, key, buffer_size=_UPLOAD_BUFFER)
        file = StoredFile(writer)
        # Closing is what publishes an upload, so a writer whose block failed is dropped without being closed.
        yield key, file
        await file.flush()
        await writer.close()

    async def open(self, key: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to, not including, `end`; `end` lies behind `start`.

        Raises:
            FileNotFoundError: the object is gone.
        """
        try:
            answer = await obstore.get_async(self._store, key, options={"range": (start, end)})
        except (NotFoundError, FileNotFoundError) as error:
            raise FileNotFoundError(key) from error

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in answer.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)

        return chunks()

    async def read_all(self, key: str) -> bytes:
        """A whole small object."""
        answer = await obstore.get_async(self._store, key)
        return bytes(await answer.bytes_async())

    async def delete(self, keys: list[str]) -> None:
        """Deletes objects; one that is not there is no error."""
        for key in keys:
            try:
                await obstore.delete_async(self._store, key)
            except (NotFoundError, FileNotFoundError):
                continue

    async def list_before(self, moment: datetime) -> AsyncIterator[list[str]]:
        """Keys of the objects last written before `moment`, in batches."""
        async for batch in obstore.list(self._store, chunk_size=500):
            keys = [item["path"] for item in batch if item["last_modified"] < moment]
            if keys:
                yield keys
