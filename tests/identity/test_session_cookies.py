"""A browser's session: its cookie does what an access token does, at the same cost, and for no foreign page."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import httpx
import pytest

from app.identity.api import IdentityServices
from app.kernel.auth import SCOPES_OF_ROLE
from app.kernel.resources import Resources
from app.main import Onehop
from tests.fixtures.answers import problem_of
from tests.fixtures.application import Budget, stored
from tests.fixtures.clocks import ManualClock
from tests.fixtures.people import PASSWORD, MakePerson, Person
from tests.fixtures.servers import Connection
from tests.kernel.test_edge import answer_of, parsed

OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
ORIGIN = "http://127.0.0.1:8000"
LIFETIME = "Max-Age=7776000"


def session_cookie(answer: httpx.Response) -> str:
    """`name=value` of the session cookie that an answer sets."""
    (line,) = [line for line in answer.headers.get_list("set-cookie") if line.startswith(("onehop=", "__Host-onehop="))]
    return str(line.partition(";")[0])


Browser = Callable[[Person], Awaitable[dict[str, str]]]


@pytest.fixture
def browser(client: httpx.AsyncClient) -> Browser:
    """Makes a coroutine that logs a person in by cookie; the answer is the headers of its browser's requests."""

    async def log_in(person: Person) -> dict[str, str]:
        body = {"email": person.email, "password": person.password, "transport": "cookie"}
        answer = await client.post("/v1/auth/login", json=body, headers=OWN_PAGE)
        client.cookies.clear()
        assert answer.status_code == 200, answer.text
        return {"Cookie": session_cookie(answer)}

    return log_in


@pytest.mark.parametrize(
    ("settings_of_test", "name", "end"),
    [
        pytest.param("http://127.0.0.1:8000", "onehop", "", marks=pytest.mark.settings()),
        pytest.param(
            "https://api.example.com",
            "__Host-onehop",
            "; Secure",
            marks=pytest.mark.settings(APP_PUBLIC_URL="https://api.example.com"),
        ),
    ],
)
async def test_a_log_in_by_cookie_has_no_tokens_in_its_answer(
    client: httpx.AsyncClient, person: Person, settings_of_test: str, name: str, end: str
) -> None:
    body = {"email": person.email, "password": PASSWORD, "transport": "cookie"}
    answer = await client.post("/v1/auth/login", json=body, headers={"Origin": settings_of_test})
    client.cookies.clear()
    assert set(answer.json()) == {"user"}
    assert answer.json()["user"]["id"] == str(person.id)
    (line,) = [line for line in answer.headers.get_list("set-cookie") if line.startswith(f"{name}=")]
    assert line.partition("; ")[2] == f"HttpOnly; {LIFETIME}; Path=/; SameSite=lax{end}"
    me = await client.get("/v1/users/me", headers={"Cookie": session_cookie(answer)})
    assert me.json()["id"] == str(person.id)


async def test_every_call_that_answers_tokens_can_set_the_cookie_instead(
    client: httpx.AsyncClient, person: Person
) -> None:
    new = {"email": "browser@example.com", "password": PASSWORD, "transport": "cookie"}
    registered = await client.post("/v1/auth/register", json=new)
    client.cookies.clear()
    assert (registered.status_code, set(registered.json())) == (201, {"user"})
    refreshed = await client.post(
        "/v1/auth/refresh", json={"refresh_token": person.tokens["refresh_token"], "transport": "cookie"}
    )
    client.cookies.clear()
    changed = await client.post(
        "/v1/auth/password/change",
        json={"current_password": PASSWORD, "new_password": "a new horse 2026", "transport": "cookie"},
        headers={"Cookie": session_cookie(registered), **OWN_PAGE},
    )
    for answer in (refreshed, changed):
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"expires_in": 14 * 86_400, "scope": person.tokens["scope"]}
    client.cookies.clear()
    owners = [
        (await client.get("/v1/users/me", headers={"Cookie": session_cookie(answer)})).json()["id"]
        for answer in (refreshed, changed)
    ]
    assert owners == [str(person.id), registered.json()["user"]["id"]]
    # Of the session that the change has ended.
    problem_of(await client.get("/v1/users/me", headers={"Cookie": session_cookie(registered)}), 401, "token_revoked")


async def test_a_cookie_seen_before_costs_no_statement(
    app: Onehop, client: httpx.AsyncClient, person: Person, browser: Browser, budget: Budget, resources: Resources
) -> None:
    headers = await browser(person) | {"X-Other": "1"}
    headers["Cookie"] = f"theme=dark; {headers['Cookie']}; lang=en"
    with budget(2) as seen:
        assert (await client.get("/v1/auth/sessions", headers={**headers, "Cookie": "onehop=sc_x"})).status_code == 401
        first = await client.get("/v1/users/me", headers=headers)
    assert [statement.label for statement in seen] == ["identity.use_session", "users.read_profile"]
    assert first.json()["id"] == str(person.id)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/users/me",
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"cookie", headers["Cookie"].encode())],
    }
    await stored(app)
    assert answer_of(app, scope) is not None
    calls = resources.redis.calls
    with budget(0):
        answers = [await client.get("/v1/users/me", headers=headers) for _ in range(3)]
        finished = answer_of(app, scope)
    assert resources.redis.calls == calls
    assert finished is not None
    assert {answer.content for answer in answers} == {parsed(finished)[2]} == {first.content}
    # What is known of the request itself is found again by its bytes.
    assert app.edge is not None
    assert app.edge.repeatable(scope) is not None
    with budget(1) as seen:
        assert (await client.get("/v1/auth/mfa", headers=headers)).status_code == 200
    assert [statement.label for statement in seen] == ["identity.totp"]


FOREIGN = [
    {},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:8000.evil.example"},
    {"Origin": "http://127.0.0.1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://evil.127.0.0.1:8000"},
    {"Sec-Fetch-Site": "none"},
    {"Referer": f"{ORIGIN}/"},
]


async def test_a_foreign_page_cannot_act_with_the_cookie(
    client: httpx.AsyncClient, person: Person, browser: Browser, connection: Connection
) -> None:
    headers = await browser(person)
    requests = [
        ("PATCH", "/v1/users/me", {"bio": "hacked"}),
        ("POST", "/v1/auth/logout", None),
        ("DELETE", f"/v1/auth/sessions/{UUID(int=1)}", None),
        ("POST", "/v1/auth/login", {"email": person.email, "password": PASSWORD}),
        ("PUT", "/v1/users/me/preferences", {"theme": "dark"}),
    ]
    # With a cookie that was seen before, and with one that was not.
    for _ in range(2):
        for foreign in FOREIGN:
            for method, path, body in requests:
                answer = await client.request(method, path, json=body, headers=headers | foreign)
                problem_of(answer, 403, "csrf_rejected")
        assert (await client.get("/v1/users/me", headers=headers | FOREIGN[1])).json()["bio"] is None
    revoked = await client.post("/v1/auth/revoke", data={"token": "x"}, headers=headers)
    assert (revoked.status_code, set(revoked.json())) == (403, {"error", "error_description"})
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE revoked_at IS NOT NULL") == 0


@pytest.mark.parametrize(
    "own",
    [OWN_PAGE, {"Origin": ORIGIN}, {"Sec-Fetch-Site": "same-site", "Origin": ORIGIN}],
)
async def test_an_own_page_can(
    client: httpx.AsyncClient, person: Person, browser: Browser, own: dict[str, str]
) -> None:
    headers = await browser(person) | own
    answer = await client.patch("/v1/users/me", json={"bio": "mine"}, headers=headers)
    assert answer.json()["bio"] == "mine"


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://app.example.com", APP_HTTP_CORS_CREDENTIALS="true")
async def test_a_configured_origin_can(client: httpx.AsyncClient, person: Person, browser: Browser) -> None:
    headers = await browser(person) | {"Origin": "https://app.example.com", "Sec-Fetch-Site": "same-site"}
    answer = await client.patch("/v1/users/me", json={"bio": "mine"}, headers=headers)
    assert answer.json()["bio"] == "mine"
    assert answer.headers["access-control-allow-credentials"] == "true"
    other = {"Origin": "https://other.example.com", "Sec-Fetch-Site": "same-site"}
    problem_of(await client.patch("/v1/users/me", json={}, headers=headers | other), 403, "csrf_rejected")


@pytest.mark.settings(APP_HTTP_CORS_ORIGINS="https://app.example.com")
async def test_an_origin_that_may_send_no_credentials_cannot(
    client: httpx.AsyncClient, person: Person, browser: Browser
) -> None:
    headers = await browser(person) | {"Origin": "https://app.example.com", "Sec-Fetch-Site": "same-site"}
    problem_of(await client.patch("/v1/users/me", json={}, headers=headers), 403, "csrf_rejected")


async def test_a_foreign_page_cannot_log_a_browser_in(
    client: httpx.AsyncClient, person: Person, connection: Connection
) -> None:
    body = {"email": person.email, "password": PASSWORD, "transport": "cookie"}
    for foreign in FOREIGN[1:-1]:
        problem_of(await client.post("/v1/auth/login", json=body, headers=foreign), 403, "csrf_rejected")
    assert await connection.fetchval("SELECT count(*) FROM identity.sessions WHERE user_id = $1", person.id) == 1


async def test_a_cookie_that_was_planted_is_not_taken_over(
    client: httpx.AsyncClient, make_person: MakePerson, browser: Browser
) -> None:
    victim, attacker = await make_person(), await make_person()
    planted = await browser(attacker)
    body = {"email": victim.email, "password": PASSWORD, "transport": "cookie"}
    answer = await client.post("/v1/auth/login", json=body, headers=planted | OWN_PAGE)
    client.cookies.clear()
    cookie = session_cookie(answer)
    assert cookie != planted["Cookie"]
    owners = [
        (await client.get("/v1/users/me", headers={"Cookie": each})).json()["id"]
        for each in (cookie, planted["Cookie"])
    ]
    assert owners == [str(victim.id), str(attacker.id)]


async def test_two_session_cookies_are_refused(
    client: httpx.AsyncClient, make_person: MakePerson, browser: Browser
) -> None:
    one, other = [(await browser(await make_person()))["Cookie"] for _ in range(2)]
    for cookie in (one, other):
        assert (await client.get("/v1/users/me", headers={"Cookie": cookie})).status_code == 200
    for cookies in (f"{one}; {other}", f"{one};{other}", f"{one}; {one}", f"{one}; onehop="):
        problem_of(await client.get("/v1/users/me", headers={"Cookie": cookies}), 400, "repeated_cookie")
    lines = [("Cookie", one), ("Cookie", other)]
    problem_of(await client.get("/v1/users/me", headers=lines), 400, "repeated_cookie")


@pytest.mark.parametrize("wrong", ["x{}", "{}x", "Onehop={value}", "onehop_device={value}", '{name}="{value}"'])
async def test_nothing_else_is_taken_for_the_cookie(
    client: httpx.AsyncClient, person: Person, browser: Browser, wrong: str
) -> None:
    cookie = (await browser(person))["Cookie"]
    name, _, value = cookie.partition("=")
    assert (await client.get("/v1/users/me", headers={"Cookie": cookie})).status_code == 200
    text = wrong.format(cookie, name=name, value=value)
    assert (await client.get("/v1/users/me", headers={"Cookie": text})).status_code == 401
    # Nor is it a bearer token, or a bearer token a cookie.
    for header in (value, f"Bearer {value}", f"\t{value}"):
        assert (await client.get("/v1/users/me", headers={"Authorization": header})).status_code == 401
    for token in (person.tokens["access_token"], person.tokens["refresh_token"]):
        assert (await client.get("/v1/users/me", headers={"Cookie": f"onehop={token}"})).status_code == 401


async def test_an_authorization_header_hides_the_cookie(
    client: httpx.AsyncClient, make_person: MakePerson, browser: Browser
) -> None:
    by_cookie, by_token = await make_person(), await make_person()
    headers = await browser(by_cookie)
    both = headers | by_token.headers
    assert (await client.get("/v1/users/me", headers=both)).json()["id"] == str(by_token.id)
    # As the cookie is not looked at, the page it comes from does not matter.
    assert (await client.patch("/v1/users/me", json={"bio": "x"}, headers=both | FOREIGN[1])).status_code == 200
    assert (await client.post("/v1/auth/logout", headers=both)).status_code == 204
    problem_of(await client.get("/v1/users/me", headers=both), 401, "token_revoked")
    assert (await client.get("/v1/users/me", headers=headers)).json()["bio"] is None
    for header in ("Basic YTpi", "Bearer x", "x"):
        answer = await client.get("/v1/users/me", headers=headers | {"Authorization": header})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("cookies", "is_beside_a_token", "read", "written"),
    [
        ("", False, "unauthenticated", "unauthenticated"),
        ("theme=dark", False, "unauthenticated", "unauthenticated"),
        ("{one}", False, "", "csrf_rejected"),
        ("theme=dark; {one}; lang=en", False, "", "csrf_rejected"),
        ("{one}; {other}", False, "repeated_cookie", "repeated_cookie"),
        ("{one}; theme=dark; {other}", False, "repeated_cookie", "repeated_cookie"),
        ("onehop=", False, "invalid_token", "csrf_rejected"),
        ("theme=dark", True, "", ""),
        ("{one}", True, "", ""),
        ("{one}; {other}", True, "", ""),
    ],
)
async def test_a_request_is_judged_by_the_cookie_only_if_that_names_its_caller(
    client: httpx.AsyncClient,
    make_person: MakePerson,
    browser: Browser,
    cookies: str,
    is_beside_a_token: bool,
    read: str,
    written: str,
) -> None:
    owner, other, by_token = [await make_person() for _ in range(3)]
    one, two = [(await browser(person))["Cookie"] for person in (owner, other)]
    headers = {"Cookie": cookies.format(one=one, other=two)} | (by_token.headers if is_beside_a_token else {})
    for method, code in (("GET", read), ("PATCH", written)):
        answer = await client.request(
            method, "/v1/users/me", json=None if method == "GET" else {"bio": "x"}, headers=headers | FOREIGN[1]
        )
        if code:
            assert answer.json()["code"] == code
        else:
            assert answer.json()["id"] == str(by_token.id if is_beside_a_token else owner.id)
    assert (await owner.get("/v1/users/me")).json()["bio"] is None
    assert (await other.get("/v1/users/me")).json()["bio"] is None


async def test_a_log_out_ends_the_session_and_forgets_the_cookie(
    client: httpx.AsyncClient, person: Person, browser: Browser
) -> None:
    headers = await browser(person)
    assert (await client.get("/v1/overview", headers=headers)).status_code == 200
    answer = await client.post("/v1/auth/logout", headers=headers | OWN_PAGE)
    assert answer.status_code == 204
    (line,) = answer.headers.get_list("set-cookie")
    assert line.startswith('onehop=""; expires=')
    assert "; Max-Age=0; Path=/" in line
    problem_of(await client.get("/v1/overview", headers=headers), 401, "token_revoked")
    again = await client.post("/v1/auth/logout", headers=headers | OWN_PAGE)
    assert again.status_code == 204
    assert (await person.get("/v1/users/me")).status_code == 200


async def test_whatever_ends_the_session_forgets_the_cookie(
    client: httpx.AsyncClient, person: Person, browser: Browser
) -> None:
    calls = [
        ("POST", "/v1/auth/logout-all", {"keep_current": True}, False),
        ("POST", "/v1/auth/logout-all", None, True),
        ("DELETE", "/v1/auth/sessions/{other}", None, False),
        ("DELETE", "/v1/auth/sessions/{own}", None, True),
        ("POST", "/v1/auth/password/change", {"current_password": PASSWORD, "new_password": PASSWORD}, True),
        ("DELETE", "/v1/users/me", {"current_password": PASSWORD}, True),
    ]
    for method, path, body, is_forgotten in calls:
        await browser(person)
        headers = await browser(person) | OWN_PAGE
        sessions = (await client.get("/v1/auth/sessions", headers=headers)).json()["items"]
        (own,) = [session["id"] for session in sessions if session["current"]]
        other = next(session["id"] for session in sessions if not session["current"])
        answer = await client.request(method, path.format(own=own, other=other), json=body, headers=headers)
        client.cookies.clear()
        assert answer.is_success, answer.text
        cleared = [line for line in answer.headers.get_list("set-cookie") if line.startswith('onehop=""')]
        assert len(cleared) == is_forgotten
        alive = await client.get("/v1/users/me", headers=headers)
        assert alive.status_code == (401 if is_forgotten else 200)


async def test_the_session_goes_on_while_it_is_used_and_ends_when_it_is_not(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, browser: Browser, connection: Connection
) -> None:
    headers = await browser(person)
    for _ in range(3):
        clock.advance(13 * 86_400)
        assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
    extended = await client.post("/v1/auth/refresh", json={"transport": "cookie"}, headers=headers | OWN_PAGE)
    assert extended.json() == {"expires_in": 14 * 86_400, "scope": person.tokens["scope"]}
    assert session_cookie(extended) == headers["Cookie"]
    ends = await connection.fetchval("SELECT max(idle_expires_at) FROM identity.sessions")
    assert abs(ends - clock.now() - timedelta(days=14)) < timedelta(seconds=5)
    clock.advance(14 * 86_400)
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 401
    for credential in (headers, {}, {"Cookie": "onehop=sc_x"}, {"Authorization": "Bearer x"}):
        answer = await client.post("/v1/auth/refresh", json={"transport": "cookie"}, headers=credential | OWN_PAGE)
        problem_of(answer, 401, "invalid_refresh_token")


async def test_a_session_near_its_end_says_when_it_ends(
    clock: ManualClock, client: httpx.AsyncClient, person: Person, browser: Browser, connection: Connection
) -> None:
    headers = await browser(person) | OWN_PAGE
    await connection.execute("UPDATE identity.sessions SET expires_at = $1", clock.now() + timedelta(seconds=90))
    clock.advance(30)
    bodies: list[dict[str, object]] = [{}, {"refresh_token": person.tokens["refresh_token"]}]
    for body in bodies:
        answer = await client.post("/v1/auth/refresh", json=body | {"transport": "cookie"}, headers=headers)
        client.cookies.clear()
        assert answer.status_code == 200, answer.text
        assert 0 < answer.json()["expires_in"] <= 60


async def test_another_role_is_seen_at_once_without_a_new_log_in(
    client: httpx.AsyncClient, admin: Person, person: Person, browser: Browser
) -> None:
    headers = await browser(person)
    problem_of(await client.get("/v1/admin/users", headers=headers), 403, "insufficient_scope")
    assert (await admin.patch(f"/v1/admin/users/{person.id}", json={"role": "admin"})).status_code == 200
    assert (await client.get("/v1/admin/users", headers=headers)).status_code == 200
    assert (await admin.patch(f"/v1/admin/users/{person.id}", json={"role": "user"})).status_code == 200
    problem_of(await client.get("/v1/admin/users", headers=headers), 403, "insufficient_scope")


async def test_a_narrowed_session_stays_narrow_in_a_cookie(client: httpx.AsyncClient, person: Person) -> None:
    form = {"grant_type": "password", "username": person.email, "password": PASSWORD, "scope": "profile:read"}
    tokens = (await client.post("/v1/auth/token", data=form)).json()
    answer = await client.post(
        "/v1/auth/refresh", json={"refresh_token": tokens["refresh_token"], "transport": "cookie"}
    )
    assert answer.json()["scope"] == "profile:read"
    headers = {"Cookie": session_cookie(answer)}
    assert (await client.get("/v1/users/me", headers=headers)).status_code == 200
    problem_of(await client.get("/v1/overview", headers=headers), 403, "insufficient_scope")
    problem_of(await client.get("/v1/auth/sessions", headers=headers), 403, "session_required")


async def test_the_caller_is_told_what_its_credential_says(
    client: httpx.AsyncClient, person: Person, browser: Browser, clock: ManualClock, connection: Connection
) -> None:
    headers = await browser(person)
    told = (await client.get("/v1/auth/session", headers=headers)).json()
    row = await connection.fetchrow("SELECT * FROM identity.sessions WHERE id = $1", UUID(told["session_id"]))
    assert row is not None
    assert told == {
        "user_id": str(person.id),
        "session_id": str(row["id"]),
        "roles": ["user"],
        "scopes": sorted(SCOPES_OF_ROLE["user"]),
        "expires_at": row["idle_expires_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "authenticated_at": row["authenticated_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "methods": ["pwd"],
    }
    own = (await person.get("/v1/auth/session")).json()
    assert own["session_id"] != told["session_id"]
    assert own["scopes"] == told["scopes"]
    key = (await person.post("/v1/auth/api-keys", json={"name": "k", "scopes": ["profile:read"]})).json()["key"]
    assert (await client.get("/v1/auth/session", headers={"Authorization": f"Bearer {key}"})).json() == {
        "user_id": str(person.id),
        "session_id": None,
        "roles": ["user"],
        "scopes": ["profile:read"],
        "expires_at": None,
        "authenticated_at": None,
        "methods": [],
    }


async def test_the_cookie_holds_only_for_this_installation(
    client: httpx.AsyncClient, person: Person, browser: Browser, identity: IdentityServices
) -> None:
    cookie = (await browser(person))["Cookie"]
    value = cookie.partition("=")[2]
    session = identity.cookies.decode(value)
    assert (session.user_id, session.generation, session.scopes) == (person.id, 0, None)
    # A refresh token of the same words is none, because each has a key of its own.
    body = {"refresh_token": value.replace("sc_", "rt_")}
    problem_of(await client.post("/v1/auth/refresh", json=body), 401, "invalid_refresh_token")
    for number in range(4, len(value), 7):
        forged = value[:number] + ("A" if value[number] != "A" else "B") + value[number + 1 :]
        answer = await client.get("/v1/users/me", headers={"Cookie": f"onehop={forged}"})
        problem_of(answer, 401, "invalid_token")
