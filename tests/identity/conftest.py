"""Letters that arrive, time that a test decides, administrators, and log-ins of everybody."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import FastAPI

from app.composition import make_resources
from app.identity.api import IdentityServices
from app.kernel.resources import Resources
from app.settings import Settings
from app.worker import Worker, open_worker
from tests.fixtures import people
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import MakePerson, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually


@dataclass(frozen=True)
class Letter:
    """An e-mail as its reader sees it."""

    to: str
    subject: str
    text: str
    html: str
    id: str

    @property
    def token(self) -> str:
        """What the link of the letter carries."""
        (link,) = re.findall(r"https?://\S+", self.text)
        return str(parse_qs(urlsplit(link).query)["token"][0])

    @property
    def code(self) -> str:
        """The six digits that stand in a line of their own."""
        (code,) = re.findall(r"^(\d{6})\r?$", self.text, re.MULTILINE)
        return str(code)


class Mailbox:
    """The development mailbox."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def letters(self, to: str) -> list[Letter]:
        """All to this address, the oldest first."""
        found = []
        for file in self._folder.glob("*.eml"):
            # The purge of an account deletes its messages meanwhile.
            with suppress(FileNotFoundError):
                found.append((file.stat().st_mtime_ns, file.read_bytes()))
        letters = [_letter(message_from_bytes(content, policy=policy.default)) for _, content in sorted(found)]
        return [letter for letter in letters if letter.to == to]

    async def letter(self, to: str, subject: str, *, number: int = 1) -> Letter:
        """The `number`th letter of this subject to this address, once it has come."""
        found: list[Letter] = []

        def has_come() -> bool:
            found[:] = [letter for letter in self.letters(to) if letter.subject == subject]
            return len(found) >= number

        await eventually(has_come)
        return found[number - 1]


def _letter(message: EmailMessage) -> Letter:
    parts = {part.get_content_type(): part.get_content() for part in message.walk() if not part.is_multipart()}
    return Letter(
        message["To"], message["Subject"], parts["text/plain"], parts["text/html"], message["Message-ID"].strip("<>")
    )


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    """A worker of this test, in its process."""
    jobs = settings.jobs.model_copy(update={"drain": 0.1})
    async with open_worker(settings.model_copy(update={"jobs": jobs})) as worker:
        yield worker


@pytest.fixture
def mailbox(settings: Settings, worker: Worker) -> Mailbox:
    return Mailbox(settings.data_dir / "mailbox")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of the application and the worker; a test names this fixture before `client` and `mailbox`."""
    clock = ManualClock(datetime.now(UTC))
    for program in ("app.main", "app.worker"):
        monkeypatch.setattr(f"{program}.make_resources", partial(make_resources, clock=clock))
    return clock


@pytest.fixture
def identity(app: FastAPI) -> IdentityServices:
    """What the process under test holds."""
    identity: IdentityServices = app.state.identity
    return identity


LogIn = Callable[..., Awaitable[Person]]


@pytest.fixture
def log_in() -> LogIn:
    """The coroutine that opens one more session of a user; fields go into the request."""
    return people.log_in


@pytest.fixture
async def admin(make_person: MakePerson, connection: Connection) -> Person:
    return await people.make_admin(await make_person(email="admin@example.com"), connection)


@pytest.fixture
def resources(app: FastAPI) -> Resources:
    """What the process under test shares."""
    resources: Resources = app.state.resources
    return resources
