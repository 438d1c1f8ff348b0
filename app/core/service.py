"""The overview: what a client shows first, composed from the modules in two statements for all clients of a moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.jobs import api as jobs
from app.kernel.batching.point_reads import PointReads
from app.kernel.database import ReadConn
from app.kernel.errors import NotFound
from app.kernel.ids import UserId
from app.users import api as users


@dataclass(frozen=True, slots=True)
class Overview:
    """What the modules contribute."""

    person: users.OverviewPart
    work: jobs.JobOverview


async def read_overview(reads: PointReads, user_id: UserId) -> Overview:
    """User, preferences, newest events and jobs of one person.

    Raises:
        NotFound: the account no longer exists.
    """
    overview = await reads.get("core.overview", _list_overviews, user_id)
    if overview is None:
        raise NotFound
    return overview


async def _list_overviews(conn: ReadConn, user_ids: Sequence[UserId]) -> Mapping[UserId, Overview]:
    people = await users.list_overviews(conn, user_ids)
    work = await jobs.list_overviews(conn, list(people))
    return {user_id: Overview(person, work[user_id]) for user_id, person in people.items()}
