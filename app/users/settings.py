"""Settings of the users module."""

import re
from dataclasses import dataclass

from pydantic import Field, field_validator

from app.kernel.settings import Section, Texts

_RULE = re.compile(r"([a-z0-9_.*]{1,64})=([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """For how many days events are kept whose kind fits `pattern`, in which `*` stands for anything."""

    pattern: str
    days: int

    @property
    def like(self) -> str:
        """The pattern as SQL has it."""
        return self.pattern.replace("_", r"\_").replace("*", "%")


class UsersSettings(Section):
    """Profiles and events."""

    event_retention: Texts = Field(
        (),
        description="Days for which events are kept, by kind: `page.*=30,*=365`. The first pattern that fits counts; "
        "what none fits is kept, and so is everything where this is unset.",
    )

    @field_validator("event_retention")
    @classmethod
    def _check_rules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for rule in value:
            if not _RULE.fullmatch(rule):
                raise ValueError(f"{rule!r} is no pattern of kinds and a number of days, such as page.*=30")
        return value

    @property
    def retention_rules(self) -> list[RetentionRule]:
        """The rules, of which the first one that fits a kind counts."""
        parts = [rule.rpartition("=") for rule in self.event_retention]
        return [RetentionRule(pattern, int(days)) for pattern, _, days in parts]
