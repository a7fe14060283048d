"""From the words of the command line to a job's spec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
from pydantic import ValidationError

from jobs.models import JobSpec


class Pair(click.ParamType[tuple[str, Any]]):
    """``KEY=VALUE``; the value is read as JSON where it is JSON, else taken as a string, or always as one."""

    name = "KEY=VALUE"

    def __init__(self, *, always_string: bool = False) -> None:
        self._always_string = always_string

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Split at the first ``=``."""
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text if self._always_string else _json_or_string(text)


def _json_or_string(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Numbers(click.ParamType[tuple[float, ...]]):
    """``count`` numbers between commas; a single one stands for all."""

    name = "NUMBERS"

    def __init__(self, count: int) -> None:
        self._count = count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Read the numbers."""
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if len(numbers) == 1:
            return numbers * self._count
        if len(numbers) != self._count:
            self.fail(f"{value!r} is not {self._count} numbers between commas", param, ctx)
        return numbers


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not said, so that its default is written in one place only."""
    return {key: value for key, value in values.items() if value is not None}


def checked_spec(described: Mapping[str, Any]) -> JobSpec:
    """Make a spec of what was said.

    Raises:
        click.UsageError: Listing everything that is wrong with it.
    """
    try:
        return JobSpec.model_validate(described)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise click.UsageError("\n  ".join(problems)) from error
