"""The overview: what a client shows first, composed from the modules in two statements on one connection."""

from dataclasses import dataclass

from app.jobs import api as jobs
from app.kernel.database import Database
from app.kernel.errors import NotFound
from app.kernel.ids import UserId
from app.users import api as users


@dataclass(frozen=True, slots=True)
class Overview:
    """What the modules contribute."""

    person: users.OverviewPart
    work: jobs.Overview


async def read_overview(db: Database, user_id: UserId) -> Overview:
    """User, preferences, newest events and jobs of one person.

    Raises:
        NotFound: the account no longer exists.
    """
    async with db.read("core.overview") as conn:
        person = await users.read_overview(conn, user_id)
        if person is None:
            raise NotFound
        return Overview(person, await jobs.read_overview(conn, user_id))
