"""How often a key may ask: a sliding minute, counted by each API process for itself."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from api.errors import RequestRefusedError


class Rates:
    """Counts requests by key.

    Args:
        per_minute: How many a key may send; None: any number.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._limit = RateLimitItemPerMinute(per_minute) if per_minute else None
        self._counts = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, key_id: str) -> None:
        """Count a request.

        Raises:
            RequestRefusedError: 429, it is one too many.
        """
        if self._limit is None or self._counts.hit(self._limit, key_id):
            return
        window = self._counts.get_window_stats(self._limit, key_id)
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        headers = {
            "RateLimit-Policy": f'"requests";q={self._limit.amount};w=60',
            "RateLimit": f'"requests";r=0;t={seconds}',
        }
        detail = f"more than {self._limit.amount} requests in a minute with the key {key_id}"
        raise RequestRefusedError(429, "rate_limited", detail, headers=headers, retry_after=seconds)
