"""Quotas of callers and networks: GCRA on the time of Redis, with units leased from it in batches.

A request takes its units from a `QuotaBucket` of this process, without I/O. The bucket leases them from Redis before
they run out, as many as are used in two seconds, and returns what has not been used for a second. So the callers of
all processes share one quota, hardly any request waits, and none does for more than one round trip. Without Redis each
process grants its own share.
"""

from app.kernel.rate_limits.buckets import Policy, QuotaBucket, QuotaExceeded
from app.kernel.rate_limits.limits import RateLimits

__all__ = ["Policy", "QuotaBucket", "QuotaExceeded", "RateLimits"]
