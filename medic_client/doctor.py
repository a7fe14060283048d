"""What ``medic doctor`` looks at: a worker on this machine, if one is installed, and the service at ``MEDIC_URL``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec

from pydantic import ValidationError
from rich.table import Table

from jobs.models import Check, CheckState, Diagnosis, WorkerSandbox
from medic_client.errors import MedicClientError
from medic_client.service import remote


def examine(environment: Mapping[str, str]) -> Iterator[Check]:
    """Look at one thing after the other."""
    if find_spec("worker") and find_spec("torch"):
        yield from _worker_here()
    else:
        yield Check(name="worker", state="note", detail="none is installed on this machine")
    if environment.get("MEDIC_URL"):
        yield from _service(environment)


def _worker_here() -> Sequence[Check]:
    command = [sys.executable, "-P", "-m", "worker.doctor"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603 - our own interpreter, no shell
    try:
        return Diagnosis.model_validate_json(ended.stdout).checks
    except ValidationError:
        return (Check(name="worker", state="broken", detail=f"its doctor ended with status {ended.returncode}"),)


def _service(environment: Mapping[str, str]) -> Iterator[Check]:
    url = environment["MEDIC_URL"]
    try:
        with remote(environment) as client:
            ready = client.ready()
    except MedicClientError as error:
        yield Check(name="service", state="broken", detail=f"{url}: {error}")
        return
    yield Check(name="service", state="ok", detail=f"{url} takes jobs; workers hear of them by {ready.queue}")
    if not ready.workers:
        yield Check(name="service's workers", state="note", detail="none shares the data folder of the API")
    for number, worker in enumerate(ready.workers, start=1):
        yield _their_sandbox(f"service's worker {number}", worker)


def _their_sandbox(name: str, worker: WorkerSandbox) -> Check:
    missing = {layer: state for layer, state in worker.layers.items() if state != "active"}
    said = ", ".join(f"{layer} {state}" for layer, state in missing.items()) or "all layers active"
    state: CheckState = "broken" if "broken" in missing.values() else "note" if missing else "ok"
    return Check(name=name, state=state, detail=f"sandbox {worker.mode}: {said}")


def checks_table(diagnosis: Diagnosis) -> Table:
    """Show one check a row."""
    table = Table(show_header=False)
    for check in diagnosis.checks:
        table.add_row(check.name, check.state, check.detail)
    return table
