"""The pages under `/console`."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from app.console import rendering
from app.console.local_api import CallFailed, local_api
from app.console.pages import PAGES, ConsolePage
from app.kernel.auth import Public, principal_of
from app.kernel.errors import AppError, Unauthenticated
from app.kernel.http import Router
from app.kernel.request.principal import Principal
from app.kernel.request.state import state_of
from app.kernel.resources import ResourcesDep

STATIC_FILES = Path(__file__).parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    # What a page shows is its reader's alone, and old a moment later.
    "Cache-Control": "no-store",
    "Vary": "HX-Request",
}

console_router = Router(include_in_schema=False)


@console_router.get("/console/login", dependencies=[Public], response_class=HTMLResponse)
async def open_login(request: Request) -> Response:
    context = {"product": request.app.title, "title": "Log in", "next": _own_path(request.query_params.get("next"))}
    # In production a link would log its reader into the account of its author.
    context["opens_links"] = request.app.state.mailbox is not None
    return HTMLResponse(await rendering.render("login.html", context), headers=_HEADERS)


def _own_path(address: str | None) -> str:
    """Where a log-in leads: never to another site, however its address is spelled."""
    if address is not None and address.startswith(("/console/", "/console?")) and "\\" not in address:
        return address
    return "/console"


def _handler_of(page: ConsolePage) -> Callable[..., Awaitable[Response]]:
    async def show(request: Request, resources: ResourcesDep) -> Response:
        try:
            principal = principal_of(state_of(request.scope))
        except Unauthenticated:
            return _to_login(request)
        if page.is_for_admins and not principal.is_admin:
            return await _failure(request, principal, 403, "This page is for administrators.")
        query = {**request.query_params, **request.path_params}
        try:
            content = await page.load(local_api(request, resources.clock.now()), query)
        except CallFailed as failure:
            if failure.status == HTTPStatus.UNAUTHORIZED:
                return _to_login(request)
            detail = failure.problem.get("detail") or failure.problem.get("title") or "The request failed."
            return await _failure(request, principal, failure.status, detail)
        except AppError as error:
            return await _failure(request, principal, error.status, error.detail or error.title, error.headers)
        context = {**_frame(request, principal), "page": page, "title": page.title, "query": query, **content}
        is_fragment = request.headers.get("hx-request") == "true"
        return HTMLResponse(await rendering.render(page.template, context, is_fragment=is_fragment), headers=_HEADERS)

    show.__name__ = f"show_{page.template.removesuffix('.html')}{'_of_anyone' if page.is_for_admins else ''}"
    return show


for _page in PAGES:
    console_router.get(_page.path, dependencies=[Public], response_class=HTMLResponse)(_handler_of(_page))


def _to_login(request: Request) -> Response:
    address = f"/console/login?next={quote(_address_of(request), safe='')}"
    if request.headers.get("hx-request") == "true":
        # A redirect would put the form into the middle of the page.
        return Response(status_code=204, headers={**_HEADERS, "HX-Redirect": address})
    return RedirectResponse(address, 303, headers=_HEADERS)


def _address_of(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


async def _failure(
    request: Request, principal: Principal, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> Response:
    context = {**_frame(request, principal), "page": None, "title": HTTPStatus(status).phrase, "detail": detail}
    return HTMLResponse(
        await rendering.render("failure.html", context), status, headers={**_HEADERS, **(headers or {})}
    )


def _frame(request: Request, principal: Principal) -> dict[str, Any]:
    """What every page shows around its content."""
    pages = [page for page in PAGES if page.label is not None and (principal.is_admin or not page.is_for_admins)]
    return {
        "product": request.app.title,
        "own_pages": [page for page in pages if not page.is_for_admins],
        "admin_pages": [page for page in pages if page.is_for_admins],
        "has_mailbox": principal.is_admin and request.app.state.mailbox is not None,
        "has_docs": request.app.state.has_docs,
        "here": request.url.path,
        "address": _address_of(request),
    }
