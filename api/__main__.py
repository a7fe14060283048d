"""``python -m api``: serve HTTP, in one process, as the ``MEDIC_*`` settings say."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import uvicorn
from pydantic import ValidationError

from api.app import create_app
from api.deadlines import USUAL_PATIENCE, Patience, PunctualProtocol
from jobs import logs
from jobs.artifacts import open_artifacts
from jobs.errors import InvalidKeyError, JobsError
from jobs.keys import new_key, record_of
from jobs.queue import open_queue
from jobs.settings import Settings, faults
from jobs.store import JobStore, open_store

log = logging.getLogger("api")

DESCRIPTORS_PER_CONNECTION = 4  # a form has several files open
ACCEPTED_AT_ONCE = 32  # of a crowd; then those who are in have their turn
MOST_TO_ACCEPT = 2048
KEEP_ALIVE_SECONDS = 15
GRACE_SECONDS = 3


class Server(uvicorn.Server):
    """Says where it listens once it does, and only then makes the first API key: one that nobody saw would be lost."""

    def __init__(self, config: uvicorn.Config, settings: Settings, jobs: JobStore) -> None:
        super().__init__(config)
        self._settings, self._jobs = settings, jobs

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bind, then tell."""
        await super().startup(sockets)
        for listening in self.servers[0].sockets:
            with listening.dup() as same:
                same.listen(MOST_TO_ACCEPT)  # asyncio has one number for both
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        log.info("listening on http://%s:%d", host, port)
        if self._settings.api_key is None:
            log.info(_about_the_key(self._settings, self._jobs))


def _about_the_key(settings: Settings, jobs: JobStore) -> str:
    if jobs.list_keys():
        return "API keys were made earlier; `medic keys create` makes another"
    if settings.log_format == "json":  # a collector would keep it
        return "there is no API key; `medic keys create` makes one"
    key = new_key()
    jobs.add_key(record_of(key))
    return f"API key, shown only this once: {key}"


def _within_descriptors(patience: Patience) -> Patience:
    """Have as many descriptors as the system lets us, and no more connections than they suffice for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return replace(patience, connections=min(patience.connections, most // DESCRIPTORS_PER_CONNECTION))


def main(patience: Patience = USUAL_PATIENCE) -> None:
    """Serve until SIGTERM or SIGINT. Settings that do not hold end it with ``os.EX_CONFIG``: no restart will help."""
    logs.configure()
    patience = _within_descriptors(patience)
    try:
        settings = Settings()
        jobs = open_store(settings)
        app = create_app(settings, jobs, open_artifacts(settings), open_queue(settings), patience)
    except (ValidationError, JobsError) as error:
        log.critical("the service does not start: %s", faults(error) if isinstance(error, ValidationError) else error)
        sys.exit(os.EX_CONFIG if isinstance(error, ValidationError | InvalidKeyError) else 1)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=partial(PunctualProtocol, patience=patience, idle=OrderedDict()),  # type: ignore[arg-type]  # it is called and no more
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config, settings, jobs).run()


if __name__ == "__main__":
    main()
