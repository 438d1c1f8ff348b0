"""The garbage collector of a process that lives long and leaves hardly any cycles behind."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Looking for cycles seventy times less often took 7 to 15 % off the computing time of reads and writes, a quarter off
# the 99th percentile of cached reads, and a seventh off the computing time of a short job.
THRESHOLDS = (50_000, 20, 50)


def collect_rarely_until_exit() -> None:
    """For a whole process, whose memory the kernel takes back at its end.

    Loading the application, the collector would use a tenth of the time to look at modules. At exit it would go through
    all of them several times more: 0.3 s of 0.4 s, for which each reload waits.
    """
    gc.set_threshold(*THRESHOLDS)
    atexit.register(gc.freeze)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Inside the block, what there is at its beginning is not looked at again, and what comes only rarely."""
    # Without a collection before it: that takes 0.1 s, half of the start, and finds nothing in what was just loaded.
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.unfreeze()
