"""What a developer wants to know once a development server is ready."""

from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlencode


class LogIn(NamedTuple):
    """How a demo account logs in. `code` is one that opens the console once, within ten minutes."""

    email: str
    password: str
    role: str
    code: str | None = None


def welcome(
    product: str, base: str, log_ins: Iterable[LogIn], *, has_mailbox: bool, seconds: float | None = None
) -> str:
    """The text that a start ends with. `seconds`: how long the start took."""
    log_ins = tuple(log_ins)
    lines = [
        "",
        f"{product} is ready" + (f" ({seconds:.1f} s)." if seconds is not None else "."),
        f"  API    {base}",
        f"  Docs   {base}/docs",
        *([f"  Mail   {base}/dev/mailbox"] if has_mailbox else []),
        f"  Pages  {base}/console",
        *(
            f"         {base}/console/login#{urlencode({'email': log_in.email, 'code': log_in.code})} (once)"
            for log_in in log_ins
            if log_in.code
        ),
        *(
            f"  Log in {log_in.email} / {log_in.password}" + (" (admin)" if log_in.role == "admin" else "")
            for log_in in log_ins
        ),
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)
