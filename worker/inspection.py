"""Parse what users sent, write our own files or every reason against it. Runs in the intake process only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors

from jobs.models import JobSpec, Problem, Purpose
from worker.exhaustion import is_out_of_memory, is_too_large
from worker.loading.classes import check_enough, check_folders, check_target, missing_classes, settle_class_names
from worker.loading.fit import check_fit, suggestions
from worker.loading.images import Layout, read_images, read_layout
from worker.loading.refusal import RefusedError, listed
from worker.loading.weights import Weights, load_weights
from worker.task import (
    PREPARED_FOLDER,
    Container,
    DataRole,
    InputFindings,
    Intake,
    Task,
    prepared_data,
    prepared_suspect,
)


class Findings:
    """What has been found so far, and every reason against it."""

    def __init__(self) -> None:
        self.inputs: dict[Purpose, InputFindings] = {}
        self.warnings: list[str] = []
        self.problems: list[Problem] = []

    @contextmanager
    def gathering(self, pointer: str) -> Iterator[None]:
        """Note a refusal and go on after the block; reasons that do not point elsewhere point to ``pointer``."""
        try:
            yield
        except RefusedError as refusal:
            self.problems += [
                problem if problem.pointer else problem.model_copy(update={"pointer": pointer})
                for problem in refusal.problems
            ]
        except Exception as error:
            if not (is_out_of_memory(error) or is_too_large(error)):
                raise
            detail = "Reading it takes more memory or disk than one job may have. Send a smaller file."
            self.problems.append(Problem(code="input_too_large", detail=detail, pointer=pointer))


def inspect(task: Task, folder: Path) -> Intake:
    """Read every input, write what can be written under ``prepared/``, and gather the problems of all of them."""
    (folder / PREPARED_FOLDER).mkdir(exist_ok=True)
    findings = Findings()
    model = _take_model(task, folder, findings)
    class_names = _take_data(task, folder, model.outputs, findings)
    return Intake(
        class_names=class_names,
        num_classes=model.outputs,
        container=model.container,
        inputs=findings.inputs,
        warnings=tuple(findings.warnings),
        problems=tuple(findings.problems),
    )


# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    container: Container | None = None
    outputs: int | None = None


def _take_model(task: Task, folder: Path, findings: Findings) -> _Model:
    weights: Weights | None = None
    with findings.gathering("/model/file_id"):
        weights = load_weights(task.inputs.model, task.limits)
        save_tensors(dict(weights.tensors), prepared_suspect(folder))
    if weights is None:
        return _Model()
    seen = InputFindings(format=weights.container.format, tensors=len(weights.tensors))
    findings.inputs["model"] = seen
    findings.warnings += weights.warnings
    with findings.gathering("/model/architecture"):
        return _Model(weights.container, check_fit(weights, task.spec.model))
    findings.inputs["model"] = seen.model_copy(update={"suggested_architectures": suggestions(weights)})
    return _Model(weights.container)


# --- the data --------------------------------------------------------------------------------------------------------


def _take_data(task: Task, folder: Path, outputs: int | None, findings: Findings) -> tuple[str, ...]:
    layouts: dict[DataRole, Layout] = {}
    for role, path in task.inputs.data().items():
        with findings.gathering(_pointer(role)):
            layouts[role] = read_layout(path, task.limits)
            findings.inputs[role] = _findings_of(layouts[role])
    class_names: tuple[str, ...] = ()
    named_by: DataRole = "clean" if task.inputs.clean else "test"
    with findings.gathering(_pointer(named_by)):
        class_names = settle_class_names(task.spec.model.class_names, layouts.get(named_by), outputs)
    if not (class_names or task.inputs.clean or task.inputs.test):
        class_names = tuple(map(str, range(outputs or 0)))
    digests: dict[DataRole, Counter[bytes]] = {}
    for role, layout in layouts.items():
        _check_layout(role, layout, class_names, task.spec, findings)
        with findings.gathering(_pointer(role)):
            digests[role] = _write_images(role, layout, class_names, task, folder)
    findings.warnings += _shared_images(digests)
    return class_names


def _pointer(role: DataRole) -> str:
    return f"/{role}_data/file_id"


def _findings_of(layout: Layout) -> InputFindings:
    return InputFindings(
        format=f"imagefolder-{layout.format}", samples=len(layout.folders), per_class=layout.per_class()
    )


def _check_layout(
    role: DataRole, layout: Layout, class_names: tuple[str, ...], spec: JobSpec, findings: Findings
) -> None:
    if class_names:  # else there is nothing to compare with
        with findings.gathering(_pointer(role)):
            check_folders(layout, class_names)
    if role == "clean":
        with findings.gathering(_pointer(role)):
            check_enough(layout)
    if role == "triggered" and spec.triggered_data is not None:
        with findings.gathering(_pointer(role)):
            check_target(layout, class_names, spec.triggered_data.target_class)
    elif class_names and (missing := missing_classes(layout, class_names)):
        findings.warnings.append(f"The {role} data has no images of {len(missing)} classes: {listed(missing)}.")


def _write_images(
    role: DataRole, layout: Layout, class_names: tuple[str, ...], task: Task, folder: Path
) -> Counter[bytes]:
    """Decode and write one archive, and return what its pictures hash to. Where classes are in dispute its own do."""
    names = class_names if set(layout.class_names) <= set(class_names) else layout.class_names
    size = task.spec.model.preprocessing.input_size
    found = read_images(task.inputs.data()[role], layout, names, size=size, limits=task.limits)
    save_arrays({"images": found.images, "labels": found.labels}, prepared_data(folder, role))
    return found.digests()


def _shared_images(digests: dict[DataRole, Counter[bytes]]) -> list[str]:
    clean, test = digests.get("clean", Counter()), digests.get("test", Counter())
    shared = sum(count for digest, count in test.items() if digest in clean)
    return [f"{shared} test images are also in the clean data, so the figures flatter the repair."] if shared else []
