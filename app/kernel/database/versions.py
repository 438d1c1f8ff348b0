"""Which versions of a row a change may be applied to, as the preconditions of its caller say."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Versions:
    """`numbers` alone or, if they are `excluded`, all others. In SQL: `(version = ANY(numbers)) <> excluded`."""

    numbers: tuple[int, ...]
    excluded: bool

    @property
    def are_all(self) -> bool:
        return self.excluded and not self.numbers

    def __contains__(self, version: int) -> bool:
        return (version in self.numbers) != self.excluded


ANY_VERSION = Versions((), excluded=True)
NO_VERSION = Versions((), excluded=False)
