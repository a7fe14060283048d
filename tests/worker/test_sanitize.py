"""What the trainer writes into the report, from inputs that intake has read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.tiny import ARCHITECTURE, make_inputs
from jobs.models import Report, TemperatureSearch
from medic_core.removal.training import NoCheckpoint
from tests.threads import one_thread
from worker.inspection import inspect
from worker.sanitize import sanitize
from worker.task import Result, Task


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


def sanitized(inputs: Path, folder: Path, **removal: object) -> tuple[Result, Report]:
    small = {} if removal.get("method") == "lipschitz_pruning" else SMALL  # which it does not take
    task = Task.model_validate(
        {
            "job_id": "job_1",
            "spec": {
                "model": {"file_id": "f", "architecture": ARCHITECTURE, "preprocessing": {"input_size": (16, 16)}},
                "clean_data": {"file_id": "f"},
                "test_data": {"file_id": "f"},
                "removal": {**small, **removal},
            },
            "inputs": {
                "model": inputs / "suspect.pth",
                "clean": inputs / "clean.zip",
                "test": inputs / "test.zip",
            },
        }
    )
    intake = inspect(task, folder)
    result = sanitize(
        task, intake, folder, device=torch.device("cpu"), checkpoint=NoCheckpoint(), advance=lambda _, __: None
    )
    assert result.failure is None, result.failure
    return result, Report.model_validate_json((folder / "out/report.json").read_bytes())


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
