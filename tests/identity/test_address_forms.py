"""One account for all spellings of an address, wherever it comes in."""

from urllib.parse import quote

import httpx
import pytest

from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.identity.conftest import Mailbox

SPELLINGS = ["k@xn--mller-kva.de", "K@MÜLLER.de", "k@mu\u0308ller.de", "k@müller\u3002de", "k@\uff4düller.de"]


@pytest.mark.parametrize("registered", SPELLINGS)
async def test_an_account_is_found_by_every_spelling(
    client: httpx.AsyncClient, make_person: MakePerson, admin: Person, registered: str
) -> None:
    person = await make_person(email=registered)
    for spelling in SPELLINGS:
        login = await client.post("/v1/auth/login", json={"email": spelling, "password": PASSWORD})
        assert (login.status_code, login.json()["user"]["id"]) == (200, str(person.id)), spelling
        form = {"grant_type": "password", "username": spelling, "password": PASSWORD}
        assert (await client.post("/v1/auth/token", data=form)).status_code == 200
        again = await client.post("/v1/auth/register", json={"email": spelling, "password": PASSWORD})
        assert (again.status_code, again.json()["code"]) == (409, "email_taken")
        found = (await admin.get(f"/v1/admin/users?q={quote(spelling)}")).json()["items"]
        assert [account["id"] for account in found] == [str(person.id)], spelling


async def test_a_reset_is_found_by_every_spelling(
    client: httpx.AsyncClient, make_person: MakePerson, mailbox: Mailbox, connection: Connection
) -> None:
    person = await make_person(email=SPELLINGS[1])
    for number, spelling in enumerate(SPELLINGS, 1):
        await client.post("/v1/auth/password/forgot", json={"email": spelling})
        await mailbox.letter("K@xn--mller-kva.de", "Set a new password", number=number)
    assert await connection.fetchval("SELECT email FROM identity.accounts WHERE user_id = $1", person.id) == (
        "K@müller.de"
    )
