"""A stored file as an answer: whole, compressed, in part, or not again (RFC 9110, sections 8.4, 13 and 14)."""

import re
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.jobs.errors import TooManyStreams
from app.jobs.records import Artifact
from app.jobs.service.artifacts import open_artifact
from app.jobs.service.runtime import JobsRuntime
from app.kernel.errors import PreconditionFailed, RangeNotSatisfiable
from app.kernel.fairness.count import FairCount
from app.kernel.headers.codings import SMALLEST, accepts_gzip, compress_stream, gzip_etag, is_compressible
from app.kernel.http import matches_any, matches_strongly
from app.kernel.ids import UserId
from app.kernel.request.state import RequestState

_RANGE = re.compile(rb"bytes=([0-9]{0,99})-([0-9]{0,99})", re.IGNORECASE)
_CACHE_CONTROL = "private, no-cache"
# Of the systems that files are saved on, with what they refuse in a name or hide in it.
_SEPARATORS = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]+')
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def file_responses(*media_types: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that answers a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}
    return {
        200: {"description": "The whole file", "content": content},
        206: {"description": "A part of the file", "content": content},
        304: {"description": "The `ETag` in `If-None-Match` is still current"},
    }


async def file_response(
    state: RequestState,
    runtime: JobsRuntime,
    user_id: UserId,
    artifact: Artifact,
    name: str,
    *,
    content: bytes | None = None,
) -> Response:
    """The file as a download called `name`; `content` is its bytes if they are not stored.

    Raises:
        TooManyStreams: the user reads as many files as one may at a time.
        PreconditionFailed: it is not the file that the caller means.
        ArtifactExpired: its object is gone.
        RangeNotSatisfiable: the part asked for lies outside of it.
    """
    found = state.headers
    etag = f'"{artifact.sha256.hex()}"'.encode()
    if not matches_strongly(found.get(b"if-match", b"*"), etag):
        raise PreconditionFailed
    part = found.get(b"range") if found.get(b"if-range", etag) == etag else None
    varies = is_compressible(artifact.content_type.encode()) and artifact.size >= SMALLEST
    # Ranges are those of the file as it is.
    is_compressed = varies and part is None and accepts_gzip(found.get(b"accept-encoding"))
    if is_compressed:
        etag = gzip_etag(etag)
    headers = {"ETag": etag.decode(), "Cache-Control": _CACHE_CONTROL} | ({"Vary": "Accept-Encoding"} if varies else {})
    if matches_any(found.get(b"if-none-match", b""), etag):
        return Response(status_code=304, headers=headers)
    start, end = _range_of(part, artifact.size)
    headers["Content-Disposition"] = _disposition(name)
    if is_compressed:
        headers["Content-Encoding"] = "gzip"
    else:
        headers |= {"Accept-Ranges": "bytes", "Content-Length": str(end - start)}
    if end - start != artifact.size:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    if not runtime.downloads.take(user_id):
        raise TooManyStreams
    try:
        if content is not None:
            body: AsyncIterable[bytes] = _once(content[start:end])
        else:
            # A store that is slow must not keep others from their slots.
            state.release_slot()
            body = await open_artifact(runtime.store, artifact, start, end)
    except BaseException:
        runtime.downloads.give_back(user_id)
        raise
    body = state.paced(body, is_compressed=is_compressed)
    if is_compressed:
        body = compress_stream(body)
    status = 206 if "Content-Range" in headers else 200
    return _Download(body, status, headers, artifact.content_type, count=runtime.downloads, user_id=user_id)


class _Download(StreamingResponse):
    """Counts for its user until its client has read it, or has gone. It is sent as soon as it is made."""

    def __init__(
        self,
        body: AsyncIterable[bytes],
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        *,
        count: FairCount,
        user_id: UserId,
    ) -> None:
        super().__init__(body, status, headers, media_type)
        self._count = count
        self._user_id = user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._count.give_back(self._user_id)


def _disposition(name: str) -> str:
    """RFC 6266: a plain name for old clients, and the whole one, without what separates folders (section 4.3)."""
    whole = quote(_SEPARATORS.sub("-", name), safe="")
    return f"attachment; filename=\"{_UNSAFE.sub('_', name)}\"; filename*=UTF-8''{whole}"


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _range_of(header: bytes | None, size: int) -> tuple[int, int]:
    """First byte and the one behind the last, by RFC 9110, section 14. What is no single range of bytes is ignored.

    Raises:
        RangeNotSatisfiable: the range lies outside of the file.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    first, last = (found[1], found[2]) if found else (b"", b"")
    if not (first or last):
        return 0, size
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return 0, size
    if start >= end:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return start, end
