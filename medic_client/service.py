"""Which service a command talks to: the one at ``MEDIC_URL``, or an embedded one for the length of the command."""

from __future__ import annotations

import queue
import re
import secrets
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

from medic_client.client import MedicClient
from medic_client.errors import ServiceFailedError
from medic_client.supervise import end, sigterm_interrupts, start, stop_grace

DEFAULT_URL = "http://127.0.0.1:8000"
"""Where ``medic serve`` listens unless it is told otherwise."""

_START_SECONDS = 60.0
_LISTENING = re.compile(r"listening on (http://\S+)")
_KEPT_LINES = 40


@dataclass(frozen=True)
class Service:
    """A service to talk to. An ``embedded`` one ends with the command."""

    client: MedicClient
    embedded: bool


@contextmanager
def own_or_remote(environment: Mapping[str, str]) -> Iterator[Service]:
    """Open the service at ``MEDIC_URL``, or without that an embedded one."""
    if environment.get("MEDIC_URL"):
        with remote(environment) as client:
            yield Service(client, embedded=False)
    else:
        with _embedded(environment) as client:
            yield Service(client, embedded=True)


def remote(environment: Mapping[str, str]) -> MedicClient:
    """Return a client of the service that ``MEDIC_URL`` and ``MEDIC_API_KEY`` name, by default of ``medic serve``."""
    return MedicClient(environment.get("MEDIC_URL") or DEFAULT_URL, environment.get("MEDIC_API_KEY"))


@contextmanager
def _embedded(environment: Mapping[str, str]) -> Iterator[MedicClient]:
    """Run API and worker under the caller's ``MEDIC_DATA_DIR`` and a passing key, and end them with the body.

    A job that has not ended by then stays queued for the next service on that folder.

    Raises:
        ServiceFailedError: The service did not start; its log is in the message.
    """
    key = f"mdk_{secrets.token_hex(4)}_{secrets.token_hex(32)}"
    own = {"MEDIC_API_KEY": key, "MEDIC_HOST": "127.0.0.1", "MEDIC_PORT": "0", "MEDIC_LOG_FORMAT": "text"}
    inherited = {name: value for name, value in environment.items() if name != "MEDIC_BROKER_URL"}
    with sigterm_interrupts():
        child = start(("-m", "medic_client.supervise"), environment=inherited | own, stderr=subprocess.PIPE)
        try:
            with MedicClient(_address(child), key) as client:
                yield client
        finally:
            end([child], grace_seconds=stop_grace(environment))


def _address(child: subprocess.Popen[str]) -> str:
    """Wait for the service to say where it listens, and go on emptying its log so that it never blocks."""
    log: deque[str] = deque(maxlen=_KEPT_LINES)
    addresses: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(cast(IO[str], child.stderr), log, addresses), daemon=True).start()
    try:
        address = addresses.get(timeout=_START_SECONDS)
    except queue.Empty:
        address = None
    if address is None:
        raise ServiceFailedError("the embedded service did not start:\n" + "".join(log))
    return address


def _read(stream: IO[str], log: deque[str], addresses: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            log.append(line)
            if found := _LISTENING.search(line):
                addresses.put(found[1])
    addresses.put(None)
