"""Finished files, for their owner."""

from collections.abc import AsyncIterator
from uuid import UUID

from app.jobs.errors import ArtifactExpired, ArtifactNotFound
from app.jobs.queries import submitting as queries
from app.jobs.records import Artifact
from app.jobs.service.storage import ArtifactStore
from app.kernel.database import Database
from app.kernel.ids import UserId


async def get_artifact(db: Database, job_id: UUID, user_id: UserId, name: str) -> Artifact:
    """Raises ArtifactNotFound, also for another user's job, or ArtifactExpired."""
    async with db.read("jobs.artifact") as conn:
        artifact = await queries.get_artifact(conn, job_id, user_id, name)
    if artifact is None:
        raise ArtifactNotFound
    if artifact.is_expired:
        raise ArtifactExpired
    return artifact


async def open_artifact(store: ArtifactStore, artifact: Artifact, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes from `start` up to, not including, `end`.

    Raises:
        ArtifactExpired: the file is gone although its row is there.
    """
    if start >= end:
        return _nothing()
    try:
        return await store.open(artifact.storage_key, start, end)
    except FileNotFoundError as error:
        raise ArtifactExpired from error


async def _nothing() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for chunk in nothing:
        yield chunk
