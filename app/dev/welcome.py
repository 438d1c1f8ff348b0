"""What a developer wants to know once a development server is ready."""

from collections.abc import Iterable

LogIn = tuple[str, str, str]
"""E-mail address, password and role of a demo account."""


def welcome(
    product: str, base: str, log_ins: Iterable[LogIn], *, has_mailbox: bool, seconds: float | None = None
) -> str:
    """The text that a start ends with. `seconds`: how long the start took."""
    lines = [
        "",
        f"{product} is ready" + (f" ({seconds:.1f} s)." if seconds is not None else "."),
        f"  API    {base}",
        f"  Pages  {base}/console",
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
