"""Where a development server is reached, and what its developer wants to know first."""

from collections.abc import Iterable

LogIn = tuple[str, str, str]
"""E-mail address, password and role of a demo account."""


def reachable(host: str) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - read, not bound


def base_url(host: str, port: int) -> str:
    """The address of such a server for a browser on this machine."""
    host = reachable(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def welcome(
    product: str, base: str, log_ins: Iterable[LogIn], *, has_mailbox: bool, seconds: float | None = None
) -> str:
    """The text that a start ends with. `seconds`: how long the start took."""
    lines = [
        "",
        f"{product} is ready" + (f" ({seconds:.1f} s)." if seconds is not None else "."),
        f"  API    {base}",
        f"  Docs   {base}/docs",
        *([f"  Mail   {base}/dev/mailbox"] if has_mailbox else []),
        *(
            f"  Log in {email} / {password}" + (" (admin)" if role == "admin" else "")
            for email, password, role in log_ins
        ),
        "Ctrl-C stops everything.",
        "",
    ]
    return "\n".join(lines)
