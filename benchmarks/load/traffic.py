"""Clients that ask at a steady pace, however long the answers take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.load.figures import spread
from benchmarks.load.service import Service

TIMEOUT_SECONDS = 30.0


@dataclass
class Answers:
    """How long each answer took, counted from when it was due to be asked for; and what was no answer."""

    seconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """For the record."""
        return {**spread(self.seconds), "errors": dict(self.errors)}


async def poll(service: Service, path: str, *, clients: int, seconds: float, interval: float = 1.0) -> Answers:
    """Have so many clients, each on a connection of its own, ask for ``path`` once in every interval."""
    answers = Answers()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    began = time.monotonic()
    http = httpx.AsyncClient(base_url=service.url, headers=service.headers, limits=limits, timeout=TIMEOUT_SECONDS)
    async with http, asyncio.TaskGroup() as group:
        for number in range(clients):
            first = began + number / clients * interval
            group.create_task(_ask(http, path, answers, first, began + seconds, interval))
    return answers


async def _ask(http: httpx.AsyncClient, path: str, answers: Answers, due: float, until: float, interval: float) -> None:
    while due < until:
        await asyncio.sleep(due - time.monotonic())
        try:
            answer = await http.get(path)
        except httpx.HTTPError as error:
            answers.errors[type(error).__name__] += 1
        else:
            if answer.status_code != httpx.codes.OK:
                answers.errors[str(answer.status_code)] += 1
        answers.seconds.append(time.monotonic() - due)
        due += interval
