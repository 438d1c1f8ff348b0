"""How many of something each caller may have at a time, where all callers together have a bound."""

from collections import Counter
from collections.abc import Hashable

# A part of what is free (dynamic thresholds, Choudhury and Hahne 1998) is wide while few want it, and always leaves
# some.
_FREE_FOR_ONE = 4


class FairCount:
    """At most `total` of all callers, and of one caller a quarter of what is free, at most `most_of_one`."""

    def __init__(self, total: int, *, most_of_one: int) -> None:
        self._total = total
        self._most_of_one = most_of_one
        self._of_callers: Counter[Hashable] = Counter()

    def take(self, caller: Hashable) -> bool:
        """Counts one more of this caller's, unless that is too many."""
        free = self._total - self._of_callers.total()
        most = min(self._most_of_one, max(1, free // _FREE_FOR_ONE))
        if free <= 0 or self._of_callers[caller] >= most:
            return False
        self._of_callers[caller] += 1
        return True

    def give_back(self, caller: Hashable) -> None:
        """The opposite of a `take` that was granted."""
        self._of_callers[caller] -= 1
        if not self._of_callers[caller]:
            del self._of_callers[caller]

    def __len__(self) -> int:
        """How many there are now."""
        return self._of_callers.total()
