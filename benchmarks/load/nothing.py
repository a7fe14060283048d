"""``python -m benchmarks.load.nothing``: the API with routes that do nothing, to compare with those that do."""

from __future__ import annotations

from typing import Any
from unittest import mock

from fastapi import Depends, FastAPI, Response

from api import __main__ as program
from api.app import create_app
from api.dependencies import caller

NOTHING = "/nothing"
NOTHING_FOR_CALLERS = "/nothing-for-callers"


def create_app_with_nothing(*services: Any) -> FastAPI:
    """Make the service, with two more routes."""
    app = create_app(*services)
    app.add_api_route(NOTHING, nothing)
    app.add_api_route(NOTHING_FOR_CALLERS, nothing, dependencies=[Depends(caller)])
    return app


def nothing() -> Response:
    """Written as the short routes are: a function that a thread runs."""
    return Response()


if __name__ == "__main__":
    with mock.patch.object(program, "create_app", create_app_with_nothing):
        program.main()
