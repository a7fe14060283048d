"""The ``medic`` command line. stdout is data, stderr is progress; ``--json`` is stable; the exit code says what happened."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError

from jobs.models import Job, JobId, JobSpec, Status
from medic_client import demo as demo_
from medic_client.client import MedicClient
from medic_client.display import comparison_table, console, follow, transfer_bars
from medic_client.errors import (
    JobFailedError,
    MedicApiError,
    MedicClientError,
    UnreachableError,
    WaitTimedOutError,
)
from medic_client.options import Numbers, Pair
from medic_client.service import Service, choose_service, remote
from medic_client.supervise import API, GaveUpError, supervise, worker_arguments

USAGE, NOT_ALLOWED, FAILED, TIMED_OUT, UNREACHABLE, INTERRUPTED = 2, 4, 5, 6, 7, 130


class _ExitCodes(click.Group):
    """Ends with the exit code that belongs to what went wrong; 1 stays free for a failed verdict."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except (MedicClientError, GaveUpError, OSError) as error:
            click.echo(f"medic: {error}", err=True)
            ctx.exit(_exit_code(error))
        except Exception:  # noqa: BLE001 - a bug must not end with 1, which says that a model failed
            traceback.print_exc()
            ctx.exit(FAILED)


def _exit_code(error: Exception) -> int:
    match error:
        case MedicApiError(status=401 | 403):
            return NOT_ALLOWED
        case WaitTimedOutError():
            return TIMED_OUT
        case UnreachableError():
            return UNREACHABLE
    return FAILED


@click.group(cls=_ExitCodes, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Repair image classifiers that may carry a hidden backdoor.

    MEDIC_URL and MEDIC_API_KEY say which service to talk to. Without MEDIC_URL, sanitize and demo start one for themselves.
    """


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
file_path = click.Path(exists=True, dir_okay=False, path_type=Path)
folder_path = click.Path(file_okay=False, path_type=Path)


@cli.command()
def serve() -> None:
    """Run the API and a worker until Ctrl-C; one that dies is started again."""
    supervise(API, worker_arguments(os.environ))


@cli.command()
def worker() -> None:
    """Run a worker until Ctrl-C; with MEDIC_BROKER_URL a Celery worker."""
    supervise(worker_arguments(os.environ))
