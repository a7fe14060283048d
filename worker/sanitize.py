"""The trainer's work: prepared tensors in; repaired weights, evidence and report out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jobs.models import Evaluation, Phase, Problem, Report
from medic_core.architectures import find_architecture
from medic_core.checks import output_problems, problems_with
from medic_core.config import CloningConfig, Config
from medic_core.data import HOLDOUT_SHARE, Batches, blank, stratified_holdout
from medic_core.errors import MedicError, NonFiniteLossError, WeightRangeError
from medic_core.evaluation import confusion_matrix
from medic_core.removal import Checkpoint, Progress, Suspect, remove_backdoor
from medic_core.removal.medic import layers_to_clone
from worker import report as reporting
from worker.loading.weights import write_twin
from worker.task import OUT_FOLDER, DataRole, Intake, Result, Task, prepared_data, prepared_suspect, refusal

Advance = Callable[[Phase, Progress | None], None]


@dataclass(frozen=True)
class Prepared:
    """What intake wrote, as tensors on the device; images are None where there are none.

    ``blank`` are two black images of the size that the model takes, for what asks no more of images than that.
    """

    suspect: Suspect
    tensors: Mapping[str, Tensor]
    train: Batches | None
    test: Batches | None
    test_source: Literal["test_data", "holdout"] | None
    triggered: Batches | None
    target: int | None
    blank: Batches


def sanitize(
    task: Task,
    intake: Intake,
    task_dir: Path,
    *,
    device: torch.device,
    checkpoint: Checkpoint,
    advance: Advance,
    alive: Callable[[], None],
) -> Result:
    """Repair the suspect of ``task`` and write all that the job gives back into ``task_dir``'s ``out/``.

    Args:
        task: What is asked for.
        intake: What was found in the inputs.
        task_dir: Where intake left its tensors.
        device: To train on.
        checkpoint: Where the state after each epoch goes.
        advance: Told of each phase, and of the progress of cloning.
        alive: Called often, in all phases.

    Returns:
        Summary and artifacts, or a failure that the user can do something about.
    """
    seconds: dict[str, float] = {}
    try:
        with _timed(seconds, "baseline"):
            advance("baseline", None)
            data = _prepare(task, intake, task_dir, device, alive)
            if problems := _problems(data, num_classes=len(intake.class_names)):
                return Result(failure=refusal(problems))
            before = _evaluate(data.suspect.model, data, intake.class_names)
        with _timed(seconds, "clone"):
            advance("clone", None)
            clone, course = _repair(task, data, checkpoint, advance)
            _round_as_given(clone, data.tensors)
        with _timed(seconds, "evaluate"):
            advance("evaluate", None)
            after = _evaluate(clone, data, intake.class_names)
    except MedicError as error:
        return Result(failure=refusal([Problem(code=error.code, detail=each) for each in error.problems]))
    out = task_dir / OUT_FOLDER
    out.mkdir(exist_ok=True)
    made = _write_weights(clone, data.tensors, task, intake, out)
    made |= _write_metrics(course, out)
    report = _report(task, intake, data, before, after, course, seconds, device, out, made)
    (out / "report.json").write_text(report.model_dump_json(indent=2) + "\n")
    return Result(
        summary=report.summary,
        artifacts={**made, "report.json": "application/json"},
        warnings=report.warnings[len(intake.warnings) :],
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 3)


def _prepare(task: Task, intake: Intake, task_dir: Path, device: torch.device, alive: Callable[[], None]) -> Prepared:
    spec = task.spec
    tensors = load_file(prepared_suspect(task_dir))
    architecture = find_architecture(
        spec.model.architecture, num_classes=len(intake.class_names), options=spec.model.options
    )
    model = architecture.build()
    model.load_state_dict(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    )

    def read(role: DataRole) -> Batches:
        stored = load_file(prepared_data(task_dir, role))
        return Batches(stored["images"], stored["labels"], spec.model.preprocessing, alive).to(device)

    train = read("clean") if spec.clean_data else None
    test = read("test") if spec.test_data else None
    if train is not None and test is None:
        kept, held = stratified_holdout(train.labels.cpu(), share=HOLDOUT_SHARE, seed=spec.removal.seed)
        train, test = train.select(kept), train.select(held)
    return Prepared(
        suspect=Suspect(model.to(device).eval(), architecture),
        tensors=tensors,
        train=train,
        test=test,
        test_source="test_data" if spec.test_data else "holdout" if spec.clean_data else None,
        triggered=read("triggered") if spec.triggered_data else None,
        target=intake.class_names.index(spec.triggered_data.target_class) if spec.triggered_data else None,
        blank=blank(spec.model.preprocessing).to(device),
    )


def _problems(data: Prepared, *, num_classes: int) -> list[Problem]:
    """Find every reason why the suspect cannot be repaired, as far as the images that there are can tell."""
    model, images = data.suspect.model, data.train or data.test
    if images is None:
        found = output_problems(model, data.blank, num_classes=num_classes)
    else:
        found = problems_with(model, images, num_classes=num_classes)
    return [Problem(code=each.code, detail=each.detail) for each in found]


def _evaluate(model: nn.Module, data: Prepared, class_names: tuple[str, ...]) -> Evaluation:
    clean, triggered = (
        confusion_matrix(model, images, num_classes=len(class_names)) if images else None
        for images in (data.test, data.triggered)
    )
    return reporting.evaluation(clean, triggered, class_names=class_names, target=data.target)


def _repair(task: Task, data: Prepared, checkpoint: Checkpoint, advance: Advance) -> tuple[nn.Module, Progress]:
    """Return the clone, and the last progress of making it, which holds every epoch and trial."""
    last = Progress(step=0, total_steps=0, history=())

    def heard(progress: Progress) -> None:
        nonlocal last
        last = progress
        advance("clone", progress)

    images = data.train or data.blank  # a method that needs more was given some
    clone = remove_backdoor(data.suspect, images, task.spec.removal, progress=heard, checkpoint=checkpoint)
    return clone, last


@torch.no_grad()
def _round_as_given(clone: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Give weights the precision of the input, in which they will be written, so that those are measured.

    Raises:
        WeightRangeError: Listing those that are too large for it.
        NonFiniteLossError: The last step of training left weights that are no numbers.
    """
    state = clone.state_dict()
    if ruined := [name for name in given if not bool(state[name].isfinite().all())]:
        raise NonFiniteLossError(f"{', '.join(ruined)} became NaN or infinite: lower learning_rate.")
    problems = []
    for name, tensor in given.items():
        rounded = state[name].to(tensor.dtype)
        if not bool(rounded.isfinite().all()):
            dtype = str(tensor.dtype).removeprefix("torch.")
            problems.append(f"{name} of the repaired model has values too large for {dtype}: send the model as float32")
        state[name].copy_(rounded)
    if problems:
        raise WeightRangeError(*problems)


def _write_weights(
    clone: nn.Module, given: Mapping[str, Tensor], task: Task, intake: Intake, out: Path
) -> dict[str, str]:
    """Write the clone with keys, shapes and dtypes of the input: as safetensors, and in the input's own container."""
    state = clone.state_dict()
    tensors = {name: state[name].to("cpu", tensor.dtype).contiguous() for name, tensor in given.items()}
    save_file(tensors, out / "model.safetensors")
    made = {"model.safetensors": "application/octet-stream", "config.json": "application/json"}
    if intake.container and intake.container.format != "safetensors":
        write_twin(out / "model.pth", tensors, intake.container)
        made["model.pth"] = "application/octet-stream"
    config = reporting.model_config(task, intake.class_names)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return made


def _write_metrics(course: Progress, out: Path) -> dict[str, str]:
    (out / "metrics.jsonl").write_text("".join(json.dumps(dict(epoch)) + "\n" for epoch in course.history))
    return {"metrics.jsonl": "application/x-ndjson"}


def _report(
    task: Task,
    intake: Intake,
    data: Prepared,
    before: Evaluation,
    after: Evaluation,
    course: Progress,
    seconds: dict[str, float],
    device: torch.device,
    out: Path,
    made: Mapping[str, str],
) -> Report:
    removal = task.spec.removal
    if isinstance(removal, Config) and removal.epochs is None:
        removal = replace(removal, epochs=len(course.history) // max(1, len(course.trials)))
    search = reporting.temperature_search(course.trials)
    doubts = (*reporting.search_warnings(search), *reporting.micro_batch_warnings(data.suspect.model, removal))
    return Report(
        job_id=task.job_id,
        inputs=reporting.input_records(task, intake),
        outputs=reporting.output_digests(out, made),
        architecture=task.spec.model.architecture,
        class_names=intake.class_names,
        preprocessing=task.spec.model.preprocessing,
        removal=removal,
        cloned_layers=layers_to_clone(data.suspect, data.train, removal).names
        if isinstance(removal, CloningConfig) and data.train
        else (),
        train_samples=len(data.train or ()) - (search.holdout_samples if search else 0),
        test_samples=len(data.test or ()),
        test_source=data.test_source,
        target_class=task.spec.triggered_data.target_class if task.spec.triggered_data else None,
        before=before,
        after=after,
        summary=reporting.summary(before, after),
        temperature_search=search,
        warnings=(*intake.warnings, *doubts),
        missing_evidence=reporting.missing_evidence(triggered=data.triggered is not None, test_source=data.test_source),
        environment=reporting.environment(device, intake),
        seconds=seconds,
    )
