"""The words that cross the HTTP border and the queue: what is asked for, what is recorded, what comes back.

Everything is frozen. This module imports neither web, database nor torch, so that the client can share it.
"""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Annotated, Any, Literal, NewType

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    computed_field,
)
from pydantic_core import PydanticCustomError

from medic_core.config import LipschitzPruningConfig, MedicConfig, Preprocessing, RemovalConfig, expand_preset

JobId = NewType("JobId", str)
FileId = NewType("FileId", str)

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256, as 64 hexadecimal digits."""

Purpose = Literal["model", "clean", "test", "triggered"]
Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Phase = Literal["fetch", "inspect", "baseline", "clone", "evaluate"]
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
SandboxMode = Literal["auto", "strict"]
FailureClass = Literal["user", "resource", "infrastructure", "timeout", "internal"]


class Record(BaseModel):
    """Base of what a client asks for: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Reply(BaseModel):
    """Base of what the service says: unknown fields are ignored, so that an old client reads a new server."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


# --- what is asked for --------------------------------------------------------------------------------

ClassName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=255),
    AfterValidator(lambda name: unicodedata.normalize("NFC", name)),  # as intake reads the folders' names
]


class ModelSpec(Record):
    """The suspect: its weights and all that is needed to run it. Code is never taken from the file."""

    file_id: FileId
    architecture: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+/[A-Za-z0-9_.-]{1,100}$")]
    options: dict[str, bool | int | float | str] = Field(
        default={}, max_length=16, description="Arguments of the architecture's constructor."
    )
    preprocessing: Preprocessing = Preprocessing()
    class_names: tuple[ClassName, ...] | None = Field(
        default=None,
        max_length=100_000,
        description="In the order of the model's outputs; without it, the sorted folder names of the clean data.",
    )


class DataSpec(Record):
    """Labelled images: an ImageFolder as zip, tar or tar.gz."""

    file_id: FileId


class TriggeredSpec(DataSpec):
    """Images with the trigger on, in folders of their *true* class; for evaluation only, never for repair."""

    target_class: ClassName


def _expanded(removal: Any, spec: ValidationInfo) -> Any:
    """Fill in what the preset sets; a ready-made config is complete already."""
    if not isinstance(removal, dict):
        return removal
    model = spec.data.get("model")  # absent where it was refused itself
    expanded = expand_preset(removal, architecture=model.architecture if model else "")
    # what comes from here counts as Python, where only a tuple is strictly a tuple
    return {name: tuple(value) if isinstance(value, list) else value for name, value in expanded.items()}


def _needed(clean: DataSpec | None, spec: ValidationInfo) -> DataSpec | None:
    """Refuse a spec without clean data, unless its method is known to take none."""
    if clean is None and not isinstance(spec.data.get("removal"), LipschitzPruningConfig):
        raise PydanticCustomError("missing", "Clean data are needed by every method but lipschitz_pruning")
    return clean


class JobSpec(Record):
    """One sanitization job."""

    model: ModelSpec
    removal: Annotated[
        RemovalConfig,
        Field(discriminator="method"),
        BeforeValidator(_expanded),
    ] = MedicConfig()
    clean_data: Annotated[DataSpec | None, AfterValidator(_needed)] = Field(
        default=None,
        validate_default=True,
        description="Needed by every method but lipschitz_pruning, which takes no images.",
    )
    test_data: DataSpec | None = Field(
        default=None,
        description="Without it a fifth of the clean data is held out, stratified by class under the seed.",
    )
    triggered_data: TriggeredSpec | None = None
    deadline_seconds: int | None = Field(
        default=None, ge=1, le=30 * 24 * 3600, description="From creation; without it the service's own limit."
    )
    metadata: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default={}, max_length=16)


# --- what is recorded --------------------------------------------------------------------------------


class File(Reply):
    """An uploaded file. ``inspection`` stays null until an intake child has read it."""

    id: FileId
    sha256: Digest
    bytes: int
    purpose: Purpose
    filename: str
    created: datetime
    inspection: dict[str, Any] | None = None


class Problem(Reply):
    """One reason why something was refused. ``pointer`` is a JSON pointer into the spec, where that says more."""

    code: str
    detail: str
    pointer: str | None = None


class Failure(Reply):
    """Why a job failed. ``code`` is stable; ``problems`` lists every reason and what to do about it."""

    code: str
    error_class: FailureClass = Field(alias="class")
    message: str
    retryable: bool = False
    pointer: str | None = None
    problems: tuple[Problem, ...] = ()

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)


class Artifact(Reply):
    """A named result of a job; its bytes lie in the artifact store under their digest."""

    name: str
    sha256: Digest
    bytes: int
    media_type: str


class Progress(Reply):
    """How far the present phase has come."""

    fraction: float = Field(ge=0, le=1)
    step: int
    total_steps: int
    eta_seconds: float | None = None


Interval = tuple[float, float]


class Comparison(Reply):
    """One share of ``n`` images before and after repair, with Wilson 95 % intervals."""

    before: float
    after: float
    n: int
    interval_before: Interval
    interval_after: Interval


class Summary(Reply):
    """The figures of a finished job; null where there are no images to tell.

    Attack success and recovery count triggered images whose true class is not the target.
    """

    clean_accuracy: Comparison | None = None
    attack_success_rate: Comparison | None = None
    recovery_accuracy: Comparison | None = None
    defense_effectiveness_rating: float | None = None


class InputRecord(Reply):
    """One input as the job saw it. What only reading the file tells is null until intake has read it."""

    file_id: FileId
    sha256: Digest
    bytes: int
    format: str | None = None
    samples: int | None = None
    target_class: str | None = None


class ModelRecord(InputRecord):
    """The suspect as the job saw it."""

    architecture: str
    num_classes: int | None = None


class Timestamps(Reply):
    """UTC; null while it has not happened. ``expires``: from when on retention may remove a job that has ended."""

    created: datetime
    started: datetime | None = None
    finished: datetime | None = None
    deadline: datetime
    expires: datetime | None = None


class Job(Reply):
    """A job as clients see it."""

    id: JobId
    type: Literal["sanitize"] = "sanitize"
    status: Status
    phase: Phase | None = None
    progress: Progress | None = None
    attempt: int
    verdict: None = None
    error: Failure | None = None
    model: ModelRecord
    clean_data: InputRecord | None = None
    test_data: InputRecord | None = None
    triggered_data: InputRecord | None = None
    removal: RemovalConfig
    summary: Summary | None = None
    warnings: tuple[str, ...] = ()
    timestamps: Timestamps
    metadata: dict[str, str] = {}
    links: dict[str, str] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def terminal(self) -> bool:
        """Whether the status is final."""
        return self.status in TERMINAL


class JobPage(Reply):
    """Newest first; ``next`` goes into ``after`` for the following page, null on the last."""

    jobs: tuple[Job, ...]
    next: str | None = None


class FilePage(Reply):
    """Newest first; ``next`` goes into ``after`` for the following page, null on the last."""

    files: tuple[File, ...]
    next: str | None = None


# --- how the service is -----------------------------------------------------------------------------

Denial = Literal[
    "resources", "reading", "writing", "attributes", "programs", "tcp", "udp", "unix_sockets", "signals", "processes"
]
LayerState = Literal["active", "unavailable", "broken"]
CheckState = Literal["ok", "note", "broken"]


class SandboxLayer(Reply):
    """One thing that the sandbox denies to the process that reads untrusted files.

    ``active``: an attempt was refused. ``unavailable``: it was not, and ``detail`` says what the kernel lacks.
    ``broken``: it was not, though the kernel had said that it would be.
    """

    name: Denial
    state: LayerState
    detail: str


class WorkerSandbox(Reply):
    """What one worker denies to its intake processes, by its self-test when it started."""

    mode: SandboxMode
    layers: dict[Denial, LayerState]


class Ready(Reply):
    """Jobs are accepted. ``queue`` is how workers hear of them; ``workers`` are those that share the data folder."""

    status: Literal["ready"] = "ready"
    queue: Literal["celery", "polling"]
    workers: tuple[WorkerSandbox, ...] = ()


class Check(Reply):
    """One thing that ``medic doctor`` looked at. A ``note`` is worth knowing, and nothing has to be done about it."""

    name: str
    state: CheckState
    detail: str


class Diagnosis(Reply):
    """All that was looked at, in order."""

    checks: tuple[Check, ...]


# --- what is reported --------------------------------------------------------------------------------


class Measured(Reply):
    """One share of ``n`` images with its Wilson 95 % interval."""

    value: float
    count: int
    n: int
    interval: Interval


class Evaluation(Reply):
    """One model on the test images and on the triggered ones, as far as there are any.

    ``confusion`` has a row for each true class and a column for each predicted one, in the order of ``class_names``.
    """

    clean_accuracy: Measured | None = None
    per_class: dict[str, Measured] = {}
    confusion: tuple[tuple[int, ...], ...] | None = None
    attack_success_rate: Measured | None = None
    recovery_accuracy: Measured | None = None
    triggered_confusion: tuple[tuple[int, ...], ...] | None = None


class Environment(Reply):
    """Where the weights were made: with the same of these, whatever the sandbox, a CPU gives the same bits.

    ``sandbox`` is what was tried in the process that read the inputs.
    """

    medic: str
    torch: str
    python: str
    device: str
    threads: int
    sandbox: tuple[SandboxLayer, ...] = ()


class Judgement(Reply):
    """What one judge said of one clone, with the figures behind it."""

    name: str
    accepted: bool
    detail: str


class TemperatureTrial(Reply):
    """One temperature that ``auto`` tried. ``drop`` is what accuracy fell by on the images that the search held out."""

    temperature: float
    accuracy: Comparison
    drop: float
    accepted: bool
    judgements: tuple[Judgement, ...]


class TemperatureSearch(Reply):
    """How ``auto`` came to its temperature: every trial in order, what was chosen, and why.

    ``holdout_samples`` clean images judged and did not train; the test images are others.
    """

    trials: tuple[TemperatureTrial, ...]
    chosen: float
    accepted: bool
    reason: str
    holdout_samples: int


class Report(Reply):
    """``report.json``: what was measured, on how many images, and which evidence is missing. It never says "clean"."""

    schema_version: Literal[1] = 1
    job_id: JobId
    inputs: dict[Purpose, InputRecord]
    outputs: dict[str, Digest]
    architecture: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    removal: RemovalConfig
    cloned_layers: tuple[str, ...]
    train_samples: int
    test_samples: int
    test_source: Literal["test_data", "holdout"] | None
    target_class: str | None
    before: Evaluation
    after: Evaluation
    summary: Summary
    temperature_search: TemperatureSearch | None = None
    warnings: tuple[str, ...]
    missing_evidence: tuple[str, ...]
    environment: Environment
    seconds: dict[str, float]
