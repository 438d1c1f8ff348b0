"""The pages for people: the front page, the description of a problem, and the interactive documentation."""

import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html

from app.kernel.errors import meaning_of, problem_classes
from app.kernel.validation.field_codes import FIELD_CODES

# Swagger UI and ReDoc from a package instead of a content delivery network, so that the documentation works offline.
DOCS_ASSETS = Path(fastapi_offline.__file__).parent / "static"
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; worker-src blob:; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

_CODE = re.compile("`([^`]+)`")
_STYLE = (
    "body{font:16px/1.6 system-ui,sans-serif;max-width:44rem;margin:4rem auto;padding:0 1.5rem;color:#1c2430;"
    "background:#fbfaf7}h1{font-size:2rem;margin:0 0 .5rem}a{color:#0b5cad}li{margin:.3rem 0}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0}"
    "pre{white-space:pre-wrap}code{background:#eceae3;padding:.1em .35em;border-radius:.25em}"
    "@media(prefers-color-scheme:dark){body{background:#14181f;color:#e6e8ec}a{color:#7db7ff}code{background:#232a35}}"
)
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
STYLE_SOURCE = f"'sha256-{_STYLE_HASH}'"
PAGE_POLICY = f"default-src 'none'; style-src {STYLE_SOURCE}; frame-ancestors 'none'; base-uri 'none'"


def front_page(product: str, *, docs: bool, mailbox: bool) -> str:
    """What this is, with links to what is switched on."""
    links = [
        ("/console", "see and manage what is yours, or as an administrator all of it"),
        *([("/docs", "try the API in the browser"), ("/redoc", "read its reference")] if docs else []),
        *([("/openapi.json", "its OpenAPI description")] if docs else []),
        *([("/dev/mailbox", "the e-mails sent in development")] if mailbox else []),
        ("/problems", "what its error codes mean"),
        ("/readyz", "whether it is ready"),
        ("/metrics", "what it measures"),
        ("/.well-known/jwks.json", "the public keys of its tokens"),
    ]
    items = "".join(f'<li><a href="{url}"><code>{url}</code></a> - {text}</li>' for url, text in links)
    return page(
        product,
        "<p>Accounts, activity and background jobs in one fast process. The API is under <code>/v1</code>; "
        f"a request makes one hop.</p><ul>{items}</ul>",
    )


def problem_page(code: str) -> str | None:
    """What a problem's `type` link leads to; None if there is no such problem."""
    found = [error_class for error_class in problem_classes() if error_class.code == code]
    if not found:
        return None
    cases = "".join(
        f"<p>{escape(error_class.title)}. Status <code>{error_class.status}</code>, code <code>{code}</code>.</p>"
        f"<p>{_prose(meaning_of(error_class))}</p>"
        for error_class in found
    )
    return page(
        found[0].title,
        f"{cases}<p>The <code>detail</code> and <code>errors</code> of the answer say more about the one case, and its "
        '<code>request_id</code> finds it in the logs.</p><p><a href="/problems">All codes</a></p>',
    )


def problems_page() -> str:
    """Every code with its status, title and meaning."""
    rows = "".join(
        f'<tr><td><a href="/problems/{error_class.code}"><code>{error_class.code}</code></a></td>'
        f"<td>{error_class.status}</td><td>{escape(error_class.title)}</td><td>{_prose(meaning_of(error_class))}</td></tr>"
        for error_class in problem_classes()
    )
    fields = "".join(
        f"<tr><td><code>{code}</code></td><td>{_prose(meaning)}</td></tr>" for code, meaning in FIELD_CODES.items()
    )
    return page(
        "Problems",
        "<p>Every answer of status 400 and above is a problem (RFC 9457). A program branches on its <code>code</code>. "
        "The endpoints of OAuth answer in a form of their own.</p>"
        f"<table><tr><th>Code</th><th>Status</th><th>Title</th><th>Meaning</th></tr>{rows}</table>"
        "<h2>Fields</h2><p>An entry of <code>errors</code> has one of these codes.</p>"
        f"<table><tr><th>Code</th><th>Meaning</th></tr>{fields}</table>",
    )


def problem_catalogue() -> dict[str, Any]:
    """The same as the value of `ProblemCatalogue`."""
    items = [
        {
            "code": error_class.code,
            "status": error_class.status,
            "title": error_class.title,
            "meaning": meaning_of(error_class),
        }
        for error_class in problem_classes()
    ]
    return {"items": items, "fields": [{"code": code, "meaning": meaning} for code, meaning in FIELD_CODES.items()]}


def _prose(text: str) -> str:
    """A text in the way of docstrings, with code between backticks, as HTML."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def swagger_page(product: str) -> str:
    return bytes(
        get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=f"{escape(product)} - API",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon.png",
            oauth2_redirect_url="/docs/oauth2-redirect",
            swagger_ui_parameters={"persistAuthorization": True, "displayRequestDuration": True},
        ).body
    ).decode()


def swagger_redirect_page() -> str:
    return bytes(get_swagger_ui_oauth2_redirect_html().body).decode()


def redoc_page(product: str) -> str:
    return bytes(
        get_redoc_html(
            openapi_url="/openapi.json",
            title=f"{escape(product)} - API",
            redoc_js_url="/docs/assets/redoc.standalone.js",
            redoc_favicon_url="/docs/assets/favicon.png",
            with_google_fonts=False,
        ).body
    ).decode()


def page(title: str, body: str) -> str:
    """A whole page; `body` is HTML."""
    heading = escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{heading}</h1>{body}</html>'
    )
