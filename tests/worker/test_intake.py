from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from jobs.models import Denial
from medic_core.architectures import find_architecture
from worker.inspection import inspect
from worker.process import PARENT_PID
from worker.sandbox.probe import probe
from worker.task import INTAKE_FILE, PREPARED_FOLDER, TASK_FILE, Intake, Task, prepared_data, prepared_suspect

ARCHITECTURE = "medic/wide_resnet10_1"
CLASSES = ("ant", "bee", "cat")


def weights(num_classes: int = 3) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(find_architecture(ARCHITECTURE, num_classes=num_classes).build().state_dict())


def images(folders: Mapping[str, int], *, first: int = 0, extra: Mapping[str, bytes] | None = None) -> bytes:
    """A zip of different noise pictures, numbered from ``first``."""
    buffer = io.BytesIO()
    number = first
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder, count in folders.items():
            for i in range(count):
                noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                picture = io.BytesIO()
                Image.fromarray(noise).save(picture, "PNG")
                archive.writestr(f"{folder}/{i:03}.png", picture.getvalue())
                number += 1
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return buffer.getvalue()


EQUAL = dict.fromkeys(CLASSES, 7)


@dataclass
class Job:
    """A task folder to be: what was uploaded, and the spec."""

    folder: Path

    def __post_init__(self) -> None:
        self.files: dict[str, bytes] = {"clean": images(EQUAL)}
        self.model: dict[str, Any] = {"architecture": ARCHITECTURE, "preprocessing": {"input_size": (8, 8)}}
        self.spec: dict[str, Any] = {}
        self.limits: dict[str, int] = {}
        save_file(weights(), self.folder / "model")

    def task(self) -> Task:
        for role, data in self.files.items():
            (self.folder / role).write_bytes(data)
        spec: dict[str, Any] = {"model": {"file_id": "file_model", **self.model}, **self.spec}
        for role in {"clean", *self.files} - {"model"}:
            spec[f"{role}_data"] = {"file_id": f"file_{role}", **self.spec.get(f"{role}_data", {})}
        roles = {"model", *self.files}
        task = {
            "job_id": "job_1",
            "spec": spec,
            "inputs": {role: str(self.folder / role) for role in roles},
            "limits": self.limits,
        }
        return Task.model_validate(task)

    def inspect(self) -> Intake:
        return inspect(self.task(), self.folder)

    def run(self) -> subprocess.CompletedProcess[str]:
        (self.folder / TASK_FILE).write_text(self.task().model_dump_json())
        command = [sys.executable, "-m", "worker.intake", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def found(self) -> Intake:
        return Intake.model_validate_json((self.folder / INTAKE_FILE).read_bytes())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def problems(intake: Intake) -> dict[str, str | None]:
    return {problem.code: problem.pointer for problem in intake.problems}


# --- what is written -------------------------------------------------------------------------------------------------


def test_sound_inputs_are_written_as_our_own_files(job: Job) -> None:
    job.files |= {"test": images({"ant": 2, "cat": 1}, first=100), "triggered": images({"bee": 2}, first=200)}
    job.spec["triggered_data"] = {"target_class": "ant"}
    intake = job.inspect()
    assert intake.problems == ()
    assert intake.class_names == CLASSES
    assert intake.num_classes == 3
    assert intake.container is not None
    assert intake.container.format == "safetensors"
    assert intake.inputs["model"].tensors == len(weights())
    assert intake.inputs["clean"].format == "imagefolder-zip"
    assert intake.inputs["clean"].per_class == EQUAL
    assert [intake.inputs[role].samples for role in ("clean", "test", "triggered")] == [21, 3, 2]
    suspect = load_tensors(prepared_suspect(job.folder))
    assert all(torch.equal(suspect[name], tensor) for name, tensor in weights().items())
    assert suspect.keys() == weights().keys()
    test = load_arrays(prepared_data(job.folder, "test"))
    assert test["images"].shape == (3, 3, 8, 8)
    assert test["images"].dtype == np.uint8
    assert test["labels"].tolist() == [0, 0, 2]
    assert test["labels"].dtype == np.int64


def test_the_suspect_is_written_without_wrapper_and_prefix_and_with_its_dtypes(job: Job) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights().items()}
    torch.save({"net": {f"module.{name}": tensor for name, tensor in half.items()}}, job.folder / "model")
    intake = job.inspect()
    assert intake.problems == ()
    assert intake.container is not None
    assert (intake.container.wrapper, intake.container.prefix) == (("net",), "module.")
    suspect = load_tensors(prepared_suspect(job.folder))
    assert {name: tensor.dtype for name, tensor in suspect.items()} == {name: t.dtype for name, t in half.items()}


def test_the_order_of_class_names_is_the_order_of_labels(job: Job) -> None:
    job.model["class_names"] = ("cat", "ant", "bee")
    intake = job.inspect()
    assert intake.class_names == ("cat", "ant", "bee")
    ordered = load_arrays(prepared_data(job.folder, "clean"))["images"]
    del job.model["class_names"]
    job.inspect()
    assert np.array_equal(ordered[:7], load_arrays(prepared_data(job.folder, "clean"))["images"][14:])


def test_test_images_that_are_also_clean_are_counted(job: Job) -> None:
    job.files["test"] = images({"ant": 4, "bee": 2, "cat": 1}, first=4)
    (warning,) = job.inspect().warnings
    assert warning.startswith("7 test images")
    job.files["test"] = images(EQUAL, first=500)
    assert job.inspect().warnings == ()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_problems_of_all_inputs_are_gathered(job: Job) -> None:
    (job.folder / "model").write_bytes(b"hello")
    job.files = {
        "clean": images(EQUAL, extra={"ant/odd.png": b"x"}),
        "test": b"",
        "triggered": images({"ant": 1}, extra={"../1.png": b"x"}),
    }
    job.spec["triggered_data"] = {"target_class": "ant"}
    assert problems(job.inspect()) == {
        "model_format_unknown": "/model/file_id",
        "archive_empty": "/test_data/file_id",
        "archive_unsafe_name": "/triggered_data/file_id",
        "image_unreadable": "/clean_data/file_id",
    }


def test_the_wrong_architecture_is_told_apart_key_by_key_with_what_fits(job: Job) -> None:
    job.model["architecture"] = "medic/resnet20"
    intake = job.inspect()
    (problem,) = intake.problems
    assert (problem.code, problem.pointer) == ("architecture_mismatch", "/model/architecture")
    for words in ("missing: 'layer1.", "unexpected: 'block1.", "of another shape: 'bn1.weight: expected (16,)"):
        assert words in problem.detail
    assert ARCHITECTURE in problem.detail
    assert intake.inputs["model"].suggested_architectures == (ARCHITECTURE,)


def test_no_more_than_twenty_differences_of_a_kind_are_listed(job: Job) -> None:
    job.model["architecture"] = "torchvision/resnet50"
    (problem,) = job.inspect().problems
    assert problem.detail.count("'layer") <= 20
    assert "more" in problem.detail


@pytest.mark.parametrize(
    ("architecture", "code"),
    [("medic/resnet21", "unknown_architecture"), ("torchvision/inception_v3", "unsupported_architecture")],
)
def test_architectures_that_cannot_be_had_are_refused_by_name(job: Job, architecture: str, code: str) -> None:
    job.model["architecture"] = architecture
    assert problems(job.inspect()) == {code: "/model/architecture"}


def test_integers_are_no_weights(job: Job) -> None:
    name = next(name for name in weights() if name.endswith("weight"))
    save_file({**weights(), name: weights()[name].to(torch.int8)}, job.folder / "model")
    (problem,) = job.inspect().problems
    assert problem.code == "architecture_mismatch"
    assert name in problem.detail


def test_a_missing_class_is_an_error_only_where_the_names_are_unknown(job: Job) -> None:
    job.files["clean"] = images({"ant": 20, "cat": 20})
    assert problems(job.inspect()) == {"class_count_mismatch": "/clean_data/file_id"}
    job.model["class_names"] = CLASSES
    intake = job.inspect()
    assert intake.problems == ()
    (warning,) = intake.warnings
    assert "'bee'" in warning
    assert set(load_arrays(prepared_data(job.folder, "clean"))["labels"].tolist()) == {0, 2}


def test_the_wrong_number_of_classes_is_refused(job: Job) -> None:
    save_file(weights(num_classes=4), job.folder / "model")
    assert problems(job.inspect()) == {"class_count_mismatch": "/clean_data/file_id"}
    job.model["class_names"] = CLASSES
    assert problems(job.inspect()) == {"class_count_mismatch": "/model/class_names"}


def test_unknown_folders_and_targets_are_refused_where_they_are(job: Job) -> None:
    job.files |= {"test": images({"ant": 1, "dog": 1}), "triggered": images({"bee": 1})}
    job.spec["triggered_data"] = {"target_class": "dog"}
    intake = job.inspect()
    assert [(problem.code, problem.pointer) for problem in intake.problems] == [
        ("unknown_class", "/test_data/file_id"),
        ("unknown_class", "/triggered_data/target_class"),
    ]


def test_too_few_images_are_refused(job: Job) -> None:
    job.files["clean"] = images({"ant": 6, "bee": 6, "cat": 6})
    assert problems(job.inspect()) == {"data_too_small": "/clean_data/file_id"}


def test_not_finite_weights_are_refused_by_name(job: Job) -> None:
    tensors = weights()
    tensors["fc.weight"][0, 0] = float("nan")
    save_file(tensors, job.folder / "model")
    (problem,) = job.inspect().problems
    assert problem.code == "model_not_finite"
    assert "'fc.weight'" in problem.detail


# --- as a process ----------------------------------------------------------------------------------------------------


def test_the_process_ends_well_for_sound_inputs_and_for_problems(job: Job) -> None:
    done = job.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert job.found().problems == ()
    job.files["clean"] = b"hello"
    assert job.run().returncode == 0
    assert problems(job.found()) == {"archive_format_unknown": "/clean_data/file_id"}


def packed(mode: str, image_format: str) -> bytes:
    """The same pictures in a tar of another image format."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(images(EQUAL))) as source, tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name in source.namelist():
            picture = io.BytesIO()
            Image.open(source.open(name)).save(picture, image_format)
            member = tarfile.TarInfo(name)
            member.size = picture.tell()
            picture.seek(0)
            archive.addfile(member, picture)
    return buffer.getvalue()


@pytest.mark.parametrize(("mode", "image_format"), [("w", "JPEG"), ("w:gz", "WEBP")])
def test_the_process_reads_in_its_sandbox_what_can_be_read_outside(job: Job, mode: str, image_format: str) -> None:
    torch.save({"state_dict": weights()}, job.folder / "model")
    job.files |= {"clean": packed(mode, image_format), "test": images({"ant": 2}, first=100)}
    assert job.run().returncode == 0
    found = job.found()
    assert found.problems == ()
    pictures = load_arrays(prepared_data(job.folder, "clean"))["images"]
    assert found.model_copy(update={"sandbox": ()}) == job.inspect()
    assert np.array_equal(pictures, load_arrays(prepared_data(job.folder, "clean"))["images"])


def test_the_process_says_what_was_denied_to_it_while_it_read(job: Job) -> None:
    assert job.run().returncode == 0
    states = {layer.name: layer.state for layer in job.found().sandbox}
    assert list(states) == list(get_args(Denial))
    assert states == {layer.name: layer.state for layer in probe()}


def test_the_process_writes_nowhere_but_into_its_own_folder(job: Job) -> None:
    before = {path.name for path in job.folder.iterdir()} | {TASK_FILE, "clean", PREPARED_FOLDER}
    assert job.run().returncode == 0
    assert {path.name for path in job.folder.iterdir()} == before
    assert job.task() == Task.model_validate_json((job.folder / TASK_FILE).read_bytes())


class _Hungry:
    """Allowed by ``weights_only``, and asks for 64 TiB."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (2**46,)


def test_what_takes_more_memory_than_the_process_may_have_is_a_problem_of_its_own(job: Job) -> None:
    torch.save({"state_dict": weights(), "extra": _Hungry()}, job.folder / "model")
    assert job.run().returncode == 0
    assert problems(job.found()) == {"input_too_large": "/model/file_id"}


def test_a_crash_is_told_apart_from_a_refusal(job: Job) -> None:
    (job.folder / TASK_FILE).write_text("{}")
    command = [sys.executable, "-m", "worker.intake", str(job.folder)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0
    assert not (job.folder / INTAKE_FILE).exists()


def test_limits_are_set_on_the_process_and_too_much_cpu_ends_it(job: Job) -> None:
    job.limits["cpu_seconds"] = 1
    assert job.run().returncode == -signal.SIGXCPU
    assert not (job.folder / INTAKE_FILE).exists()


def test_a_child_whose_parent_is_another_than_it_was_told_ends_at_once(job: Job) -> None:
    (job.folder / TASK_FILE).write_text(job.task().model_dump_json())
    command = [sys.executable, "-m", "worker.intake", str(job.folder)]
    environment = {**os.environ, PARENT_PID: "1"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL


_PARENT = """
import subprocess, sys, time
code = "import time; from worker.process import *; die_with_parent(); print('ready', flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 5
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_task_module_imports_no_torch() -> None:
    code = "import sys, worker.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_task_survives_its_file(job: Job) -> None:
    task = job.task()
    assert Task.model_validate_json(task.model_dump_json()) == task
    assert json.loads(task.model_dump_json())["inputs"]["test"] is None
