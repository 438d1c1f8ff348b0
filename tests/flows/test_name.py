"""The product's name is for people alone: what was made under one name is good under another."""

import asyncio
import re
from email import message_from_bytes, policy

import httpx
import pyotp

from app.jobs.api import JOB_KINDS
from app.main import create_app
from app.settings import load_settings
from app.worker import open_worker
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.kernel.conftest import client_of

NAME = "Ärger & Söhne"


async def test_another_name_opens_what_the_first_has_sealed(
    client: httpx.AsyncClient, person: Person, environment: dict[str, str], connection: Connection
) -> None:
    """Tokens, seeds, secrets of webhooks, API keys and links, which keys derived from the secret sign or seal."""
    seed = (await person.post("/v1/auth/mfa/totp")).json()["secret"]
    codes = (await person.post("/v1/auth/mfa/totp/activate", json={"code": pyotp.TOTP(seed).now()})).json()
    key = (await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    endpoint = {"url": "https://93.184.216.34/hook", "event_types": ["*"]}
    endpoint_id = (await person.post("/v1/webhooks/endpoints", json=endpoint)).json()["id"]

    settings = load_settings(environment | {"APP_NAME": NAME})
    # It looks for the files of the documentation.
    application = await asyncio.to_thread(create_app, settings)
    async with client_of(application) as renamed:
        assert (await renamed.get("/v1/users/me", headers=person.headers)).status_code == 200
        assert (await renamed.get("/v1/users/me", headers={"Authorization": f"Bearer {key}"})).status_code == 200
        refreshed = await renamed.post("/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
        assert refreshed.status_code == 200
        login = await renamed.post("/v1/auth/login", json={"email": person.email, "password": PASSWORD})
        code = {"mfa_token": login.json()["mfa_token"], "code": codes["recovery_codes"][0]}
        verified = await renamed.post("/v1/auth/mfa/verify", json=code)
        assert verified.status_code == 200
        assert "onehop_device=" in verified.headers["set-cookie"]
        headers = {"Authorization": f"Bearer {verified.json()['tokens']['access_token']}"}
        tested = await renamed.post(f"/v1/webhooks/endpoints/{endpoint_id}/test", headers=headers)
        assert tested.status_code == 202
        # The sealed seed is opened by its code, and another one is shown under the new name.
        ended = await renamed.request(
            "DELETE", "/v1/auth/mfa/totp", headers=headers, json={"current_password": PASSWORD}
        )
        assert ended.is_success, ended.text
        enrolment = (await renamed.post("/v1/auth/mfa/totp", headers=headers)).json()
        assert pyotp.parse_uri(enrolment["otpauth_uri"]).issuer == NAME

        assert "<h1>Ärger &amp; Söhne</h1>" in (await renamed.get("/")).text
        assert "<title>Ärger &amp; Söhne - API</title>" in (await renamed.get("/docs")).text
        assert (await renamed.get("/openapi.json")).json()["info"]["title"] == NAME
        problem = (await renamed.get("/v1/nothing")).json()
        assert problem["instance"].startswith("urn:onehop:request:")

    await connection.execute("DELETE FROM jobs.jobs")
    await client.post("/v1/auth/password/forgot", json={"email": person.email})
    folder = settings.data_dir / "mailbox"
    async with open_worker(settings, JOB_KINDS):
        await eventually(lambda: any(folder.glob("*.eml")))
    (mail,) = (message_from_bytes(file.read_bytes(), policy=policy.default) for file in folder.glob("*.eml"))
    assert mail["From"].addresses[0].display_name == NAME
    assert mail["From"].addresses[0].addr_spec == "no-reply@onehop.example"
    texts = [part.get_content() for part in mail.walk() if part.get_content_maintype() == "text"]
    assert all(re.search("your Ärger &(amp;)? Söhne account", text) for text in texts)
    assert not any("Onehop" in text for text in texts)
