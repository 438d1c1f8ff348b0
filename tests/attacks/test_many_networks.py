"""A client whose provider gives it many networks of IPv6 is braked like one with many addresses of IPv4."""

import httpx
import pytest

from tests.fixtures.answers import problem_of

SITES = [
    ("198.51.100.{}", "198.51.101.{}"),
    ("2001:db8:7:{}::1", "2001:db8:8:{}::1"),
]


@pytest.mark.settings(APP_HTTP_TRUSTED_PROXIES="127.0.0.1/32", APP_IDENTITY_NETWORK_REGISTRATIONS="2")
@pytest.mark.parametrize(("own", "other"), SITES)
async def test_networks_of_one_site_share_a_quota(client: httpx.AsyncClient, own: str, other: str) -> None:
    async def ask(address: str, number: int) -> httpx.Response:
        body = {"email": f"person{number}@example.net"}
        return await client.post("/v1/auth/email/resend", json=body, headers={"X-Forwarded-For": address})

    # Four times what one of them may.
    for number in range(1, 9):
        assert (await ask(own.format(number), number)).status_code == 202
    problem_of(await ask(own.format(9), 9), 429, "too_many_attempts")
    assert (await ask(other.format(1), 10)).status_code == 202


@pytest.mark.settings(APP_HTTP_TRUSTED_PROXIES="127.0.0.1/32", APP_IDENTITY_NETWORK_FAILURES="2")
@pytest.mark.parametrize(("own", "other"), SITES)
async def test_log_ins_from_one_site_share_a_quota(client: httpx.AsyncClient, own: str, other: str) -> None:
    async def guess(address: str, number: int) -> httpx.Response:
        body = {"email": f"person{number}@example.net", "password": "not it at all"}
        return await client.post("/v1/auth/login", json=body, headers={"X-Forwarded-For": address})

    for number in range(1, 9):
        problem_of(await guess(own.format(number), number), 401, "invalid_credentials")
    problem_of(await guess(own.format(9), 9), 429, "too_many_attempts")
    problem_of(await guess(other.format(1), 10), 401, "invalid_credentials")
