"""What crosses the borders between the supervisor and its children: the task going in, what intake found coming out.

A task is a folder: ``task.json`` (`Task`) and ``prepared/``, the one place where intake writes: its safetensors, and
``intake.json`` (`Intake`). The trainer leaves ``result.json`` (`Result`) and reports events. Nothing that a child says
is believed before it was checked here. This module imports no torch: the supervisor reads it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from jobs.models import (
    Failure,
    File,
    JobId,
    JobSpec,
    Phase,
    Problem,
    Progress,
    Purpose,
    Record,
    SandboxLayer,
    SandboxMode,
    Summary,
)

TASK_FILE = "task.json"
RESULT_FILE = "result.json"
CHECKPOINT_FILE = "checkpoint.pt"
OUT_FOLDER = "out"
PREPARED_FOLDER = "prepared"
INTAKE_FILE = f"{PREPARED_FOLDER}/intake.json"
SUSPECT_FILE = "suspect.safetensors"

DataRole = Literal["clean", "test", "triggered"]
DATA_ROLES: tuple[DataRole, ...] = ("clean", "test", "triggered")

_MIB = 1024**2
_GIB = 1024**3

MOST_FOUND_BYTES = 64 * _MIB
"""Of what a child leaves as JSON; the names of as many classes as an archive may have take 8 MiB."""


class IntakeLimits(Record):
    """What intake refuses as too large, and what the kernel denies it should a parser misbehave all the same."""

    address_space_bytes: int = Field(default=12 * _GIB, gt=0, description="Importing torch alone takes 4 GiB of it.")
    cpu_seconds: int = Field(default=1800, gt=0)
    written_file_bytes: int = Field(default=16 * _GIB, gt=0)
    open_files: int = Field(default=256, gt=0)
    tensor_bytes: int = Field(default=8 * _GIB, gt=0, description="Of all tensors of a model together.")
    tensor_ratio: int = Field(
        default=4, gt=0, description="Bytes of tensors per byte of the file; they may share some."
    )
    archive_entries: int = Field(default=200_000, gt=0)
    archive_member_bytes: int = Field(default=64 * _MIB, gt=0, description="Of one file, inflated.")
    archive_bytes: int = Field(default=8 * _GIB, gt=0, description="Of a whole archive, inflated.")
    archive_ratio: int = Field(default=100, gt=0, description="Inflated bytes per byte, once 16 MiB are inflated.")
    archive_folders: int = Field(default=30_000, gt=0, description="Classes, that is.")
    image_pixels: int = Field(default=20_000_000, gt=0, description="Of one image; a WebP may have half as many.")
    pixel_ratio: int = Field(
        default=300, gt=0, description="Pixels per byte of an archive, once 250 million are there."
    )
    decoded_bytes: int = Field(default=2 * _GIB, gt=0, description="Of all images of one archive at the input size.")


class Inputs(Record):
    """Where the uploaded bytes lie."""

    model: Path
    clean: Path | None = None
    test: Path | None = None
    triggered: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """All files that were sent."""
        return (self.model, *self.data().values())

    def data(self) -> dict[DataRole, Path]:
        """The archives of images that were given."""
        given = {"clean": self.clean, "test": self.test, "triggered": self.triggered}
        return {role: path for role in DATA_ROLES if (path := given[role]) is not None}


class Task(Record):
    """One attempt at a job, as its children see it."""

    job_id: JobId
    spec: JobSpec
    inputs: Inputs
    files: dict[Purpose, File] = Field(default={}, description="The uploads as recorded; for the report.")
    limits: IntakeLimits = IntakeLimits()
    checkpoint: Path | None = Field(default=None, description="Of an earlier attempt; the trainer goes on from it.")
    device: str = "auto"
    threads: int | None = None
    sandbox: SandboxMode = "auto"


class Container(Record):
    """How the tensors lay in the model file, so that a twin of it can be written."""

    format: Literal["safetensors", "torch"]
    wrapper: tuple[str, ...] = Field(default=(), description="Keys from the outermost dictionary to the tensors.")
    prefix: str = Field(default="", description="What every tensor's name began with.")


class InputFindings(Record):
    """What was read in one input; ``per_class`` counts images by class name and is empty for the model."""

    format: str
    samples: int | None = None
    tensors: int | None = None
    suggested_architectures: tuple[str, ...] = Field(
        default=(), description="Those whose shapes fit, when the one that was named does not."
    )
    per_class: dict[str, int] = Field(default={})


class Intake(Record):
    """What intake found. Any ``problems`` mean refusal; the first one's code becomes the failure's."""

    class_names: tuple[str, ...] = ()
    num_classes: int | None = None
    container: Container | None = None
    inputs: dict[Purpose, InputFindings] = Field(default={})
    warnings: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    sandbox: tuple[SandboxLayer, ...] = Field(default=(), description="What was denied to the process that says this.")


def prepared_data(folder: Path, role: DataRole) -> Path:
    """Where the images of ``role`` lie once intake has written them.

    The file holds ``images``, ``uint8`` ``(n, 3, height, width)`` in RGB at the input size, and ``labels``, ``int64``
    ``(n,)``; ordered by class, then by name.
    """
    return folder / PREPARED_FOLDER / f"{role}.safetensors"


def prepared_suspect(folder: Path) -> Path:
    """Where the suspect lies once intake has written it, shapes and dtypes as given, names without prefix."""
    return folder / PREPARED_FOLDER / SUSPECT_FILE


def refusal(problems: Sequence[Problem]) -> Failure:
    """Make one failure of every reason against what a user sent; the first gives it its code."""
    first = problems[0]
    return Failure(
        code=first.code,
        error_class="user",
        message=first.detail,
        pointer=first.pointer,
        problems=tuple(problems),
    )


class Result(Record):
    """What the trainer made: a summary and the files that lie in ``out/`` (name to media type), or why it could not."""

    summary: Summary | None = None
    artifacts: dict[str, str] = Field(default={})
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None


class Advanced(Record):
    """An event of the trainer: it has come into a phase, or further in it."""

    phase: Phase
    progress: Progress | None = None


class Checkpointed(Record):
    """An event of the trainer: its state is written to ``CHECKPOINT_FILE``, and it waits until that is kept."""

    epoch: int = Field(ge=1)


Event = Advanced | Checkpointed

Left = TypeVar("Left", Intake, Result)

_NO_FILE = frozenset({errno.ENOENT, errno.EISDIR, errno.ELOOP, errno.ENXIO})  # nothing, a folder, a link, a socket


def left_by_child(path: Path, kind: type[Left]) -> Left | None:
    """Read what a child left; None where it left no file, nothing of that kind, or too much to be."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(MOST_FOUND_BYTES + 1) if regular else b""
        return kind.model_validate_json(content) if len(content) <= MOST_FOUND_BYTES else None
    except ValidationError:
        return None
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting for whoever holds the other end of a pipe, and not what a link leads to."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)
