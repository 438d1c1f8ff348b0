"""A path has one spelling, so that a proxy's rule for it holds for every way to write it."""

from tests.attacks.conftest import RawClient
from tests.fixtures.people import Person

_AMBIGUOUS = [
    "/%6detrics",
    "/%6Detrics",
    "/metric%73",
    "/%6D%65%74%72%69%63%73",
    "/%76%31/overview",
    "/v1%2Foverview",
    "/v1%2foverview",
    "/v1/%6fverview",
    "/v1/admin%2Fusers",
    "/v1/%61dmin/users",
    "/v1/admin/user%73?limit=1",
    "/v1/users/m%65",
    "/v1/jobs%5C",
    "/%2e/metrics",
    "/v1/%2E%2e/metrics",
    "/docs/assets/%61.css",
    "/%7Enowhere",
    "/nowhere%2D",
    "/now%5Fhere",
    "/%30",
    "/v1/jobs/0198f000-0000-7000-8000-00000000000%30",
]


async def test_an_encoded_character_that_needs_no_encoding_is_refused(raw: RawClient, person: Person) -> None:
    token = [("Authorization", person.headers["Authorization"])]
    assert (await raw.request("GET", "/v1/overview", token)).status == 200
    for target in _AMBIGUOUS:
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
            answer = await raw.request(method, target, token)
            assert answer.status == 400, (method, target)
            if method != "HEAD":
                assert b'"code":"ambiguous_path"' in answer.body


async def test_what_needs_encoding_is_taken(raw: RawClient) -> None:
    for target in ("/nowhere%20here", "/caf%C3%A9", "/a%25b", "/a%3Fb", "/a%23b", "/%256detrics"):
        assert (await raw.request("GET", target)).status == 404
    for target in ("/%ff", "/%", "/%zz", "/docs/assets/%ff", "/%6", "/v1/%C0%AF"):
        assert (await raw.request("GET", target)).status == 400
    # Of a query no proxy compares the spelling, and clients encode more than they must.
    assert (await raw.request("GET", "/verify-email?t%6Fken=%61")).status == 200


async def test_the_server_as_a_whole_has_options(raw: RawClient) -> None:
    if raw.server == "serve":
        answer = await raw.request("OPTIONS", "*")
        assert (answer.status, answer.body, answer.headers["allow"]) == (
            204,
            b"",
            "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT",
        )
        assert (await raw.request("GET", "*")).status == 400
    # Of a path like any other.
    assert (await raw.request("OPTIONS", "/*")).status == 404


async def test_other_spellings_lead_nowhere(raw: RawClient) -> None:
    for target in ("//metrics", "/./metrics", "/v1/../metrics", "/METRICS", "/metrics/", "/metrics;a", "/metrics\\"):
        assert (await raw.request("GET", target)).status in (400, 404)
    if raw.server == "serve":
        # uvicorn's own protocol takes the fragment away before the application sees the target.
        assert (await raw.request("GET", "/metrics#a")).status == 400
