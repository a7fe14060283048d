"""Logs on stderr: one event a line, whatever text is in it, with what it is about: a request, a job, a tenant.

Written for people, or as one JSON object a line where ``MEDIC_LOG_FORMAT=json``. Needs nothing but Python, so that
every process can log alike.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

LOG_FORMAT = "MEDIC_LOG_FORMAT"

_about: ContextVar[dict[str, object]] = ContextVar("about")


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """Say what everything that is logged in the block is about. Another thread knows it by a copy of the context."""
    before = _about.set({**_about.get({}), **fields})
    try:
        yield
    finally:
        _about.reset(before)


def note(**fields: object) -> None:
    """Add to the innermost ``about``, also for those who have a copy of the context."""
    _about.get({}).update(fields)


def wants_json(environment: Mapping[str, str]) -> bool:
    """Say whether lines are for machines. The settings refuse what is neither ``json`` nor ``text``."""
    return environment.get(LOG_FORMAT) == "json"


def configure(*, as_json: bool | None = None) -> None:
    """Log to stderr from now on: warnings, and what nobody has caught, as well.

    Args:
        as_json: None: as the environment says, which is asked before the settings are read, since their faults are
            logged too.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if as_json or (as_json is None and wants_json(os.environ)) else TextFormatter()
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    uncaught = logging.getLogger("uncaught")
    sys.excepthook = lambda *raised: uncaught.critical("the process ends", exc_info=raised)
    threading.excepthook = lambda args: uncaught.critical(
        "the thread ends", exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    )


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: whatever a terminal or a collector could take for more is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        return json.dumps(_entry(self, record), default=str).replace("\x7f", r"\u007f")


class TextFormatter(logging.Formatter):
    """One line, and tracebacks indented below it. What is not printable is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record; what it is about stands before the message, which could pretend otherwise."""
        entry = _entry(self, record)
        time, level, logger, message = (str(entry.pop(name)) for name in ("time", "level", "logger", "message"))
        exception = str(entry.pop("exception", ""))
        fields = " ".join(f"{name}={_quoted(value)}" for name, value in entry.items())
        head = f"{time} {level} {logger}{f' [{fields}]' if fields else ''}: {message}"
        return "\n    ".join(_visible(line) for line in (head, *exception.splitlines()))


def _entry(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    entry = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
    exception = {"exception": formatter.formatException(record.exc_info)} if record.exc_info else {}
    return {**entry, **_about.get({}), **exception}


def _quoted(value: object) -> str:
    text = str(value)
    return text if re.fullmatch(r"[\w.:/-]+", text) else json.dumps(text)


def _visible(text: str) -> str:
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
