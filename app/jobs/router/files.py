"""A stored file as an answer: whole, in part, or not again (RFC 9110, sections 13 and 14)."""

import re
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.jobs.records import Artifact
from app.jobs.service.artifacts import open_artifact
from app.jobs.service.runtime import JobsRuntime
from app.kernel.errors import RangeNotSatisfiable
from app.kernel.http import matches_any
from app.kernel.middleware.admission import leave_place

_RANGE = re.compile(r"bytes=(\d{0,99})-(\d{0,99})", re.ASCII)
_CACHE_CONTROL = "private, no-cache"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def file_responses(media_type: str) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that answers a file."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {
        200: {"description": "The whole file", "content": content},
        206: {"description": "A part of the file", "content": content},
        304: {"description": "The caller has this file already"},
    }


async def file_response(
    request: Request, runtime: JobsRuntime, artifact: Artifact, name: str, content: bytes | None = None
) -> Response:
    """The file as a download called `name`; `content` is its bytes if they are not stored.

    Raises:
        ArtifactExpired: its object is gone.
        RangeNotSatisfiable: the part asked for lies outside of it.
    """
    etag = f'"{artifact.sha256.hex()}"'
    if matches_any(request.headers.get("if-none-match", "").encode(), etag.encode()):
        return Response(status_code=304, headers={"ETag": etag, "Cache-Control": _CACHE_CONTROL})
    part = None if request.headers.get("if-range", etag) != etag else request.headers.get("range")
    start, end = _range_of(part, artifact.size)
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": _CACHE_CONTROL,
        "Content-Length": str(end - start),
        "Content-Disposition": f'attachment; filename="{_UNSAFE.sub("_", name)}"; '
        f"filename*=UTF-8''{quote(name, safe='')}",
    }
    if end - start != artifact.size:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    if content is not None:
        body: AsyncIterable[bytes] = _once(content[start:end])
    else:
        # A store that is slow must not keep others from their slots.
        leave_place(request.scope)
        body = await open_artifact(runtime.store, artifact, start, end)
    return StreamingResponse(body, 206 if "Content-Range" in headers else 200, headers, artifact.content_type)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _range_of(header: str | None, size: int) -> tuple[int, int]:
    """First byte and the one behind the last, by RFC 9110, section 14. What is no single range of bytes is ignored.

    Raises:
        RangeNotSatisfiable: the range lies outside of the file.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or found[0] == "bytes=-":
        return 0, size
    first, last = found[1], found[2]
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return 0, size
    if start >= end:
        raise RangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"})
    return start, end
