"""The pages for people: the front page, the description of a problem, and the interactive documentation."""

from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

import fastapi_offline
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html

from app.kernel.errors import AppError

# Swagger UI and ReDoc from a package instead of a content delivery network, so that the documentation works offline.
DOCS_ASSETS = Path(fastapi_offline.__file__).parent / "static"
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; worker-src blob:; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

_STYLE = (
    "body{font:16px/1.6 system-ui,sans-serif;max-width:44rem;margin:4rem auto;padding:0 1.5rem;color:#1c2430;"
    "background:#fbfaf7}h1{font-size:2rem;margin:0 0 .5rem}a{color:#0b5cad}li{margin:.3rem 0}"
    "pre{white-space:pre-wrap}code{background:#eceae3;padding:.1em .35em;border-radius:.25em}"
    "@media(prefers-color-scheme:dark){body{background:#14181f;color:#e6e8ec}a{color:#7db7ff}code{background:#232a35}}"
)
_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
STYLE_SOURCE = f"'sha256-{_STYLE_HASH}'"
PAGE_POLICY = f"default-src 'none'; style-src {STYLE_SOURCE}; frame-ancestors 'none'; base-uri 'none'"


def front_page(product: str, *, docs: bool, mailbox: bool) -> str:
    """What this is, with links to what is switched on."""
    links = [
        *([("/docs", "try the API in the browser"), ("/redoc", "read its reference")] if docs else []),
        *([("/openapi.json", "its OpenAPI description")] if docs else []),
        *([("/dev/mailbox", "the e-mails sent in development")] if mailbox else []),
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
    error_class = _problem_classes().get(code)
    if error_class is None:
        return None
    explanation = (error_class.__doc__ or "").strip()
    details = f"<p>{escape(explanation)}</p>" if explanation else ""
    return page(
        error_class.title,
        f"<p>Status <code>{error_class.status}</code>, code <code>{escape(code)}</code>.</p>{details}"
        "<p>The <code>detail</code> and <code>errors</code> of the answer say more about the one case, and its "
        "<code>request_id</code> finds it in the logs.</p>",
    )


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


def _problem_classes() -> dict[str, type[AppError]]:
    found: dict[str, type[AppError]] = {}
    waiting: list[type[AppError]] = [AppError]
    while waiting:
        error_class = waiting.pop()
        found.setdefault(error_class.code, error_class)
        waiting.extend(error_class.__subclasses__())
    return found
