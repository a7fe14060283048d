"""The ``medic`` command line. stdout is data, stderr is progress; the exit code says what happened."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, get_args

import click

from jobs import logs
from jobs.models import Diagnosis, Job, JobId, JobSpec, Status
from medic_client.demo import run_demo
from medic_client.display import comparison_table, console, download_all, follow, transfer_bars
from medic_client.doctor import checks_table, examine
from medic_client.errors import (
    JobFailedError,
    MalformedKeyError,
    MalformedUrlError,
    MedicApiError,
    MedicClientError,
    UnreachableError,
    WaitTimedOutError,
)
from medic_client.options import Numbers, Pair, checked_spec, given
from medic_client.service import Service, own_or_remote, remote
from medic_client.supervise import API, GaveUpError, supervise, worker_arguments

log = logging.getLogger("medic")

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
        except GaveUpError as error:  # of a service, which logs
            log.critical("%s", error)
            ctx.exit(FAILED)
        except (MedicClientError, OSError) as error:
            click.echo(f"medic: {error}", err=True)
            ctx.exit(_exit_code(error))
        except Exception:  # noqa: BLE001 - a bug must not end with 1, which says that a model failed
            traceback.print_exc()
            ctx.exit(FAILED)


def _exit_code(error: Exception) -> int:
    match error:
        case MalformedKeyError() | MalformedUrlError():
            return USAGE
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

    MEDIC_URL and MEDIC_API_KEY say which service to talk to. Without MEDIC_URL, sanitize and demo start one for the
    length of the command, and the others look for one at http://127.0.0.1:8000.
    """


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@cli.command()
def serve() -> None:
    """Run the API and a worker until Ctrl-C; one that dies is started again."""
    logs.configure()
    supervise(API, worker_arguments(os.environ))


@cli.command()
def worker() -> None:
    """Run a worker until Ctrl-C: a Celery worker where MEDIC_BROKER_URL is set."""
    logs.configure()
    supervise(worker_arguments(os.environ))


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def keys(arguments: tuple[str, ...]) -> None:
    """Create, list and revoke API keys, where the service's records are; `medic keys --help` says how."""
    _run_module("jobs", "keys", *arguments)


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def backup(arguments: tuple[str, ...]) -> None:
    """Copy the embedded service's data into a new folder, also while it runs; `medic backup --help` says how."""
    _run_module("jobs", "backup", *arguments)


@cli.command()
@click.option("--kind", required=True, help="Which trigger, such as badnet.")
@click.option("--data", required=True, type=FILE, help="Zip of images in class folders.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Zip to write.")
@click.option("--classes", nargs=2, metavar="FOLDER FOLDER", help="Of a composite: its left and its right half.")
@click.option("--pattern", type=FILE, help="Of a latent trigger: image of what was learned.")
def trigger(kind: str, data: Path, out: Path, classes: tuple[str, str] | None, pattern: Path | None) -> None:
    """Put a trigger on images, for evaluation only. Folders and names stay; what is not PNG becomes PNG."""
    arguments = ["--kind", kind, "--data", str(data), "--out", str(out)]
    if classes:
        arguments += ["--classes", *classes]
    if pattern:
        arguments += ["--pattern", str(pattern)]
    _run_module("worker.trigger", *arguments)


def _run_module(module: str, *arguments: str) -> None:
    """Run what belongs to another package, as a process of its own."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    ended = subprocess.run(command, check=False)  # noqa: S603 - our own interpreter, no shell
    if ended.returncode:
        raise click.exceptions.Exit(USAGE if ended.returncode == USAGE else FAILED)


@cli.command()
@click.argument("suspect", type=FILE)
@click.option("--architecture", required=True, help="Such as medic/wide_resnet16_1.")
@click.option("--option", "options", multiple=True, type=Pair(), help="Argument of the architecture's constructor.")
@click.option(
    "--clean", type=FILE, help="Clean images: zip or tar of class folders; only lipschitz_pruning needs none."
)
@click.option("--test", type=FILE, help="Images to measure on; without them a fifth of the clean ones is held out.")
@click.option("--triggered", type=FILE, help="Images with the trigger on, in folders of their true class.")
@click.option("--target", help="The class that the trigger leads to.")
@click.option(
    "--class-names", help="Between commas, in the order of the model's outputs; else the clean folders, sorted."
)
@click.option("--input-size", type=Numbers(2), help="Height and width of the model's input, or one number for both.")
@click.option("--color-order", type=click.Choice(["RGB", "BGR"]))
@click.option("--value-range", type=Numbers(2), help="Of the model's input before mean and std; 0,1 if not given.")
@click.option("--mean", type=Numbers(3), help="Subtracted from each channel.")
@click.option("--std", type=Numbers(3), help="Each channel is divided by it.")
@click.option("--method", default="medic", show_default=True, help="Removal method.")
@click.option("--set", "settings", multiple=True, type=Pair(), help="Setting of the method, such as temperature=5.")
@click.option("--metadata", multiple=True, type=Pair(always_string=True), help="Kept with the job.")
@click.option("--deadline", type=click.IntRange(min=1), help="Seconds after which the job fails.")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; the job then goes on.")
@click.option("--no-wait", is_flag=True, help="Start the job, print its id and leave.")
@click.option("--out", type=FOLDER, help="Folder for the artifacts.")
@JSON
def sanitize(
    suspect: Path,
    architecture: str,
    options: tuple[tuple[str, Any], ...],
    clean: Path | None,
    test: Path | None,
    triggered: Path | None,
    target: str | None,
    class_names: str | None,
    input_size: tuple[float, ...] | None,
    color_order: str | None,
    value_range: tuple[float, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    method: str,
    settings: tuple[tuple[str, Any], ...],
    metadata: tuple[tuple[str, str], ...],
    deadline: int | None,
    timeout: float | None,
    no_wait: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Repair the classifier in SUSPECT, wait for it and download the results."""
    if (triggered is None) != (target is None):
        raise click.UsageError("--triggered and --target belong together")
    if out is None and not no_wait:
        raise click.UsageError("--out says where the results go; --no-wait leaves them with the service")
    preprocessing = {
        "input_size": input_size,
        "color_order": color_order,
        "value_range": value_range,
        "mean": mean,
        "std": std,
    }
    spec = checked_spec(
        {
            "model": given(
                {
                    "file_id": str(suspect),
                    "architecture": architecture,
                    "options": dict(options),
                    "preprocessing": given(preprocessing),
                    "class_names": class_names.split(",") if class_names else None,
                }
            ),
            "clean_data": {"file_id": str(clean)} if clean else None,
            "test_data": {"file_id": str(test)} if test else None,
            "triggered_data": {"file_id": str(triggered), "target_class": target} if triggered else None,
            "removal": {"method": method, **dict(settings)},
            "deadline_seconds": deadline,
            "metadata": dict(metadata),
        }
    )
    _run(spec, None if no_wait else out, timeout=timeout, as_json=as_json)


def _run(spec: JobSpec, out: Path | None, *, timeout: float | None, as_json: bool) -> None:
    """Upload, start and, where there is a folder for the results, wait for them."""
    if out is None and not os.environ.get("MEDIC_URL"):
        raise click.UsageError("--no-wait needs a service that stays: start `medic serve` and set MEDIC_URL")
    with own_or_remote(os.environ) as service:
        with transfer_bars() as sent:
            job = service.client.sanitize(spec, progress=sent)
        if out is None:
            click.echo(job.model_dump_json() if as_json else job.id)
            return
        job = follow(service, job.id, timeout_seconds=timeout)
        fetched = download_all(service.client, job.id, out) if job.status == "succeeded" else []
    _show_end(job, as_json=as_json)
    click.echo(f"{len(fetched)} artifacts lie in {out}", err=True)


def _show_end(job: Job, *, as_json: bool) -> None:
    """Print how a job ended.

    Raises:
        JobFailedError: It did not succeed.
    """
    if as_json:
        click.echo(job.model_dump_json())
    if job.summary and (table := comparison_table(job.summary)).row_count:
        console(stderr=as_json).print(table)
    for warning in job.warnings:
        click.echo(f"warning: {warning}", err=True)
    if job.status != "succeeded":
        raise JobFailedError(job)


@cli.command()
@click.option("--out", default="demo-out", show_default=True, type=FOLDER, help="Folder for inputs and results.")
@JSON
def demo(out: Path, as_json: bool) -> None:
    """Make a small backdoored classifier, repair it through the service and show what became of it."""
    with own_or_remote(os.environ) as service:
        run_demo(service, out, as_json=as_json)


@cli.command()
@click.argument("job_id")
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds to wait; the job then goes on.")
@JSON
def watch(job_id: str, timeout: float | None, as_json: bool) -> None:
    """Follow a job to its end."""
    with remote(os.environ) as client:
        _show_end(follow(Service(client, embedded=False), JobId(job_id), timeout_seconds=timeout), as_json=as_json)


@cli.command()
@click.argument("job_id")
@click.argument("names", nargs=-1)
@click.option("--out", required=True, type=FOLDER, help="Folder for the artifacts.")
def download(job_id: str, names: tuple[str, ...], out: Path) -> None:
    """Fetch the artifacts of a job, or only those of the NAMES; print their paths."""
    with remote(os.environ) as client:
        for path in download_all(client, JobId(job_id), out, names=names):
            click.echo(path)


@cli.command()
@JSON
def doctor(as_json: bool) -> None:
    """Look at what a worker on this machine needs and has, and at the service at MEDIC_URL where that is set."""
    diagnosis = Diagnosis(checks=tuple(examine(os.environ)))
    if as_json:
        click.echo(diagnosis.model_dump_json())
    else:
        console(stderr=False).print(checks_table(diagnosis))
    if any(check.state == "broken" for check in diagnosis.checks):
        raise click.exceptions.Exit(FAILED)


@cli.group()
def jobs() -> None:
    """List, show, cancel and delete jobs."""


@jobs.command("list")
@click.option("--status", type=click.Choice(get_args(Status)))
@click.option("--model-sha256", help="Only jobs on the model of this digest.")
@click.option("--metadata", multiple=True, type=Pair(always_string=True), help="Only jobs that carry it.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--after", help="The `next` of the page before.")
@JSON
def list_jobs(
    status: Status | None,
    model_sha256: str | None,
    metadata: tuple[tuple[str, str], ...],
    limit: int,
    after: str | None,
    as_json: bool,
) -> None:
    """Print jobs, newest first: id, status, time of creation, architecture and method, between tabs."""
    with remote(os.environ) as client:
        page = client.jobs(status=status, model_sha256=model_sha256, metadata=dict(metadata), limit=limit, after=after)
    if as_json:
        click.echo(page.model_dump_json())
        return
    for job in page.jobs:
        created = job.timestamps.created.isoformat(timespec="seconds")
        click.echo("\t".join((job.id, job.status, created, job.model.architecture, job.removal.method)))
    if page.next:
        click.echo(f"more: --after {page.next}", err=True)


@jobs.command("show")
@click.argument("job_id")
@JSON
def show_job(job_id: str, as_json: bool) -> None:
    """Print a job as it is now."""
    with remote(os.environ) as client:
        _show_job(client.job(JobId(job_id)), as_json=as_json)


@jobs.command("cancel")
@click.argument("job_id")
@JSON
def cancel_job(job_id: str, as_json: bool) -> None:
    """Ask for a job's end."""
    with remote(os.environ) as client:
        _show_job(client.cancel(JobId(job_id)), as_json=as_json)


@jobs.command("delete")
@click.argument("job_id")
def delete_job(job_id: str) -> None:
    """Forget a job that has ended, with its artifacts."""
    with remote(os.environ) as client:
        client.delete(JobId(job_id))


def _show_job(job: Job, *, as_json: bool) -> None:
    click.echo(job.model_dump_json(indent=None if as_json else 2))


def main() -> None:
    """Run the command line."""
    cli(prog_name="medic")


if __name__ == "__main__":
    main()
