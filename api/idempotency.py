"""``Idempotency-Key``: a request that is sent again has the effect of one, and the same answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from api.dependencies import Jobs
from api.errors import RequestRefusedError
from jobs.idempotency import Reservation
from jobs.tenant import TenantStore

Made = TypeVar("Made", bound=BaseModel)

_Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Of your choice, new for each thing to be made. A request that comes again under it within 24 "
        "hours is answered as the first was, with `Idempotent-Replayed: true`, and makes nothing.",
    ),
]


class Once:
    """Sees to it that what a request makes is made once."""

    def __init__(self, jobs: TenantStore, key: str | None, response: Response) -> None:
        self._jobs, self._key, self._response = jobs, key, response

    @property
    def may_be_replayed(self) -> bool:
        """Whether the request may have been answered before: then what it made then must not stand against it."""
        return self._key is not None

    async def make(self, kind: type[Made], make: Callable[[Reservation | None], Made], *asked: str) -> Made:
        """Call ``make`` in a thread, or return what it made when the same request came before.

        Args:
            kind: What is made.
            make: Makes it, and settles the reservation in the same transaction.
            asked: All that the request asks for.

        Raises:
            JobsError: Another request is under way with this key, or the key came with another request before; or what
                ``make`` raises, after which the key may be used again.
        """
        if self._key is None:
            return await run_in_threadpool(make, None)
        fingerprint = hashlib.sha256("\0".join([kind.__name__, *asked]).encode(errors="replace")).hexdigest()
        found = await run_in_threadpool(self._jobs.reserve, self._key, fingerprint)
        if isinstance(found, str):
            self._response.headers["Idempotent-Replayed"] = "true"
            return kind.model_validate_json(found)
        return await run_in_threadpool(self._make, make, found)

    def _make(self, make: Callable[[Reservation | None], Made], reservation: Reservation) -> Made:
        try:
            return make(reservation)
        except Exception:
            self._jobs.release(reservation)
            raise


async def _once(request: Request, jobs: Jobs, response: Response, key: _Key = None) -> Once:
    if len(request.headers.getlist("idempotency-key")) > 1:
        raise RequestRefusedError(400, "invalid_parameters", "Idempotency-Key is there more than once: send one")
    return Once(jobs, key, response)


OnlyOnce = Annotated[Once, Depends(_once)]
