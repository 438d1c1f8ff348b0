"""Settings of the users module."""

from app.kernel.settings import Section


class UsersSettings(Section):
    """The users module."""
