"""What the trainer writes into the report, from inputs that intake has read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import worker.sanitize
from benchmarks.tiny import ARCHITECTURE, CLASSES, TARGET, make_inputs
from jobs.models import Report, TemperatureSearch
from medic_core.data import Batches
from medic_core.evaluation import confusion_matrix
from medic_core.removal.training import NoCheckpoint
from medic_core.suspect import Suspect
from tests.threads import one_thread
from worker.children import EVENTS_FD
from worker.inspection import inspect
from worker.sanitize import sanitize
from worker.task import INTAKE_FILE, TASK_FILE, Result, Task


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


SMALL = {"epochs": 1, "batch_size": 16, "horizontal_flip": False, "crop_padding": 1}


def task_of(inputs: Path, *roles: str, class_names: list[str] | None = None, **removal: object) -> Task:
    small = {} if removal.get("method") == "lipschitz_pruning" else SMALL  # which it does not take
    sections: dict[str, dict[str, str]] = {f"{role}_data": {"file_id": "f"} for role in roles}
    if "triggered" in roles:
        sections["triggered_data"]["target_class"] = TARGET
    model = {"file_id": "f", "architecture": ARCHITECTURE, "preprocessing": {"input_size": (16, 16)}}
    return Task.model_validate(
        {
            "job_id": "job_1",
            "spec": {"model": {**model, "class_names": class_names}, **sections, "removal": {**small, **removal}},
            "inputs": {"model": inputs / "suspect.pth", **{role: inputs / f"{role}.zip" for role in roles}},
        }
    )


def run(task: Task, folder: Path) -> Result:
    intake = inspect(task, folder)
    assert intake.problems == ()
    return sanitize(
        task,
        intake,
        folder,
        device=torch.device("cpu"),
        checkpoint=NoCheckpoint(),
        advance=lambda _, __: None,
        alive=lambda: None,
    )


def reported(task: Task, folder: Path) -> tuple[Result, Report]:
    result = run(task, folder)
    assert result.failure is None, result.failure
    return result, Report.model_validate_json((folder / "out/report.json").read_bytes())


def sanitized(inputs: Path, folder: Path, **removal: object) -> tuple[Result, Report]:
    return reported(task_of(inputs, "clean", "test", **removal), folder)


def search_of(report: Report) -> TemperatureSearch:
    assert report.temperature_search is not None
    return report.temperature_search


def test_the_report_says_what_auto_tried_and_why_it_chose(inputs: Path, tmp_path: Path) -> None:
    result, report = sanitized(inputs, tmp_path, method="auto", runs=2, accuracy_budget=1.0)
    search = search_of(report)
    assert [trial.accepted for trial in search.trials] == [True, True]
    assert (search.chosen, search.accepted) == (search.trials[1].temperature, True)
    chosen = search.trials[1]
    assert chosen.accuracy.before - chosen.accuracy.after == pytest.approx(chosen.drop)
    assert chosen.accuracy.n == search.holdout_samples == 18  # a fifth of the clean images, none of the 150 test images
    assert [judgement.name for judgement in chosen.judgements] == ["accuracy"]
    assert search.reason.startswith("Temperature 2.83 is the largest of 2 tried")
    assert chosen.judgements[0].detail in search.reason
    assert (report.train_samples, report.test_samples) == (72, 150)
    assert result.warnings == report.warnings == ()
    assert report.removal.method == "auto"
    assert len(report.cloned_layers) == 7
    rows = [json.loads(row) for row in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [(row["run"], row["epoch"]) for row in rows] == [(1, 1), (2, 1)]
    assert [row["temperature"] for row in rows] == [trial.temperature for trial in search.trials]


def test_a_budget_that_no_temperature_kept_is_a_warning_of_job_and_report(inputs: Path, tmp_path: Path) -> None:
    untaught = {"learning_rate": 1e-6}
    result, report = sanitized(inputs, tmp_path, method="auto", runs=2, **untaught)
    search = search_of(report)
    assert not search.accepted
    assert min(trial.drop for trial in search.trials) > 0
    assert result.warnings == report.warnings == (search.reason,)
    assert search.reason.startswith("No clone of 2 temperatures tried is accepted")


def test_a_method_that_does_not_search_reports_no_search(inputs: Path, tmp_path: Path) -> None:
    result, report = sanitized(inputs, tmp_path, method="medic")
    assert report.temperature_search is None
    assert result.warnings == ()
    assert report.train_samples == 90


def test_the_report_says_that_batch_normalisation_saw_micro_batches_only(inputs: Path, tmp_path: Path) -> None:
    result, report = sanitized(inputs, tmp_path, micro_batch_size=4)
    (warning,) = [each for each in report.warnings if "micro-batches of up to 4" in each]
    assert warning in result.warnings
    assert not any("mixed" in each for each in report.warnings)


def test_the_report_says_where_micro_batches_are_too_small_for_pairs(inputs: Path, tmp_path: Path) -> None:
    result, _ = sanitized(inputs, tmp_path, micro_batch_size=2)
    assert any("mixed" in each for each in result.warnings)


def test_the_report_holds_the_number_of_epochs_that_was_trained(inputs: Path, tmp_path: Path) -> None:
    _, report = sanitized(inputs, tmp_path, epochs=None, method="scratch")
    assert report.removal.epochs == len((tmp_path / "out/metrics.jsonl").read_text().splitlines()) > 60


def test_the_report_keeps_epochs_that_were_asked_for_where_there_are_further_stages(
    inputs: Path, tmp_path: Path
) -> None:
    _, report = sanitized(inputs, tmp_path, method="attention_distillation", teacher_epochs=2)
    assert (report.removal.epochs, report.removal.teacher_epochs) == (1, 2)
    rows = [json.loads(row) for row in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [(1, 1), (1, 2), (2, 1)]


def test_a_method_without_training_has_a_report_too(inputs: Path, tmp_path: Path) -> None:
    _, report = sanitized(inputs, tmp_path, method="lipschitz_pruning")
    assert report.removal.method == "lipschitz_pruning"
    assert (tmp_path / "out/metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("roles", [(), ("test",), ("triggered",), ("test", "triggered"), ("clean",)])
def test_a_method_that_takes_no_images_is_measured_on_what_there_is(
    roles: tuple[str, ...], inputs: Path, tmp_path: Path
) -> None:
    names = list(CLASSES) if roles == ("triggered",) else None  # else they are those of the folders
    _, report = reported(task_of(inputs, *roles, class_names=names, method="lipschitz_pruning"), tmp_path)
    accuracy, success = report.summary.clean_accuracy, report.summary.attack_success_rate
    assert (accuracy is not None, success is not None) == ("test" in roles or "clean" in roles, "triggered" in roles)
    assert (report.summary.defense_effectiveness_rating is not None) == (roles == ("test", "triggered"))
    sizes = (report.test_source, report.train_samples, report.test_samples)
    if "test" in roles:
        assert sizes == ("test_data", 0, 150)
    else:
        assert sizes == (("holdout", 72, 18) if "clean" in roles else (None, 0, 0))
    assert report.class_names == (("0", "1", "2") if roles == () else CLASSES)
    assert len(report.missing_evidence) == ("test" not in roles) + ("triggered" not in roles)


def test_without_images_a_suspect_that_does_not_work_is_refused_all_the_same(inputs: Path, tmp_path: Path) -> None:
    broken = torch.load(inputs / "suspect.pth", weights_only=True)
    broken["state_dict"]["fc.bias"].fill_(3e38)
    broken["state_dict"]["fc.weight"].fill_(3e38)
    torch.save(broken, tmp_path / "suspect.pth")
    result = run(task_of(tmp_path, method="lipschitz_pruning"), tmp_path)
    assert result.failure is not None
    assert result.failure.code == "model_not_finite"


def halved(inputs: Path, folder: Path) -> Path:
    """The same inputs, with the weights in half precision."""
    for name in ("clean.zip", "test.zip"):
        (folder / name).symlink_to(inputs / name)
    given = torch.load(inputs / "suspect.pth", weights_only=True)["state_dict"]
    half = {name: each.half() if each.is_floating_point() else each for name, each in given.items()}
    torch.save(half, folder / "suspect.pth")
    return folder


def test_what_is_measured_is_what_is_delivered_in_the_precision_of_the_input(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[dict[str, Tensor]] = []

    def spy(model: nn.Module, images: Batches, *, num_classes: int) -> Tensor:
        measured.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return confusion_matrix(model, images, num_classes=num_classes)

    monkeypatch.setattr(worker.sanitize, "confusion_matrix", spy)
    reported(task_of(halved(inputs, tmp_path), "clean", "test"), tmp_path)
    delivered = load_file(tmp_path / "out/model.safetensors")
    assert {each.dtype for each in delivered.values()} == {torch.float16, torch.int64}
    assert all(
        torch.equal(measured[-1][name], tensor.to(measured[-1][name].dtype)) for name, tensor in delivered.items()
    )


@pytest.mark.parametrize(("value", "code"), [(7e4, "weights_out_of_range"), (math.nan, "nan_loss")])
def test_weights_that_the_precision_of_the_input_cannot_hold_are_refused(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, code: str
) -> None:
    def changed(suspect: Suspect, *_: object, **__: object) -> nn.Module:
        clone = suspect.trainable(torch.device("cpu"))
        with torch.no_grad():
            clone.get_parameter("fc.weight").fill_(value)
        return clone

    monkeypatch.setattr(worker.sanitize, "remove_backdoor", changed)
    result = run(task_of(halved(inputs, tmp_path), "clean", "test"), tmp_path)
    assert result.failure is not None
    assert result.failure.code == code
    assert "fc.weight" in result.failure.message
    assert not (tmp_path / "out").exists()


COUNTS_SUBNORMAL = """
import sys
from pathlib import Path
import torch
from worker import trainer

def look(*_, **__):
    print(int((torch.full((10**6,), 1e-39) * 1).count_nonzero()))
    sys.exit()

trainer.sanitize = look
trainer.train(Path(sys.argv[1]))
"""


def test_a_trainer_takes_no_time_for_what_is_all_but_zero_on_none_of_its_threads(inputs: Path, tmp_path: Path) -> None:
    task = task_of(inputs, "clean").model_copy(update={"threads": 2})
    (tmp_path / INTAKE_FILE).write_text(inspect(task, tmp_path).model_dump_json())
    (tmp_path / TASK_FILE).write_text(task.model_dump_json())
    command = [sys.executable, "-c", COUNTS_SUBNORMAL, tmp_path]
    ended = subprocess.run(command, env={**os.environ, EVENTS_FD: "2"}, capture_output=True, text=True)
    assert ended.stdout == "0\n", ended.stderr
