"""The examples of `docs/clients.md` verify our access tokens with the libraries that they are written for."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import jwt
import pytest
from authlib.oauth2.rfc6750 import InsufficientScopeError, InvalidTokenError

from tests.clients.test_generated_clients import NODE_MODULES, node_tool, run
from tests.fixtures.application import ROOT, LiveServer
from tests.fixtures.http import http_client
from tests.fixtures.people import Person, register

# The issuer is the address of the server, as where a reader tries the examples.
pytestmark = [pytest.mark.clients, pytest.mark.slow, pytest.mark.settings(APP_PUBLIC_URL="")]


def examples(language: str, url: str) -> list[str]:
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8").replace("http://127.0.0.1:8000", url)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def tampered(token: str) -> list[str]:
    head, claims, signature = token.split(".")
    return [f"{head}.{claims}.{signature[::-1]}", f"{head}.{claims[:-4]}AAAA.{signature}", "x"]


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated:joserfc.errors.SecurityWarning")
async def test_the_examples_of_the_documentation(live_server: LiveServer, tmp_path: Path) -> None:
    url = await live_server()
    async with http_client(url) as client:
        person = await register(client)
    with_pyjwt, with_authlib = examples("python", url)
    await asyncio.to_thread(use_pyjwt, with_pyjwt, person)
    await asyncio.to_thread(use_authlib, with_authlib, person)
    (with_jose,) = examples("js", url)
    node_tool("tsc")
    await use_jose(with_jose, person, tmp_path)


def use_pyjwt(example: str, person: Person) -> None:
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - it is ours
    token = person.tokens["access_token"]
    assert names["claims_of"](token)["sub"] == str(person.id)
    for wrong in tampered(token):
        with pytest.raises(jwt.InvalidTokenError):
            names["claims_of"](wrong)


def use_authlib(example: str, person: Person) -> None:
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 - it is ours
    validator = names["validator"]
    token = person.tokens["access_token"]
    claims = validator.authenticate_token(token)
    validator.validate_token(claims, ["profile:read events:write"], None)
    with pytest.raises(InsufficientScopeError):
        validator.validate_token(claims, ["admin"], None)
    for wrong in tampered(token):
        with pytest.raises(InvalidTokenError):
            validator.authenticate_token(wrong)
    # Of another issuer, or for another service.
    for issuer, audience in ((validator.issuer + "/other", "onehop"), (validator.issuer, "another")):
        other = names["TokenValidator"](issuer, audience)
        other.get_jwks = validator.get_jwks
        with pytest.raises(InvalidTokenError):
            other.validate_token(other.authenticate_token(token), [], None)


async def use_jose(example: str, person: Person, folder: Path) -> None:
    (folder / "node_modules").symlink_to(NODE_MODULES)
    told = """
const found = [];
for (const token of process.argv.slice(2)) {
  found.push(await claimsOf(token).then((claims) => claims.sub, (error) => error.code));
}
console.log(JSON.stringify(found));
"""
    (folder / "example.mjs").write_text(example + told, encoding="utf-8")
    token = person.tokens["access_token"]
    found = json.loads(await run("node", folder / "example.mjs", token, *tampered(token), cwd=folder))
    assert found[0] == str(person.id)
    assert set(found[1:]) <= {"ERR_JWS_SIGNATURE_VERIFICATION_FAILED", "ERR_JWS_INVALID", "ERR_JWT_INVALID"}
