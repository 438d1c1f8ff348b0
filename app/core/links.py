"""Where the links in e-mails lead, for installations whose public address has no pages of its own.

Nothing happens when such a page is opened, because scanners open the links of e-mails too: the person presses a button,
and the page calls the API.
"""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256

from app.core.pages import STYLE_SOURCE, page

_SCRIPT = """
const form = document.querySelector("form"), said = document.querySelector("output");
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = Object.fromEntries(new FormData(form));
  const token = new URLSearchParams(location.search).get("token");
  if (token !== null) body.token = token;
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(form.dataset.call, { method: "POST", headers, body: JSON.stringify(body) });
  if (answer.ok) {
    said.textContent = form.dataset.done;
    form.hidden = true;
  } else {
    const problem = await answer.json();
    said.textContent = [problem.detail, ...(problem.errors || []).map((error) => error.detail)].join(" ");
  }
});
"""
_SCRIPT_HASH = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
LINK_POLICY = (
    f"default-src 'none'; style-src {STYLE_SOURCE}; script-src 'sha256-{_SCRIPT_HASH}'; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


@dataclass(frozen=True, slots=True)
class _Link:
    """A page with one button. `call` is what it calls, `field` HTML of what has to be filled in, `done` the answer."""

    title: str
    call: str
    button: str
    done: str
    field: str = ""


_LINKS = {
    "verify-email": _Link(
        "Confirm your e-mail address",
        "/v1/auth/email/verify",
        "Confirm",
        "Your address is confirmed. Please log in; sessions and API keys of before have ended.",
    ),
    "change-email": _Link(
        "Confirm your new e-mail address",
        "/v1/auth/email/confirm",
        "Confirm",
        "From now on this is the address of your account.",
    ),
    "reset-password": _Link(
        "Set a new password",
        "/v1/auth/password/reset",
        "Set",
        "Your new password is set. Sessions, API keys and the second factor of before have ended.",
        '<p><label>New password <input name="new_password" type="password" autocomplete="new-password" required>'
        "</label></p>",
    ),
    "forgot-password": _Link(
        "Forgotten password",
        "/v1/auth/password/forgot",
        "Send a link",
        "If there is an account with this address, a link is on its way to it.",
        '<p><label>E-mail address <input name="email" type="email" autocomplete="email" required></label></p>',
    ),
}


# Its button works without a script, because programs of mail providers press it too (RFC 8058).
UNSUBSCRIBE_POLICY = (
    f"default-src 'none'; style-src {STYLE_SOURCE}; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


def unsubscribe_page() -> str:
    """The page that the link of a weekly report leads to. Its form is sent to the same address."""
    return page(
        "Weekly report",
        '<p>You get a report each week by e-mail.</p><form method="post"><button>Send me no more</button></form>',
    )


def unsubscribed_page() -> str:
    return page("Weekly report", "<p>You get no more weekly reports. Your preferences turn them on again.</p>")


def link_page(name: str) -> str:
    """The page that a link leads to: `verify-email`, `change-email`, `reset-password` or `forgot-password`."""
    link = _LINKS[name]
    return page(
        link.title,
        f'<form data-call="{link.call}" data-done="{link.done}">{link.field}<button>{link.button}</button></form>'
        f"<p><output></output></p><script>{_SCRIPT}</script>",
    )
