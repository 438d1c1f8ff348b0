"""Two-level cache of finished answers, forgotten by tag.

Level 1 is this process's memory, level 2 is Redis. A write forgets tags after its commit (`Cache.forget`): the own
process at once, the others by a message, before the writer gets its answer. What must hold:

- A process never serves an answer older than its own last write, and others follow within 50 ms.
- A fill that began before a write never survives it. In level 1 a counter orders fills and writes; in level 2 each
  entry carries the versions its tags had before the database was read, and counts only while they are the same.
- What is asked for near the end of its time is renewed in the background, by the same way as a miss.
- While messages may be lost, level 1 is empty and unused. Tags that could not be forgotten in Redis are tried again
  until it answers, and level 2 is not read for them meanwhile.
- Without Redis everything is a miss.
"""

from app.kernel.cache.cache import FORGET_TOPIC, Cache
from app.kernel.cache.cached_response import CachedAnswer

__all__ = ["FORGET_TOPIC", "Cache", "CachedAnswer"]
