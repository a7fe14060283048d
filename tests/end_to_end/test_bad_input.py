"""Bad input never gets a 500 and never hangs: each ends with its own code, and the next honest job succeeds."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.stack import Stack, wait_ended
from benchmarks.tiny import CLASSES, archive, images
from jobs.models import DataSpec, FileId, Job, JobSpec
from medic_client.client import MedicClient
from medic_client.errors import MedicApiError
from tests.worker.test_loading_archives import honest_zip_bomb

Case = Callable[[Stack, Path], JobSpec]
CASES: dict[str, tuple[Case, str]] = {}


def case(code: str) -> Callable[[Case], Case]:
    def keep(make: Case) -> Case:
        CASES[make.__name__] = (make, code)
        return make

    return keep


def with_model(running: Stack, path: Path, **changes: Any) -> JobSpec:
    spec = running.spec()
    return spec.model_copy(update={"model": spec.model.model_copy(update={"file_id": FileId(str(path)), **changes})})


def with_clean(running: Stack, folder: Path, data: bytes) -> JobSpec:
    path = folder / "data.zip"
    path.write_bytes(data)
    return running.spec().model_copy(update={"clean_data": DataSpec(file_id=FileId(str(path)))})


def repacked(running: Stack, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(running.inputs / "clean.zip") as source, zipfile.ZipFile(buffer, "w") as out:
        for name in source.namelist():
            if changed := change(name, source.read(name)):
                out.writestr(*changed)
    return buffer.getvalue()


@case("architecture_mismatch")
def wrong_architecture(running: Stack, _: Path) -> JobSpec:
    return with_model(running, running.inputs / "suspect.pth", architecture="medic/resnet20")


@case("unknown_architecture")
def unknown_architecture(running: Stack, _: Path) -> JobSpec:
    return with_model(running, running.inputs / "suspect.pth", architecture="medic/wide_resnet10_one")


@case("class_count_mismatch")
def wrong_class_count(running: Stack, _: Path) -> JobSpec:
    return with_model(running, running.inputs / "suspect.pth", class_names=("blue", "green", "red", "yellow"))


@case("class_count_mismatch")
def one_class_missing_where_class_names_are_unknown(running: Stack, folder: Path) -> JobSpec:
    return with_clean(running, folder, repacked(running, lambda n, d: None if n.startswith("green") else (n, d)))


@case("model_format_unknown")
def text_file_as_model(running: Stack, folder: Path) -> JobSpec:
    (folder / "model.pth").write_text("these are not weights\n" * 50)
    return with_model(running, folder / "model.pth")


class Gadget:
    """Would leave a file where ``CANARY`` says, if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["MEDIC_TEST_CANARY"],)


@case("model_unsafe_globals")
def pickle_with_code(running: Stack, folder: Path) -> JobSpec:
    torch.save(
        {"state_dict": torch.load(running.inputs / "suspect.pth", weights_only=True), "x": Gadget()}, folder / "m"
    )
    return with_model(running, folder / "m")


@case("model_unsafe_globals")
def bare_pickle_with_code(running: Stack, folder: Path) -> JobSpec:
    (folder / "m").write_bytes(pickle.dumps(Gadget(), protocol=2))
    return with_model(running, folder / "m")


@case("model_not_finite")
def nan_weights(running: Stack, folder: Path) -> JobSpec:
    kept = torch.load(running.inputs / "suspect.pth", weights_only=True)
    kept["state_dict"]["fc.weight"][0, 0] = float("nan")
    torch.save(kept, folder / "m")
    return with_model(running, folder / "m")


@case("archive_unsafe_name")
def zip_with_parent_names(running: Stack, folder: Path) -> JobSpec:
    return with_clean(running, folder, repacked(running, lambda n, d: (n.replace("red/", "../red/"), d)))


@case("archive_too_large")
def zip_bomb_of_10_gb(running: Stack, folder: Path) -> JobSpec:
    return with_clean(running, folder, honest_zip_bomb())


@case("image_unreadable")
def one_corrupt_png_among_many(running: Stack, folder: Path) -> JobSpec:
    return with_clean(running, folder, repacked(running, lambda n, d: (n, d[:100] if n.endswith("0007.png") else d)))


@case("baseline_below_chance")
def labels_shuffled(running: Stack, folder: Path) -> JobSpec:
    pixels, labels = images(90, seed=2)
    return with_clean(running, folder, archive(pixels, labels[torch.randperm(90)]))


@case("archive_empty")
def empty_archive(running: Stack, folder: Path) -> JobSpec:
    return with_clean(running, folder, repacked(running, lambda _n, _d: None))


@case("data_too_small")
def too_few_images(running: Stack, folder: Path) -> JobSpec:
    return with_clean(running, folder, archive(*images(6, seed=2)))


@case("unknown_class")
def unknown_target_class(running: Stack, _: Path) -> JobSpec:
    spec = running.spec()
    assert spec.triggered_data is not None
    return spec.model_copy(update={"triggered_data": spec.triggered_data.model_copy(update={"target_class": "purple"})})


@case("layer_not_found")
def unknown_layer(running: Stack, _: Path) -> JobSpec:
    return running.spec(layers=("conv1", "nowhere"))


@pytest.fixture(scope="module", autouse=True)
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("canary") / "executed"
    os.environ["MEDIC_TEST_CANARY"] = str(path)
    return path


@pytest.mark.parametrize(("make", "code"), CASES.values(), ids=CASES.keys())
def test_ends_with_its_own_code(
    make: Case, code: str, running: Stack, client: MedicClient, tmp_path: Path, canary: Path
) -> None:
    job = wait_ended(client, client.sanitize(make(running, tmp_path)).id, seconds=60)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.error_class) == (code, "user")
    assert job.error.problems
    assert all(problem.detail for problem in job.error.problems)
    assert job.timestamps.started is not None
    assert job.timestamps.finished is not None
    assert (job.timestamps.finished - job.timestamps.started).total_seconds() <= 30
    assert not canary.exists()


def test_a_wrong_architecture_is_told_what_fits(running: Stack, client: MedicClient) -> None:
    job = wait_ended(client, client.sanitize(wrong_architecture(running, Path())).id)
    assert job.error is not None
    said = " ".join(problem.detail for problem in job.error.problems)
    assert "medic/wide_resnet10_1" in said
    assert "block1.layer.0.conv1.weight" in said


def test_a_missing_class_is_only_a_warning_where_class_names_are_known(
    running: Stack, client: MedicClient, tmp_path: Path
) -> None:
    spec = one_class_missing_where_class_names_are_unknown(running, tmp_path)
    known = spec.model_copy(update={"model": spec.model.model_copy(update={"class_names": CLASSES})})
    job = wait_ended(client, client.sanitize(known).id)
    assert job.status == "succeeded"
    assert any("green" in warning for warning in job.warnings)


def test_every_problem_of_every_input_is_listed(running: Stack, client: MedicClient, tmp_path: Path) -> None:
    spec = with_clean(running, tmp_path, repacked(running, lambda _n, _d: None))
    both = spec.model_copy(update={"model": nan_weights(running, tmp_path).model})
    job = wait_ended(client, client.sanitize(both).id)
    assert job.error is not None
    assert {problem.code for problem in job.error.problems} >= {"model_not_finite", "archive_empty"}


def test_a_spec_that_names_no_such_file_is_refused_at_once(running: Stack, client: MedicClient) -> None:
    with pytest.raises(MedicApiError) as refused:
        client.create_job(running.spec())
    assert refused.value.status == 422


def test_the_next_honest_job_succeeds(running: Stack, client: MedicClient) -> None:
    job: Job = wait_ended(client, client.sanitize(running.spec(epochs=1)).id)
    assert job.status == "succeeded"
